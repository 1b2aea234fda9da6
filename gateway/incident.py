"""What a journal tells of a gateway's day: runs, calls, refusals, waits, engines, and how long the queues were."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from statistics import fmean

from gateway.journal import Step
from policies.blueprint import Blueprint
from policies.calls import Call, Outcome
from policies.events import (
    Arrived,
    Drained,
    EngineGone,
    EngineUp,
    Failed,
    Finished,
    Joined,
    Left,
    Recalled,
    Refused,
    Retire,
    Start,
)

WIDTH = 60
"""Columns of a chart of queue lengths."""
BARS = " ▁▂▃▄▅▆▇█"


@dataclass(slots=True)
class _Run:
    """A run by its calls: when it should end, when its last answer came, what of it was refused."""

    workflow: str
    deadline: float | None
    answered: float | None = None
    refused: bool = False


@dataclass(slots=True)
class Waits:
    """The calls of a stage in a pool: seconds in the queue at each start, and in an engine at each answer."""

    queued: list[float] = field(default_factory=list)
    served: list[float] = field(default_factory=list)


class Incident:
    """Sums up steps in their order; `lines` says what they came to."""

    def __init__(self, plan: Blueprint) -> None:
        self._plan = plan
        self._calls: dict[str, Call] = {}
        self._runs: dict[tuple[str, str, str], _Run] = {}
        self._waiting: dict[str, set[str]] = {pool: set() for pool in plan.pools}
        self._lengths: dict[str, list[tuple[float, int]]] = {pool: [] for pool in plan.pools}
        self._gone: set[str] = set()
        self.first = self.last = math.nan
        self.steps = 0
        self.ends: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.troubles: Counter[tuple[str, str]] = Counter()
        self.waits: defaultdict[tuple[str, str], Waits] = defaultdict(Waits)
        self.engines: list[tuple[float, str, str]] = []

    def take(self, step: Step) -> None:
        """Add the next step."""
        self.steps += 1
        self.first = step.at if self.steps == 1 else self.first
        self.last = step.at
        self._hear(step)
        for action in step.actions:
            match action:
                case Start():
                    self._start(action)
                case Refused():
                    self._refuse(action)
                case Retire() if action.engine not in self._gone:
                    self._gone.add(action.engine)
                    self.engines.append((step.at, action.engine, "retired"))
        for pool, waiting in self._waiting.items():
            lengths = self._lengths[pool]
            if (lengths[-1][1] if lengths else 0) != len(waiting):
                lengths.append((step.at, len(waiting)))

    def _hear(self, step: Step) -> None:
        match step.event:
            case Arrived(call=call):
                self._arrive(call, step.at)
                self._queue(call)
            case Recalled(call=call, outcome=outcome):
                self._arrive(call, step.at)
                self._finish(call.id, outcome, step.at)
            case Joined(call=call):
                self._arrive(call, step.at)
            case Left(call=name):
                self._end(name, "left")
            case Finished():
                self._finish(step.event.call, step.event.outcome, step.at)
            case Failed():
                self._fail(step.event)
            case EngineUp(engine=engine):
                self.engines.append((step.at, engine, "up"))
            case EngineGone(engine=engine) if engine not in self._gone:
                self._gone.add(engine)
                self.engines.append((step.at, engine, "lost"))
            case Drained(engine=engine):
                self.engines.append((step.at, engine, "told to drain"))

    def _arrive(self, call: Call, at: float) -> None:
        self._calls[call.id] = call
        self.ends["arrived"] += 1
        key = call.tenant, call.workflow, call.run
        if key not in self._runs:
            graph = self._plan.workflows.get(call.workflow)
            budget = call.budget if call.budget is not None else None if graph is None else graph.deadline
            self._runs[key] = _Run(call.workflow, None if budget is None else at + budget)

    def _queue(self, call: Call) -> None:
        self._waiting[call.pool].add(call.id)

    def _start(self, start: Start) -> None:
        call = self._calls[start.call]
        self._waiting[call.pool].discard(call.id)
        self.waits[call.stage, call.pool].queued.append(start.queued)

    def _refuse(self, refused: Refused) -> None:
        self.refusals[refused.reason] += 1
        call = self._end(refused.call, "refused")
        if call is not None:
            self._runs[call.tenant, call.workflow, call.run].refused = True

    def _finish(self, name: str, outcome: Outcome, at: float) -> None:
        source = outcome.source
        call = self._end(name, "answered" if source == "engine" else f"answered from {source}")
        if call is None:
            return
        self._runs[call.tenant, call.workflow, call.run].answered = at
        if source == "engine":
            self.waits[call.stage, call.pool].served.append(outcome.total)

    def _fail(self, failed: Failed) -> None:
        call = self._calls.get(failed.call)
        if call is None:
            return
        self.troubles[call.pool, failed.trouble] += 1
        self._queue(call)  # a start or a refusal in the same step takes it out again
        if failed.final:
            self._end(failed.call, "failed")

    def _end(self, name: str, how: str) -> Call | None:
        call = self._calls.pop(name, None)
        if call is not None:
            self._waiting[call.pool].discard(name)
            self.ends[how] += 1
        return call

    # --- what it came to ----------------------------------------------------------------------------------

    def lines(self) -> Iterator[str]:
        """The account, as text."""
        if not self.steps:
            yield "nothing happened: the journal has no step"
            return
        yield f"{self.steps} steps in {self.last - self.first:.1f} s"
        yield from self._runs_told()
        ends = [f"{count} {how}" for how, count in self.ends.items()]
        yield f"calls: {', '.join([*ends, f'{len(self._calls)} under way at the end'])}"
        if self.refusals:
            yield f"refusals: {_counted(self.refusals)}"
        if self.troubles:
            yield f"failed attempts: {_counted({f'{why} in {pool}': n for (pool, why), n in self.troubles.items()})}"
        yield from self._waits_told()
        yield from self._engines_told()
        yield from self._queues_told()

    def _runs_told(self) -> Iterator[str]:
        by_workflow: dict[str, list[_Run]] = {}
        for run in self._runs.values():
            by_workflow.setdefault(run.workflow, []).append(run)
        for workflow, runs in by_workflow.items():
            due = [run for run in runs if run.deadline is not None]
            met = sum(
                not run.refused and run.answered is not None and run.answered <= (run.deadline or 0.0) for run in due
            )
            told = f", {met} of {len(due)} with their last answer in time" if due else ", without deadlines"
            yield f"runs of {workflow or 'no workflow'}: {len(runs)}{told}"

    def _waits_told(self) -> Iterator[str]:
        if not self.waits:
            return
        header = ("stage", "pool", "starts", "mean wait", "p95", "longest", "mean service")
        found = [
            (
                stage or "(none)",
                pool,
                str(len(waits.queued)),
                *(_seconds(value) for value in _spread(waits.queued)),
                _seconds(fmean(waits.served)) if waits.served else "–",
            )
            for (stage, pool), waits in sorted(self.waits.items())
        ]
        widths = [max(map(len, column)) for column in zip(header, *found, strict=True)]
        yield ""
        for row in (header, *found):
            cells = (
                cell.ljust(width) if n < 2 else cell.rjust(width)
                for n, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            yield "  ".join(cells).rstrip()

    def _engines_told(self) -> Iterator[str]:
        if self.engines:
            yield ""
        together = groupby(self.engines, key=lambda one: (round(one[0] - self.first, 2), one[2]))
        for (at, what), some in together:
            yield f"{at:>9.2f} s  {what}: {', '.join(engine for _, engine, _ in some)}"

    def _queues_told(self) -> Iterator[str]:
        longest = {pool: max((length for _, length in lengths), default=0) for pool, lengths in self._lengths.items()}
        shown = [pool for pool, most in longest.items() if most]
        if not shown:
            return
        width = max(map(len, shown))
        yield ""
        yield "longest queue over time:"
        for pool in shown:
            bars = chart(self._lengths[pool], self.first, self.last)
            yield f"{pool:<{width}}  {bars}  at most {longest[pool]}"
        end = f"{self.last - self.first:.1f} s"
        yield f"{'':<{width}}  0{end:>{WIDTH - 1}}"


def chart(changes: Sequence[tuple[float, int]], first: float, last: float, columns: int = WIDTH) -> str:
    """A line of bars: the greatest value of each of so many stretches of time, from its changes; it begins at 0."""
    highest = [0] * columns
    span = max(last - first, 1e-9)
    value, column = 0, 0
    for at, changed in changes:
        now = min(columns - 1, int((at - first) / span * columns))
        for passed in range(column, now + 1):
            highest[passed] = max(highest[passed], value)
        value, column = changed, now
        highest[now] = max(highest[now], value)
    for passed in range(column, columns):
        highest[passed] = max(highest[passed], value)
    most = max(1, *highest)
    return "".join(BARS[math.ceil(one / most * (len(BARS) - 1))] for one in highest)


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counts.items())


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, 95th percentile and greatest."""
    ordered = sorted(values)
    if not ordered:
        return math.nan, math.nan, math.nan
    return fmean(ordered), ordered[math.ceil(0.95 * len(ordered)) - 1], ordered[-1]


def _seconds(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f} s"
