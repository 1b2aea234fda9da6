"""`cortex simulate`: a workload, loads and contenders from the command line; tables and pictures to a folder."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from backends.emulated.profile import read_step_time
from simulator.campaign import Entrant, campaign
from simulator.choice import RATES, Choice
from simulator.lineup import LINEUP
from simulator.progress import progress
from simulator.report import comma_separated, markdown, rows, text

USUAL = ("cortex", "round-robin", "affinity", "edf", "hexgen", "plas")
"""The contenders that run when none are named: ours, what load balancers do, and the best known orders."""
DRAWING = "matplotlib"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be simulated, and where its report goes: nowhere but to the terminal without `out`."""

    choice: Choice
    rates: Sequence[float]
    seeds: Sequence[int]
    entrants: Sequence[Entrant]
    jobs: int
    out: Path | None
    plots: bool

    @property
    def title(self) -> str:
        """One line for the head of a table."""
        runs, seeds = self.choice.runs, len(self.seeds)
        return f"{self.choice.title}: {runs} run{'s' * (runs > 1)} of each of {seeds} seed{'s' * (seeds > 1)}"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's options, but `--config`."""
    parser.add_argument("--workload", default="nl2sql", metavar="NAME", help=f"{', '.join(RATES)} (default: nl2sql)")
    parser.add_argument("--repairs", type=float, metavar="N", help="nl2sql: mean rounds of revision of a run")
    parser.add_argument(
        "--sessions", type=Path, metavar="DIR", help="coding: recorded sessions, instead of drawn ones"
    )
    parser.add_argument("--rates", type=float, nargs="+", metavar="R", help="loads in runs a second")
    parser.add_argument("--runs", type=int, default=200, metavar="N", help="runs of a simulation (200)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="simulations of each load (3)")
    parser.add_argument("--contenders", metavar="A,B", help="who runs, or `all`; an unknown one lists those that are")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="step times of a calibrated engine")
    parser.add_argument("--jobs", type=int, metavar="N", help="processes (as many as CPUs)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where tables and plots are written")
    parser.add_argument("--no-plots", action="store_true", help="tables only: no matplotlib is needed")


def plan(options: argparse.Namespace, configured: Sequence[Entrant]) -> Plan:
    """What the options ask for; `configured` entrants run besides. Raises ValueError with one line for a mistake."""
    step_time = None if options.profile is None else read_step_time(options.profile)
    choice = Choice(
        workload=options.workload,
        runs=options.runs,
        repairs=options.repairs,
        sessions=options.sessions,
        step_time=step_time,
    )
    rates = tuple(dict.fromkeys(RATES[choice.workload] if options.rates is None else options.rates))
    for rate in rates:
        if not 0 < rate < math.inf:
            raise ValueError(f"rates: a load is more than 0 runs a second, not {rate:g}")
    if options.seeds < 1:
        raise ValueError(f"seeds: there must be at least one, not {options.seeds}")
    if options.jobs is not None and options.jobs < 1:
        raise ValueError(f"jobs: there must be at least one, not {options.jobs}")
    named = _contenders(options.contenders, alone=not configured)
    if choice.sessions is not None:
        _read_sessions(choice)
    if options.out is not None:
        _check_folder(options.out, plots=not options.no_plots)
    return Plan(
        choice=choice,
        rates=rates,
        seeds=range(1, options.seeds + 1),
        entrants=(*configured, *named),
        jobs=options.jobs or os.cpu_count() or 1,
        out=options.out,
        plots=not options.no_plots,
    )


def run(planned: Plan, out: TextIO, err: TextIO) -> int:
    """Simulate, print the table and write the files; progress goes to `err`. Returns the exit status."""
    total = len(planned.rates) * len(planned.seeds) * len(planned.entrants)
    findings = []
    jobs = min(planned.jobs, total)
    simulations = campaign(planned.choice, planned.rates, planned.seeds, planned.entrants, jobs=jobs)
    with progress(total, err) as told, closing(simulations):
        for one in simulations:
            findings.append(one)
            told(one)
    found = rows(findings)
    out.write(f"{planned.title}\n\n{text(found)}\n")
    if planned.out is None:
        return 0
    written = [planned.out / "table.md", planned.out / "table.csv"]
    try:
        written[0].write_text(markdown(planned.title, found), encoding="utf-8")
        written[1].write_text(comma_separated(found), encoding="utf-8")
        if planned.plots:
            from simulator.plots import draw  # noqa: PLC0415 - needs an extra, which takes a second to import

            written += draw(planned.out, planned.choice.title, findings)
    except OSError as error:
        err.write(f"{planned.out}: cannot be written: {error.strerror}\n")
        return 1
    out.write(f"\nwritten to {planned.out}: {', '.join(path.name for path in written)}\n")
    return 0


def _contenders(names: str | None, *, alone: bool) -> list[Entrant]:
    """Those of the line-up; without names the usual ones, or only the default beside a configuration."""
    chosen = (USUAL if alone else USUAL[:1]) if names is None else [name.strip() for name in names.split(",")]
    if "all" in chosen:
        chosen = list(LINEUP)
    for name in chosen:
        if name not in LINEUP:
            raise ValueError(f"no contender named {name!r} (there are {', '.join(LINEUP)})")
    return [Entrant(name=name, contender=LINEUP[name]) for name in dict.fromkeys(chosen)]


def _read_sessions(choice: Choice) -> None:
    """Find out now whether they can be read, not in another process and much later."""
    try:
        replace(choice, runs=1)(1.0, 1)
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"sessions: {choice.sessions} holds a file that is no recording: {error!r}") from None
    except (ValueError, OSError) as error:
        raise ValueError(f"sessions: {error}") from None


def _check_folder(folder: Path, *, plots: bool) -> None:
    """Whether there will be something to write, and where: before minutes are spent on it."""
    if plots and importlib.util.find_spec(DRAWING) is None:
        raise ValueError(f"plots need {DRAWING}: {sys.executable} -m pip install {DRAWING}   (or --no-plots)")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"out: {folder} cannot be written to: {error.strerror}") from None
