"""What is compared: workloads, each at three loads about its knee, and how much of that a benchmark carries out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from simulator.compare import Cell
from simulator.lineup import CORTEX, ON_OURS, PUBLISHED, Contender
from simulator.setup import Setup
from simulator.workloads.coding import coding, coding_like
from simulator.workloads.fanout import fanout
from simulator.workloads.mixed import mixed
from simulator.workloads.nl2sql import nl2sql

CLASSES = ((0.6, 2.0), (0.4, 5.0))
"""Six in ten who ask a database wait for the answer; the others want a report, which may take 2.5 times as long."""
REPAIRS = 3.0
TURNS, PAUSE = 16, 10.0
"""Sessions are cut after so many turns, and their pauses at so many seconds: otherwise they outlast the arrivals."""
NL2SQL, MIXED = "nl2sql", "mixed"
"""Workloads of which more is asked than of the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A workload of the table. `loads` are runs a second, ascending: where the best baseline as published meets about
    99, 95 and 80 % of the deadlines. One simulation has so many `runs`."""

    name: str
    told: str
    runs: int
    loads: tuple[float, ...]
    made: Callable[..., Setup]

    def __call__(self, rate: float, seed: int) -> Setup:
        return self.made(runs=self.runs, rate=rate, seed=seed)

    def sized(self, share: float) -> Trial:
        """The same with this share of the runs; few enough say nothing, but none at all cannot be simulated."""
        return replace(self, runs=max(4, round(share * self.runs)))

    @property
    def middle(self) -> float:
        return self.loads[len(self.loads) // 2]

    @property
    def rungs(self) -> tuple[float, ...]:
        """Where the search for the highest load begins: the table's loads, and one beyond them."""
        return (*self.loads, round(1.3 * self.loads[-1], 4))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured. Of several loads, baselines on our routing meet the middle one only.

    The highest load at 95 % is searched on the workloads `searched`, with the first `search_seeds` of the seeds (on
    NL2SQL with all) in `search_steps` steps of bisection.
    """

    trials: tuple[Trial, ...]
    seeds: tuple[int, ...]
    all_loads: bool
    searched: tuple[str, ...]
    search_seeds: int
    search_steps: int

    def loads(self, trial: Trial) -> tuple[float, ...]:
        """Those of a workload that are met. Short simulations fill up less: alone, the highest tells the most."""
        return trial.loads if self.all_loads else trial.loads[-1:]

    def met(self, trial: Trial, load: float) -> Sequence[Contender]:
        """Who meets a workload at a load."""
        everybody = load == trial.middle or not self.all_loads
        return (*CORTEX, *PUBLISHED, *ON_OURS) if everybody else (*CORTEX, *PUBLISHED)

    def cells(self) -> Iterator[Cell]:
        """Those of the table, without those of the search."""
        for trial in self.trials:
            for load in self.loads(trial):
                for seed in self.seeds:
                    for contender in self.met(trial, load):
                        yield Cell(trial.name, load, seed, contender.name)

    def seeds_of_search(self, trial: Trial) -> tuple[int, ...]:
        return self.seeds if trial.name == NL2SQL else self.seeds[: self.search_seeds]


def full(sessions: Path | None) -> Plan:
    """What documents quote."""
    made = trials(sessions)
    return Plan(
        trials=made,
        seeds=tuple(range(1, 11)),
        all_loads=True,
        searched=tuple(trial.name for trial in made),
        search_seeds=3,
        search_steps=3,
    )


def quick(sessions: Path | None) -> Plan:
    """Half of the runs at the highest load with three seeds, and a search on NL2SQL alone."""
    return Plan(
        trials=tuple(trial.sized(0.5) for trial in trials(sessions)),
        seeds=tuple(range(1, 4)),
        all_loads=False,
        searched=(NL2SQL,),
        search_seeds=3,
        search_steps=2,
    )


def trials(sessions: Path | None) -> tuple[Trial, ...]:
    """The five workloads; coding sessions are those recorded in a folder where one is given, else drawn like them."""
    origin = "drawn with the statistics of recorded ones" if sessions is None else "recorded"
    return (
        Trial(
            name=NL2SQL,
            told="NL2SQL, 60 % of the runs interactive (2 times the mean idle run) and 40 % relaxed (5 times)",
            runs=100,
            loads=(0.7, 0.9, 1.1),
            made=_asked,
        ),
        Trial(
            name="nl2sql-repairs",
            told="NL2SQL with 3 rounds of repair for each generation, the same two classes",
            runs=60,
            loads=(0.5, 0.65, 0.9),
            made=_repaired,
        ),
        Trial(
            name="coding",
            told=f"coding sessions, {origin}, their first {TURNS} turns",
            runs=60,
            loads=(0.055, 0.075, 0.1),
            made=partial(_coded, sessions),
        ),
        Trial(
            name="fan-out",
            told="fan-out: 3 to 8 workers side by side on a shared document, sometimes twice",
            runs=70,
            loads=(0.14, 0.2, 0.3),
            made=fanout,
        ),
        Trial(
            name=MIXED,
            told="mixed tenants: NL2SQL (60 %), coding sessions (10 %) and fan-out in bursts (30 %)",
            runs=80,
            loads=(0.8, 1.1, 1.8),
            made=mixed,
        ),
    )


def _asked(*, runs: int, rate: float, seed: int) -> Setup:
    made = nl2sql(runs=runs, rate=rate, seed=seed, deadlines=CLASSES)
    return made.sized(generate=4, revise=1, light=3)


def _coded(sessions: Path | None, *, runs: int, rate: float, seed: int) -> Setup:
    agents = coding_like if sessions is None else partial(coding, sessions)
    return agents(runs=runs, rate=rate, seed=seed, calls=TURNS, longest_pause=PAUSE).sized(coder=3)


def _repaired(*, runs: int, rate: float, seed: int) -> Setup:
    made = nl2sql(runs=runs, rate=rate, seed=seed, deadlines=CLASSES, repairs=REPAIRS)
    return made.sized(generate=4, revise=2, light=2)
