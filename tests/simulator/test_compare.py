"""Contenders side by side: whose highest load is known must be found to have it, in one process or in several."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from random import Random
from statistics import fmean, stdev

import pytest

from simulator.compare import Arena, Cell, Measure, Sustained, interval
from simulator.setup import Setup
from tests.simulator.making import a_run, a_setup, a_statement

SECONDS, SLACK, RUNS = 1.0, 0.5, 60
ALTERED: list[bool] = []


@dataclass(frozen=True)
class Clockwork:
    """Runs of one statement, evenly spaced, for a single worker: at more than one a second each waits longer than the
    one before it, so how many are in time is known. Tells of every drawing."""

    drawn: list[tuple[float, int]] = field(default_factory=list)

    def __call__(self, rate: float, seed: int) -> Setup:
        self.drawn.append((rate, seed))
        tenant = "altered" if ALTERED else "fresh"
        runs = [
            a_run(f"r{n}", n / rate, a_statement(SECONDS), budget=SECONDS + SLACK, tenant=tenant) for n in range(RUNS)
        ]
        return a_setup(runs)


def in_time(rate: float) -> float:
    """The share of runs in time, the first tenth left out: the n-th waits n · (1 − 1 ÷ rate) seconds."""
    counted = range(RUNS // 10, RUNS)
    return fmean(n * max(0.0, SECONDS - 1.0 / rate) <= SLACK for n in counted)


@pytest.fixture(scope="module")
def two_processes() -> Iterator[Arena]:
    with Arena({"clockwork": Clockwork()}, jobs=2) as arena:
        yield arena


def cells(*rates: float, contenders: tuple[str, ...] = ("affinity",), seeds: tuple[int, ...] = (1, 2)) -> list[Cell]:
    return [Cell("clockwork", rate, seed, name) for rate in rates for seed in seeds for name in contenders]


def test_a_measure_is_what_arithmetic_says_it_is() -> None:
    arena = Arena({"clockwork": Clockwork()}, jobs=1)
    arena.measure(cells(0.5, 1.01, 1.05))
    for rate in (0.5, 1.01, 1.05):
        assert arena.attainment("clockwork", rate, [1, 2], "affinity") == pytest.approx(in_time(rate))
    idle = arena.known[Cell("clockwork", 0.5, 1, "affinity")]
    assert [idle.p50, idle.p95] == pytest.approx([SECONDS, SECONDS])
    assert (idle.prefill, idle.refused) == (0, 0)
    assert idle.goodput == pytest.approx(0.5)
    assert idle.tenants == {"fresh": 1.0}


@pytest.mark.slow
@pytest.mark.parametrize("target", [0.95, 0.5])
def test_bisection_finds_the_highest_rate_that_keeps_a_target(target: float) -> None:
    arena = Arena({"clockwork": Clockwork()}, jobs=1)
    found = arena.sustained("clockwork", ["affinity"], rates=[0.9, 1.2], seeds=[1], target=target, steps=7)[
        "affinity"
    ]
    assert in_time(found.kept) >= target > in_time(found.lost)
    assert found.lost / found.kept == pytest.approx((1.2 / 0.9) ** (1 / 2**7), abs=2e-4)


def test_rates_are_climbed_no_further_than_the_first_that_is_lost() -> None:
    arena = Arena({"clockwork": Clockwork()}, jobs=1)
    found = arena.sustained("clockwork", ["affinity"], rates=[0.9, 1.2, 1.5], seeds=[1], target=0.95, steps=0)
    assert found == {"affinity": Sustained(kept=0.9, lost=1.2)}
    assert {cell.rate for cell in arena.known} == {0.9, 1.2}


def test_a_target_that_is_lost_or_kept_throughout_is_not_searched_for() -> None:
    make = Clockwork()
    arena = Arena({"clockwork": make}, jobs=1)
    assert arena.sustained("clockwork", ["edf"], rates=[0.5, 0.8], seeds=[1], target=0.95, steps=4) == {
        "edf": Sustained(kept=0.8, lost=math.inf)
    }
    assert arena.sustained("clockwork", ["edf"], rates=[2.0, 3.0], seeds=[1], target=0.95, steps=4) == {
        "edf": Sustained(kept=0.0, lost=2.0)
    }
    assert make.drawn == [(0.5, 1), (0.8, 1), (2.0, 1)]


def test_contenders_at_one_load_meet_runs_that_were_drawn_once() -> None:
    make = Clockwork()
    heard: list[Cell] = []
    arena = Arena({"clockwork": make}, jobs=1, heard=heard.append)
    asked = cells(0.5, 0.8, contenders=("affinity", "edf", "cortex"))
    arena.measure([*asked, *asked[:3]])
    assert sorted(make.drawn) == [(0.5, 1), (0.5, 2), (0.8, 1), (0.8, 2)]
    assert heard == asked
    arena.measure(asked)
    assert heard == asked


@pytest.mark.slow
def test_several_processes_find_what_one_finds(two_processes: Arena) -> None:
    alone = Arena({"clockwork": Clockwork()}, jobs=1)
    for arena in (alone, two_processes):
        arena.measure(cells(0.9, 1.1, contenders=("affinity", "cortex")))
    assert {cell: two_processes.known[cell] for cell in alone.known} == alone.known


def test_processes_are_started_afresh_and_know_nothing_of_this_one(two_processes: Arena) -> None:
    ALTERED.append(True)
    try:
        two_processes.measure(cells(0.7, 0.75))
    finally:
        ALTERED.clear()
    assert tenants(two_processes.known, 0.7) == {"fresh"}


def test_what_fails_in_a_process_is_said(two_processes: Arena) -> None:
    with pytest.raises(KeyError, match="nobody"):
        two_processes.measure(cells(0.7, contenders=("nobody",)))


def tenants(known: Mapping[Cell, Measure], rate: float) -> set[str]:
    return {tenant for cell, value in known.items() if cell.rate == rate for tenant in value.tenants}


def test_an_interval_is_students_over_the_values() -> None:
    mean, half = interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)
    for few in ([0.5], [0.0, 1.0]):
        mean, half = interval(few)
        assert mean == 0.5
        assert math.isnan(half)


@pytest.mark.untraced
@pytest.mark.parametrize("count", [3, 5, 10, 20])
def test_nineteen_of_twenty_intervals_hold_the_true_mean(count: int) -> None:
    rng = Random(count)
    drawn = [[rng.gauss(7.0, 2.0) for _ in range(count)] for _ in range(4000)]
    hold = fmean(abs(mean - 7.0) <= half for mean, half in map(interval, drawn))
    assert 0.94 < hold < 0.97


def test_an_interval_narrows_with_the_number_of_values() -> None:
    rng = Random(1)
    values = [rng.gauss(0.0, 1.0) for _ in range(40)]
    halves = [interval(values[:count])[1] / stdev(values[:count]) for count in range(3, 41)]
    assert halves == sorted(halves, reverse=True)
