"""The KV memory against a plain account of the same rules, one block at a time."""

from __future__ import annotations

from collections import OrderedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.emulated.blocks import Blocks, Hashes, Holding


class Plain:
    """Numbered blocks, each with its holders and its hash, and a queue of those that nobody holds."""

    def __init__(self, total: int) -> None:
        self.holders = [0] * total
        self.hash_of: list[int | None] = [None] * total
        self.cached: dict[int, int] = {}
        self.queue: OrderedDict[int, None] = OrderedDict.fromkeys(range(total))
        self.peak = 0

    def hold(self, hashes: Hashes, limit: int, needed: int) -> list[int] | None:
        found: list[int] = []
        for block_hash in hashes[:limit]:
            if block_hash not in self.cached:
                break
            found.append(self.cached[block_hash])
        if needed - len(found) > len(self.queue) - sum(1 for block in found if not self.holders[block]):
            return None
        for block in found:
            self.holders[block] += 1
            self.queue.pop(block, None)
        self._note()
        return found

    def grow(self, held: list[int], size: int) -> bool:
        if size - len(held) > len(self.queue):
            return False
        while len(held) < size:
            block, _ = self.queue.popitem(last=False)
            self._empty(block)
            self.holders[block] = 1
            held.append(block)
        self._note()
        return True

    def fill(self, held: list[int], hashes: Hashes, start: int, stop: int) -> None:
        for index in range(start, min(stop, len(hashes))):
            if self.cached.setdefault(hashes[index], held[index]) == held[index]:
                self.hash_of[held[index]] = hashes[index]

    def give_back(self, held: list[int]) -> None:
        for block in reversed(held):
            self.holders[block] -= 1
            if not self.holders[block]:
                self.queue[block] = None
                if self.hash_of[block] is None:
                    self.queue.move_to_end(block, last=False)

    def forget(self) -> None:
        for block in list(self.cached.values()):
            self._empty(block)
        self.peak = len(self.holders) - len(self.queue)

    def _empty(self, block: int) -> None:
        block_hash = self.hash_of[block]
        if block_hash is not None:
            self.hash_of[block] = None
            del self.cached[block_hash]

    def _note(self) -> None:
        self.peak = max(self.peak, len(self.holders) - len(self.queue))


def text(letters: str) -> Hashes:
    """A hash for each letter, chained: equal where all letters so far are equal."""
    return tuple(hash(letters[: index + 1]) for index in range(len(letters)))


texts = st.sampled_from(["aaaaaaaaaa", "aaaabbbbbb", "aabbbbbbbb", "aaaabb", "aa", ""])
enter = st.tuples(st.just("enter"), texts, st.integers(1, 12))
compute = st.tuples(st.just("compute"), st.integers(0, 5), st.integers(0, 7))
leave = st.tuples(st.just("leave"), st.integers(0, 5), st.just(0))
forget = st.tuples(st.just("forget"), st.just(0), st.just(0))


@pytest.mark.slow
@settings(max_examples=600)
@given(st.lists(st.one_of(enter, compute, compute, compute, leave, forget), max_size=40), st.integers(8, 24))
def test_runs_of_blocks_behave_as_single_blocks_do(happenings: list[tuple[str, str | int, int]], total: int) -> None:
    blocks, plain = Blocks(total), Plain(total)
    held: list[tuple[Holding, list[int]]] = []
    for act, what, number in happenings:
        if isinstance(what, str):
            holding, single = blocks.hold(text(what), number, number), plain.hold(text(what), number, number)
            assert (holding is None) == (single is None)
            if holding is not None and single is not None:
                assert holding.size == holding.full == len(single)
                held.append((holding, single))
        elif act == "forget":
            blocks.forget()
            plain.forget()
        elif held:
            holding, single = held[what % len(held)]
            if act == "compute":
                # Half of the numbers leave the last block open.
                size, open_blocks = holding.size + number // 2, number % 2
                assert blocks.grow(holding, size) == plain.grow(single, size)
                plain.fill(single, holding.hashes, holding.full, holding.size - open_blocks)
                blocks.fill(holding, holding.size - open_blocks)
            else:
                del held[what % len(held)]
                blocks.give_back(holding)
                plain.give_back(single)
        assert (blocks.free, blocks.peak, blocks.resident) == (len(plain.queue), plain.peak, len(plain.cached))
    for holding, _ in held:
        blocks.give_back(holding)
    assert blocks.used == 0


def test_a_prefix_is_found_though_it_goes_on_in_the_blocks_of_one_that_computed_it_twice() -> None:
    blocks = Blocks(20)
    first = blocks.hold(text("aab"), 0, 3)
    assert first is not None
    blocks.grow(first, 3)
    blocks.fill(first, 3)
    # The second shares but one block, computes the first's second block again, and goes on by itself.
    second = blocks.hold(text("aaa"), 1, 3)
    assert second is not None
    blocks.grow(second, 3)
    blocks.fill(second, 3)
    third = blocks.hold(text("aaa"), 3, 3)
    assert third is not None
    assert third.size == 3
    for holding, used in ((first, 4), (second, 3), (third, 0)):
        blocks.give_back(holding)
        assert blocks.used == used


def test_a_prefix_that_many_hold_is_left_when_the_last_of_them_leaves() -> None:
    blocks = Blocks(20)
    hashes = text("aaaaaaaaaa")
    first = blocks.hold(hashes, 0, 10)
    assert first is not None
    blocks.grow(first, 10)
    blocks.fill(first, 10)
    shorter = [blocks.hold(hashes, length, length) for length in (8, 3, 8, 6)]
    blocks.give_back(first)
    assert (blocks.used, blocks.resident) == (8, 10)
    for holding, used in zip(shorter, (8, 8, 6, 0), strict=True):
        assert holding is not None
        blocks.give_back(holding)
        assert blocks.used == used
    assert blocks.resident == 10


def test_a_double_stays_unknown_when_its_twin_is_gone() -> None:
    blocks = Blocks(4)
    twins = [Holding(text("ab")), Holding(text("ab"))]
    for holding in twins:
        blocks.grow(holding, 1)
        blocks.fill(holding, 1)
    blocks.give_back(twins[0])
    other = Holding(())
    blocks.grow(other, 3)
    assert blocks.resident == 0
    blocks.give_back(other)
    blocks.grow(twins[1], 2)
    blocks.fill(twins[1], 2)
    # Its second block is cached, but nobody can come to it without the first.
    assert blocks.resident == 1
    found = blocks.hold(text("ab"), 2, 2)
    assert found is not None
    assert found.size == 0
    # Who computes the first finds it there, and does not cache the second again.
    blocks.grow(found, 2)
    blocks.fill(found, 2)
    assert blocks.resident == 2


def test_what_was_forgotten_is_cached_once_when_it_is_computed_again() -> None:
    blocks = Blocks(12)
    early, late = Holding(text("abcd")), Holding(text("abcd"))
    blocks.grow(early, 4)
    blocks.fill(early, 2)
    blocks.forget()
    blocks.grow(late, 4)
    blocks.fill(late, 4)
    blocks.fill(early, 4)
    assert blocks.resident == 4
    blocks.give_back(late)
    blocks.give_back(early)
    assert (blocks.used, blocks.resident) == (0, 4)
