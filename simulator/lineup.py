"""Who runs against whom: each contender is a set of policies from the catalog, with a layout and a gate.

`as published` means with the routing and admission of its source; `on ours` the same order of calls with Cortex' own
routing and admission beneath it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from policies.catalog import GATE, Named, PolicySet
from simulator.scenario import Scenario
from simulator.setup import Setup

Layout = Literal["isolated", "shared", "adaptive"]

OPEN = Named(name="open")
UNBOUNDED = Named(name="queue_bound")
OURS = PolicySet()
"""What a configuration gets that names no policies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A way to run a gateway. `source` says where it comes from; `oracle` that it knows what nobody can."""

    name: str
    layout: Layout
    policies: PolicySet
    gate: Named = OPEN
    source: str = ""
    ours: bool = False
    oracle: bool = False


def _scorers(*named: tuple[str, float]) -> tuple[Named, ...]:
    return tuple(Named(name=name, weight=weight) for name, weight in named)


_LAYOUTS: tuple[tuple[str, Layout, str], ...] = (
    ("cortex", "adaptive", "the default"),
    ("cortex-isolated", "isolated", "a pool for each stage"),
    ("cortex-shared", "shared", "one pool for all stages"),
)
LEAST_LOADED = _scorers(("least_running", 1.0))
LEAST_WORK = _scorers(("free_work", 1.0))
AFFINITY = _scorers(("prefix_affinity", 1.0), ("free_work", 2.0))
"""Of the weights 2:1, 1:1, 1:2 and 1:3 the one under which this baseline does best, on tuning seeds."""


def published(
    name: str,
    priority: str,
    scorers: tuple[Named, ...],
    source: str,
    *,
    gate: str = "open",
    budget: str = "fixed",
    **params: float,
) -> Contender:
    """A baseline with its own routing, over engines that serve every stage, without admission."""
    return Contender(
        name=name,
        layout="shared",
        policies=PolicySet(
            priority=Named(name=priority, params=tuple(params.items())),
            admission=UNBOUNDED,
            filters=(),
            scorers=scorers,
            budget=Named(name=budget),
        ),
        gate=Named(name=gate),
        source=source,
        oracle=priority == "srpt_oracle",
    )


def on_ours(name: str, priority: str, *, gate: str = GATE.name, budget: str = "fixed") -> Contender:
    """The order of a baseline over Cortex' layout, routing and admission."""
    return Contender(
        name=name,
        layout="adaptive",
        policies=replace(OURS, priority=Named(name=priority), budget=Named(name=budget)),
        gate=Named(name=gate),
        source="with Cortex' routing and admission",
        ours=True,
        oracle=priority == "srpt_oracle",
    )


PUBLISHED = (
    published("round-robin", "fcfs", _scorers(("round_robin", 1.0)), "what a plain load balancer does"),
    published("least-loaded", "fcfs", LEAST_LOADED, "fewest calls first, first come first served"),
    published("affinity", "fcfs", AFFINITY, "shared pool, balanced prefix affinity (as SGLang's and vLLM's routers)"),
    published("edf", "edf", AFFINITY, "Liu and Layland 1973, over balanced prefix affinity", patience=1e6),
    published("llf", "llf", AFFINITY, "least laxity first, over balanced prefix affinity"),
    published("hexgen", "hexgen", LEAST_WORK, "HexGen-Text2SQL, 2505.05286, formula as published"),
    published("hexgen-released", "hexgen_released", LEAST_WORK, "HexGen-Text2SQL as its simulator does it"),
    published("plas", "plas", AFFINITY, "Autellix, 2502.13965, single thread; affinity for its home engine"),
    published("atlas", "atlas", AFFINITY, "Autellix, 2502.13965, call graphs; affinity for its home engine"),
    published("pythia", "pythia", AFFINITY, "Pythia's priority, 2604.25899"),
    published("hexagent", "hexagent", LEAST_WORK, "HexAGenT's ratio, 2605.16637"),
    published("thunderagent", "fcfs", AFFINITY, "ThunderAgent, 2602.13692", gate="pause_restore"),
    published("tail-aware", "tail_aware", AFFINITY, "readiness and release, 2609.10964", budget="adaptive"),
    published("concur", "fcfs", AFFINITY, "Concur, 2601.22705", gate="aimd"),
    published("srpt-oracle", "srpt_oracle", AFFINITY, "shortest remaining first, told by an oracle"),
)
CORTEX = tuple(
    Contender(name=name, layout=layout, policies=OURS, gate=GATE, source=source, ours=True)
    for name, layout, source in _LAYOUTS
)
ON_OURS = (
    on_ours("fcfs on ours", "fcfs"),
    on_ours("edf on ours", "edf"),
    on_ours("llf on ours", "llf"),
    on_ours("hexgen on ours", "hexgen"),
    on_ours("hexgen-released on ours", "hexgen_released"),
    on_ours("plas on ours", "plas"),
    on_ours("atlas on ours", "atlas"),
    on_ours("pythia on ours", "pythia"),
    on_ours("hexagent on ours", "hexagent"),
    on_ours("thunderagent on ours", "fcfs", gate="pause_restore"),
    on_ours("tail-aware on ours", "tail_aware", budget="adaptive"),
    on_ours("concur on ours", "fcfs", gate="aimd"),
    on_ours("srpt-oracle on ours", "srpt_oracle"),
)
LINEUP: Mapping[str, Contender] = MappingProxyType({one.name: one for one in (*CORTEX, *PUBLISHED, *ON_OURS)})


def scenario(setup: Setup, contender: Contender, *, seed: int = 0, warmup: float = 0.1) -> Scenario:
    """What one contender does with a workload."""
    placed = setup if contender.layout == "isolated" else setup.shared()
    named = contender.policies.borrowing
    if contender.layout != "adaptive":
        borrowing = Named(name="always")
    else:
        borrowing = Named(name="gated") if named.name == "always" else named
    made = placed.scenario(replace(contender.policies, borrowing=borrowing), seed=seed)
    return replace(made, blueprint=replace(made.blueprint, gate=contender.gate), warmup=warmup)
