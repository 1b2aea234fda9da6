"""The questions that a policy may answer: one protocol each, every argument handed in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from types import MappingProxyType
from typing import Protocol

from policies.calls import Call, Estimate
from policies.pool import EngineView, PoolView


def _nothing() -> Mapping[str, int]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """Where a run stands when one of its calls arrives. `first` means that this call opens the run.

    Of its ended calls: `attained` seconds of service in all, `path` along the longest chain of calls, `waited`
    seconds in queues; `context` tokens of prompt and answer of the last one. `siblings` are its other open calls;
    `last` says that of several that were open together only this one is left. `visits` counts the calls of this run
    by stage, `entered` those of all runs of its workflow; 95 of 100 of them have ended within `p95` seconds. Its
    tenant is `lead` seconds of attributed service ahead of the tenant that has had the least.
    """

    deadline: float | None
    started: float
    calls: int
    first: bool
    attained: float = 0.0
    path: float = 0.0
    waited: float = 0.0
    context: int = 0
    siblings: int = 0
    last: bool = False
    p95: float | None = None
    lead: float = 0.0
    visits: Mapping[str, int] = field(default_factory=_nothing)
    entered: Mapping[str, int] = field(default_factory=_nothing)


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A call's place in its queue, written so that it does not move with the clock.

    `start` sorts, lower first. From `lost_at` on the call can no longer make its deadline and stands behind those
    that can; from `starve_at` on it stands before all others. `bucket` is the same order as one integer, for the
    engine's own queue. `until`, of a policy under which calls age at different rates, is when the key must be made
    anew.
    """

    start: tuple[float, ...]
    bucket: int
    lost_at: float | None = None
    starve_at: float | None = None
    until: float | None = None

    def joined(self, other: Key) -> Key:
        """The place of two calls that wait for the same answer: as soon as either, lost when both are."""
        lost = None if self.lost_at is None or other.lost_at is None else max(self.lost_at, other.lost_at)
        starve = [moment for moment in (self.starve_at, other.starve_at) if moment is not None]
        until = [moment for moment in (self.until, other.until) if moment is not None]
        return Key(
            start=min(self.start, other.start),
            bucket=min(self.bucket, other.bucket),
            lost_at=lost,
            starve_at=min(starve, default=None),
            until=min(until, default=None),
        )


@dataclass(frozen=True, slots=True)
class Admit:
    """The call may wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """The call may not wait; `retry_after` seconds from now it might."""

    late: bool
    retry_after: float


class Priority(Protocol):
    """Who is next in a queue."""

    def key(self, call: Call, estimate: Estimate, run: RunView, now: float) -> Key: ...


class Admission(Protocol):
    """Whether a run may begin. Asked at a run's first call only."""

    def decide(self, call: Call, estimate: Estimate, run: RunView, pool: PoolView, now: float) -> Admit | Refuse: ...


@dataclass(slots=True, kw_only=True)
class Demand:
    """A call that looks for an engine: it will write about `output` tokens, and a second of delay costs its run
    `urgency`, from 0 to 1. `lost` says that its run can no longer make its deadline, `bounded` that it has one."""

    call: Call
    output: float = 0.0
    urgency: float = 1.0
    lost: bool = False
    bounded: bool = True


class Filter(Protocol):
    """Which engines may take a call."""

    def keep(self, demand: Demand, engine: EngineView) -> bool: ...


class Scorer(Protocol):
    """How well each of the engines at hand suits a call: 0 worst, 1 best. There is at least one."""

    def scores(self, demand: Demand, engines: Sequence[EngineView]) -> Sequence[float]: ...


class Picker(Protocol):
    """Which of the scored engines takes the call."""

    def pick(self, scored: Sequence[tuple[float, EngineView]], rng: Random) -> EngineView: ...
