"""What was measured, a row for each contender at a load: means over the seeds, and paired differences to `cortex`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from bench.policies.field import Plan, Trial
from simulator.compare import Arena, Cell, Sustained, interval
from simulator.lineup import CORTEX, LINEUP, PUBLISHED

TARGET = 0.95
"""The share of runs in time down to which a load counts as sustained."""
OURS = "cortex"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A contender at a load of a workload.

    `margin` and `ahead_margin` are half widths of 95 % confidence intervals over the seeds. `ahead` is the mean
    attainment less that of `cortex`, seed by seed. Seconds are infinite where so many runs did not end.
    """

    workload: str
    load: float
    contender: str
    kind: str
    attainment: float
    margin: float
    ahead: float
    ahead_margin: float
    goodput: float
    p50: float
    p95: float
    prefill: float
    hits: float
    refused: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The rows in the order of the table, and by workload the highest load at 95 % of those it was searched for."""

    rows: Sequence[Row]
    sustained: Mapping[str, Mapping[str, Sustained]]

    def at(self, workload: str, load: float) -> Mapping[str, Row]:
        """The rows of one load, by contender."""
        return {row.contender: row for row in self.rows if (row.workload, row.load) == (workload, load)}

    @property
    def places(self) -> Sequence[tuple[str, float]]:
        """Each workload and load that was measured."""
        return list(dict.fromkeys((row.workload, row.load) for row in self.rows))


def carry_out(plan: Plan, *, jobs: int, phase: Callable[[str, int], None], heard: Callable[[Cell], None]) -> Measured:
    """Simulate all of it. `phase` is told what comes next, and of how many simulations it consists at most."""
    cells = list(plan.cells())
    searched = [trial for trial in plan.trials if trial.name in plan.searched]
    with Arena({trial.name: trial for trial in plan.trials}, jobs=jobs, heard=heard) as arena:
        phase("table", len(cells))
        arena.measure(cells)
        sustained = {trial.name: _searched(plan, trial, arena, phase) for trial in searched}
        rows = [_row(plan, trial, load, name, arena) for trial, load, name in _entries(plan)]
    return Measured(rows=rows, sustained=sustained)


def kind(contender: str) -> str:
    """What a contender is: `cortex` in one of its layouts, a baseline as published, on our routing, or an oracle."""
    one = LINEUP[contender]
    where = "cortex" if one in CORTEX else "on ours" if one.ours else "published"
    return f"{where}, oracle" if one.oracle else where


def _searched(plan: Plan, trial: Trial, arena: Arena, phase: Callable[[str, int], None]) -> dict[str, Sustained]:
    names = [one.name for one in (*CORTEX, *PUBLISHED)]
    seeds = plan.seeds_of_search(trial)
    phase(f"highest load, {trial.name}", len(names) * len(seeds) * (len(trial.rungs) + plan.search_steps))
    return arena.sustained(trial.name, names, rates=trial.rungs, seeds=seeds, target=TARGET, steps=plan.search_steps)


def _entries(plan: Plan) -> list[tuple[Trial, float, str]]:
    return [
        (trial, load, one.name)
        for trial in plan.trials
        for load in plan.loads(trial)
        for one in plan.met(trial, load)
    ]


def _row(plan: Plan, trial: Trial, load: float, contender: str, arena: Arena) -> Row:
    values = arena.values(trial.name, load, plan.seeds, contender)
    ours = arena.values(trial.name, load, plan.seeds, OURS)
    attainment, margin = interval([value.attainment for value in values])
    pairs = zip(values, ours, strict=True)
    ahead, ahead_margin = interval([value.attainment - our.attainment for value, our in pairs])
    return Row(
        workload=trial.name,
        load=load,
        contender=contender,
        kind=kind(contender),
        attainment=attainment,
        margin=margin,
        ahead=ahead,
        ahead_margin=ahead_margin,
        goodput=fmean(value.goodput for value in values),
        p50=fmean(value.p50 for value in values),
        p95=fmean(value.p95 for value in values),
        prefill=fmean(value.prefill for value in values),
        hits=fmean(value.hits for value in values),
        refused=fmean(value.refused for value in values),
    )
