"""How much of a prompt each engine probably holds: chained block hashes, learned from what was sent.

A prompt's text is cut into blocks that grow with depth: `PER_SIZE` of `BLOCK_TOKENS` tokens, as many of twice that
size, and so on. So a long prompt has few of them, and what two prompts share is underestimated by one block at
most: by less than 64 tokens and 1/16 of it. Each block's hash covers all blocks before it, so one equal hash means
an equal prefix. The index keeps, per engine, the most recently sent blocks up to a bound in tokens: about what the
engine's own cache can hold.

Whoever is sent a block is sent those before it, and they are forgotten after it. So an engine that holds a block
holds all of its prefix, and how deep it holds a prompt is found by halving.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
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

    `again` are the blocks sent to it more than once since they came in; `tokens` and `hot` are the sums over
    `blocks` and over `again`.
    """

    capacity: int
    blocks: OrderedDict[int, int] = field(default_factory=OrderedDict)
    again: set[int] = field(default_factory=set)
    tokens: int = 0
    hot: int = 0

    def sent(self, prefix: tuple[int, ...]) -> None:
        """Put a prefix at the end of the line, its deepest block foremost; forget what there is no room for."""
        blocks, again = self.blocks, self.again
        for block, size in zip(reversed(prefix), reversed(_SIZES[: len(prefix)]), strict=True):
            if block not in blocks:
                blocks[block] = size
                self.tokens += size
                continue
            blocks.move_to_end(block)
            if block not in again:
                again.add(block)
                self.hot += blocks[block]
        while self.tokens > self.capacity:
            block, size = blocks.popitem(last=False)
            self.tokens -= size
            if block in again:
                again.remove(block)
                self.hot -= size

    def matched(self, prefix: tuple[int, ...]) -> int:
        """How many leading tokens of a prefix it holds."""
        blocks = self.blocks
        if not prefix or prefix[0] not in blocks:
            return 0
        return _ENDS[bisect_left(prefix, True, lo=1, key=lambda block: block not in blocks) - 1]


class PrefixIndex:
    """Which engine was sent which prefixes. `capacity` is the number of tokens remembered per engine, where an
    engine's own is not known."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._engines: dict[str, _Held] = {}

    def add_engine(self, engine: str, capacity: int | None = None) -> None:
        """Begin to account for an engine; it holds nothing yet. `capacity` in tokens, where it is known."""
        if engine not in self._engines:
            self._engines[engine] = _Held(self._capacity if capacity is None else capacity)

    def drop_engine(self, engine: str) -> None:
        """Forget an engine and all that it held."""
        self._engines.pop(engine, None)

    def sent(self, prefix: tuple[int, ...], engine: str) -> None:
        """Note that an engine has been sent this prefix."""
        held = self._engines.get(engine)
        if held is not None:
            held.sent(prefix[: len(_SIZES)])

    def matches(self, prefix: tuple[int, ...], engines: Iterable[str]) -> Mapping[str, int]:
        """For each of the engines, how many leading tokens of the prefix it holds."""
        prefix = prefix[: len(_SIZES)]
        known = self._engines
        return {engine: known[engine].matched(prefix) if engine in known else 0 for engine in engines}

    def resident(self, engine: str) -> int:
        """How many tokens an engine is believed to hold."""
        held = self._engines.get(engine)
        return 0 if held is None else held.tokens

    def hot(self, engine: str) -> int:
        """How many of them were sent to it at least twice since they came in: what is worth keeping of its cache."""
        held = self._engines.get(engine)
        return 0 if held is None else held.hot

    def blocks(self, engine: str) -> int:
        """How many blocks an engine is believed to hold."""
        held = self._engines.get(engine)
        return 0 if held is None else len(held.blocks)
