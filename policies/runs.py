"""Where each run stands in its graph: position, visits, deadline, outcomes. Bounded, and gives memory back."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from policies.calls import Call, Fate
from policies.protocols import RunView
from policies.workflow import Workflow

HISTORY = 64
"""How many past (stage, outcome) pairs a run remembers."""
STAGES = 256
"""How many distinct stage names a run may visit before further ones share one counter."""

RunKey = tuple[str, str, str]
"""Tenant, workflow, run: an id means nothing outside its workflow."""


@dataclass(slots=True, kw_only=True)
class Run:
    """One execution of a workflow. The deadline is that of its first call and stays."""

    key: RunKey
    workflow: str
    started: float
    deadline: float | None
    seen: float
    position: str = ""
    fate: Fate | None = None
    visits: dict[str, int] = field(default_factory=dict)
    calls: int = 0
    open: set[str] = field(default_factory=set)
    history: deque[tuple[str, Fate]] = field(default_factory=lambda: deque(maxlen=HISTORY))
    declared_over: bool = False

    def view(self, lead: float = 0.0) -> RunView:
        return RunView(
            deadline=self.deadline, started=self.started, calls=self.calls, first=self.calls <= 1, lead=lead
        )

    def counter(self, stage: str) -> str:
        """The name under which the visits to a stage are counted."""
        return stage if stage in self.visits or len(self.visits) < STAGES else ""


class Runs:
    """The runs in flight, least recently seen first. `limit` bounds how many are kept, `idle` for how long.

    A run with an open call is never forgotten: open calls are bounded by the queues and engines.
    """

    def __init__(self, *, limit: int, idle: float) -> None:
        self._runs: OrderedDict[RunKey, Run] = OrderedDict()
        self._limit = limit
        self._idle = idle

    def __len__(self) -> int:
        return len(self._runs)

    def __contains__(self, key: RunKey) -> bool:
        return key in self._runs

    def __iter__(self) -> Iterator[Run]:
        return iter(self._runs.values())

    def enter(self, call: Call, workflow: Workflow | None, now: float) -> tuple[Run, int]:
        """Note that a call has arrived; returns its run and the visit that this is to its stage."""
        key = (call.tenant, call.workflow, call.run)
        run = self._runs.get(key)
        if run is None:
            budget = call.budget if call.budget is not None else workflow.deadline if workflow else None
            run = self._runs[key] = Run(
                key=key,
                workflow=call.workflow,
                started=call.arrived,
                deadline=None if budget is None else call.arrived + budget,
                seen=now,
            )
        self._runs.move_to_end(key)
        run.seen = now
        run.calls += 1
        run.open.add(call.id)
        self._note_tool(run, call, workflow)
        stage = run.counter(call.stage)
        run.visits[stage] = visit = call.visit or run.visits.get(stage, 0) + 1
        run.position, run.fate = call.stage, None
        run.declared_over = run.declared_over or call.final
        self._forget(now)
        return run, visit

    def leave(self, call: Call, fate: Fate | None, *, over: bool = False) -> None:
        """Note that a call has ended; None where it never began. A run that is over goes with its last call."""
        key = (call.tenant, call.workflow, call.run)
        run = self._runs.get(key)
        if run is None or call.id not in run.open:
            return
        run.open.discard(call.id)
        if fate is None:
            run.calls -= 1
            stage = run.counter(call.stage)
            run.visits[stage] = max(0, run.visits.get(stage, 1) - 1)
        else:
            run.history.append((call.stage, fate))
            if run.position == call.stage:
                run.fate = fate
        if not run.open and (run.calls == 0 or run.declared_over or over):
            del self._runs[key]

    def _note_tool(self, run: Run, call: Call, workflow: Workflow | None) -> None:
        """Record how a tool ended that ran between the last call and this one, told by the client or inferred."""
        if workflow is None or not run.position:
            return
        inferred = workflow.inferred(run.position, call.stage)
        if inferred is not None:
            tool, fate = inferred
            run.history.append((tool, call.told or fate))
        elif call.told is not None:
            following = workflow.following(run.position, "ok")
            if following is not None and workflow.stages[following].kind == "sql":
                run.history.append((following, call.told))

    def _forget(self, now: float) -> None:
        """Drop runs from the idle end: those unseen for too long, and the oldest beyond the limit."""
        over = len(self._runs) - self._limit
        for key, run in list(islice(self._runs.items(), max(over + 1, 2))):
            if run.open:
                self._runs.move_to_end(key)
            elif over > 0 or now - run.seen > self._idle:
                del self._runs[key]
                over -= 1
