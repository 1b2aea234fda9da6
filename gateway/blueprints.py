"""A configuration as the scheduler understands it: pools, graphs and policies, in its own words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from gateway import units
from gateway.backendspecs import Emulated
from gateway.fields import PolicySpec
from gateway.settings import Config, Policies, PoolPolicies
from policies.blueprint import Blueprint
from policies.catalog import GATE, Named, PolicySet, UnknownPolicy, make, parameters
from policies.dispatcher import Limits
from policies.pool import EngineLimits, PoolSpec
from policies.workflow import Edge, Stage, Workflow

PRIOR_SERVICE = {"llm": 1.0, "sql": 0.05}
"""Seconds that a call is expected to take in a pool that has served none yet."""


def blueprint(config: Config, *, seed: int = 0, profiles: Mapping[str, object] | None = None) -> Blueprint:
    """The blueprint of a configuration that `load` took with `complaint` as its check.

    `profiles` is what was learned before (`gateway.keeping`).
    """
    lent = _borrowing(config.policies)
    return Blueprint(
        pools={name: _pool(config, name) for name in config.pools},
        workflows={name: _workflow(config, name) for name in config.workflows},
        policies={name: replace(_policies(config.policies_of(name)), borrowing=lent) for name in config.pools},
        limits=Limits(attempts=config.limits.attempts, runs=config.limits.runs, run_idle=config.limits.run_idle),
        gate=_named("gate", config.policies.gate) if config.policies.gate else GATE,
        seed=seed,
        profiles=profiles,
    )


def complaint(slot: str, spec: PolicySpec) -> str | None:
    """What is wrong with a policy as the file names it, or None: for `gateway.config.load`."""
    try:
        make(slot, _named(slot, spec))
    except (UnknownPolicy, ValueError) as error:
        return str(error)
    return None


def _pool(config: Config, name: str) -> PoolSpec:
    pool = config.pools[name]
    backend = pool.backend
    memory = pool.concurrency.kv_tokens
    if memory is None and isinstance(backend, Emulated):
        memory = backend.num_gpu_blocks * backend.block_size
    limits = EngineLimits(sequences=pool.concurrency.sequences, work=float(pool.concurrency.work), kv_tokens=memory)
    return PoolSpec(
        name=name,
        kind=pool.kind,
        model=pool.model or "",
        minimum=pool.engines.min,
        maximum=pool.engines.max,
        start=pool.engines.start,
        limits=EngineLimits(sequences=1) if pool.kind == "sql" else limits,
        lenders=tuple(other for other in config.pools if config.lends(other, name)),
        queue_calls=config.limits.queue_calls,
        queue_bytes=config.limits.queue_bytes,
        prior_service=PRIOR_SERVICE[pool.kind],
    )


def _workflow(config: Config, name: str) -> Workflow:
    workflow = config.workflows[name]
    return Workflow(
        name=name,
        stages={
            stage: Stage(name=stage, kind=spec.kind, pool=spec.pool or "", visits=spec.visits, width=spec.width)
            for stage, spec in workflow.stages.items()
        },
        edges=tuple(
            Edge(source=source, target=edge.to, on=frozenset(edge.on), chance=edge.chance, parallel=edge.parallel)
            for edge in workflow.edges
            for source in edge.sources
        ),
        deadline=workflow.slo.deadline,
    )


def _policies(chosen: PoolPolicies) -> PolicySet:
    default = PolicySet()
    return PolicySet(
        priority=_named("priority", chosen.priority) if chosen.priority else default.priority,
        admission=_named("admission", chosen.admission) if chosen.admission else default.admission,
        filters=_list("filters", chosen.filters) if chosen.filters is not None else default.filters,
        scorers=_list("scorers", chosen.scorers) if chosen.scorers is not None else default.scorers,
        picker=_named("picker", chosen.picker) if chosen.picker else default.picker,
        budget=_named("budget", chosen.budget) if chosen.budget else default.budget,
    )


def _borrowing(chosen: Policies) -> Named:
    """The policy that a layout is; one that lends nothing needs none, and has what asks for the least."""
    if chosen.borrowing is not None:
        return _named("borrowing", chosen.borrowing)
    return Named(name="gated" if chosen.layout == "adaptive" else "always")


def _list(slot: str, specs: tuple[PolicySpec, ...]) -> tuple[Named, ...]:
    return tuple(_named(slot, spec) for spec in specs)


def _named(slot: str, spec: PolicySpec) -> Named:
    """A policy by name, its parameters as numbers: durations as written in the file become seconds."""
    known = parameters(slot, spec.name)
    params = dict(spec.params)
    weight = params.pop("weight", 1.0) if slot == "scorers" else 1.0
    # Whatever the value of a parameter that does not exist: the catalog refuses it by its name.
    numbers = {key: _number(key, value, known[key]) if key in known else math.nan for key, value in params.items()}
    return Named(name=spec.name, params=tuple(numbers.items()), weight=_weight(weight))


def _weight(value: object) -> float:
    weight = _number("weight", value, "")
    if weight < 0:
        raise ValueError(f"weight: must not be negative, and is {value}")
    return weight


def _number(key: str, value: object, unit: str) -> float:
    if unit == "s":
        try:
            return units.duration(value)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{key}: must be a number, not {value!r}")
    return float(value)
