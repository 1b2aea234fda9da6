"""The workloads by the names that a command line has for them, on engines as fast as somebody's own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from backends.emulated.model import EngineConfig, StepTime
from simulator.ideal import rounds
from simulator.setup import Setup
from simulator.workload import RunPlan
from simulator.workloads.coding import coding, coding_like
from simulator.workloads.fanout import fanout
from simulator.workloads.mixed import mixed
from simulator.workloads.nl2sql import REPAIRS_MOST, nl2sql

RATES: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {
        "nl2sql": (0.8, 1.2, 1.6, 2.0),
        "coding": (0.03, 0.045, 0.06, 0.08),
        "fanout": (0.2, 0.3, 0.4, 0.5),
        "mixed": (0.8, 1.2, 1.6, 2.0),
    }
)
"""The workloads that there are, each with loads from what its pools take with ease to what no policy can save."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A workload of so many runs.

    `repairs` is nl2sql's mean number of revision rounds, `sessions` a folder of recordings for coding; `step_time`
    takes the place of the engines' own. Raises ValueError for what cannot be.
    """

    workload: str
    runs: int
    repairs: float | None = None
    sessions: Path | None = None
    step_time: StepTime | None = None

    def __post_init__(self) -> None:
        if self.workload not in RATES:
            raise ValueError(f"no workload named {self.workload!r} (there are {', '.join(RATES)})")
        if self.runs < 1:
            raise ValueError(f"runs: there must be at least one, not {self.runs}")
        if self.repairs is not None and self.workload != "nl2sql":
            raise ValueError(f"repairs: only nl2sql has them, not {self.workload}")
        if self.repairs is not None and not 0 < self.repairs < REPAIRS_MOST:
            raise ValueError(f"repairs: must lie between 0 and {REPAIRS_MOST}, not at {self.repairs:g}")
        if self.sessions is not None and self.workload != "coding":
            raise ValueError(f"sessions: only coding has them, not {self.workload}")
        if self.sessions is not None and not self.sessions.is_dir():
            raise ValueError(f"sessions: there is no directory {self.sessions}")

    def __call__(self, rate: float, seed: int) -> Setup:
        """The workload at a rate in runs a second. Raises ValueError where the sessions cannot be read."""
        setup = self._drawn(rate, seed)
        return setup if self.step_time is None else paced(setup, self.step_time)

    @property
    def title(self) -> str:
        """What it is called in tables and charts."""
        more = f", {self.repairs:g} repairs" if self.repairs is not None else ""
        return f"{self.workload}{', recorded sessions' if self.sessions else more}"

    def _drawn(self, rate: float, seed: int) -> Setup:
        match self.workload:
            case "nl2sql":
                return nl2sql(runs=self.runs, rate=rate, seed=seed, repairs=self.repairs)
            case "coding" if self.sessions is not None:
                return coding(self.sessions, runs=self.runs, rate=rate, seed=seed)
            case "coding":
                return coding_like(runs=self.runs, rate=rate, seed=seed)
            case "fanout":
                return fanout(runs=self.runs, rate=rate, seed=seed)
            case _:
                return mixed(runs=self.runs, rate=rate, seed=seed)


def paced(setup: Setup, step_time: StepTime) -> Setup:
    """The same on LLM engines of another speed.

    Deadlines keep their proportion to what the runs of a workflow take on idle engines; pauses and statements take as
    long as they did.
    """
    engines = {
        name: spec if spec.config is None else replace(spec, config=replace(spec.config, step_time=step_time))
        for name, spec in setup.engines.items()
    }
    runs = setup.workload.runs
    before, after = (_idle(runs, _configs(replace(setup, engines=given))) for given in (setup.engines, engines))
    ratio = {name: after[name] / before[name] for name in before}
    return replace(
        setup,
        engines=engines,
        workload=replace(setup.workload, runs=tuple(_stretched(run, ratio[run.workflow]) for run in runs)),
        workflows={
            name: graph if graph.deadline is None else replace(graph, deadline=graph.deadline * ratio.get(name, 1.0))
            for name, graph in setup.workflows.items()
        },
    )


def _configs(setup: Setup) -> dict[str, EngineConfig]:
    return {name: spec.config for name, spec in setup.engines.items() if spec.config is not None}


def _idle(runs: Sequence[RunPlan], configs: Mapping[str, EngineConfig]) -> dict[str, float]:
    """Seconds of all runs of each workflow together."""
    total: dict[str, float] = {}
    for run, seconds in zip(runs, rounds(runs, configs), strict=True):
        total[run.workflow] = total.get(run.workflow, 0.0) + math.fsum(seconds)
    return total


def _stretched(run: RunPlan, ratio: float) -> RunPlan:
    pauses = math.fsum(round.pause for round in run.rounds)
    return replace(run, budget=pauses + (run.budget - pauses) * ratio)
