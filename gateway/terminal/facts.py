"""What the admin API says, as far as a terminal shows it. What it says besides is passed over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec


class EngineFacts(msgspec.Struct, frozen=True):
    """One engine. `budget` is None where its work has no bound: a SQL worker."""

    name: str
    pool: str
    state: str
    running: int
    sequences: int
    queued: int
    committed_work: float
    budget: float | None
    on_loan: float
    pressure: float
    kv_use: float
    prefix_tokens: int
    counters: Mapping[str, float]

    @property
    def load(self) -> float:
        """The share of what it may have which it has: of calls or of their work, whichever is nearer to its bound."""
        calls = self.running / self.sequences if self.sequences else 0.0
        return max(calls, self.committed_work / self.budget if self.budget else 0.0)


class FailingFacts(msgspec.Struct, frozen=True):
    """How many starts have failed since one went well, the last of them `ago_s` seconds ago."""

    starts: int
    reason: str
    ago_s: float


class PoolFacts(msgspec.Struct, frozen=True):
    """One pool and its engines. Times in seconds. `failing` where it lacks engines because they do not start."""

    name: str
    kind: Literal["llm", "sql"]
    model: str | None
    min: int
    max: int
    target: int
    waiting: int
    waiting_by_stage: Mapping[str, int]
    parked: int
    mean_service_s: float
    engines: Sequence[EngineFacts]
    failing: FailingFacts | None = None

    @property
    def running(self) -> int:
        """Calls in its own engines, lent ones among them: what the API calls so counts borrowed engines, too."""
        return sum(engine.running for engine in self.engines)

    @property
    def ready(self) -> Sequence[EngineFacts]:
        return [engine for engine in self.engines if engine.state == "ready"]


class GateFacts(msgspec.Struct, frozen=True):
    """What holds new runs back; a `window` of None holds none."""

    window: float | None
    active_runs: int
    parked_calls: int


class PoolsAnswer(msgspec.Struct, frozen=True):
    """`GET /admin/pools`."""

    pools: Sequence[PoolFacts]
    gate: GateFacts


class StepFacts(msgspec.Struct, frozen=True):
    """One call of a run that has ended."""

    stage: str
    outcome: str


class RunFacts(msgspec.Struct, frozen=True):
    """One run. Times in seconds; those to a deadline are None where there is none."""

    id: str
    tenant: str
    workflow: str
    stage: str
    visits: Mapping[str, int]
    open_calls: int
    age_s: float
    deadline_in_s: float | None
    slack_s: float | None
    history: Sequence[StepFacts]


class RunsAnswer(msgspec.Struct, frozen=True):
    """`GET /admin/runs`."""

    total: int
    runs: Sequence[RunFacts]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a gateway said at one time, `at` seconds on this machine's monotonic clock."""

    pools: PoolsAnswer
    runs: RunsAnswer
    at: float

    @property
    def engines(self) -> list[EngineFacts]:
        return [engine for pool in self.pools.pools for engine in pool.engines]
