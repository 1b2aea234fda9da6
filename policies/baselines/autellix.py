"""Autellix (arXiv 2502.13965): runs that have had the least service first, in bands, first come inside a band.

The bands begin at 0, 2, 4, 8, 16, 32 and 64 seconds. A call moves to the first band once its run has waited too long
for what it got:

    (waited by the run + waited by the call) / (service of the run) ≥ β

Assumed: the service of a run is that of all its calls that went through a pool, tools among them. The window of the
ratio is the whole run, where the source begins a new one with each promotion. The edges of the bands and β are those
of third-party code. Left out, since they happen inside an engine: the quantum on whose end a running call drops a
band, and the swapping of preempted calls. Its load balancer is a matter of routing.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from policies.calls import Call, Estimate
from policies.protocols import Key, RunView

BANDS = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""Seconds of service at which each band after the first begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plas:
    """PLAS, for runs that make one call after another: the band is that of the service of all ended calls."""

    beta: float = 8.0

    def key(self, call: Call, estimate: Estimate, run: RunView, now: float) -> Key:
        return _banded(run.attained, call, run, now, self.beta)


@dataclass(frozen=True, slots=True, kw_only=True)
class Atlas:
    """ATLAS, for runs that make several calls at once: the band is that of the longest chain of ended calls.

    As in the source one number is kept for each run, so that a call inherits the longest chain seen, its own or not.
    """

    beta: float = 8.0

    def key(self, call: Call, estimate: Estimate, run: RunView, now: float) -> Key:
        return _banded(run.path, call, run, now, self.beta)


def _banded(value: float, call: Call, run: RunView, now: float, beta: float) -> Key:
    """The key in the band of `value`, which is also the engine's integer: it orders a band by arrival itself."""
    band = bisect_right(BANDS, value)
    promoted = call.arrived + beta * run.attained - run.waited
    if band == 0 or now >= promoted:
        return Key(start=(0.0, call.arrived), bucket=0)
    return Key(start=(float(band), call.arrived), bucket=band, until=promoted)
