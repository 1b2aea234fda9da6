"""HexAGenT (arXiv 2605.16637): the run first that would end latest, measured by what it would need alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from policies.baselines.cells import cell
from policies.calls import Call, Estimate
from policies.protocols import Key, RunView

SHORTEST = 1e-3
"""A horizon is at least this long, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HexAgent:
    """Highest ratio first:

        (elapsed since the run's start + predicted wait + service) / horizon

    The horizon is what the part of the run that has shown so far would take alone: its longest chain of ended calls
    and this call. Ratios rise at different rates, so each holds for the next full multiple of `renewal` and is made
    anew then: keys are always those of one moment.

    Assumed: measured times of ended calls stand for their times alone, which flatters runs whose calls ran in full
    batches. The order is asked for when an engine has room, so no further wait is predicted. Left out: the joint
    choice of prefill and decode engines (routing).
    """

    renewal: float = field(default=1.0, metadata={"unit": "s", "above": 0.0})

    def key(self, call: Call, estimate: Estimate, run: RunView, now: float) -> Key:
        # In floating point the next multiple may come out as `now` itself.
        moment = max((math.floor(now / self.renewal) + 1) * self.renewal, math.nextafter(now, math.inf))
        horizon = max(run.path + estimate.service, SHORTEST)
        ratio = (moment - run.started + estimate.service) / horizon
        return Key(start=(-ratio, call.arrived), bucket=cell(-ratio, 1e-3), until=moment)
