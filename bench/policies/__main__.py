"""Cortex against the field: every contender on every workload about its knee, in one table with a verdict.

    python -m bench.policies [--quick] [--only nl2sql …] [--seeds 3] [--jobs 2] [--out DIR] [--strict]

The same seeds give the same figures. Progress goes to standard error. `--strict` ends with 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import TextIO

from bench.policies.field import Plan, full, quick
from bench.policies.rows import carry_out
from bench.policies.table import comma_separated, markdown, sections, text
from bench.policies.verdict import bars
from bench.site import machine
from simulator.compare import Cell

SESSIONS = Path(__file__).parents[3] / "shared" / "data" / "coding_sessions"
"""Recorded coding sessions beside the repository."""
TOLD = 20
"""So many times a phase says how far it has come."""


class Progress:
    """How many simulations of a phase are done, and how long the rest will take at that pace."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self.phase("", 1)

    def phase(self, name: str, total: int) -> None:
        self._name, self._total, self._done, self._began = name, total, 0, monotonic()

    def heard(self, _: Cell) -> None:
        before, self._done = self._done, self._done + 1
        if before * TOLD // self._total == self._done * TOLD // self._total:
            return
        left = (monotonic() - self._began) * (self._total / self._done - 1)
        self._out.write(f"{self._name}: {self._done} of {self._total}, at most {left / 60:.1f} min left\n")
        self._out.flush()


def main(words: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(words)
    plan = _plan(options, parser)
    began = monotonic()
    progress = Progress(sys.stderr)
    measured = carry_out(plan, jobs=options.jobs, phase=progress.phase, heard=progress.heard)
    used = os.times()
    cpu = used.user + used.system + used.children_user + used.children_system
    sys.stderr.write(f"{(monotonic() - began) / 60:.1f} min, {cpu:.0f} s of CPU time in {options.jobs} processes\n")
    made = sections(plan, measured, _about(options))
    sys.stdout.write(text(made))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "policies.md").write_text(markdown(made))
        (options.out / "policies.csv").write_text(comma_separated(measured))
    return 1 if options.strict and not all(bar.passed for bar in bars(measured)) else 0


def _plan(options: argparse.Namespace, parser: argparse.ArgumentParser) -> Plan:
    sessions = options.sessions
    if sessions is None:
        sessions = SESSIONS if SESSIONS.is_dir() else None
    elif not any(sessions.glob("*.json")):
        parser.error(f"--sessions: there are no recordings (*.json) in {sessions}")
    for name in ("seeds", "size", "jobs"):
        if getattr(options, name) is not None and getattr(options, name) <= 0:
            parser.error(f"--{name} must be more than 0")
    plan = (quick if options.quick else full)(sessions)
    names = [trial.name for trial in plan.trials]
    if unknown := set(options.only or ()) - set(names):
        parser.error(f"--only: no workload is called {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    return replace(
        plan,
        trials=tuple(one.sized(options.size) for one in plan.trials if not options.only or one.name in options.only),
        seeds=tuple(range(options.first_seed, options.first_seed + (options.seeds or len(plan.seeds)))),
    )


def _about(options: argparse.Namespace) -> list[str]:
    return [f"{_command(options)}, {datetime.now(UTC).date().isoformat()}, {machine()}, {options.jobs} processes."]


def _command(options: argparse.Namespace) -> str:
    """The command that gives these figures."""
    given = {
        "only": " ".join(options.only or ()),
        "first-seed": options.first_seed if options.first_seed != 1 else "",
        "seeds": options.seeds or "",
        "size": options.size if options.size != 1.0 else "",
        "sessions": options.sessions or "",
    }
    more = "".join(f" --{name} {value}" for name, value in given.items() if value)
    if not more:
        return "make bench-policies-quick" if options.quick else "make bench-policies"
    return f"python -m bench.policies{' --quick' if options.quick else ''}{more}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench.policies", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer seeds, runs and loads: minutes")
    parser.add_argument("--only", nargs="+", metavar="WORKLOAD", help="only these workloads")
    parser.add_argument("--sessions", type=Path, help="folder of recorded coding sessions (default: the one beside)")
    parser.add_argument("--first-seed", type=int, default=1, help="seeds are this one and those after it")
    parser.add_argument("--seeds", type=int, help="how many (default: 10, or 3 in the quick form)")
    parser.add_argument("--size", type=float, default=1.0, help="this share of the runs in each simulation")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--out", type=Path, help="folder for policies.md and policies.csv")
    parser.add_argument("--strict", action="store_true", help="end with 1 where a bar is missed")
    return parser


if __name__ == "__main__":
    sys.exit(main())
