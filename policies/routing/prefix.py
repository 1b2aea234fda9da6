"""How much of a prompt each engine probably holds: chained block hashes, learned from what was sent.

A prompt's text is cut into blocks of `BLOCK_BYTES`; each block's hash covers all blocks before it, so one equal
hash means an equal prefix. Only the first `MAX_BLOCKS` count. The index keeps, per engine, the most recently
sent hashes up to a bound: about what the engine's own cache can hold.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping

BLOCK_BYTES = 256
BLOCK_TOKENS = BLOCK_BYTES // 4
MAX_BLOCKS = 512


def chain(text: bytes, digest: Callable[[bytes, int], int], seed: int = 0) -> tuple[int, ...]:
    """The chained hashes of a prompt's whole blocks. `digest(block, previous)` is any good 64-bit hash; `seed`
    keeps prompts apart that no engine may share, those of different tenants."""
    hashes = []
    previous = seed
    end = min(len(text) - len(text) % BLOCK_BYTES, MAX_BLOCKS * BLOCK_BYTES)
    for start in range(0, end, BLOCK_BYTES):
        previous = digest(text[start : start + BLOCK_BYTES], previous)
        hashes.append(previous)
    return tuple(hashes)


class PrefixIndex:
    """Which engine was sent which prefixes. `capacity` is the number of blocks remembered per engine, where an
    engine's own is not known."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._bits: dict[str, int] = {}
        self._free_bits: list[int] = []
        self._holders: dict[int, int] = {}
        self._recent: dict[str, OrderedDict[int, None]] = {}
        self._capacities: dict[str, int] = {}

    def __len__(self) -> int:
        """How many different blocks the engines are believed to hold."""
        return len(self._holders)

    def add_engine(self, engine: str, capacity: int | None = None) -> None:
        """Begin to account for an engine; it holds nothing yet. `capacity` in blocks, where it is known."""
        if engine not in self._bits:
            self._bits[engine] = self._free_bits.pop() if self._free_bits else len(self._bits)
            self._recent[engine] = OrderedDict()
            self._capacities[engine] = self._capacity if capacity is None else capacity

    def drop_engine(self, engine: str) -> None:
        """Forget an engine and all that it held."""
        recent = self._recent.pop(engine, None)
        if recent is None:
            return
        for block in recent:
            self._release(block, engine)
        self._free_bits.append(self._bits.pop(engine))
        del self._capacities[engine]

    def sent(self, prefix: tuple[int, ...], engine: str) -> None:
        """Note that an engine has been sent this prefix: deepest blocks are the first to be forgotten."""
        recent = self._recent.get(engine)
        if recent is None:
            return
        bit, holders = 1 << self._bits[engine], self._holders
        for block in reversed(prefix):
            if block in recent:
                recent.move_to_end(block)
            else:
                recent[block] = None
                holders[block] = holders.get(block, 0) | bit
        while len(recent) > self._capacities[engine]:
            block, _ = recent.popitem(last=False)
            self._release(block, engine)

    def matches(self, prefix: tuple[int, ...], engines: Iterable[str]) -> Mapping[str, int]:
        """For each of the engines, how many leading tokens of the prefix it holds."""
        depth = dict.fromkeys(engines, 0)
        left = {name: 1 << self._bits[name] for name in depth if name in self._bits}
        alive = 0
        for bit in left.values():
            alive |= bit
        for index, block in enumerate(prefix):
            still = alive & self._holders.get(block, 0)
            if still != alive:
                for name in [name for name, bit in left.items() if not bit & still]:
                    depth[name] = index * BLOCK_TOKENS
                    del left[name]
                alive = still
            if not alive:
                return depth
        for name in left:
            depth[name] = len(prefix) * BLOCK_TOKENS
        return depth

    def blocks(self, engine: str) -> int:
        """How many blocks an engine is believed to hold."""
        return len(self._recent.get(engine, ()))

    def _release(self, block: int, engine: str) -> None:
        holders = self._holders[block] & ~(1 << self._bits[engine])
        if holders:
            self._holders[block] = holders
        else:
            del self._holders[block]
