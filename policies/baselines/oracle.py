"""Shortest remaining processing time (Schrage, 1968) of the run, told by an oracle: what no real system can have."""

from __future__ import annotations

from dataclasses import dataclass

from policies.baselines.cells import cell
from policies.calls import Call, Estimate
from policies.protocols import Key, RunView


@dataclass(frozen=True, slots=True, kw_only=True)
class SrptOracle:
    """The run first that needs the fewest seconds until its end, on idle engines, this call included.

    It is told by `Call.foretold`; a call without it is ordered by the mean, service + remaining. Assumed: SRPT is
    optimal for the mean on one preemptive server, so here, with several and without preemption, it is a yardstick and
    not a bound; least of all for deadlines, of which it knows nothing.
    """

    def key(self, call: Call, estimate: Estimate, run: RunView, now: float) -> Key:
        needed = estimate.needed if call.foretold is None else call.foretold
        return Key(start=(needed, call.arrived), bucket=cell(needed, 0.01))
