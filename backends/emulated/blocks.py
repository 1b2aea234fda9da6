"""The paged KV memory of one engine: blocks that sequences hold, and the prefix cache that outlives them.

The rules, which are vLLM's:
- a block is held by any number of sequences, or by none; only a block that none holds can be taken;
- a full block carries the chained hash of all tokens up to its end; a later sequence that begins with the same
  tokens holds it too, instead of computing it;
- a block keeps its content after its last holder left, until it is taken for something else: blocks without
  content first, then the least recently left; of those left together, the ends of prefixes first.

One block is like another, so none has a number here. Blocks without content are only counted, and neighbours in a
prefix that have the same holders are one `Run`: what a sequence costs depends on how often its prefix parts from
those of others, not on its length.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

Hashes = tuple[int, ...]


class Watcher(Protocol):
    """Is told what the prefix cache takes in and lets go."""

    def stored(self, hashes: Hashes, start: int, stop: int) -> None: ...

    def removed(self, hashes: Sequence[int]) -> None: ...

    def cleared(self) -> None: ...


@dataclass(slots=True, eq=False)
class Run:
    """The cached blocks `start` to `end` of every sequence that has these `hashes` there.

    Where a run is parted it goes on as its latter half, and `before` is the former: who held it holds both.
    """

    hashes: Hashes
    start: int
    end: int
    holders: int = 1
    before: Run | None = None

    def meets(self, hashes: Hashes, limit: int) -> int:
        """Where this run and `hashes` part, at most at `limit`. They must be equal at the run's start."""
        own, start, stop = self.hashes, self.start, min(self.end, limit)
        if own[stop - 1] == hashes[stop - 1]:
            return stop
        return start + bisect_left(range(start, stop), True, key=lambda index: own[index] != hashes[index])


@dataclass(slots=True, eq=False)
class Holding:
    """The blocks of one sequence: `size` in all, of which the first `full` are full.

    `runs` are those of them that the cache knows, in order, each with its length when it was held; the rest is
    unknown to it: not full, without a hash, or a double of what another sequence computed first.
    """

    hashes: Hashes
    size: int = 0
    full: int = 0
    runs: list[tuple[Run, int]] = field(default_factory=list)


class Blocks:
    """`total` blocks, of which nobody holds `free`; `peak` is the most that were held at once since `forget`."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.free = total
        self.peak = 0
        self.watcher: Watcher | None = None
        self._blank = total
        """Free blocks without content."""
        self._left: OrderedDict[Run, None] = OrderedDict()
        """The runs that nobody holds, the least recently left first."""
        self._heads: dict[int, Run] = {}
        """All runs by the hash of their first block. No two runs cover the same hash."""

    @property
    def used(self) -> int:
        """Blocks that live sequences hold."""
        return self.total - self.free

    @property
    def resident(self) -> int:
        """Blocks whose content a new sequence could reuse, held or not."""
        return sum(run.end - run.start for run in self._heads.values())

    def hold(self, hashes: Hashes, limit: int, needed: int) -> Holding | None:
        """Hold what is cached of the first `limit` hashes; None, and nothing changed, if not `needed` would fit."""
        found = self._find(hashes, limit)
        size = found[-1][1] if found else 0
        unheld = sum(stop - run.start for run, stop in found if not run.holders)
        if needed - size > self.free - unheld:
            return None
        holding = Holding(hashes, size, size)
        for run, stop in found:
            held = self._part(run, stop) if stop < run.end else run
            if not held.holders:
                self._left.pop(held, None)
            held.holders += 1
            holding.runs.append((held, stop - held.start))
        self._use(unheld)
        return holding

    def grow(self, holding: Holding, size: int) -> bool:
        """Hold `size` blocks in all; False, and nothing changed, when too few are free."""
        count = size - holding.size
        if count <= 0:
            return True
        if count > self.free:
            return False
        blank = min(count, self._blank)
        self._blank -= blank
        self._evict(count - blank)
        self._use(count)
        holding.size = size
        return True

    def fill(self, holding: Holding, full: int) -> None:
        """Remember what the first `full` blocks hold, as far as it has hashes. Of equal blocks only one is cached:
        the one that was filled first."""
        hashes, filled = holding.hashes, holding.full
        full = min(full, len(hashes))
        if full <= filled:
            return
        holding.full = full
        last = holding.runs[-1][0] if holding.runs else None
        at = last.end if last is not None and self._knows(last) else 0
        while at < full:
            run = self._heads.get(hashes[at])
            if run is not None:
                at = run.meets(hashes, full)
            elif at < filled:
                at += 1  # a double whose twin is gone: it stays unknown
            else:
                start, at = at, at + 1
                while at < full and hashes[at] not in self._heads:
                    at += 1
                self._append(holding, start, at)

    def give_back(self, holding: Holding) -> None:
        """Let go of all blocks of a holding, the last one first. It must not be used again."""
        unknown = holding.size
        for last, size in reversed(holding.runs):
            unknown -= size
            run: Run | None = last
            first = last.end - size
            while run is not None and run.start >= first:
                before = run.before
                run.holders -= 1
                if not run.holders:
                    self._leave(run)
                run = before
        self._blank += unknown
        self.free += unknown

    def forget(self) -> None:
        """Empty the prefix cache and start `peak` anew; who holds blocks goes on holding them."""
        self._heads.clear()
        self._left.clear()
        self._blank = self.free
        self.peak = self.used
        if self.watcher is not None:
            self.watcher.cleared()

    def _find(self, hashes: Hashes, limit: int) -> list[tuple[Run, int]]:
        """The runs of the longest cached beginning, each with the index where it ends or the beginning does."""
        found = []
        at, limit = 0, min(limit, len(hashes))
        while at < limit:
            run = self._heads.get(hashes[at])
            if run is None:
                break
            at = run.meets(hashes, limit)
            found.append((run, at))
        return found

    def _part(self, run: Run, at: int) -> Run:
        """Part a run in two and return the former half. The latter keeps the run's place among those left."""
        former = Run(run.hashes, run.start, at, run.holders, run.before)
        self._heads[run.hashes[run.start]] = former
        self._heads[run.hashes[at]] = run
        run.start = at
        run.before = former if run.holders else None
        return former

    def _append(self, holding: Holding, start: int, stop: int) -> None:
        if self.watcher is not None:
            self.watcher.stored(holding.hashes, start, stop)
        if holding.runs:
            last, size = holding.runs[-1]
            if last.holders == 1 and last.end == start and last.hashes is holding.hashes and self._knows(last):
                last.end = stop
                holding.runs[-1] = (last, size + stop - start)
                return
        run = self._heads[holding.hashes[start]] = Run(holding.hashes, start, stop)
        holding.runs.append((run, stop - start))

    def _leave(self, run: Run) -> None:
        size = run.end - run.start
        run.before = None
        self.free += size
        if self._knows(run):
            self._left[run] = None
        else:
            self._blank += size

    def _knows(self, run: Run) -> bool:
        """Whether the cache still has it: not after `forget`."""
        return self._heads.get(run.hashes[run.start]) is run

    def _evict(self, count: int) -> None:
        while count:
            run = next(iter(self._left))
            size = run.end - run.start
            if self.watcher is not None:
                self.watcher.removed(run.hashes[max(run.start, run.end - count) : run.end])
            if size > count:
                run.end -= count
                return
            del self._left[run]
            del self._heads[run.hashes[run.start]]
            count -= size

    def _use(self, count: int) -> None:
        self.free -= count
        self.peak = max(self.peak, self.used)
