"""What an index believes of an engine's cache, change by change."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.kvindex import BlockIndex, Cleared, Removed, Stored, chain, keyed, packed

SIZE = 4
LONG = list(range(5 * SIZE))


def an_index(most: int = 100) -> BlockIndex:
    index = BlockIndex(size=SIZE, most=most)
    index.begin(whole=True)
    return index


def came(
    *names: bytes, first: int = 0, parent: bytes | None = None, keys: list[list[object]] | None = None
) -> Stored:
    """The blocks of LONG from the `first` on, under these names."""
    tokens = packed(LONG[first * SIZE : (first + len(names)) * SIZE])
    return Stored(names=names, parent=parent, tokens=tokens, size=SIZE, keys=keys or ())


def known(index: BlockIndex) -> bool:
    return index.whole


def depth(index: BlockIndex, tokens: list[int], seed: int = 0) -> int:
    hashes = chain(packed(tokens), SIZE, seed)
    return index.depth(hashes, len(hashes))


def test_a_prompt_is_held_as_far_as_its_blocks_came_in() -> None:
    index = an_index()
    index.change(came(b"a", b"b"))
    assert depth(index, LONG) == 2
    assert depth(index, [*LONG[:SIZE], 99, *LONG]) == 1
    assert depth(index, [99, *LONG]) == 0


def test_blocks_stand_behind_the_one_that_they_name_whatever_the_engine_calls_it() -> None:
    index = an_index()
    index.change(came(b"a"))
    index.change(came(b"b", b"c", first=1, parent=b"a"))
    assert depth(index, LONG) == 3
    index.change(came(b"e", first=4, parent=b"unheard of"))
    assert len(index) == 3


def test_a_block_that_is_taken_for_something_else_is_held_no_longer() -> None:
    index = an_index()
    index.change(came(b"a", b"b", b"c"))
    index.change(Removed([b"c", b"unheard of"]))
    assert depth(index, LONG) == 2
    index.change(Removed([b"b"]))
    assert depth(index, LONG) == 1


def test_of_two_copies_one_may_go() -> None:
    index = an_index()
    index.change(came(b"a", b"b"))
    index.change(came(b"a", b"b"))
    index.change(Removed([b"b", b"a"]))
    assert depth(index, LONG) == 2
    index.change(Removed([b"b", b"a"]))
    assert depth(index, LONG) == len(index) == 0


def test_a_block_that_had_to_be_computed_again_is_there_once() -> None:
    index = an_index()
    index.change(came(b"a", b"b"))
    index.change(came(b"a", b"b"))
    index.recomputed(chain(packed(LONG), SIZE))
    index.change(Removed([b"b", b"a"]))
    assert depth(index, LONG) == 0


def test_the_same_tokens_under_another_salt_are_another_prompt() -> None:
    index = an_index()
    index.change(came(b"a", b"b", keys=[["tenant"], []]))
    assert depth(index, LONG) == 0
    assert depth(index, LONG, keyed(0, ("tenant",))) == 2


def test_what_is_expected_counts_until_it_is_settled() -> None:
    index = an_index()
    hashes = chain(packed(LONG), SIZE)
    index.expect(hashes)
    index.expect(hashes[:2])
    assert depth(index, LONG) == 5
    index.settle(hashes)
    assert depth(index, LONG) == 2
    index.settle(hashes[:2])
    index.settle(hashes)
    assert depth(index, LONG) == 0


def test_a_cleared_cache_holds_nothing_and_is_known() -> None:
    index = BlockIndex(size=SIZE, most=10)
    index.change(came(b"a"))
    assert not known(index)
    index.change(Cleared())
    assert known(index)
    assert depth(index, LONG) == 0


def test_after_a_gap_all_is_known_once_every_block_must_have_been_overwritten() -> None:
    index = BlockIndex(size=SIZE, most=4)
    index.change(came(b"a", b"b", b"c"))
    assert not known(index)
    index.change(came(b"d", first=3, parent=b"c"))
    assert known(index)
    index.begin(whole=False)
    assert not known(index)
    assert len(index) == 0


def test_more_blocks_than_there_is_room_for_cannot_be_all_there() -> None:
    index = an_index(most=3)
    index.change(came(b"a", b"b", b"c"))
    index.change(came(b"d", first=3, parent=b"c"))
    assert len(index) == 0
    assert not known(index)


@pytest.mark.parametrize(
    "odd",
    [
        Stored(names=[b"a"], parent=None, tokens=packed(range(2 * SIZE)), size=SIZE),
        Stored(names=[b"a"], parent=None, tokens=packed(range(2)), size=2),
        Stored(names=[], parent=None, tokens=packed([]), size=SIZE),
    ],
)
def test_blocks_of_another_shape_are_passed_over(odd: Stored) -> None:
    index = an_index()
    index.change(odd)
    assert len(index) == 0


Names = st.lists(st.integers(0, 5), min_size=1, max_size=4)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3), Names), max_size=40))
def test_whatever_comes_the_index_stays_within_its_bound(changes: list[tuple[bool, int, list[int]]]) -> None:
    index = BlockIndex(size=1, most=6)
    for is_stored, parent, names in changes:
        if is_stored:
            tokens = packed(names)
            index.change(Stored(names=names, parent=parent or None, tokens=tokens, size=1))
        else:
            index.change(Removed(names))
        assert 0 <= len(index) <= 6
        assert 0 <= index.depth(chain(packed([1, 2, 3]), 1), 3) <= 3
