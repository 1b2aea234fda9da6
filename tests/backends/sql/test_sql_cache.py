"""The bounds of what is kept, and what makes two results different ones."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from backends.sql.cache import ExactTexts, ResultCache, ResultKey, generation
from policies.sql import Statement

KEY = ResultKey(tenant="a", database="d", generation=(1, 2, 3), canonical="SELECT 1", limit=10, max_bytes=100)


def _key(number: int) -> ResultKey:
    return replace(KEY, canonical=f"SELECT {number}")


def test_a_result_is_found_by_an_equal_key_only() -> None:
    cache = ResultCache(10_000)
    cache.put(KEY, b"rows")
    assert cache.get(replace(KEY)) == b"rows"
    others = [
        replace(KEY, tenant="b"),
        replace(KEY, database="e"),
        replace(KEY, generation=(1, 2, 4)),
        replace(KEY, canonical="SELECT 2"),
        replace(KEY, limit=11),
        replace(KEY, max_bytes=101),
        replace(KEY, encoding=KEY.encoding + 1),
        replace(KEY, tenant="ad", database=""),
    ]
    assert [cache.get(other) for other in others] == [None] * len(others)
    assert (cache.hits, cache.misses) == (1, len(others))


def test_the_least_recently_used_result_goes_first() -> None:
    cache = ResultCache(3 * 500)
    for number in range(3):
        cache.put(_key(number), b"x" * 100)
    assert cache.get(_key(0)) is not None
    cache.put(_key(3), b"x" * 100)
    assert [cache.get(_key(number)) is not None for number in range(4)] == [True, False, True, True]
    assert cache.evictions == 1


def test_a_result_above_the_bound_is_not_kept_and_drops_its_older_self() -> None:
    cache = ResultCache(1000)
    cache.put(KEY, b"small")
    cache.put(KEY, b"x" * 1000)
    assert cache.get(KEY) is None
    assert (len(cache), cache.bytes) == (0, 0)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 3000)), max_size=60), st.integers(0, 8000))
def test_the_bound_in_bytes_holds_whatever_is_put(puts: list[tuple[int, int]], bound: int) -> None:
    cache = ResultCache(bound)
    for number, size in puts:
        cache.put(_key(number), b"x" * size)
        assert 0 <= cache.bytes <= bound
        kept = cache.get(_key(number))
        assert kept is None or len(kept) == size
    assert (cache.bytes == 0) == (len(cache) == 0)


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
    assert len({first, second, generation(str(path))}) == 3


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
