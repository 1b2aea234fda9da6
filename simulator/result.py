"""What a simulation says: how each run fared, how long each stage waited, what the engines did."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from simulator.world import Counters


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One run. `ended` is None where it was refused, lost on its way or left by its client.

    `refused` means at its entry: nothing had been done for it.
    """

    id: str
    workflow: str
    tenant: str
    at: float
    deadline: float
    ended: float | None
    refused: bool

    @property
    def met(self) -> bool:
        """Whether it ended in time."""
        return self.ended is not None and self.ended <= self.deadline

    @property
    def latency(self) -> float:
        """Seconds from its beginning to its end; infinite where it had none."""
        return math.inf if self.ended is None else self.ended - self.at


@dataclass(slots=True)
class StageRecord:
    """The calls of one stage that were answered: seconds in the queue, and seconds in the engine, call by call."""

    waits: list[float] = field(default_factory=list)
    services: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A simulation that has ended, without its warm-up: what became of the runs that came after it, and what the
    engines of each pool have done since the first of these came.

    `kv_use` is the mean share of KV memory that calls held in each LLM pool, with its time, at every report.
    `refusals` counts refused calls by reason, `span` is the seconds from that moment to the end,
    `events` how often the dispatcher was asked, and `profile` what it has learned.
    """

    runs: Sequence[RunRecord]
    stages: Mapping[str, StageRecord]
    engines: Mapping[str, Counters]
    kv_use: Mapping[str, Sequence[tuple[float, float]]]
    refusals: Mapping[str, int]
    span: float
    events: int
    profile: object

    @property
    def total(self) -> Counters:
        """The counters of all pools together."""
        total = Counters()
        for counters in self.engines.values():
            total.add(counters)
        return total

    def of(self, *, workflow: str | None = None, tenant: str | None = None) -> Sequence[RunRecord]:
        """The runs of a workflow, of a tenant, or of both."""
        return [
            run
            for run in self.runs
            if (workflow is None or run.workflow == workflow) and (tenant is None or run.tenant == tenant)
        ]

    def attainment(self) -> float:
        """The share of runs that met their deadline; 1 where there were none."""
        return sum(run.met for run in self.runs) / len(self.runs) if self.runs else 1.0

    def goodput(self) -> float:
        """Runs that met their deadline, per second in which runs arrived; of a single run nobody can say."""
        if len(self.runs) < 2:
            return math.nan
        # So many arrivals bound one interval less.
        span = (self.runs[-1].at - self.runs[0].at) * len(self.runs) / (len(self.runs) - 1)
        return sum(run.met for run in self.runs) / span if span > 0 else math.inf

    def latency(self, quantile: float) -> float:
        """This quantile of the runs' seconds; infinite where so many did not end."""
        return quantile_of([run.latency for run in self.runs], quantile)


def quantile_of(values: Sequence[float], quantile: float) -> float:
    """The least of the values that this share of them does not exceed; not a number where there are none."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(quantile * len(values)) - 1)]
