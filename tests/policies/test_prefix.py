"""Which engine probably holds how much of a prompt: chained hashes, bounded per engine."""

from __future__ import annotations

import zlib
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.routing.prefix import BLOCK_TOKENS, PrefixIndex, chain, spans

MILLION = 1 << 20
WORD = BLOCK_TOKENS * 4
"""Bytes of the smallest blocks."""


def digest(block: bytes, previous: int) -> int:
    return zlib.crc32(block, previous & 0xFFFFFFFF) | (previous & 0xFFFF) << 32


def an_index(*engines: str, capacity: int = 100) -> PrefixIndex:
    """One with a capacity in blocks of the smallest size."""
    index = PrefixIndex(capacity * BLOCK_TOKENS)
    for engine in engines:
        index.add_engine(engine)
    return index


def matched(index: PrefixIndex, prefix: tuple[int, ...], *engines: str) -> list[int]:
    """In blocks of the smallest size, engine by engine."""
    found = index.matches(prefix, engines)
    return [found[engine] // BLOCK_TOKENS for engine in engines]


def test_blocks_begin_small_and_double_after_every_sixteen() -> None:
    ends = spans(MILLION)
    assert ends[:3] == (64, 128, 192)
    sizes = [end - start for start, end in pairwise((0, *ends))]
    assert sizes == sorted(sizes)
    assert {size: sizes.count(size) for size in sizes} == {64 << n: 16 for n in range(10)}
    assert len(spans(128 * 1024)) == 112


@given(st.integers(0, 2 * MILLION))
def test_what_is_left_of_a_prompt_after_its_whole_blocks_is_small(tokens: int) -> None:
    ends = spans(tokens)
    assert list(ends) == [end for end in spans(2 * MILLION) if end <= tokens]
    if tokens < spans(MILLION)[-1]:
        assert tokens - (ends[-1] if ends else 0) < 64 + tokens / 16


def test_equal_beginnings_have_equal_hashes_up_to_the_block_that_differs() -> None:
    text = bytes(range(256)) * 40
    one, other = chain(text, digest), chain(text[: 1300 * 4] + b"x" * (len(text) - 1300 * 4), digest)
    shared = len(spans(1300))
    assert 16 < shared < len(one)
    assert one[:shared] == other[:shared]
    assert not set(one[shared:]) & set(other[shared:])


def test_a_prompt_has_one_hash_for_each_of_its_whole_blocks() -> None:
    assert chain(b"x" * (WORD - 1), digest) == ()
    assert len(chain(b"x" * (3 * WORD + 1), digest)) == 3
    for tokens in (1023, 1024, 1151, 1152, 30_000):
        assert len(chain(b"x" * tokens * 4, digest)) == len(spans(tokens))


def test_a_hash_covers_every_byte_of_its_block_and_of_those_before() -> None:
    text = b"x" * 4 * 1280
    before = chain(text, digest)
    for place, shared in ((0, 0), (WORD - 1, 0), (WORD, 1), (1024 * 4 - 1, 15), (1024 * 4, 16), (1280 * 4 - 1, 17)):
        after = chain(text[:place] + b"y" + text[place + 1 :], digest)
        assert [one == other for one, other in zip(before, after, strict=True)] == [n < shared for n in range(18)]


def test_another_seed_gives_other_hashes() -> None:
    text = b"the same prompt " * 64
    assert not set(chain(text, digest, seed=1)) & set(chain(text, digest, seed=2))


def test_an_engine_holds_what_it_was_sent() -> None:
    index = an_index("a", "b", "c")
    index.sent((1, 2, 3, 4), "a")
    index.sent((1, 2, 9), "b")
    assert matched(index, (1, 2, 3, 4), "a", "b", "c") == [4, 2, 0]
    assert matched(index, (1, 2, 9, 4), "a", "b", "c") == [2, 3, 0]
    assert matched(index, (7, 2, 3), "a", "b", "c") == [0, 0, 0]
    assert matched(index, (), "a", "b") == [0, 0]
    assert matched(index, (1, 2, 3, 4, 5, 6), "a") == [4]


def test_a_match_is_told_in_tokens_and_deep_blocks_have_many() -> None:
    index = an_index("a", "b", capacity=10_000)
    index.sent(tuple(range(20)), "a")
    index.sent(tuple(range(17)), "b")
    assert index.matches(tuple(range(40)), ["a", "b"]) == {"a": 16 * 64 + 4 * 128, "b": 16 * 64 + 128}
    assert index.resident("a") == 16 * 64 + 4 * 128


def test_what_lies_deeper_than_the_last_block_does_not_count() -> None:
    index = an_index("a", capacity=MILLION)
    index.sent(tuple(range(500)), "a")
    assert index.blocks("a") == len(spans(MILLION))
    assert index.matches(tuple(range(500)), ["a"]) == {"a": spans(MILLION)[-1]}


def test_the_least_recently_sent_goes_first_and_the_deepest_before_the_shallow() -> None:
    index = an_index("a", capacity=5)
    index.sent((1, 2, 3), "a")
    index.sent((7, 8, 9), "a")
    assert index.blocks("a") == 5
    assert matched(index, (1, 2, 3), "a") == [2]
    index.sent((1, 2), "a")  # used again, so that now the other goes first
    index.sent((20, 21), "a")
    assert matched(index, (1, 2), "a") == [2]
    assert matched(index, (7, 8, 9), "a") == [1]


def test_a_prompt_longer_than_the_bound_keeps_its_beginning() -> None:
    index = an_index("a", capacity=3)
    index.sent((1, 2, 3, 4, 5), "a")
    assert index.blocks("a") == 3
    assert matched(index, (1, 2, 3, 4, 5), "a") == [3]


def test_an_engine_of_known_size_has_a_bound_of_its_own() -> None:
    index = an_index("a")
    index.add_engine("small", 2 * BLOCK_TOKENS + 1)
    for engine in ("a", "small"):
        index.sent((1, 2, 3), engine)
    assert matched(index, (1, 2, 3), "a", "small") == [3, 2]
    assert index.resident("small") == 2 * BLOCK_TOKENS


def test_what_was_sent_twice_while_it_was_held_is_hot() -> None:
    index = an_index("a", "b", capacity=5)
    index.sent((1, 2, 3), "a")
    assert index.hot("a") == 0
    index.sent((1, 2, 9), "a")
    assert (index.hot("a"), index.resident("a")) == (2 * BLOCK_TOKENS, 4 * BLOCK_TOKENS)
    index.sent((1, 2, 9), "a")
    assert index.hot("a") == 3 * BLOCK_TOKENS
    assert index.hot("b") == index.resident("b") == 0
    index.sent((4, 5, 6, 7, 8), "a")
    assert index.hot("a") == 0
    index.sent((1,), "a")
    assert index.hot("a") == 0  # it came in anew
    index.sent((1,), "a")
    assert index.hot("a") == BLOCK_TOKENS


def test_an_engine_that_goes_takes_what_it_held_with_it() -> None:
    index = an_index("a", "b")
    for engine in ("a", "a", "b"):
        index.sent((1, 2), engine)
    index.drop_engine("a")
    assert matched(index, (1, 2), "a", "b") == [0, 2]
    assert index.hot("a") == index.resident("a") == 0
    index.add_engine("a")
    assert matched(index, (1, 2), "a", "b") == [0, 2]


def test_a_new_engine_does_not_inherit_what_a_gone_one_held() -> None:
    index = an_index("a", "b")
    for _ in range(2):
        index.sent((1, 2), "a")
    index.drop_engine("a")
    for name in ("c", "d"):
        index.add_engine(name)
    assert matched(index, (1, 2), "b", "c", "d") == [0, 0, 0]
    assert index.hot("c") == 0
    index.sent((1, 2), "d")
    assert matched(index, (1, 2), "b", "c", "d") == [0, 0, 2]


def test_an_engine_that_is_not_known_holds_nothing() -> None:
    index = an_index("a")
    index.sent((1,), "stranger")
    index.drop_engine("stranger")
    assert matched(index, (1,), "stranger", "a") == [0, 0]
    assert index.blocks("stranger") == index.resident("stranger") == index.hot("stranger") == 0


def test_adding_an_engine_again_keeps_what_it_holds() -> None:
    index = an_index("a")
    index.sent((1, 2), "a")
    index.add_engine("a", BLOCK_TOKENS)
    assert matched(index, (1, 2), "a") == [2]


Path = tuple[int, ...]


class Plain:
    """One engine's blocks as a plain list, the least recently sent first; a block is the path that leads to it."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.times: dict[Path, int] = {}
        self.order: list[Path] = []

    def sent(self, path: Path) -> None:
        for length in range(len(path), 0, -1):
            block = path[:length]
            self.times[block] = self.times.get(block, 0) + 1
            self.order = [*(other for other in self.order if other != block), block]
        while self.resident > self.capacity:
            del self.times[self.order.pop(0)]

    def matched(self, path: Path) -> int:
        held = [length for length in range(1, len(path) + 1) if path[:length] in self.times]
        assert held == list(range(1, len(held) + 1)), "what is held is a whole beginning"
        return spans(MILLION)[held[-1] - 1] if held else 0

    @property
    def resident(self) -> int:
        return sum(map(tokens_of, self.order))

    @property
    def hot(self) -> int:
        return sum(tokens_of(block) for block in self.order if self.times[block] > 1)


def tokens_of(block: Path) -> int:
    return 64 << (len(block) - 1) // 16


# Stretches of equal symbols, so that prompts get deep and yet often begin alike.
paths = st.lists(st.tuples(st.integers(0, 1), st.integers(1, 14)), max_size=3).map(
    lambda stretches: tuple(symbol for symbol, length in stretches for _ in range(length))
)
names = st.sampled_from("abcd")
changes = st.one_of(
    st.tuples(st.just("sent"), names, paths),
    st.tuples(st.just("sent"), names, paths),
    st.tuples(st.just("add"), names, st.just(())),
    st.tuples(st.just("drop"), names, st.just(())),
)
CAPACITY = 1500


def hashes(path: Path) -> tuple[int, ...]:
    return tuple(hash(path[:length]) for length in range(1, len(path) + 1))


@settings(max_examples=120)
@given(st.lists(changes, max_size=25), paths)
def test_the_index_agrees_with_plain_lists(done: list[tuple[str, str, Path]], asked: Path) -> None:
    index, plain = PrefixIndex(CAPACITY), dict[str, Plain]()
    for what, engine, path in [("add", "a", ()), ("add", "b", ()), *done]:
        if what == "add":
            index.add_engine(engine)
            plain.setdefault(engine, Plain(CAPACITY))
        elif what == "drop":
            index.drop_engine(engine)
            plain.pop(engine, None)
        else:
            index.sent(hashes(path), engine)
            if engine in plain:
                plain[engine].sent(path)
        assert all(index.resident(engine) <= CAPACITY for engine in plain)
    for path in (asked, *(path for _, _, path in done)):
        wanted = {engine: plain[engine].matched(path) if engine in plain else 0 for engine in "abcd"}
        assert index.matches(hashes(path), "abcd") == wanted
    for engine in "abcd":
        one = plain.get(engine, Plain(CAPACITY))
        assert (index.blocks(engine), index.resident(engine)) == (len(one.order), one.resident)
        assert index.hot(engine) == one.hot
    for engine in plain:
        index.drop_engine(engine)
        index.add_engine(engine)
    assert not any(index.resident(engine) or index.hot(engine) or index.blocks(engine) for engine in plain)


@pytest.mark.parametrize("engines", [1, 64])
def test_each_of_many_engines_is_told_its_own_depth(engines: int) -> None:
    index = an_index(*map(str, range(engines)), capacity=MILLION)
    for number in range(engines):
        index.sent(tuple(range(number)), str(number))
    found = index.matches(tuple(range(engines)), map(str, range(engines)))
    assert found == {str(number): spans(MILLION)[number - 1] if number else 0 for number in range(engines)}
