"""What the tests of the simulator are made of: small setups whose every time is known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from backends.emulated.model import EngineConfig, StepTime
from policies.calls import Fate
from policies.catalog import Named, PolicySet
from policies.pool import EngineLimits, PoolSpec
from simulator.scenario import Scenario
from simulator.setup import Setup, sql_pool
from simulator.workload import CallPlan, Round, RunPlan, Workload
from simulator.world import EngineSpec

FCFS = PolicySet(priority=Named(name="fcfs"), admission=Named(name="queue_bound"))
TENTHS = StepTime(fixed=0.1, prefill_token=0.001)
"""A step takes a tenth of a second, and a millisecond more for each token of a prompt."""


def a_statement(seconds: float = 1.0, *, stage: str = "ask", fate: Fate = "ok") -> CallPlan:
    return CallPlan(stage=stage, pool="db", kind="sql", seconds=seconds, fate=fate)


def a_prompt(name: int, tokens: int = 100, *, output: int = 11, stage: str = "write") -> CallPlan:
    """A call that takes two seconds of an idle engine of `TENTHS` per hundred tokens of prompt and ten of answer."""
    return CallPlan(stage=stage, pool="llm", segments=((name, tokens),), output=output, answer=-name)


def a_run(id: str, at: float, *rounds: Iterable[CallPlan] | CallPlan, **given: Any) -> RunPlan:
    """A run whose rounds are given as calls, or as several calls side by side."""
    usual: dict[str, Any] = {"id": id, "workflow": "w", "at": at, "budget": 1000.0}
    made = tuple(Round(calls=(one,) if isinstance(one, CallPlan) else tuple(one)) for one in rounds)
    return RunPlan(**usual | {"rounds": made} | given)


def a_setup(runs: Sequence[RunPlan], *, workers: int = 1, prior: float = 1.0, startup: float = 0.0) -> Setup:
    """SQL workers in the pool `db`, thought to take `prior` seconds a statement, and an LLM engine in `llm`."""
    config = EngineConfig(
        num_gpu_blocks=100, block_size=10, max_num_seqs=4, max_num_batched_tokens=500, step_time=TENTHS
    )
    llm = PoolSpec(name="llm", limits=EngineLimits(sequences=4))
    return Setup(
        workload=Workload(name="small", runs=tuple(runs)),
        workflows={},
        pools={"db": sql_pool("db", workers, prior_service=prior), "llm": llm},
        engines={"db": EngineSpec(startup=startup), "llm": EngineSpec(config=config, startup=startup)},
    )


def a_scenario(setup: Setup, policies: PolicySet = FCFS, **given: Any) -> Scenario:
    return replace(setup.scenario(policies), **given)
