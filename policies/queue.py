"""The calls that wait in a pool, by stage; at each stage in three heaps: starved before live before lost.

A call's key is fixed when it arrives; only the passing of `starve_at` and `lost_at` moves it between heaps, and that
of `until` asks for another key. All this is looked at when the head is asked for. The starved are served in the
order in which they became so: were it their key, those of little urgency would go on starving. Entries that left
stay in their heap until they surface or until they outnumber the living.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from policies.calls import Call, Estimate
from policies.protocols import Key

STARVED, LIVE, LOST = 0, 1, 2
UNDER_WAY = 4
"""The hard bound of a queue, in units of its soft one: runs under way go on queueing until then."""
LINES = 64
"""Stages of a pool that have a queue of their own; those beyond share one, as stage names come from clients."""


Spot = tuple[int, tuple[float, ...], int]


@dataclass(slots=True, eq=False)
class Waiting:
    """One call in a queue. `tried` are the engines that have failed it; `order` breaks ties, first come first.
    `followed` is the joint key of the calls that wait for its answer.

    `line` is the name of the queue that it stands in: its stage, or '' where that has none of its own. `spot` is what
    it is compared by, across queues.
    """

    call: Call
    estimate: Estimate
    key: Key
    order: int
    deadline: float | None
    visit: int
    since: float
    tried: set[str] = field(default_factory=set)
    followed: Key | None = None
    line: str = ""
    stamp: int = 0
    rank: int = LIVE
    queued: bool = False
    spot: Spot = (LIVE, (), 0)

    def file(self, rank: int) -> None:
        """Take it for starved, live or lost from now on."""
        self.rank = rank
        first = self.key.start
        if rank == STARVED and self.key.starve_at is not None:
            first = (self.key.starve_at,)
        self.spot = rank, first, self.order


Renew = Callable[[Waiting, float], Key]
"""The key of a waiting call as it is now."""
KEPT_LEAST = 0.05
"""Seconds that a renewed key holds at least, whatever its policy says: a clock that stands still must not spin."""

_Item = tuple[tuple[float, ...], int, int, Waiting]


class StageQueue:
    """A priority queue of waiting calls with removal and change of key."""

    def __init__(self, renew: Renew) -> None:
        self._renew = renew
        self._heaps: tuple[list[_Item], list[_Item], list[_Item]] = ([], [], [])
        self._turns: list[tuple[float, int, int, Waiting]] = []
        self._count = 0
        self._head: Waiting | None = None

    def __len__(self) -> int:
        return self._count

    @property
    def places(self) -> int:
        """How many places it keeps in memory, those among them that are void."""
        return sum(map(len, self._heaps)) + len(self._turns)

    def push(self, entry: Waiting, now: float) -> None:
        """Add a call that is not queued."""
        assert not entry.queued
        entry.queued = True
        self._count += 1
        self._place(entry, now)

    def remove(self, entry: Waiting) -> None:
        """Take a queued call out, wherever it stands."""
        assert entry.queued
        entry.queued = False
        entry.stamp += 1
        if entry is self._head:
            self._head = None
        self._count -= 1
        self._compact_if_sparse()

    def rekey(self, entry: Waiting, key: Key, now: float) -> None:
        """Give a queued call another key."""
        entry.key = key
        self._place(entry, now)
        self._compact_if_sparse()

    def head(self, now: float) -> Waiting | None:
        """The call to serve next; it stays in the queue."""
        if self._turns and self._turns[0][0] <= now:
            self._advance(now)
        if self._head is None:
            self._head = self._first()
        return self._head

    def _first(self) -> Waiting | None:
        for heap in self._heaps:
            while heap:
                entry = heap[0][3]
                if entry.queued and heap[0][2] == entry.stamp:
                    return entry
                heapq.heappop(heap)
        return None

    def _place(self, entry: Waiting, now: float) -> None:
        """File a call where it belongs at this moment; a new stamp makes any place void that it had before."""
        starve = math.inf if entry.key.starve_at is None else entry.key.starve_at
        lost = math.inf if entry.key.lost_at is None else entry.key.lost_at
        entry.file(STARVED if now >= starve else LOST if now >= lost else LIVE)
        entry.stamp += 1
        self._head = None
        _, start, order = entry.spot
        heapq.heappush(self._heaps[entry.rank], (start, order, entry.stamp, entry))
        turn = {STARVED: math.inf, LIVE: min(starve, lost), LOST: starve}[entry.rank]
        if entry.rank != STARVED and entry.key.until is not None:
            turn = min(turn, entry.key.until)
        if turn < math.inf:
            heapq.heappush(self._turns, (turn, order, entry.stamp, entry))

    def _advance(self, now: float) -> None:
        while self._turns and self._turns[0][0] <= now:
            _, _, stamp, entry = heapq.heappop(self._turns)
            if not entry.queued or stamp != entry.stamp:
                continue
            if entry.key.until is not None and entry.key.until <= now:
                key = self._renew(entry, now)
                entry.key = replace(key, until=max(key.until, now + KEPT_LEAST)) if key.until is not None else key
            self._place(entry, now)

    def _compact_if_sparse(self) -> None:
        """Throw out what is void once it outnumbers the living; each of these has up to two valid places."""
        if self.places <= 4 * self._count + 64:
            return
        for heap in self._heaps:
            heap[:] = [item for item in heap if item[3].queued and item[2] == item[3].stamp]
            heapq.heapify(heap)
        self._turns[:] = [turn for turn in self._turns if turn[3].queued and turn[2] == turn[3].stamp]
        heapq.heapify(self._turns)


class StageQueues:
    """The queues of one pool: one for each stage at which calls wait, as long as they do."""

    def __init__(self, renew: Renew) -> None:
        self._renew = renew
        self._queues: dict[str, StageQueue] = {}
        self._count = 0
        self.body_bytes = 0

    def __len__(self) -> int:
        return self._count

    def push(self, entry: Waiting, now: float) -> None:
        """Add a call that is not queued at its stage."""
        stage = entry.call.stage
        entry.line = stage if stage in self._queues or len(self._queues) < LINES else ""
        queue = self._queues.get(entry.line)
        if queue is None:
            queue = self._queues[entry.line] = StageQueue(self._renew)
        queue.push(entry, now)
        self._count += 1
        self.body_bytes += entry.call.body_bytes

    def remove(self, entry: Waiting) -> None:
        """Take a queued call out."""
        queue = self._queues[entry.line]
        queue.remove(entry)
        if not queue:
            del self._queues[entry.line]
        self._count -= 1
        self.body_bytes -= entry.call.body_bytes

    def rekey(self, entry: Waiting, key: Key, now: float) -> None:
        """Give a queued call another key."""
        self._queues[entry.line].rekey(entry, key, now)

    def lines(self) -> list[StageQueue]:
        """The queues at this moment, none of them empty."""
        return list(self._queues.values())

    def by_stage(self) -> dict[str, int]:
        """How many calls wait in each queue, by its name."""
        return {line: len(queue) for line, queue in self._queues.items()}
