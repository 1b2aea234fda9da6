"""A workload together with what it runs on: its call graphs, pools and engines, ready to be given policies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from backends.emulated.model import EngineConfig, StepTime
from policies.blueprint import OPEN, Blueprint
from policies.catalog import Named, PolicySet
from policies.dispatcher import Limits
from policies.pool import EngineLimits, PoolSpec
from policies.workflow import Workflow
from simulator.scenario import Scenario
from simulator.workload import Workload
from simulator.world import EngineSpec

A100 = StepTime(fixed=0.0215, prefill_token=0.00028, decode_sequence=0.0002, context_token=3e-8)
"""Fitted to the mean stage times that HexGen-Text2SQL's code has for a 70B model on A100 cards (2505.05286)."""
BLOCKS, BLOCK = 2048, 64
"""KV memory of an engine: 131,072 tokens."""
SEQUENCES = 24
"""Calls that an engine is given at once; nine of the NL2SQL workload's longest prompts would fill its memory."""
STARTUP = 30.0
"""Seconds from asking for an LLM engine to its being ready, its weights cached on the machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Everything of a scenario but the policies."""

    workload: Workload
    workflows: Mapping[str, Workflow]
    pools: Mapping[str, PoolSpec]
    engines: Mapping[str, EngineSpec]

    def sized(self, **engines: int) -> Setup:
        """The same with so many engines in these pools."""
        pools = {
            name: pool if name not in engines else replace(pool, start=engines[name], maximum=engines[name])
            for name, pool in self.pools.items()
        }
        return replace(self, pools=pools)

    def shared(self) -> Setup:
        """The same with every engine of a model serving every pool of that model."""
        pools = {
            name: replace(pool, lenders=tuple(self._alike(pool))) if pool.kind == "llm" else pool
            for name, pool in self.pools.items()
        }
        return replace(self, pools=pools)

    def scenario(
        self,
        policies: PolicySet | Mapping[str, PolicySet],
        *,
        gate: Named = OPEN,
        limits: Limits | None = None,
        seed: int = 0,
    ) -> Scenario:
        """A scenario under one set of policies for all pools, or one for each, and a gate before them all."""
        chosen = dict.fromkeys(self.pools, policies) if isinstance(policies, PolicySet) else policies
        return Scenario(
            blueprint=Blueprint(
                pools=self.pools,
                workflows=self.workflows,
                policies=chosen,
                limits=Limits() if limits is None else limits,
                gate=gate,
            ),
            engines=self.engines,
            workload=self.workload,
            seed=seed,
        )

    def _alike(self, pool: PoolSpec) -> list[str]:
        """The pools of the same model, its own first: what it may use before it borrows."""
        others = [other.name for other in self.pools.values() if other.kind == "llm" and other.model == pool.model]
        return [pool.name, *(name for name in others if name != pool.name)]


def llm_pool(name: str, engines: int, *, prior_service: float, model: str = "model") -> PoolSpec:
    """A pool of LLM engines whose queue nothing fills: what is refused, a policy has refused."""
    return PoolSpec(
        name=name,
        model=model,
        maximum=engines,
        start=engines,
        limits=EngineLimits(sequences=SEQUENCES, work=120_000.0),
        queue_calls=1_000_000,
        queue_bytes=10**12,
        prior_service=prior_service,
    )


def sql_pool(name: str, workers: int, *, prior_service: float) -> PoolSpec:
    """A pool of SQL workers that run one statement at a time."""
    return PoolSpec(
        name=name,
        kind="sql",
        maximum=workers,
        start=workers,
        limits=EngineLimits(sequences=1),
        queue_calls=1_000_000,
        queue_bytes=10**12,
        prior_service=prior_service,
    )


def llm_engine(*, step_time: StepTime = A100, blocks: int = BLOCKS, block: int = BLOCK) -> EngineSpec:
    return EngineSpec(
        startup=STARTUP,
        config=EngineConfig(
            num_gpu_blocks=blocks,
            block_size=block,
            max_num_seqs=64,
            max_num_batched_tokens=2048,
            step_time=step_time,
        ),
    )


def sql_worker() -> EngineSpec:
    return EngineSpec(startup=1.0)
