"""Where each run stands in its graph: position, visits, deadline, what it has had. Bounded, and gives memory back."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from policies.calls import Call, Fate
from policies.critical import NOTHING, Chain
from policies.protocols import RunView
from policies.sketch import Sketch
from policies.transitions import OVER, Transition
from policies.workflow import START, Workflow

HISTORY = 64
"""How many past (stage, outcome) pairs a run remembers."""
STAGES = 256
"""How many distinct stage names a run may visit before further ones share one counter."""
WORKFLOWS = 256
"""How many workflows have a past; that of the one entered least recently goes first."""
ENDED_LEAST, ENDED_MOST = 20, 1000
"""How many runs must have ended before it is said how long they last, and how many that are remembered for."""
LOOKED_AT = 8
"""Runs looked at for forgetting when a call arrives: more than one, so that those that are over cannot pile up."""

BROKEN: Final = frozenset({"error", "empty", "timeout"})
"""Ends of a stage that whatever follows is there to repair."""

RunKey = tuple[str, str, str]
"""Tenant, workflow, run: an id means nothing outside its workflow."""


@dataclass(slots=True)
class _Place:
    """What a run has to do with one stage: its rounds there and its open calls; of this round the most that were
    open at once, and how the last call ended that did."""

    rounds: int = 0
    open: int = 0
    width: int = 0
    fate: Fate | None = None


@dataclass(slots=True)
class _Source:
    """A stage that has ended, in which round and how; something may follow it."""

    stage: str
    visit: int
    fate: Fate | None
    width: int


@dataclass(slots=True)
class Past:
    """All runs of one workflow so far: how often they have entered each stage (names beyond STAGES share ''), and
    within how many seconds 95 of 100 have ended."""

    entered: Counter[str] = field(default_factory=Counter)
    p95: float | None = None
    _lasted: Sketch = field(default_factory=Sketch)
    _due: int = ENDED_LEAST

    def enter(self, stage: str) -> None:
        self.entered[stage if stage in self.entered or len(self.entered) < STAGES else ""] += 1

    def end(self, seconds: float) -> None:
        """Count a run that has ended. The quantile is looked up once in a while only."""
        self._lasted.add(seconds)
        self._due -= 1
        if self._due == 0:
            self.p95, self._due = self._lasted.quantile(0.95), ENDED_LEAST
            if self._lasted.total >= ENDED_MOST:
                self._lasted = self._lasted.merged(Sketch(), 0.5)


@dataclass(slots=True, kw_only=True)
class Run:
    """One execution of a workflow. The deadline is that of its first call and stays.

    `visits` counts the calls by stage, `open` holds those that are open, each with the longest chain of calls
    before it: as `path` has it, seconds of service, and as `longest` has it, those in queues besides. `ended` are
    the stages whose calls have all ended and which nothing has followed yet; `sources` those that the calls now
    open have followed. `most` is how many calls were open at once since none was; `repairs` counts those that
    followed another stage, which had gone wrong. Its last call ended at `left`, as `last` says.
    """

    key: RunKey
    workflow: str
    started: float
    deadline: float | None
    seen: float
    position: str = ""
    fate: Fate | None = None
    visits: dict[str, int] = field(default_factory=dict)
    calls: int = 0
    open: dict[str, tuple[float, Chain]] = field(default_factory=dict)
    history: deque[tuple[str, Fate]] = field(default_factory=lambda: deque(maxlen=HISTORY))
    declared_over: bool = False
    attained: float = 0.0
    path: float = 0.0
    longest: Chain = NOTHING
    waited: float = 0.0
    context: int = 0
    most: int = 0
    repairs: int = 0
    left: float = 0.0
    last: Fate | None = None
    past: Past
    places: dict[str, _Place] = field(default_factory=dict)
    ended: dict[str, _Source] = field(default_factory=dict)
    sources: list[_Source] = field(default_factory=list)

    def view(self, lead: float = 0.0) -> RunView:
        return RunView(
            deadline=self.deadline,
            started=self.started,
            calls=self.calls,
            first=self.calls <= 1,
            attained=self.attained,
            path=self.path,
            waited=self.waited,
            context=self.context,
            siblings=max(0, len(self.open) - 1),
            last=len(self.open) == 1 and self.most > 1,
            p95=self.past.p95,
            lead=lead,
            visits=self.visits,
            entered=self.past.entered,
        )

    def had(self, stage: str, before: tuple[float, Chain], *, service: float, queued: float, tokens: int) -> None:
        """Add what an ended call has had; `before` are the longest chains of calls before it, fixed when it came."""
        path, longest = before
        self.attained += service
        self.waited += queued
        self.path = max(self.path, path + service)
        if longest.seconds + queued + service > self.longest.seconds:
            self.longest = longest.then(stage, queued + service)
        self.context = tokens or self.context

    def counter(self, stage: str) -> str:
        """The name under which the visits to a stage are counted."""
        return stage if stage in self.visits or len(self.visits) < STAGES else ""


def _untaught(transition: Transition) -> None:
    """Nobody learns."""


def _unwatched(run: Run) -> None:
    """Nobody is told."""


class Runs:
    """The runs in flight, least recently seen first. `limit` bounds how many are kept, `idle` for how long.

    A run with an open call is never forgotten: open calls are bounded by the queues and engines. Each transition of
    a run is handed to `learn` when it is noticed. Calls that are open together are siblings: a call that arrives
    while others of its run are open follows what these followed, unless the graph has an edge to it from a stage that
    has ended meanwhile. One that arrives while none is open follows all that have ended since.
    """

    def __init__(self, *, limit: int, idle: float, learn: Callable[[Transition], None] = _untaught) -> None:
        self._runs: OrderedDict[RunKey, Run] = OrderedDict()
        self._pasts: OrderedDict[str, Past] = OrderedDict()
        self._limit = limit
        self._idle = idle
        self._learn = learn
        self._ended: Callable[[Run], None] = _unwatched

    def __len__(self) -> int:
        return len(self._runs)

    def __contains__(self, key: RunKey) -> bool:
        return key in self._runs

    def under_way(self, call: Call) -> bool:
        """Whether the run of a call is known."""
        return (call.tenant, call.workflow, call.run) in self._runs

    def __iter__(self) -> Iterator[Run]:
        return iter(self._runs.values())

    def __reversed__(self) -> Iterator[Run]:
        return reversed(self._runs.values())

    def watch(self, ended: Callable[[Run], None]) -> None:
        """Hand each run over once it has ended: its end is that of its last call, `run.left`, even where that is
        known only when the run is forgotten. Who is told must change nothing."""
        self._ended = ended

    def enter(self, call: Call, workflow: Workflow | None, now: float) -> tuple[Run, int]:
        """Note that a call has arrived; returns its run and which visit this is to its stage.

        Calls that are open together at one stage are one visit.
        """
        run = self._run_of(call, workflow, now)
        self._note_tool(run, call, workflow)
        run.calls += 1
        run.open[call.id] = run.path, run.longest
        run.most = max(run.most, len(run.open))
        stage = run.counter(call.stage)
        run.visits[stage] = run.visits.get(stage, 0) + 1
        run.past.enter(stage)
        place = run.places.setdefault(stage, _Place())
        place.open += 1
        place.width = max(place.width, place.open)
        if place.open == 1:
            place.rounds, place.width, place.fate = place.rounds + 1, 1, None
        place.rounds = call.visit or place.rounds
        if place.open == 1:
            self._follow(run, stage, place.rounds, workflow)
        run.position, run.fate = call.stage, None
        run.declared_over = run.declared_over or call.final
        self._forget(now)
        return run, place.rounds

    def leave(
        self,
        call: Call,
        fate: Fate | None,
        now: float,
        *,
        over: bool = False,
        told: Fate = "cancelled",
        verdict: Fate | None = None,
        service: float = 0.0,
        queued: float = 0.0,
        tokens: int = 0,
    ) -> None:
        """Note that a call has ended; None where it never began, and `told` is what its client heard: `error` where
        it was refused. A run that is over goes with its last call.

        `verdict` is what its answer means for what comes next, where that is known.

        Of the call: `service` seconds in an engine, `queued` seconds before, `tokens` of prompt and answer.
        """
        run = self._runs.get((call.tenant, call.workflow, call.run))
        if run is None or call.id not in run.open:
            return
        before = run.open.pop(call.id)
        run.most = run.most if run.open else 0
        run.left, run.last = now, fate or told
        stage = run.counter(call.stage)
        place = run.places[stage]
        if fate is None:
            run.calls -= 1
            run.visits[stage] -= 1
        else:
            place.fate = verdict or fate
            run.history.append((call.stage, place.fate))
            run.fate = place.fate if run.position == call.stage else run.fate
            run.had(stage, before, service=service, queued=queued, tokens=tokens)
        self._vacate(run, stage, place)
        if not run.open and (run.calls == 0 or run.declared_over or over):
            if run.calls:
                run.past.end(now - run.started)
            self._end(run, known=True)

    def _vacate(self, run: Run, stage: str, place: _Place) -> None:
        """A stage has one open call less; with the last one it has ended, unless none of them began."""
        place.open -= 1
        if place.open == 0 and place.fate is None:
            place.rounds -= 1
        elif place.open == 0:
            run.ended[stage] = _Source(stage, place.rounds, place.fate, place.width)

    def _run_of(self, call: Call, workflow: Workflow | None, now: float) -> Run:
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
                past=self._past(call.workflow),
            )
            run.ended[START] = _Source(START, 1, None, 0)
        self._runs.move_to_end(key)
        run.seen = now
        return run

    def _past(self, workflow: str) -> Past:
        past = self._pasts.setdefault(workflow, Past())
        self._pasts.move_to_end(workflow)
        if len(self._pasts) > WORKFLOWS:
            self._pasts.popitem(last=False)
        return past

    def _follow(self, run: Run, stage: str, visit: int, workflow: Workflow | None) -> None:
        """Notice what a call follows that begins a round at its stage."""
        if len(run.open) == 1:
            followed = run.sources = list(run.ended.values())
            run.ended = {}
        else:
            led = [name for name in run.ended if workflow is not None and workflow.edge(name, stage)]
            followed = [run.ended.pop(name) for name in led]
        run.repairs += any(source.fate in BROKEN and source.stage != stage for source in followed)
        self._tell(run, followed or run.sources, stage, visit, beside=not followed)

    def _tell(self, run: Run, sources: list[_Source], stage: str, visit: int, *, beside: bool = False) -> None:
        if not run.workflow:  # nothing is to be learned from calls that belong to none
            return
        for source in sources:
            self._learn(
                Transition(
                    workflow=run.workflow,
                    stage=source.stage,
                    visit=source.visit,
                    fate=source.fate,
                    following=stage,
                    next_visit=visit,
                    width=0 if beside else source.width,
                    beside=beside,
                )
            )

    def _end(self, run: Run, *, known: bool) -> None:
        """Forget a run; what it did last, if anything, is where it ended. `known` says that the end is certain."""
        del self._runs[run.key]
        sources = [source for source in run.ended.values() if source.stage != START]
        for source in sources:
            source.fate = source.fate if known else None
        self._tell(run, sources, OVER, 0)
        if run.calls or run.last == "error":  # else its only call was taken back before it began
            self._ended(run)

    def _note_tool(self, run: Run, call: Call, workflow: Workflow | None) -> None:
        """Record how a tool ended that ran between the last call and this one, told by the client or inferred."""
        if workflow is None or not run.position:
            return
        inferred = workflow.inferred(run.position, call.stage)
        if inferred is not None:
            tool, fate = inferred[0], call.told or inferred[1]
        elif call.told is not None:
            following = workflow.following(run.position, "ok")
            if following is None or workflow.stages[following].kind != "sql":
                return
            tool, fate = following, call.told
        else:
            return
        run.history.append((tool, fate))
        source = run.ended.pop(run.position, None)
        if source is not None:
            place = run.places.setdefault(tool, _Place())
            place.rounds += 1
            self._tell(run, [source], tool, place.rounds)
            run.ended[tool] = _Source(tool, place.rounds, fate, 1)

    def _forget(self, now: float) -> None:
        """Drop runs from the idle end: those unseen for too long, and the oldest beyond the limit."""
        over = len(self._runs) - self._limit
        for _ in range(min(LOOKED_AT, len(self._runs))):
            run = next(iter(self._runs.values()))
            if run.open:
                self._runs.move_to_end(run.key)
            elif over > 0 or now - run.seen > self._idle:
                self._end(run, known=False)
                over -= 1
            else:
                break
