"""Who is next in a stage's queue: first come, earliest deadline, least slack."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from policies.calls import Call, Estimate
from policies.protocols import Key, RunView
from policies.slack import shifted

EPOCH = 1_767_225_600.0
"""The zero of the grid that buckets stand on, 2026-01-01 UTC in Unix seconds: keeps them within 32 bits."""
LEAD_MOST = 30.0
"""Seconds of a tenant's lead that count: one that was alone for long is not held up for as long."""
TOLERABLE_LEAST = 5.0
"""Nothing counts as starved before it has waited for so many seconds."""
NO_DEADLINE = 3600.0
"""A call without a deadline is ordered as if its run had this many seconds from its start."""


def bucket(moment: float, quantum: float) -> int:
    """The cell of the absolute grid that a moment falls into."""
    return math.floor((moment - EPOCH) / quantum)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fcfs:
    """First come, first served, by the arrival of the call; `step` seconds of precedence per step of priority."""

    step: float = field(default=1.0, metadata={"unit": "s"})

    def key(self, call: Call, estimate: Estimate, run: RunView, now: float) -> Key:
        moment = shifted(call.arrived, call, self.step)
        return Key(start=(moment,), bucket=bucket(moment, 0.25))


@dataclass(frozen=True, slots=True, kw_only=True)
class Edf:
    """Earliest deadline of the run first; what waits longer than `patience` goes before all others."""

    patience: float = field(default=30.0, metadata={"unit": "s"})
    step: float = field(default=1.0, metadata={"unit": "s"})

    def key(self, call: Call, estimate: Estimate, run: RunView, now: float) -> Key:
        deadline = run.started + NO_DEADLINE if run.deadline is None else run.deadline
        moment = shifted(deadline, call, self.step)
        return Key(
            start=(moment, call.arrived),
            bucket=bucket(moment, 0.25),
            lost_at=run.deadline,
            starve_at=call.arrived + self.patience,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastSlack:
    """Least slack of the run first: its deadline less this call's time and all that follows it.

    Slack is cut into cells of `quantum` seconds on an absolute grid; inside a cell the call goes first that is
    likeliest to end its run per second of service, or, where too little is known of its stage, the one whose run has
    had the least. The last of several calls that its run made together goes `straggler` seconds sooner: the others
    wait for it. A tenant that has had more of the engines than another one at work goes later by the share
    `fairness` of what it is ahead. A call from which the deadline can no longer be reached, even in `optimism` of
    the expected time, is served after those that can still make it. One that has waited for `patience`, or its run
    `ratio` times as long as it should be served in all, goes before all.
    """

    quantum: float = field(default=0.25, metadata={"unit": "s", "above": 0.0})
    patience: float = field(default=180.0, metadata={"unit": "s"})
    ratio: float = 8.0
    step: float = field(default=1.0, metadata={"unit": "s"})
    optimism: float = field(default=0.35, metadata={"most": 1.0})
    straggler: float = field(default=2.0, metadata={"unit": "s"})
    fairness: float = 0.5

    def key(self, call: Call, estimate: Estimate, run: RunView, now: float) -> Key:
        deadline = run.started + NO_DEADLINE if run.deadline is None else run.deadline
        needed = estimate.needed
        moment = shifted(deadline - needed, call, self.step) + self.fairness * min(run.lead, LEAD_MOST)
        cell = bucket(moment - self.straggler if run.last else moment, self.quantum)
        value = estimate.success / max(estimate.service, 1e-3) if estimate.known else 1.0 / (1.0 + run.attained)
        tolerable = max(TOLERABLE_LEAST, self.ratio * (run.attained + needed) - run.waited)
        return Key(
            start=(float(cell), -value, call.arrived),
            bucket=cell,
            lost_at=None if run.deadline is None else run.deadline - self.optimism * needed,
            starve_at=call.arrived + min(self.patience, tolerable),
        )
