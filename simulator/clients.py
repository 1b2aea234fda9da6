"""The clients of a simulation: each carries its run through its rounds, and gives up when it is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isinf

from policies.calls import Call
from policies.events import Reason
from policies.priority import EPOCH
from simulator.agenda import Agenda
from simulator.ideal import remaining, rounds
from simulator.prompts import leading
from simulator.result import RunRecord, StageRecord
from simulator.scenario import Scenario
from simulator.workload import CallPlan, RunPlan, identity

ZERO = EPOCH + 86_400.0
"""What the dispatcher's clock shows at the simulation's zero: later than its grid's, as engines come up before."""

Ask = Callable[[Call, CallPlan, int], None]


@dataclass(slots=True, eq=False)
class _Run:
    """A run under way. `needs` are the seconds of each round with all after it, `open` its calls without answer."""

    plan: RunPlan
    needs: Sequence[float]
    seed: int
    counted: bool
    round: int = 0
    tries: int = 0
    open: set[str] = field(default_factory=set)
    ended: float | None = None
    refused: bool = False
    over: bool = False


class Clients:
    """All runs of a scenario. `ask` is given each call in its time, with the seed of its prefixes; `leave` the
    id of one that nobody waits for. `measured_from` is when the first run comes that is not of the warm-up."""

    def __init__(self, scenario: Scenario, agenda: Agenda, ask: Ask, leave: Callable[[str], None]) -> None:
        self._scenario = scenario
        self._agenda = agenda
        self._ask = ask
        self._leave = leave
        self._run_of: dict[str, _Run] = {}
        self._under_way = len(scenario.workload.runs)
        self.stages: dict[str, StageRecord] = {}
        self.refusals: Counter[str] = Counter()
        plans = scenario.workload.runs
        configs = {pool: spec.config for pool, spec in scenario.engines.items() if spec.config is not None}
        warm = int(scenario.warmup * len(plans))
        self.measured_from = plans[warm].at if plans else 0.0
        self._runs = [
            _Run(plan, remaining(seconds), identity(plan.tenant), index >= warm)
            for index, (plan, seconds) in enumerate(zip(plans, rounds(plans, configs), strict=True))
        ]
        for run in self._runs:
            agenda.at(run.plan.at, self._begin, run)

    @property
    def latest(self) -> float:
        """When the last round of all could begin at the earliest."""
        plans = self._scenario.workload.runs
        return max([run.at + sum([round.pause for round in run.rounds]) for run in plans], default=0.0)

    def records(self) -> list[RunRecord]:
        """How the runs fared so far, without those of the warm-up."""
        return [
            RunRecord(
                id=run.plan.id,
                workflow=run.plan.workflow,
                tenant=run.plan.tenant,
                at=run.plan.at,
                deadline=run.plan.at + run.plan.budget,
                ended=run.ended,
                refused=run.refused,
            )
            for run in self._runs
            if run.counted
        ]

    def answered(self, call: str, plan: CallPlan, queued: float, total: float) -> None:
        """A call has its answer, after `queued` seconds in a queue and `total` in an engine."""
        run = self._run_of.pop(call)
        if run.counted:
            record = self.stages.setdefault(plan.stage, StageRecord())
            record.waits.append(queued)
            record.services.append(total)
        run.open.discard(call)
        if not run.open and not run.over:
            run.round += 1
            self._next_round(run)

    def refused(self, call: str, reason: Reason, retry_after: float | None) -> None:
        """A call gets no answer. The first one's run may come back, any other's is lost."""
        self.refusals[reason] += 1
        run = self._run_of.pop(call)
        if run.over:
            return
        run.open.discard(call)
        at_entry = run.round == 0 and not run.open
        # Not now: the dispatcher's other answers to the same event are still being carried out.
        self._agenda.at(self._agenda.now, self._abandon, tuple(run.open))
        if at_entry and retry_after is not None and run.tries < self._scenario.retries:
            run.tries += 1
            self._agenda.at(self._agenda.now + retry_after, self._enter, run)
        else:
            run.refused = at_entry
            self._end(run)

    def _begin(self, run: _Run) -> None:
        if run.plan.patience is not None:
            self._agenda.at(self._agenda.now + run.plan.patience, self._lose_patience, run)
        self._next_round(run)

    def _next_round(self, run: _Run) -> None:
        if run.round == len(run.plan.rounds):
            run.ended = self._agenda.now
            self._end(run)
        else:
            self._agenda.at(self._agenda.now + run.plan.rounds[run.round].pause, self._enter, run)

    def _enter(self, run: _Run) -> None:
        """Make the calls of a round; when the first call of a run is refused, those beside it are not made."""
        if run.over:
            return
        tries = run.tries
        calls = run.plan.rounds[run.round].calls
        names = [f"{run.plan.id}.{run.tries}.{run.round}.{index}" for index in range(len(calls))]
        for name, plan in zip(names, calls, strict=True):
            run.open.add(name)
            self._run_of[name] = run
            self._ask(self._call(run, name, plan), plan, run.seed)
            if run.over or run.tries > tries:
                return

    def _call(self, run: _Run, name: str, plan: CallPlan) -> Call:
        planned, now = run.plan, self._agenda.now
        prompt = plan.prompt
        return Call(
            id=name,
            pool=plan.pool,
            run=f"{planned.id}.{run.tries}",
            arrived=ZERO + now,
            tenant=planned.tenant,
            workflow=planned.workflow,
            stage=plan.stage,
            kind=plan.kind,
            budget=None if isinf(planned.budget) else planned.at + planned.budget - now,
            priority=planned.priority,
            prompt_tokens=prompt,
            prefix=leading(plan.segments, prompt, run.seed),
            body_bytes=4 * prompt,
            expected_output=plan.expected_output,
            final=run.round == len(planned.rounds) - 1,
            foretold=run.needs[run.round],
        )

    def _lose_patience(self, run: _Run) -> None:
        if not run.over:
            self._end(run)
            self._abandon(tuple(run.open))

    def _abandon(self, calls: Sequence[str]) -> None:
        for call in calls:
            if self._run_of.pop(call, None) is not None:
                self._leave(call)

    def _end(self, run: _Run) -> None:
        run.over = True
        self._under_way -= 1
        if not self._under_way:
            self._agenda.at(self._agenda.now, self._agenda.clear)
