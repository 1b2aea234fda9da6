"""Contenders side by side on the same runs: many simulations in parallel, and the highest load that one sustains."""

from __future__ import annotations

import gc
import math
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from statistics import fmean, stdev
from typing import Self

from simulator.driver import simulate
from simulator.lineup import LINEUP, scenario
from simulator.setup import Setup

Make = Callable[[float, int], Setup]
"""A workload at a rate in runs a second, drawn from a seed."""

STUDENT = {3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}
"""Student's t for 95 % of both sides, by the number of values; for more of them the last is on the safe side."""


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


@dataclass(frozen=True, slots=True)
class Sustained:
    """What is known of the highest rate at which a contender keeps a target: at `kept` it does, at `lost` no longer.

    `kept` is 0 where it does not keep the target even at the lowest rate tried, `lost` infinite where it keeps it at
    the highest.
    """

    kept: float
    lost: float


class Arena:
    """Measures cells, each once, in several processes; cells of the same runs go to one of them together.

    Use it as a context manager: it owns its processes. They are started afresh, not forked, so a workload must be one
    that can be pickled: a function of a module or an instance of its class, not a closure. `heard` is told of each
    cell as it becomes known.
    """

    def __init__(
        self, workloads: Mapping[str, Make], *, jobs: int, heard: Callable[[Cell], None] | None = None
    ) -> None:
        self._workloads = workloads
        self._heard = heard
        self._executor: ProcessPoolExecutor | None = None
        if jobs > 1:
            # Ctrl-C reaches all processes of a terminal: one of them is to say so.
            self._executor = ProcessPoolExecutor(
                jobs,
                mp_context=get_context("spawn"),
                initializer=signal.signal,
                initargs=(signal.SIGINT, signal.SIG_IGN),
            )
        self.known: dict[Cell, Measure] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

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
        if self._executor is None or len(tasks) < 2:
            yield from map(_group, tasks)
        else:
            yield from self._executor.map(_group, tasks)

    def values(self, workload: str, rate: float, seeds: Sequence[int], contender: str) -> list[Measure]:
        """What is known of a contender at a load, seed by seed."""
        return [self.known[Cell(workload, rate, seed, contender)] for seed in seeds]

    def attainment(self, workload: str, rate: float, seeds: Sequence[int], contender: str) -> float:
        """The mean over these seeds."""
        return fmean(value.attainment for value in self.values(workload, rate, seeds, contender))

    def sustained(
        self,
        workload: str,
        contenders: Sequence[str],
        *,
        rates: Sequence[float],
        seeds: Sequence[int],
        target: float,
        steps: int,
    ) -> dict[str, Sustained]:
        """The highest rate at which each keeps the target attainment in the mean over the seeds.

        Each climbs the `rates`, which ascend, until it loses the target; so many `steps` of bisection, on a
        logarithmic scale, then narrow the gap.
        """
        found = {name: Sustained(0.0, math.inf) for name in contenders}

        def tried(attempts: Mapping[str, float]) -> list[str]:
            """Those who keep the target, each at its own rate."""
            self.measure(Cell(workload, rate, seed, name) for name, rate in attempts.items() for seed in seeds)
            keeping = []
            for name, rate in attempts.items():
                if self.attainment(workload, rate, seeds, name) >= target:
                    found[name] = replace(found[name], kept=rate)
                    keeping.append(name)
                else:
                    found[name] = replace(found[name], lost=rate)
            return keeping

        climbing = list(contenders)
        for rate in rates:
            climbing = tried(dict.fromkeys(climbing, rate))
        for _ in range(steps):
            tried({name: _between(ends) for name, ends in found.items() if 0.0 < ends.kept < ends.lost < math.inf})
        return found


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % confidence interval, by Student's t over the seeds; of fewer than three the
    latter would say nothing, and is not a number."""
    if len(values) < min(STUDENT):
        return fmean(values), math.nan
    return fmean(values), STUDENT[min(len(values), max(STUDENT))] * stdev(values) / math.sqrt(len(values))


def _between(ends: Sustained) -> float:
    """The geometric mean, rounded so that equal loads of different contenders share their runs."""
    return round(math.sqrt(ends.kept * ends.lost), 4)


def _group(task: tuple[Make, list[Cell]]) -> list[tuple[Cell, Measure]]:
    """All contenders on the same runs: they are drawn, and their prompts hashed, once."""
    make, cells = task
    setup = make(cells[0].rate, cells[0].seed)
    gc.collect()
    gc.freeze()
    found = [(cell, measure(make, cell, setup)) for cell in cells]
    gc.unfreeze()
    return found
