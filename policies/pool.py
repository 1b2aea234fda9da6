"""A pool and its engines, as the scheduler knows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from policies.calls import Kind
from policies.routing.prefix import BLOCK_TOKENS

EngineStatus = Literal["starting", "ready", "draining", "gone"]

UNLIMITED = 1e18
"""A committed-work budget that nothing fills (a number, so that a journal can hold it)."""
EJECT_AFTER = 3
"""Consecutive failures before the first byte that take an engine out of routing for a while."""
EJECT_FIRST, EJECT_LONGEST = 1.0, 60.0
"""Seconds that an engine stays out: doubling from the first to the longest while it keeps failing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """How much one engine takes at once: sequences, and committed work in tokens (`Slot.work`).

    `kv_tokens` is the size of its KV memory, where it is known: so much of what was sent it can still hold.
    """

    sequences: int
    work: float = UNLIMITED
    kv_tokens: int | None = None

    @property
    def prefix_blocks(self) -> int | None:
        """How many blocks of a prefix index its KV memory amounts to."""
        return None if self.kv_tokens is None else self.kv_tokens // BLOCK_TOKENS


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
    """One attempt in an engine. `prefill` and `decode` are its committed work in tokens, 4 for one to be written."""

    call: str
    attempt: int
    prefill: float
    decode: float
    since: float
    expected_cached: int

    @property
    def work(self) -> float:
        return self.prefill + self.decode


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineView:
    """What filters, scorers and pickers see of an engine. `matched` tokens of the call's prompt it probably holds."""

    name: str
    pool: str
    running: int
    work: float
    limits: EngineLimits
    kv_use: float
    matched: int
    last_start: int
    tried: bool


@dataclass(slots=True)
class EngineState:
    """One engine: its attempts, its committed work, its health. Owned by the dispatcher.

    `for_good` marks one that was told to go, as against one that its pool can spare for now.
    """

    name: str
    pool: str
    limits: EngineLimits
    status: EngineStatus = "starting"
    slots: dict[int, Slot] = field(default_factory=dict)
    work: float = 0.0
    kv_use: float = 0.0
    reported_running: int = 0
    reported_waiting: int = 0
    failures: int = 0
    ejections: int = 0
    ejected_until: float = 0.0
    last_start: int = 0
    for_good: bool = False

    def usable(self, now: float) -> bool:
        """Whether it may be given a call at all, room aside."""
        return self.status == "ready" and now >= self.ejected_until

    def has_room(self, work: float) -> bool:
        """Whether it may take this much more. An empty engine takes any one call, however large; one just let
        back in after an ejection takes one call at a time until it has proved itself."""
        if not self.slots:
            return True
        if self.ejections and self.failures:
            return False
        return len(self.slots) < self.limits.sequences and self.work + work <= self.limits.work

    def view(self, *, matched: int, tried: bool) -> EngineView:
        """The engine as routing sees it for one call."""
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
        )

    def take(self, slot: Slot, order: int) -> None:
        self.slots[slot.attempt] = slot
        self.work += slot.work
        self.last_start = order

    def give_back(self, attempt: int) -> Slot | None:
        slot = self.slots.pop(attempt, None)
        if slot is not None:
            self.work = self.work - slot.work if self.slots else 0.0
        return slot

    def prefilled(self, attempt: int) -> None:
        """The attempt's prefill is done: only its decode stays committed."""
        slot = self.slots.get(attempt)
        if slot is not None:
            self.work -= slot.prefill
            slot.prefill = 0.0

    def succeeded(self) -> None:
        self.failures = 0
        self.ejections = 0

    def failed(self, now: float) -> bool:
        """Count a failure before the first byte; True when it is time to take the engine out."""
        self.failures += 1
        return self.failures >= EJECT_AFTER and self.usable(now)

    def eject(self, now: float) -> float:
        """Take the engine out of routing; returns the time at which it may be tried again."""
        self.ejected_until = now + min(EJECT_LONGEST, EJECT_FIRST * 2**self.ejections)
        self.ejections += 1
        return self.ejected_until


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolView:
    """What admission sees of a pool. `slots` is how many calls its usable engines run at once."""

    name: str
    waiting: int
    waiting_bytes: int
    queue_calls: int
    queue_bytes: int
    running: int
    slots: int
    mean_service: float

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
        return ahead * self.pace


def lending(specs: Mapping[str, PoolSpec]) -> dict[str, tuple[str, ...]]:
    """For each pool, the pools whose calls its engines may take (the inverse of `lenders`)."""
    return {
        name: tuple(other for other, spec in specs.items() if name in (spec.lenders or (other,))) for name in specs
    }
