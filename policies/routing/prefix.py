"""How much of a prompt each engine probably holds: chained block hashes, learned from what was sent.

A prompt's text is cut into blocks that grow with depth: `PER_SIZE` of `BLOCK_TOKENS` tokens, as many of twice that
size, and so on. So a long prompt has few of them, and what two prompts share is underestimated by one block at
most: by less than 64 tokens and 1/16 of it. Each block's hash covers all blocks before it, so one equal hash means
an equal prefix. The index keeps, per engine, the most recently sent blocks up to a bound in tokens: about what the
engine's own cache can hold.

Whoever is sent a block is sent those before it, and they are forgotten after it. So an engine that holds a block
holds all of its prefix.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

BLOCK_TOKENS = 64
"""Tokens of the first, smallest blocks."""
PER_SIZE, SIZES = 16, 10
"""So many blocks of a size, and so many sizes: a million tokens in all; what lies deeper does not count."""
TOKEN_BYTES = 4
"""Bytes of text that are taken for a token: prompts are cut without a tokenizer."""

_SIZES = tuple(BLOCK_TOKENS << number // PER_SIZE for number in range(PER_SIZE * SIZES))
_ENDS = tuple(accumulate(_SIZES))


def spans(tokens: int) -> Sequence[int]:
    """Where the whole blocks of a prompt of so many tokens end, each counted in tokens from its beginning."""
    return _ENDS[: bisect_right(_ENDS, tokens)]


def chain(text: bytes, digest: Callable[[bytes, int], int], seed: int = 0) -> tuple[int, ...]:
    """The chained hashes of a prompt's whole blocks. `digest(block, previous)` is any good 64-bit hash; `seed`
    keeps prompts apart that no engine may share, those of different tenants."""
    hashes = []
    previous, start = seed, 0
    for tokens in spans(len(text) // TOKEN_BYTES):
        end = tokens * TOKEN_BYTES
        previous = digest(text[start:end], previous)
        hashes.append(previous)
        start = end
    return tuple(hashes)


@dataclass(slots=True)
class _Held:
    """What one engine is believed to hold: its blocks with their tokens, the least recently sent first.

    `bit` stands for the engine in the sets of holders. `again` are the blocks sent to it more than once since they
    came in. `tokens` and `hot` are the sums over `blocks` and `again`.
    """

    bit: int
    capacity: int
    blocks: OrderedDict[int, int] = field(default_factory=OrderedDict)
    again: set[int] = field(default_factory=set)
    tokens: int = 0
    hot: int = 0


class PrefixIndex:
    """Which engine was sent which prefixes. `capacity` is the number of tokens remembered per engine, where an
    engine's own is not known."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._held: dict[str, _Held] = {}
        self._names: dict[int, str] = {}
        self._free_bits: list[int] = []
        self._holders: dict[int, int] = {}

    def __len__(self) -> int:
        """How many different blocks the engines are believed to hold."""
        return len(self._holders)

    def add_engine(self, engine: str, capacity: int | None = None) -> None:
        """Begin to account for an engine; it holds nothing yet. `capacity` in tokens, where it is known."""
        if engine not in self._held:
            bit = self._free_bits.pop() if self._free_bits else 1 << len(self._held)
            self._held[engine] = _Held(bit, self._capacity if capacity is None else capacity)
            self._names[bit] = engine

    def drop_engine(self, engine: str) -> None:
        """Forget an engine and all that it held."""
        held = self._held.pop(engine, None)
        if held is not None:
            self._shrink(held, 0)
            self._free_bits.append(held.bit)
            del self._names[held.bit]

    def sent(self, prefix: tuple[int, ...], engine: str) -> None:
        """Note that an engine has been sent this prefix: deepest blocks are the first to be forgotten."""
        held = self._held.get(engine)
        if held is None:
            return
        bit, blocks, again, holders = held.bit, held.blocks, held.again, self._holders
        prefix = prefix[: len(_SIZES)]
        for block, size in zip(reversed(prefix), reversed(_SIZES[: len(prefix)]), strict=True):
            if block not in blocks:
                blocks[block] = size
                held.tokens += size
                holders[block] = holders.get(block, 0) | bit
                continue
            blocks.move_to_end(block)
            if block not in again:
                again.add(block)
                held.hot += blocks[block]
        self._shrink(held, held.capacity)

    def matches(self, prefix: tuple[int, ...], engines: Iterable[str]) -> Mapping[str, int]:
        """For each of the engines, how many leading tokens of the prefix it holds."""
        matched = dict.fromkeys(engines, 0)
        alive = 0
        for name in matched:
            if name in self._held:
                alive |= self._held[name].bit
        holders, depth = self._holders, 0
        for block, end in zip(prefix, _ENDS, strict=False):
            still = alive & holders.get(block, 0)
            if still != alive:
                if depth:
                    for bit in _bits(alive ^ still):
                        matched[self._names[bit]] = depth
                alive = still
            if not alive:
                return matched
            depth = end
        for bit in _bits(alive):
            matched[self._names[bit]] = depth
        return matched

    def resident(self, engine: str) -> int:
        """How many tokens an engine is believed to hold."""
        held = self._held.get(engine)
        return 0 if held is None else held.tokens

    def hot(self, engine: str) -> int:
        """How many of them were sent to it at least twice since they came in: what is worth keeping of its cache."""
        held = self._held.get(engine)
        return 0 if held is None else held.hot

    def blocks(self, engine: str) -> int:
        """How many blocks an engine is believed to hold."""
        held = self._held.get(engine)
        return 0 if held is None else len(held.blocks)

    def _shrink(self, held: _Held, capacity: int) -> None:
        """Forget what an engine was sent the longest ago, until it holds no more than so many tokens."""
        while held.tokens > capacity:
            block, size = held.blocks.popitem(last=False)
            held.tokens -= size
            if block in held.again:
                held.again.remove(block)
                held.hot -= size
            others = self._holders[block] ^ held.bit
            if others:
                self._holders[block] = others
            else:
                del self._holders[block]


def _bits(mask: int) -> Iterator[int]:
    while mask:
        bit = mask & -mask
        yield bit
        mask ^= bit
