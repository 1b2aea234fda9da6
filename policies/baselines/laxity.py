"""Least laxity first (Mok, 1983): the classical order by slack, without anything added to it."""

from __future__ import annotations

from dataclasses import dataclass, field

from policies.baselines.cells import deadline_of
from policies.calls import Call, Estimate
from policies.priority import bucket
from policies.protocols import Key, RunView
from policies.slack import shifted


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastLaxity:
    """Lowest first, of the whole run: laxity = deadline − now − this call's time − that of all that follows it.

    All laxities shrink alike, so the latest start, deadline − remaining work, is the same order. Assumed: mean times
    stand for the known ones of the theory, and a started call is not preempted.
    """

    step: float = field(default=1.0, metadata={"unit": "s"})

    def key(self, call: Call, estimate: Estimate, run: RunView, now: float) -> Key:
        latest = deadline_of(run) - estimate.service - estimate.remaining
        moment = shifted(latest, call, self.step)
        return Key(start=(moment, call.arrived), bucket=bucket(moment, 0.25))
