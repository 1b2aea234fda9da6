"""The bounds of what is kept, and what makes two results different ones."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.sql.cache import ExactTexts, ResultCache, ResultKey, generation
from bench.sql import Latest
from policies.sql import Statement

KEY = ResultKey(tenant="a", database="d", generation=(1, 2, 3, 4), canonical="SELECT 1", limit=10, max_bytes=100)


def _key(number: int) -> ResultKey:
    return replace(KEY, canonical=f"SELECT {number}")


def test_a_result_is_found_by_an_equal_key_only() -> None:
    cache = ResultCache(10_000)
    cache.put(KEY, b"rows", seconds=1)
    assert cache.get(replace(KEY)) == b"rows"
    others = [
        replace(KEY, tenant="b"),
        replace(KEY, database="e"),
        replace(KEY, generation=(1, 2, 3, 5)),
        replace(KEY, canonical="SELECT 2"),
        replace(KEY, limit=11),
        replace(KEY, max_bytes=101),
        replace(KEY, encoding=KEY.encoding + 1),
        replace(KEY, tenant="ad", database=""),
    ]
    assert [cache.get(other) for other in others] == [None] * len(others)


def test_what_saves_the_least_for_its_bytes_and_uses_goes_first() -> None:
    cache = ResultCache(3 * 500)
    for number, seconds in enumerate([0.4, 0.2, 0.1]):
        cache.put(_key(number), b"x" * 100, seconds=seconds)
    for _ in range(9):
        assert cache.get(_key(2)) is not None
    cache.put(_key(3), b"x" * 50, seconds=0.5)
    assert _kept(cache, 4) == [0, 2, 3], "0.2 s are the least: the third was wanted ten times"
    cache.put(_key(4), b"x" * 50, seconds=2.0)
    assert _kept(cache, 5) == [2, 3, 4], "the fourth saves more for its bytes than the first"


@pytest.mark.parametrize(("size", "seconds"), [(100, 0.001), (700, 2.0)])
def test_what_is_cheaper_to_run_again_than_what_would_go_for_it_is_not_kept(size: int, seconds: float) -> None:
    cache = ResultCache(3 * 500)
    for number in range(3):
        cache.put(_key(number), b"x" * 100, seconds=0.1 * (number + 1) ** 3)
    cache.put(_key(3), b"x" * size, seconds=seconds)
    assert _kept(cache, 4) == [0, 1, 2]
    assert cache.used == 1500


def test_what_nobody_wants_any_more_goes_however_dear_it_was() -> None:
    cache = ResultCache(500)
    cache.put(_key(0), b"x" * 100, seconds=1.0)
    for _ in range(30):
        if cache.get(_key(1)) is None:
            cache.put(_key(1), b"x" * 100, seconds=0.1)
    assert _kept(cache, 2) == [1]


def test_more_seconds_are_saved_than_by_keeping_what_was_used_last() -> None:
    rng = random.Random(1)
    queries = [(_key(number), b"x" * rng.randrange(80, 20_000), rng.expovariate(100)) for number in range(100)]
    bound = sum(len(result) for _, result, _ in queries) // 10
    caches: list[ResultCache | Latest] = [ResultCache(bound), Latest(bound)]
    saved = [0.0, 0.0]
    for key, result, seconds in rng.choices(queries, [1 / (rank + 1) for rank in range(100)], k=3000):
        for place, kept in enumerate(caches):
            if kept.get(key) is not None:
                saved[place] += seconds
            else:
                kept.put(key, result, seconds=seconds)
    assert saved[0] > 1.2 * saved[1]


def test_a_result_above_the_bound_is_not_kept_and_drops_its_older_self() -> None:
    cache = ResultCache(1000)
    cache.put(KEY, b"small", seconds=1)
    cache.put(KEY, b"x" * 1000, seconds=1)
    assert cache.get(KEY) is None
    assert (len(cache), cache.used) == (0, 0)


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 3000), st.floats(0, 10)), max_size=60),
    st.integers(0, 8000),
)
def test_the_bound_in_bytes_holds_whatever_is_put(puts: list[tuple[int, int, float]], bound: int) -> None:
    cache = ResultCache(bound)
    for number, size, seconds in puts:
        cache.put(_key(number), b"x" * size, seconds=seconds)
        assert 0 <= cache.used <= bound
        kept = cache.get(_key(number))
        assert kept is None or len(kept) == size
    assert (cache.used == 0) == (len(cache) == 0)


def _kept(cache: ResultCache, most: int) -> list[int]:
    """Which keys below a number are kept; asking counts as a use of each."""
    return [number for number in range(most) if cache.get(_key(number)) is not None]


def test_a_file_that_is_replaced_or_grows_is_another_generation(tmp_path: Path) -> None:
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_bytes(b"one")
    other.write_bytes(b"two")
    os.utime(path, ns=(5, 5))
    os.utime(other, ns=(5, 5))
    first = generation(str(path))
    assert generation(str(path)) == first
    other.rename(path)
    second = generation(str(path))
    path.write_bytes(b"three")
    os.utime(path, ns=(5, 5))
    third = generation(str(path))
    path.rename(other)
    other.rename(path)
    assert len({first, second, third, generation(str(path))}) == 4, "also where an old one is put back"


def test_statements_are_kept_by_exact_text_and_dialect_within_a_bound() -> None:
    texts = ExactTexts(max_entries=2)
    statements = [
        Statement(canonical=str(number), tables=frozenset(), deterministic=True, unlimited=True)
        for number in range(3)
    ]
    texts.put("select 0", "duckdb", statements[0])
    texts.put("select 1", "duckdb", statements[1])
    assert texts.get("select 0") is statements[0]
    assert texts.get("SELECT 0") is None
    assert texts.get("select 0", "mysql") is None
    texts.put("select 2", "duckdb", statements[2])
    assert texts.get("select 1") is None
    assert texts.get("select 0") is statements[0]
    assert len(texts) == 2
    texts.put("\ud800", "duckdb", statements[1])
    assert texts.get("\ud800") is statements[1]
