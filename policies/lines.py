"""Where calls wait: parked at the gate with their runs, or in the queue of their stage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from policies.calls import Call
from policies.gate import Gate
from policies.pool import PoolSpec
from policies.protocols import Key
from policies.queue import UNDER_WAY, Renew, StageQueue, StageQueues, Waiting
from policies.runs import Run


class Lines:
    """The queues of all pools, and the gate before them. Each method that lets calls queue returns their pools."""

    def __init__(self, specs: Mapping[str, PoolSpec], gate: Gate, renew: Renew) -> None:
        self._specs = specs
        self._gate = gate
        self._renew = renew
        self._queues = {name: StageQueues(renew) for name in specs}

    def __contains__(self, pool: str) -> bool:
        """Whether calls of this pool stand in its queues."""
        return len(self._queues[pool]) > 0

    def waiting(self, pool: str) -> int:
        """How many calls of a pool wait, the parked ones among them."""
        return len(self._queues[pool]) + self._gate.parked(pool)

    def waiting_bytes(self, pool: str) -> int:
        return self._queues[pool].body_bytes + self._gate.parked_bytes(pool)

    def by_stage(self, pool: str) -> dict[str, int]:
        return self._queues[pool].by_stage()

    def full(self, call: Call) -> bool:
        """Whether even a run under way can find no place: at UNDER_WAY times the bound that new runs meet."""
        spec, calls, held = self._specs[call.pool], self.waiting(call.pool), self.waiting_bytes(call.pool)
        most_calls, most_bytes = UNDER_WAY * spec.queue_calls, UNDER_WAY * spec.queue_bytes
        return calls >= most_calls or (calls > 0 and held + call.body_bytes > most_bytes)

    def of(self, pool: str) -> list[StageQueue]:
        return self._queues[pool].lines()

    def enter(self, entry: Waiting, run: Run, now: float) -> Sequence[str]:
        """A call has come: it queues, or is parked."""
        gated = entry.call.kind == "llm" and not self._gate.always_open
        if gated and not self._gate.came(run.key, run.started, entry, now, under_way=run.calls > 1):
            return ()
        return self.push([entry], now)

    def ended(self, entry: Waiting | None, run: Run, now: float, *, over: bool, kept: float) -> Sequence[str]:
        """A call that had come is gone, its run perhaps with it: parked ones may take its place."""
        if self._gate.always_open:
            return ()
        known = entry if entry is not None and entry.call.kind == "llm" else None
        return self.release(self._gate.went(run.key, known, over=over, now=now, kept=kept), now)

    def any_of(self, pool: str, now: float) -> Waiting | None:
        """One of the calls that wait in a pool, a parked one only when no other is left."""
        for queue in self.of(pool):
            if (head := queue.head(now)) is not None:
                return head
        return next(iter(self._gate.parked_calls(pool)), None)

    def push(self, entries: Iterable[Waiting], now: float) -> Sequence[str]:
        """Calls that are not queued stand in their queues from now on."""
        pools = []
        for entry in entries:
            self._queues[entry.call.pool].push(entry, now)
            pools.append(entry.call.pool)
        return pools

    def release(self, entries: Iterable[Waiting], now: float) -> Sequence[str]:
        """Parked calls queue, each with the key that it has by now."""
        for entry in (released := list(entries)):
            entry.key = self._renew(entry, now)
        return self.push(released, now)

    def take(self, entry: Waiting | None) -> Sequence[str]:
        """A call stands in its queue no longer, if it did."""
        if entry is None or not entry.queued:
            return ()
        self._queues[entry.call.pool].remove(entry)
        return (entry.call.pool,)

    def follow(self, entry: Waiting, key: Key, now: float) -> Sequence[str]:
        """A call with that key waits for the same answer: it is served as soon as either would be."""
        entry.followed = key if entry.followed is None else entry.followed.joined(key)
        return self.hurry(entry, key, now)

    def hurry(self, entry: Waiting, key: Key, now: float) -> Sequence[str]:
        """If a call is queued, it is served as soon as it or one with that key would be."""
        if not entry.queued:
            return ()
        joint = entry.key.joined(key)
        if joint == entry.key:
            return ()
        self._queues[entry.call.pool].rekey(entry, joint, now)
        return (entry.call.pool,)
