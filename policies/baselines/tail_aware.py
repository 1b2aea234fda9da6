"""Tail-aware release (arXiv 2609.10964, "Decoupling readiness from release"): little work and old runs first."""

from __future__ import annotations

from dataclasses import dataclass, field

from policies.baselines.cells import cell
from policies.calls import Call, Estimate
from policies.protocols import Key, RunView


@dataclass(frozen=True, slots=True, kw_only=True)
class TailAware:
    """Highest index first, `holding` being 1 while the run is younger than most completed ones were:

        holding cost / (prompt tokens + 4 · expected output tokens)

    A run is old from the 95th percentile of the ages at which runs of its workflow have ended; until that is known,
    from `typical` on. Here the inverse is sorted, tokens by holding cost.

    Assumed: how much dearer an old run is (`holding`), the source's factor being unknown to us. Left out: the budget
    within which calls are released to the engines; committed work bounds them here.
    """

    holding: float = field(default=4.0, metadata={"above": 0.0})
    typical: float = field(default=30.0, metadata={"unit": "s", "above": 0.0})

    def key(self, call: Call, estimate: Estimate, run: RunView, now: float) -> Key:
        old_at = run.started + (self.typical if run.p95 is None else run.p95)
        old = now >= old_at
        tokens = call.prompt_tokens + 4 * estimate.output_tokens[0]
        cost = tokens / self.holding if old else float(tokens)
        return Key(start=(cost, call.arrived), bucket=cell(cost, 1.0), until=None if old else old_at)
