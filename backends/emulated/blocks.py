"""The paged KV memory of one engine: blocks that sequences hold, and the prefix cache that outlives them.

The rules, which are vLLM's:
- a block is held by any number of sequences, or by none; only a block that none holds can be taken;
- a full block carries the chained hash of all tokens up to its end; a later sequence that begins with the same
  tokens holds it too, instead of computing it;
- a block keeps its content after its last holder left, until it is taken for something else: blocks without
  content first, then the least recently left.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class Blocks:
    """`total` numbered blocks; `peak` is the most that were held at one time since the last `forget`."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.peak = 0
        self._holders = [0] * total
        self._hash_of: list[int | None] = [None] * total
        self._cached: dict[int, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(total))

    @property
    def free(self) -> int:
        """Blocks that nobody holds, with or without content."""
        return len(self._free)

    @property
    def used(self) -> int:
        """Blocks that live sequences hold."""
        return self.total - len(self._free)

    @property
    def resident(self) -> int:
        """Blocks whose content a new sequence could reuse, held or not."""
        return len(self._cached)

    def find(self, hashes: Iterable[int]) -> list[int]:
        """The blocks of the longest cached beginning of `hashes`."""
        found = []
        for block_hash in hashes:
            block = self._cached.get(block_hash)
            if block is None:
                break
            found.append(block)
        return found

    def unheld(self, blocks: Iterable[int]) -> int:
        """How many of these nobody holds: holding them takes as many from `free`."""
        return sum(1 for block in blocks if not self._holders[block])

    def hold(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            self._holders[block] += 1
            self._free.pop(block, None)
        self.peak = max(self.peak, self.used)

    def take(self, count: int) -> list[int] | None:
        """`count` blocks for new content, held once; None, and nothing changed, when fewer are free."""
        if count > len(self._free):
            return None
        taken = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in taken:
            self._forget_content(block)
            self._holders[block] = 1
        self.peak = max(self.peak, self.used)
        return taken

    def keep(self, block: int, block_hash: int) -> None:
        """Remember what a full block holds. Of two blocks with equal content the first stays the cached one."""
        if self._cached.setdefault(block_hash, block) == block:
            self._hash_of[block] = block_hash

    def give_back(self, blocks: Sequence[int]) -> None:
        """Let go of a sequence's blocks, the last one first: the ends of prefixes are the first to be evicted."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block]:
                continue
            self._free[block] = None
            if self._hash_of[block] is None:
                self._free.move_to_end(block, last=False)

    def forget(self) -> None:
        """Empty the prefix cache and start `peak` anew; who holds blocks goes on holding them."""
        for block in list(self._cached.values()):
            self._forget_content(block)
        self.peak = self.used

    def _forget_content(self, block: int) -> None:
        block_hash = self._hash_of[block]
        if block_hash is not None:
            self._hash_of[block] = None
            del self._cached[block_hash]
