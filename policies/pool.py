"""A pool and its engines, as the scheduler knows them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from policies.calls import Kind, Outcome
from policies.pace import Pace

EngineStatus = Literal["starting", "ready", "draining", "gone"]

UNLIMITED = 1e18
"""A committed-work budget that nothing fills (a number, so that a journal can hold it)."""
EJECT_AFTER = 3
"""Consecutive failures before the first byte that take an engine out of routing for a while."""
EJECT_FIRST, EJECT_LONGEST = 1.0, 60.0
"""Seconds that an engine stays out: doubling from the first to the longest while it keeps failing."""
REST_LONGEST = 60.0
"""Seconds that an engine is left alone at most when it asks for that."""

DECODE_WEIGHT = 4.0
"""A token to be written costs an engine about as much as this many prompt tokens (tail-aware release, 2609.10964)."""
INFLOW_MEMORY = 20.0
"""Seconds over which an engine's inflow of prompts is averaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """How much one engine takes at once: sequences, and committed work in tokens (`Slot.work`).

    `kv_tokens` is the size of its KV memory, where it is known: so much of what was sent it can still hold.
    """

    sequences: int
    work: float = UNLIMITED
    kv_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSpec:
    """What is configured of a pool. `lenders` are the pools whose engines may serve its calls, itself among them."""

    name: str
    kind: Kind = "llm"
    model: str = ""
    minimum: int = 1
    maximum: int = 1
    start: int = 1
    limits: EngineLimits
    lenders: tuple[str, ...] = ()
    queue_calls: int = 1000
    queue_bytes: int = 256_000_000
    prior_service: float = 1.0

    def clamp(self, engines: int) -> int:
        """The nearest size that the pool may have."""
        return max(self.minimum, min(self.maximum, engines))


@dataclass(slots=True)
class Slot:
    """One attempt in an engine. `prefill` and `decode` are its committed work in tokens, 4 for one to be written.

    `fresh` tokens of KV memory it will hold that were not there before it; `borrowed` says that it is a call of
    another pool than the engine's. `urgency` is what a second of delay costs its run, from 0 to 1. When it began, the
    engine's own `shares` stood so; it ran `crowd` calls, itself among them, had `ahead` tokens of other prompts to
    compute and spent the share `pressure` of its time on such; it computed `computed` of its own.
    """

    call: str
    attempt: int
    prefill: float
    decode: float
    since: float
    fresh: float = 0.0
    borrowed: bool = False
    urgency: float = 1.0
    crowd: int = 1
    shares: float = 0.0
    ahead: float = 0.0
    computed: float = 0.0
    pressure: float = 0.0

    @property
    def work(self) -> float:
        return self.prefill + self.decode


@dataclass(slots=True, kw_only=True)
class EngineView:
    """What filters, scorers and pickers see of an engine, for one call. Theirs to read only.

    `matched` tokens of the call's prompt it probably holds. `budget` is the committed work that it may have, of
    which it has `work`, with `prefill` tokens still to be computed, and `on_loan` in calls of other pools.
    `footprint` tokens of its KV memory are worth keeping: what it was sent more than once, and what its calls add.
    Its calls lose `urgency` by a second of delay, all together; it spends the share `pressure` of its time on
    prompts. The call would be a `guest` there, on loan.
    """

    name: str
    pool: str
    running: int
    work: float
    limits: EngineLimits
    kv_use: float
    matched: int
    last_start: int
    tried: bool
    budget: float = UNLIMITED
    prefill: float = 0.0
    on_loan: float = 0.0
    footprint: float = 0.0
    urgency: float = 0.0
    pressure: float = 0.0
    guest: bool = False
    pace: Pace = field(default_factory=Pace)

    @property
    def load(self) -> float:
        """The share of its capacity that is taken: of its seats or of its budget, whichever is scarcer."""
        return max(self.running / self.limits.sequences, self.work / self.budget)


@dataclass(slots=True)
class EngineState:
    """One engine: its attempts, its committed work, its health. Owned by the dispatcher.

    `budget` is the committed work that it may have at once, within its limit, `prefill` the part of `work` that is
    still to be computed from prompts, `on_loan` the part that is other pools'. `fresh` tokens of KV memory its calls
    add to what was there, and lose `urgency` by a second of delay, all together. `pace` is its pool's. `inflow` is
    how many prompt tokens it was given of late, those of INFLOW_MEMORY seconds ago counting a third, as of
    `inflow_at`. `shares` counts its seconds, each divided by the calls that shared it, as of `shares_at`. One that is
    `asleep` is well, and takes no calls. `for_good` marks one that was told to go, as against one that its pool can
    spare for now.
    """

    name: str
    pool: str
    limits: EngineLimits
    status: EngineStatus = "starting"
    slots: dict[int, Slot] = field(default_factory=dict)
    budget: float = UNLIMITED
    work: float = 0.0
    prefill: float = 0.0
    on_loan: float = 0.0
    fresh: float = 0.0
    urgency: float = 0.0
    pace: Pace = field(default_factory=Pace)
    shares: float = 0.0
    shares_at: float = 0.0
    inflow: float = 0.0
    inflow_at: float = 0.0
    kv_use: float = 0.0
    asleep: bool = False
    reported_running: int = 0
    reported_waiting: int = 0
    failures: int = 0
    ejections: int = 0
    ejected_until: float = 0.0
    last_start: int = 0
    for_good: bool = False

    def usable(self, now: float) -> bool:
        """Whether it may be given a call at all, room aside."""
        return self.status == "ready" and not self.asleep and now >= self.ejected_until

    def has_room(self, work: float) -> bool:
        """Whether it may take this much more. An empty engine takes any one call, however large; one just let
        back in after an ejection takes one call at a time until it has proved itself."""
        if not self.slots:
            return True
        if self.ejections and self.failures:
            return False
        return len(self.slots) < self.limits.sequences and self.work + work <= self.budget

    def pressure(self, now: float) -> float:
        """The share of its time that it spends on prompts, going by what it was given of late."""
        fade = math.exp((self.inflow_at - now) / INFLOW_MEMORY)
        return self.pace.pressure(self.inflow * fade / INFLOW_MEMORY)

    def view(self, now: float, *, matched: int, tried: bool, hot: int = 0, guest: bool = False) -> EngineView:
        """The engine as routing sees it for one call; `hot` tokens of its prefix cache are worth keeping."""
        return EngineView(
            name=self.name,
            pool=self.pool,
            running=len(self.slots),
            work=self.work,
            limits=self.limits,
            kv_use=self.kv_use,
            matched=matched,
            last_start=self.last_start,
            tried=tried,
            budget=self.budget,
            prefill=self.prefill,
            on_loan=self.on_loan,
            footprint=hot + self.fresh,
            urgency=self.urgency,
            pressure=self.pressure(now),
            guest=guest,
            pace=self.pace,
        )

    def take(self, slot: Slot, order: int) -> None:
        now = slot.since
        slot.shares = self._shared(now)
        slot.ahead, slot.computed, slot.pressure = self.prefill, slot.prefill, self.pressure(now)
        self.slots[slot.attempt] = slot
        slot.crowd = len(self.slots)
        self.last_start = order
        self.inflow = self.inflow * math.exp((self.inflow_at - now) / INFLOW_MEMORY) + slot.prefill
        self.inflow_at = now
        self._account(slot, 1)

    def give_back(self, attempt: int, now: float) -> float:
        """An attempt is over; returns its share of the engine's time, in seconds."""
        served = self._shared(now)
        slot = self.slots.pop(attempt)
        self._account(slot, -1)
        if not self.slots:  # what rounding has left
            self.work = self.prefill = self.on_loan = self.fresh = self.urgency = 0.0
        return served - slot.shares

    def prefilled(self, attempt: int) -> None:
        """The attempt's prefill is done: only its decode stays committed."""
        slot = self.slots.get(attempt)
        if slot is not None:
            self.work -= slot.prefill
            self.prefill -= slot.prefill
            self.on_loan -= slot.prefill if slot.borrowed else 0.0
            slot.prefill = 0.0

    def learn(self, slot: Slot, outcome: Outcome, now: float) -> None:
        """See how fast it is from a call that has ended, whose slot has been given back."""
        self.pace.learn(
            outcome,
            computed=slot.ahead + slot.computed,
            crowd=(slot.crowd + len(self.slots) + 1) / 2,
            pressure=(slot.pressure + self.pressure(now)) / 2,
        )

    def _shared(self, now: float) -> float:
        """How many seconds a call would have had that had run here all along: each second is shared by all calls."""
        if self.slots:
            self.shares += (now - self.shares_at) / len(self.slots)
        self.shares_at = now
        return self.shares

    def _account(self, slot: Slot, sign: int) -> None:
        self.work += sign * slot.work
        self.prefill += sign * slot.prefill
        self.fresh += sign * slot.fresh
        self.urgency += sign * slot.urgency
        if slot.borrowed:
            self.on_loan += sign * slot.work

    def succeeded(self) -> None:
        self.failures = 0
        self.ejections = 0

    def failed(self, now: float) -> bool:
        """Count a failure before the first byte; True when it is time to take the engine out."""
        self.failures += 1
        return self.failures >= EJECT_AFTER and self.usable(now)

    def rest(self, seconds: float, now: float) -> None:
        """Leave the engine alone for as long as it asks, within bounds: it is well, and says when it can do more."""
        self.ejected_until = max(self.ejected_until, now + min(REST_LONGEST, seconds))

    def eject(self, now: float) -> float:
        """Take the engine out of routing; returns the time at which it may be tried again."""
        self.ejected_until = now + min(EJECT_LONGEST, EJECT_FIRST * 2**self.ejections)
        self.ejections += 1
        return self.ejected_until


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolView:
    """What admission sees of a pool. `slots` is how many calls its usable engines run at once; calls of other pools
    that wait for the same engines will take `others` seconds of service in all."""

    name: str
    waiting: int
    waiting_bytes: int
    queue_calls: int
    queue_bytes: int
    running: int
    slots: int
    mean_service: float
    others: float = 0.0

    @property
    def pace(self) -> float:
        """Seconds from one call's end to the next one's while all slots are taken.

        While no engine is usable nobody knows; then it is that of a single slot, so that it stays a number.
        """
        return self.mean_service / max(1, self.slots)

    @property
    def predicted_wait(self) -> float:
        """Seconds until a call that joins the queue now starts: as many ends as calls stand before it."""
        ahead = self.waiting + max(0, self.running - max(1, self.slots) + 1)
        return ahead * self.pace + self.others / max(1, self.slots)


def lending(specs: Mapping[str, PoolSpec]) -> dict[str, tuple[str, ...]]:
    """For each pool, the pools whose calls its engines may take (the inverse of `lenders`)."""
    return {
        name: tuple(other for other, spec in specs.items() if name in (spec.lenders or (other,))) for name in specs
    }
