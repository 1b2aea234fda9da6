"""How many runs may be under way at once: the policies, and the gate that they govern.

A run that may not go on yet is *parked* with its calls, before the queues; it keeps its place by its start. What
opens and closes the gate is what the engines report at each review, and the runs that end.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from policies.queue import Waiting
from policies.runs import RunKey

PARKED_MOST = 60.0
"""Seconds after which a parked run is let through whatever the policy says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How the engines for LLM calls fare at a review.

    `kv_use` is the share of KV memory that live sequences hold, the mean over the engines of the fullest pool;
    `hit_rate` the share of the prompt tokens of late that engines found cached, 0 where they do not say; `kv_tokens`
    the KV memory of all engines, infinite where it is not known.
    """

    kv_use: float = 0.0
    hit_rate: float = 1.0
    kv_tokens: float = math.inf


@dataclass(slots=True, eq=False)
class Member:
    """A run as the gate knows it. `kept` tokens of KV memory its calls have added to what engines held. `context` in
    tokens; `open` are its calls that wait or run, `parked` those that wait here, and `turn` is what the policy said
    when the last of them came."""

    key: RunKey
    started: float
    seen: float
    context: int = 0
    kept: float = 0.0
    open: int = 0
    parked: list[Waiting] = field(default_factory=list)
    turn: float = 0.0

    @property
    def reasoning(self) -> bool:
        """Whether the run is, or wants to be, in an engine; else a tool or its client is at work."""
        return self.open > 0


class GatePolicy(Protocol):
    """Which runs may go on. `period` in seconds between reviews; None for a gate that is always open."""

    @property
    def period(self) -> float | None: ...

    @property
    def entry_only(self) -> bool:
        """Whether runs are parked only before their first call."""
        ...

    def limit(self, limit: float, load: Load) -> float:
        """The new limit at a review; `limit` is infinite at the first."""
        ...

    def admits(self, one: Member, active: Collection[Member], limit: float, load: Load, now: float) -> bool:
        """Whether one more run fits beside those that are active. Where it does not, none of a later turn does."""
        ...

    def pauses(self, active: Collection[Member], limit: float, load: Load, now: float) -> Sequence[Member]:
        """Which of the active runs have to pause: their next calls are parked, those under way are not touched."""
        ...

    def turn(self, one: Member) -> float:
        """Which of the parked runs goes on first: the lowest."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """Every run may be under way."""

    period: None = field(default=None, init=False)
    entry_only: bool = field(default=True, init=False)

    def limit(self, limit: float, load: Load) -> float:
        return limit

    def admits(self, one: Member, active: Collection[Member], limit: float, load: Load, now: float) -> bool:
        return True

    def pauses(self, active: Collection[Member], limit: float, load: Load, now: float) -> Sequence[Member]:
        return ()

    def turn(self, one: Member) -> float:
        return one.started


@dataclass(frozen=True, slots=True, kw_only=True)
class Aimd:
    """A window on runs that grows while KV memory is free and shrinks when it thrashes (Concur, arXiv 2601.22705).

    At each review: `step` more runs when KV use is below `low`, the share `cut` of the window when it is above `high`
    *and* the hit rate below `hits`. The defaults are the published ones, to which the low mark is said to be very
    sensitive. Assumed: the window begins at `start` runs, never falls below `least`, a run counts until it ends
    or has had no open call for 30 s, and, unless `pausing` is 0, runs beyond a window that shrank pause at their next
    call, the youngest first; runs are let in by their start.
    """

    entry_only: bool = field(default=False, init=False)
    period: float = field(default=2.0, metadata={"unit": "s", "above": 0.0, "most": 60.0})
    start: float = field(default=16.0, metadata={"least": 1.0})
    least: float = field(default=4.0, metadata={"least": 1.0})
    step: float = 2.0
    cut: float = field(default=0.5, metadata={"above": 0.0, "most": 1.0})
    low: float = 0.2
    high: float = 0.5
    hits: float = 0.2
    pausing: float = 1.0

    def limit(self, limit: float, load: Load) -> float:
        if math.isinf(limit):
            return self.start
        if load.kv_use > self.high and load.hit_rate < self.hits:
            return max(self.least, limit * self.cut)
        return limit + self.step if load.kv_use < self.low else limit

    def admits(self, one: Member, active: Collection[Member], limit: float, load: Load, now: float) -> bool:
        return len(active) < limit

    def pauses(self, active: Collection[Member], limit: float, load: Load, now: float) -> Sequence[Member]:
        surplus = len(active) - math.ceil(limit)
        if not self.pausing or surplus <= 0:
            return ()
        return sorted(active, key=lambda member: member.started)[-surplus:]

    def turn(self, one: Member) -> float:
        return one.started


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseRestore:
    """Programs are paused so that the contexts of those that go on fit the KV memory (ThunderAgent, 2602.13692).

    Every `period` the demand is the sum of the contexts of reasoning runs and, of acting ones (in a tool), the
    context halved for each second since their last call. Above capacity, acting runs of the smallest context pause
    first, then reasoning ones; a paused run goes on when its context fits again, reasoning ones and the smallest
    first. Capacity is `share` of the KV memory less `buffer` tokens per run. Assumed: the shared prefixes, which the
    original subtracts, stand for themselves in `share`; a run's context is its longest prompt so far, so an answer
    counts once it is part of one; before the first review the KV memory is not known, and every run goes on.
    """

    entry_only: bool = field(default=False, init=False)
    period: float = field(default=5.0, metadata={"unit": "s", "above": 0.0, "most": 60.0})
    share: float = field(default=1.0, metadata={"above": 0.0})
    buffer: float = 512.0

    def limit(self, limit: float, load: Load) -> float:
        return self.share * load.kv_tokens

    def admits(self, one: Member, active: Collection[Member], limit: float, load: Load, now: float) -> bool:
        return not active or self._demand(active, now) + one.context + self.buffer <= limit

    def pauses(self, active: Collection[Member], limit: float, load: Load, now: float) -> Sequence[Member]:
        over = self._demand(active, now) - limit
        paused = []
        for member in sorted(active, key=lambda one: (one.reasoning, one.context)):
            if over <= 0:
                break
            paused.append(member)
            over -= self._weight(member, now)
        return paused

    def turn(self, one: Member) -> float:
        return -(1.0 / max(1, one.context) + one.reasoning)

    def _demand(self, active: Collection[Member], now: float) -> float:
        return sum(self._weight(member, now) for member in active)

    def _weight(self, member: Member, now: float) -> float:
        fade = 1.0 if member.reasoning else 0.5 ** min(64.0, now - member.seen)
        return (member.context + self.buffer) * fade


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkingSet:
    """New runs begin while the KV memory holds what the runs under way live on; those under way are never paused.

    A run's working set is what its calls have added to what engines held already: tokens computed of its prompts,
    and of its answers. A conversation comes back to all of it. Where the sum over the runs under way (and those
    whose last call ended within half a minute) exceeds the share `share` of all engines' memory, each new run would
    push another one's context out of the cache, and all of them would compute their prompts again and again. A run
    counts for no more than its longest prompt and its last call, and between two calls for half after each `fade`
    seconds: perhaps it is over.
    """

    entry_only: bool = field(default=True, init=False)
    period: float = field(default=2.0, metadata={"unit": "s", "above": 0.0, "most": 60.0})
    share: float = field(default=0.6, metadata={"above": 0.0, "most": 1.0})
    fade: float = field(default=10.0, metadata={"unit": "s", "above": 0.0})

    def limit(self, limit: float, load: Load) -> float:
        return self.share * load.kv_tokens

    def admits(self, one: Member, active: Collection[Member], limit: float, load: Load, now: float) -> bool:
        return not active or one.context + sum(self._held(member, now) for member in active) <= limit

    def _held(self, member: Member, now: float) -> float:
        return member.kept if member.open else member.kept * 0.5 ** ((now - member.seen) / self.fade)

    def pauses(self, active: Collection[Member], limit: float, load: Load, now: float) -> Sequence[Member]:
        return ()

    def turn(self, one: Member) -> float:
        return one.started


LINGER = 30.0
"""Seconds without an open call after which a run counts as gone."""


class Gate:
    """The runs under way and those that are parked. Owned by the dispatcher."""

    def __init__(self, policy: GatePolicy) -> None:
        self.policy = policy
        self.window = math.inf
        self.load = Load()
        self._members: dict[RunKey, Member] = {}
        self._active: dict[RunKey, Member] = {}
        self._line: list[tuple[float, int, Member]] = []
        self._tickets = 0
        self._due: float | None = None
        self._parked = Counter[str]()
        self._parked_bytes = Counter[str]()

    @property
    def always_open(self) -> bool:
        return self.policy.period is None

    @property
    def next_review(self) -> float | None:
        """When the gate wants to be reviewed; None while it knows no run."""
        return self._due if self._members else None

    @property
    def active(self) -> int:
        return len(self._active)

    @property
    def places(self) -> int:
        """How many places it keeps in memory for parked runs, those among them that are void."""
        return len(self._line)

    def parked(self, pool: str) -> int:
        """How many calls of a pool are parked."""
        return self._parked[pool]

    def parked_bytes(self, pool: str) -> int:
        """The bytes of their bodies."""
        return self._parked_bytes[pool]

    def parked_calls(self, pool: str) -> list[Waiting]:
        return [entry for member in self._members.values() for entry in member.parked if entry.call.pool == pool]

    def came(self, key: RunKey, started: float, entry: Waiting, now: float, *, under_way: bool = False) -> bool:
        """A call wants to queue: True when it may, False when it is parked here. `under_way` says that its run has
        made calls before."""
        if self._due is None or (now >= self._due and not any(one.open for one in self._members.values())):
            self._due = now + (self.policy.period or math.inf)
        if math.isinf(self.window):
            self.window = self.policy.limit(self.window, self.load)
        member = self._members.get(key)
        if member is None:
            member = self._members[key] = Member(key, started, now)
        member.seen = now
        member.open += 1
        member.context = max(member.context, entry.call.prompt_tokens)
        if key not in self._active:
            passes = under_way and self.policy.entry_only
            if not passes and (self._behind(member) or not self._fits(member, now)):
                self._park(member, entry)
                return False
            self._active[key] = member
        return True

    def went(self, key: RunKey, entry: Waiting | None, *, over: bool, now: float, kept: float = 0.0) -> list[Waiting]:
        """A call has ended or left, its run perhaps with it; returns the calls that may queue now. `entry` is None
        for a call that never came here."""
        member = self._members.get(key)
        if member is None:
            return []
        if entry is not None:
            member.open -= 1
            member.seen = now
            # What it was sent twice is there once: never more than its longest prompt and what this call has added.
            member.kept = min(member.kept, float(member.context)) + kept
            if entry in member.parked:
                member.parked.remove(entry)
                self._count(entry, -1)
        if over and not member.open:
            self._drop(key)
            return self._restored(now)
        return []

    def reviewed(self, load: Load, now: float) -> list[Waiting]:
        """Adapt the window, pause and restore; returns the calls that may queue now."""
        self.load = load
        self._due = now + (self.policy.period or math.inf)
        for key, member in list(self._members.items()):
            if not member.open and now - member.seen > LINGER:
                self._drop(key)
        self.window = self.policy.limit(self.window, load)
        for member in self.policy.pauses(self._active.values(), self.window, load, now):
            del self._active[member.key]
        parked = [member for member in self._members.values() if member.parked]
        overdue = [member for member in parked if now - member.parked[0].since > PARKED_MOST]
        released = [entry for member in overdue for entry in self._let_go(member)]
        return released + self._restored(now)

    def _restored(self, now: float) -> list[Waiting]:
        released: list[Waiting] = []
        while (member := self._first()) is not None and self._fits(member, now):
            released += self._let_go(member)
        return released

    def _behind(self, member: Member) -> bool:
        """Whether a parked run has its turn before this one."""
        first = self._first()
        return first is not None and first is not member and first.turn <= self.policy.turn(member)

    def _fits(self, member: Member, now: float) -> bool:
        return self.policy.admits(member, self._active.values(), self.window, self.load, now)

    def _drop(self, key: RunKey) -> None:
        del self._members[key]
        self._active.pop(key, None)

    def _let_go(self, member: Member) -> list[Waiting]:
        self._active[member.key] = member
        released, member.parked = member.parked, []
        for entry in released:
            self._count(entry, -1)
        return released

    def _count(self, entry: Waiting, sign: int) -> None:
        self._parked[entry.call.pool] += sign
        self._parked_bytes[entry.call.pool] += sign * entry.call.body_bytes

    def _park(self, member: Member, entry: Waiting) -> None:
        """Park a call; its run stands in line by its turn. Places of runs that left stay until they surface, or
        outnumber the runs."""
        member.parked.append(entry)
        self._count(entry, 1)
        turn = self.policy.turn(member)
        if len(member.parked) == 1 or turn != member.turn:
            member.turn = turn
            self._tickets += 1
            heapq.heappush(self._line, (turn, self._tickets, member))
        if len(self._line) > 2 * len(self._members) + 64:
            self._line = [place for place in self._line if place[2].parked and place[0] == place[2].turn]
            heapq.heapify(self._line)

    def _first(self) -> Member | None:
        """The parked run whose turn it is."""
        while self._line:
            turn, _, member = self._line[0]
            if member.parked and turn == member.turn:
                return member
            heapq.heappop(self._line)
        return None
