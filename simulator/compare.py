"""Contenders side by side on the same runs: many simulations in parallel, and the highest load that one sustains."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from statistics import fmean, stdev

from simulator.driver import simulate
from simulator.lineup import LINEUP, scenario
from simulator.setup import Setup

Make = Callable[[float, int], Setup]
"""A workload at a rate in runs a second, drawn from a seed."""

STUDENT = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}
"""Student's t for 95 % of both sides, by the number of values."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One simulation: a contender on a workload at a rate, with a seed."""

    workload: str
    rate: float
    seed: int
    contender: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """What a cell gave: shares of runs, runs a second, seconds, tokens."""

    attainment: float
    goodput: float
    p50: float
    p95: float
    prefill: int
    hits: float
    refused: int
    tenants: Mapping[str, float]


def measure(make: Make, cell: Cell, setup: Setup | None = None) -> Measure:
    """Run one cell."""
    given = make(cell.rate, cell.seed) if setup is None else setup
    result = simulate(scenario(given, LINEUP[cell.contender], seed=cell.seed))
    total = result.total
    return Measure(
        attainment=result.attainment(),
        goodput=result.goodput(),
        p50=result.latency(0.5),
        p95=result.latency(0.95),
        prefill=total.prefill_tokens,
        hits=total.prefix_hits / max(1, total.prefix_queries),
        refused=sum(run.refused for run in result.runs),
        tenants={
            tenant: fmean(run.met for run in result.of(tenant=tenant))
            for tenant in sorted({run.tenant for run in result.runs})
        },
    )


class Arena:
    """Measures cells, each once, in several processes; cells of the same runs go to one of them together."""

    def __init__(
        self, workloads: Mapping[str, Make], *, jobs: int, heard: Callable[[Cell], None] | None = None
    ) -> None:
        self._workloads = workloads
        self._jobs = jobs
        self._heard = heard
        self.known: dict[Cell, Measure] = {}

    def measure(self, cells: Iterable[Cell]) -> None:
        """Make all of these known."""
        groups: dict[tuple[str, float, int], list[Cell]] = {}
        for cell in dict.fromkeys(cells):
            if cell not in self.known:
                groups.setdefault((cell.workload, cell.rate, cell.seed), []).append(cell)
        for found in self._carried_out(list(groups.values())):
            for cell, value in found:
                self.known[cell] = value
                if self._heard is not None:
                    self._heard(cell)

    def _carried_out(self, groups: Sequence[list[Cell]]) -> Iterator[list[tuple[Cell, Measure]]]:
        tasks = [(self._workloads[group[0].workload], group) for group in groups]
        if self._jobs == 1 or len(tasks) < 2:
            yield from map(_group, tasks)
            return
        with ProcessPoolExecutor(self._jobs) as executor:
            yield from executor.map(_group, tasks)

    def values(self, workload: str, rate: float, seeds: Sequence[int], contender: str) -> list[Measure]:
        """What is known of a contender at a load, seed by seed."""
        return [self.known[Cell(workload, rate, seed, contender)] for seed in seeds]

    def attainment(self, workload: str, rate: float, seeds: Sequence[int], contender: str) -> float:
        return fmean(value.attainment for value in self.values(workload, rate, seeds, contender))

    def sustained(
        self,
        workload: str,
        contenders: Sequence[str],
        *,
        low: float,
        high: float,
        seeds: Sequence[int],
        target: float,
        steps: int = 5,
    ) -> dict[str, float]:
        """The highest rate at which each keeps the target, by bisection between `low` and `high` on a logarithmic
        scale; `low` where it does not keep it even there (0 then), `high` where it keeps it throughout.
        """
        span = dict.fromkeys(contenders, (low, high))
        self.measure(
            Cell(workload, rate, seed, name) for name in contenders for rate in (low, high) for seed in seeds
        )
        for name in contenders:
            if self.attainment(workload, low, seeds, name) < target:
                span[name] = (0.0, 0.0)
            elif self.attainment(workload, high, seeds, name) >= target:
                span[name] = (high, high)
        for _ in range(steps):
            middle = {name: _between(*ends) for name, ends in span.items() if ends[0] < ends[1]}
            self.measure(Cell(workload, rate, seed, name) for name, rate in middle.items() for seed in seeds)
            for name, rate in middle.items():
                keeps = self.attainment(workload, rate, seeds, name) >= target
                span[name] = (rate, span[name][1]) if keeps else (span[name][0], rate)
        return {name: ends[0] for name, ends in span.items()}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % confidence interval, by Student's t over the seeds."""
    if len(values) < 2:
        return fmean(values), math.nan
    return fmean(values), STUDENT.get(len(values), 2.0) * stdev(values) / math.sqrt(len(values))


def _between(low: float, high: float) -> float:
    """The geometric mean, rounded so that equal loads of different contenders share their runs."""
    return round(math.sqrt(low * high), 4)


def _group(task: tuple[Make, list[Cell]]) -> list[tuple[Cell, Measure]]:
    """All contenders on the same runs: they are drawn, and their prompts hashed, once."""
    make, cells = task
    setup = make(cells[0].rate, cells[0].seed)
    gc.collect()
    gc.freeze()
    found = [(cell, measure(make, cell, setup)) for cell in cells]
    gc.unfreeze()
    return found
