"""Many simulations in several processes: each entrant at each load, on the same runs."""

from __future__ import annotations

import math
import signal
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import active_children
from statistics import fmean

from policies.catalog import PolicySet
from simulator.choice import Choice
from simulator.driver import simulate
from simulator.lineup import Contender, scenario
from simulator.result import Result, StageRecord
from simulator.scenario import Scenario
from simulator.setup import Setup

POINTS = 120
"""Into so many a curve over time is averaged: as many as a chart can show."""

Curve = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrant:
    """A contender under the name that it shows; `own` are the policies of pools that have some of their own."""

    name: str
    contender: Contender
    own: Mapping[str, PolicySet] = field(default_factory=dict)

    def scenario(self, setup: Setup, seed: int) -> Scenario:
        made = scenario(setup, self.contender, seed=seed)
        chosen = dict(made.blueprint.policies)
        for pool in chosen.keys() & self.own.keys():
            # How a pool lends goes with the layout, which is that of all pools.
            chosen[pool] = replace(self.own[pool], borrowing=chosen[pool].borrowing)
        return replace(made, blueprint=replace(made.blueprint, policies=chosen))


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTimes:
    """Mean seconds that the answered calls of a stage spent in the queue and in the engine."""

    wait: float
    service: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one simulation gave.

    `p50`, `p95` and `p99` are seconds of runs, infinite where so many did not end. `kv_use` is, by pool, the share of
    KV memory in use over the seconds.
    """

    rate: float
    seed: int
    entrant: str
    attainment: float
    goodput: float
    p50: float
    p95: float
    p99: float
    wait: float
    prefill: int
    hits: float
    refused: int
    stages: Mapping[str, StageTimes]
    kv_use: Mapping[str, Curve]


@dataclass(frozen=True, slots=True)
class Task:
    """Entrants that meet the same runs one after the other: these are drawn, and their prompts hashed, once."""

    choice: Choice
    rate: float
    seed: int
    entrants: Sequence[Entrant]

    def done(self) -> list[Finding]:
        """Simulate them all."""
        setup = self.choice(self.rate, self.seed)
        return [self._found(one, simulate(one.scenario(setup, self.seed))) for one in self.entrants]

    def _found(self, entrant: Entrant, result: Result) -> Finding:
        total = result.total
        return Finding(
            rate=self.rate,
            seed=self.seed,
            entrant=entrant.name,
            attainment=result.attainment(),
            goodput=result.goodput(),
            p50=result.latency(0.5),
            p95=result.latency(0.95),
            p99=result.latency(0.99),
            wait=_mean([wait for stage in result.stages.values() for wait in stage.waits]),
            prefill=total.prefill_tokens,
            hits=total.prefix_hits / max(1, total.prefix_queries),
            refused=sum(run.refused for run in result.runs),
            stages={name: _times(stage) for name, stage in result.stages.items()},
            kv_use={pool: thinned(curve) for pool, curve in result.kv_use.items()},
        )


def campaign(
    choice: Choice, rates: Sequence[float], seeds: Sequence[int], entrants: Sequence[Entrant], *, jobs: int
) -> Generator[Finding, None, None]:
    """Every entrant at every rate with every seed, in this order whatever ends first, in so many processes."""
    loads = [(rate, seed) for rate in rates for seed in seeds]
    # Where there are fewer loads than processes, those of one load are shared out.
    parts = min(len(entrants), math.ceil(jobs / len(loads)))
    slices = [entrants[len(entrants) * n // parts : len(entrants) * (n + 1) // parts] for n in range(parts)]
    tasks = [Task(choice, rate, seed, some) for rate, seed in loads for some in slices]
    if jobs == 1 or len(tasks) == 1:
        for task in tasks:
            yield from task.done()
        return
    others = set(active_children())
    # Ctrl-C reaches all processes of a terminal. These never see it: we end them when it has reached us.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    executor = ProcessPoolExecutor(min(jobs, len(tasks)))
    try:
        carried_out = executor.map(Task.done, tasks)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for found in carried_out:
            yield from found
    except BaseException:
        for process in set(active_children()) - others:
            process.kill()
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        executor.shutdown(cancel_futures=True)


def thinned(curve: Curve, points: int = POINTS) -> Curve:
    """A curve's means over so many equal stretches of time; as it is where it has no more points than that."""
    if len(curve) <= points:
        return curve
    first, last = curve[0][0], curve[-1][0]
    bins: list[list[float]] = [[] for _ in range(points)]
    for at, value in curve:
        bins[min(points - 1, int((at - first) / (last - first) * points))].append(value)
    width = (last - first) / points
    return [(first + (number + 0.5) * width, fmean(values)) for number, values in enumerate(bins) if values]


def _times(stage: StageRecord) -> StageTimes:
    return StageTimes(wait=_mean(stage.waits), service=_mean(stage.services))


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else math.nan
