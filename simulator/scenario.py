"""All that a simulation depends on, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from policies.blueprint import Blueprint
from simulator.workload import Workload
from simulator.world import EngineSpec, Fault


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A gateway, its engines, and what comes to them.

    `engines` are what a pool's engines are, by pool. `seed` takes the place of the blueprint's. Every `report_every`
    seconds each engine reports, as to the gateway's monitor. `profile` is what the dispatcher knows beforehand: the
    `profile` of an earlier result. `warmup` is the share of runs, the first ones, that is left out of the metrics:
    nothing is learned yet, and no prefix loaded. `tokens_heard` says whether the dispatcher is told of first tokens,
    as it is of streams. A run that is refused at its entry comes back up to `retries` times, when it was told to.
    What has not ended `overtime` seconds after the last run could have begun its last round is given up.

    Raises ValueError where engines and blueprint do not fit the workload.
    """

    blueprint: Blueprint
    engines: Mapping[str, EngineSpec]
    workload: Workload
    seed: int = 0
    report_every: float = 2.0
    profile: object | None = None
    warmup: float = 0.0
    tokens_heard: bool = True
    faults: tuple[Fault, ...] = ()
    retries: int = 0
    overtime: float = 3600.0

    def __post_init__(self) -> None:
        pools = self.blueprint.pools
        if pools.keys() != self.engines.keys():
            raise ValueError(f"engines are given for {sorted(self.engines)}, but the pools are {sorted(pools)}")
        for name, pool in pools.items():
            if (pool.kind == "llm") != (self.engines[name].config is not None):
                raise ValueError(f"pool {name!r} is of kind {pool.kind}: LLM engines have a config, others none")
        for name, kind in {(call.pool, call.kind) for run in self.workload.runs for call in run.calls}:
            if name not in pools or pools[name].kind != kind:
                raise ValueError(f"a call of kind {kind} wants the pool {name!r}, which is none of that kind")
        if self.report_every <= 0:
            raise ValueError("report_every must be more than 0")
        if not 0 <= self.warmup < 1:
            raise ValueError("warmup is a share of the runs, from 0 to less than 1")
