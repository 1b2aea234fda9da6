"""Everything that a dispatcher is made from, as plain data: what a journal keeps so that it can be replayed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from policies.catalog import Named, PolicySet, make_all, make_gate
from policies.dispatcher import Dispatcher, Limits
from policies.pool import PoolSpec
from policies.routing.residency import Residency
from policies.workflow import Workflow

OPEN = Named(name="open")


@dataclass(frozen=True, slots=True, kw_only=True)
class Blueprint:
    """Pools, workflows and limits, the policies of each pool by name, and the seed of the only chance there is.

    `profiles` is what an earlier dispatcher has learned, as `Profiles.dump` gave it.
    """

    pools: Mapping[str, PoolSpec]
    workflows: Mapping[str, Workflow]
    policies: Mapping[str, PolicySet]
    limits: Limits
    gate: Named = OPEN
    seed: int = 0
    profiles: Mapping[str, object] | None = None

    def dispatcher(self, residency: Residency | None = None) -> Dispatcher:
        """A fresh dispatcher. Raises UnknownPolicy, ProfileError."""
        dispatcher = Dispatcher(
            pools=self.pools,
            workflows=self.workflows,
            policies={name: make_all(chosen) for name, chosen in self.policies.items()},
            limits=self.limits,
            gate=make_gate(self.gate),
            residency=residency,
            seed=self.seed,
        )
        if self.profiles is not None:
            dispatcher.profiles.load(self.profiles)
        return dispatcher
