"""Pythia (arXiv 2604.25899): runs near their end first, and those that feed a pool about to run dry."""

from __future__ import annotations

from dataclasses import dataclass, field

from policies.calls import Call, Estimate
from policies.priority import bucket
from policies.protocols import Key, RunView


@dataclass(frozen=True, slots=True, kw_only=True)
class Pythia:
    """Highest of a base that rises with the wait:

        base = finish / E[calls to the end] + feed · Σ over coming stages that run dry: 1 / E[calls to that stage]
        base + waited / ageing

    The wait counts alike for all, so `arrived − ageing · base`, lowest first, is the same order and stands still.

    Assumed: the call itself counts in the distance to the end. An order cannot see the pools, so each coming stage
    counts by the share of time that its pool would idle, were all pools of one size and the busiest never idle:
    1 − (visits · service) / (the highest such product). It also counts by the chance to get there; its distance is
    one call and the visits still expected of the coming stages that stand before it in the outlook. The weights and
    the rate of ageing are ours, the source's are not known. Left out: pausing a running call when memory is short
    (engine), headroom by replica (routing).
    """

    finish: float = 1.0
    feed: float = 0.25
    ageing: float = field(default=10.0, metadata={"unit": "s"})

    def key(self, call: Call, estimate: Estimate, run: RunView, now: float) -> Key:
        base = self.finish / (1.0 + estimate.hops) + self.feed * _dry_ahead(call, estimate, run)
        moment = call.arrived - self.ageing * base
        return Key(start=(moment, call.arrived), bucket=bucket(moment, 0.25))


def _dry_ahead(call: Call, estimate: Estimate, run: RunView) -> float:
    """The sum over the coming stages of: idle share of the pool, times chance to get there, by calls to there."""
    if estimate.outlook is None:
        return 0.0
    visits, service = estimate.outlook.visits, estimate.outlook.service
    load = {stage: visits[stage] * service.get(stage, 0.0) for stage in visits}
    busiest = max(load.values(), default=0.0)
    if busiest <= 0.0:
        return 0.0
    total, distance = 0.0, 1.0
    for stage in visits:
        left = visits[stage] - run.visits.get(stage, 0)
        if stage != call.stage and left > 0:
            total += (1.0 - load[stage] / busiest) * min(1.0, left) / distance
            distance += left
    return total
