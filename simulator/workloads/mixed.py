"""Several tenants on one fleet: analysts who ask databases, developers with coding agents, and research in bursts."""

from __future__ import annotations

from simulator.setup import Setup
from simulator.workload import bursty, identity, merged
from simulator.workloads.coding import coding_like
from simulator.workloads.fanout import fanout
from simulator.workloads.nl2sql import nl2sql

NAME = "mixed"
SHARES = {"analysts": 0.6, "developers": 0.1, "research": 0.3}
"""Of the runs; a developer's has as many calls as two of the others."""
SIZES = {"generate": 3, "revise": 1, "light": 1, "warehouse": 4, "coder": 2, "lead": 1, "workers": 2}


def mixed(*, runs: int, rate: float, seed: int, stretch: float = 2.5) -> Setup:
    """So many runs of all tenants together, `rate` a second; research arrives in bursts."""
    count = {tenant: round(share * runs) for tenant, share in SHARES.items()}
    pace = {tenant: share * rate for tenant, share in SHARES.items()}
    parts = [
        nl2sql(
            runs=count["analysts"],
            rate=pace["analysts"],
            seed=identity("analysts", seed),
            deadlines=((1.0, stretch),),
            tenant="analysts",
        ),
        coding_like(
            runs=count["developers"],
            rate=pace["developers"],
            seed=identity("developers", seed),
            calls=20,
            stretch=stretch,
            tenant="developers",
        ),
        fanout(
            runs=count["research"],
            rate=pace["research"],
            seed=identity("research", seed),
            stretch=stretch,
            arrivals=bursty,
            tenant="research",
        ),
    ]
    together = Setup(
        workload=merged(NAME, [part.workload for part in parts]),
        workflows={name: graph for part in parts for name, graph in part.workflows.items()},
        pools={name: pool for part in parts for name, pool in part.pools.items()},
        engines={name: engine for part in parts for name, engine in part.engines.items()},
    )
    return together.sized(**SIZES)
