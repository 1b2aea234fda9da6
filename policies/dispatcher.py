"""The heart: one synchronous, pure state machine. Events in, actions out.

`handle(event, now)` holds all scheduling state; nothing in it awaits, reads a clock or draws from a chance that
it was not given. The same events at the same times give the same actions, so a journal of them can be replayed.
A call is, at any time, in exactly one place: not known, waiting in one queue, in one slot of one engine, or
following another call. Each way out of a place gives back what the place held.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from policies.alarm import Alarm
from policies.calls import Call, Fate, Outcome
from policies.catalog import Policies
from policies.events import (
    Abort,
    Action,
    Arrived,
    EngineUp,
    Event,
    Failed,
    Finished,
    FirstToken,
    Joined,
    Left,
    Reason,
    Recalled,
    Refused,
    Reported,
    Retire,
    Start,
    Woken,
)
from policies.fleet import Fleet, FleetEvent, groups
from policies.gate import Gate, GatePolicy
from policies.gate import Open as AlwaysOpen
from policies.lines import Lines
from policies.pool import EngineState, EngineView, PoolSpec, PoolView, Slot
from policies.profiles import Profiles
from policies.protocols import Admit, Key, RunView
from policies.queue import LOST, Waiting
from policies.retries import Retries
from policies.reviews import Reviews
from policies.routing.placement import Floor, work
from policies.routing.prefix import PrefixIndex
from policies.routing.residency import Residency
from policies.runs import Run, Runs
from policies.slack import slack, urgency
from policies.tenants import Tenants
from policies.tracking import Tracked
from policies.workflow import Workflow

LOST_OFFSET = 1 << 30
"""Added to the engine's priority of a call that can no longer make its deadline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of the scheduler's own state. `run_idle` in seconds; `prefix_tokens` per engine."""

    attempts: int = 3
    runs: int = 100_000
    run_idle: float = 900.0
    prefix_tokens: int = 1_048_576


class Dispatcher:
    """All scheduling state of a gateway. Policies are given per pool."""

    def __init__(
        self,
        *,
        pools: Mapping[str, PoolSpec],
        workflows: Mapping[str, Workflow],
        policies: Mapping[str, Policies],
        limits: Limits,
        gate: GatePolicy | None = None,
        residency: Residency | None = None,
        seed: int = 0,
    ) -> None:
        self._specs = pools
        self._workflows = workflows
        self._policies = policies
        self._limits = limits
        self.fleet = Fleet(pools)
        self.profiles = Profiles(pools, workflows)
        self.runs = Runs(limit=limits.runs, idle=limits.run_idle, learn=self.profiles.learn)
        self.prefixes = PrefixIndex(limits.prefix_tokens)
        self.tenants = Tenants()
        self.gate = Gate(gate or AlwaysOpen())
        self._reviews = Reviews(pools, {name: chosen.budget for name, chosen in policies.items()}, self.gate)
        self._lines = Lines(pools, self.gate, self._renewed)
        self._floor = Floor(
            fleet=self.fleet,
            lines=self._lines,
            prefixes=self.prefixes,
            residency=residency,
            policies=policies,
            rng=Random(seed),  # noqa: S311 - drawn for load spreading and for replay, not for secrets
        )
        self._calls: dict[str, Tracked] = {}
        self._retries = Retries(pools)
        self._groups = groups(self.fleet.borrowers)
        self._order = 0
        self._attempt = 0
        self._alarm = Alarm(self.fleet, self._reviews)

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take in one event and say what is to be done because of it. `now` never goes back."""
        out: list[Action] = []
        touched: Sequence[str] = ()
        match event:
            case Arrived():
                touched = self._arrived(event, now, out)
            case Joined():
                touched = self._joined(event, now)
            case Recalled():
                touched = self._recalled(event, now)
            case FirstToken():
                touched = self._first_token(event, now)
            case Finished():
                touched = self._finished(event, now, out)
            case Failed():
                touched = self._failed(event, now, out)
            case Left():
                touched = self._left(event, now, out)
            case Reported():
                touched = self._reported(event, now, out)
            case _:
                touched = self._fleet_event(event, now, out)
        while touched:
            groups_touched = dict.fromkeys(self._groups[pool] for pool in touched)
            touched = [pool for group in groups_touched for pool in self._serve(group, now, out)]
        for action in out:
            if isinstance(action, Retire):
                self.prefixes.drop_engine(action.engine)
        out += self._alarm.hasten(now, busy=bool(self._calls))
        return out

    # --- what is known from outside -------------------------------------------------------------------------

    def pool_view(self, pool: str, now: float) -> PoolView:
        """A pool as admission and the admin API see it."""
        spec = self._specs[pool]
        usable = [engine for engine in self.fleet.serving(pool) if engine.usable(now)]
        others = [other for other in self._groups[pool] if other != pool]
        return PoolView(
            name=pool,
            waiting=self._lines.waiting(pool),
            waiting_bytes=self._lines.waiting_bytes(pool),
            queue_calls=spec.queue_calls,
            queue_bytes=spec.queue_bytes,
            running=sum(len(engine.slots) for engine in usable),
            slots=sum(engine.limits.sequences for engine in usable),
            mean_service=self.profiles.mean_service(pool),
            others=sum(self._lines.waiting(other) * self.profiles.mean_service(other) for other in others),
        )

    def waiting_by_stage(self, pool: str) -> dict[str, int]:
        """How many calls wait in a pool, by stage; those of stages without a queue of their own under ''."""
        return self._lines.by_stage(pool)

    @property
    def calls(self) -> int:
        """How many calls are waiting, running or following."""
        return len(self._calls)

    # --- calls ------------------------------------------------------------------------------------------------

    def _arrived(self, event: Arrived, now: float, out: list[Action]) -> Sequence[str]:
        call = event.call
        tracked = self._enter(call, now)
        estimate = self.profiles.estimate(call, tracked.visit)
        if self.fleet.stranded(call.pool):
            return self._refuse(tracked, "no_engine", self.profiles.mean_service(call.pool), now, out)
        policies, view = self._policies[call.pool], self._view(tracked)
        if view.first or call.again:
            verdict = policies.admission.decide(call, estimate, view, self.pool_view(call.pool, now), now)
            if not isinstance(verdict, Admit):
                return self._refuse(tracked, "late" if verdict.late else "queue_full", verdict.retry_after, now, out)
        elif self._lines.full(call):
            return self._refuse(tracked, "overloaded", self.profiles.mean_service(call.pool), now, out)
        self._order += 1
        tracked.entry = Waiting(
            call=call,
            estimate=estimate,
            key=policies.priority.key(call, estimate, view, now),
            order=self._order,
            deadline=tracked.run.deadline,
            visit=tracked.visit,
            since=now,
        )
        self._retries.earn(call.pool)
        return self._lines.enter(tracked.entry, tracked.run, now)

    def _joined(self, event: Joined, now: float) -> Sequence[str]:
        tracked = self._enter(event.call, now)
        tracked.leader = event.leader
        leader = self._calls.get(event.leader)
        if leader is None or leader.entry is None:
            return ()
        priority = self._policies[leader.call.pool].priority
        estimate = self.profiles.estimate(event.call, tracked.visit)
        return self._lines.follow(leader.entry, priority.key(event.call, estimate, self._view(tracked), now), now)

    def _recalled(self, event: Recalled, now: float) -> Sequence[str]:
        call = event.call
        if call.final and not call.workflow and (call.tenant, "", call.run) not in self.runs:
            return ()  # all of its run, and of no workflow: there is nothing to move on
        run, visit = self.runs.enter(call, self._workflows.get(call.workflow), now)
        return self._moved_on(Tracked(call=call, run=run, visit=visit), event.outcome.fate, now, event.outcome)

    def _first_token(self, event: FirstToken, now: float) -> Sequence[str]:
        tracked = self._current(event.call, event.attempt)
        if tracked is None:
            return ()
        engine = self._engine_of(tracked)
        self._reviews.began(engine.pool, now - engine.slots[event.attempt].since)
        engine.prefilled(event.attempt)
        engine.succeeded()
        return self.fleet.borrowers[engine.pool]

    def _finished(self, event: Finished, now: float, out: list[Action]) -> Sequence[str]:
        tracked = self._calls.get(event.call)
        if tracked is None or tracked.attempt != event.attempt:
            return ()
        outcome = event.outcome
        if event.attempt is not None:
            touched = self._answered(tracked, outcome, now, out)
        else:
            touched = self._lines.take(tracked.entry)
        return (*touched, *self._forget(tracked, outcome.fate, now, outcome))

    def _answered(self, tracked: Tracked, outcome: Outcome, now: float, out: list[Action]) -> Sequence[str]:
        """An engine has given the answer: its slot is free, and what it took is learned."""
        call, engine = tracked.call, self._engine_of(tracked)
        assert tracked.attempt is not None
        slot = engine.slots[tracked.attempt]
        touched = self._release(tracked, now, out)
        if outcome.fate in ("ok", "error", "empty"):
            engine.succeeded()
        if outcome.fate == "ok" or (call.kind == "sql" and outcome.fate in ("error", "empty")):
            # What an LLM engine declines at once says nothing of how long it takes to answer.
            self.profiles.observe(call, tracked.visit, outcome)
        if outcome.fate == "ok" and call.kind == "llm":
            engine.learn(slot, outcome, now)
            self._reviews.found(outcome.prompt_tokens, outcome.cached_tokens)
            tracked.kept = slot.computed + outcome.output_tokens
        return touched

    def _failed(self, event: Failed, now: float, out: list[Action]) -> Sequence[str]:
        tracked = self._current(event.call, event.attempt)
        if tracked is None or tracked.entry is None:
            return ()
        pool, engine = tracked.call.pool, self._engine_of(tracked)
        touched = self._release(tracked, now, out)
        self.fleet.failed(engine, now, event)
        tracked.entry.tried.add(engine.name)
        tracked.trouble = event.trouble
        over = event.final or tracked.attempts >= self._limits.attempts
        if over or not self._retries.spend(pool):
            touched = (*touched, *self._refuse(tracked, event.trouble, None if event.final else 1.0, now, out))
        else:
            waits = self.fleet.untried(tracked.call, tracked.entry.tried, now)
            more = self._lines.push([tracked.entry], now) if waits else self._give_up(tracked.entry, now, out)
            touched = (*touched, *more)
        out += self._alarm.plan(now, busy=bool(self._calls))
        return touched

    def _left(self, event: Left, now: float, out: list[Action]) -> Sequence[str]:
        tracked = self._calls.get(event.call)
        if tracked is None:
            return ()
        if tracked.attempt is not None:
            out.append(Abort(call=event.call, attempt=tracked.attempt))
            touched = self._release(tracked, now, out)
        else:
            touched = self._lines.take(tracked.entry)
        # A follower may come again under its own name, when its leader is refused: it has not begun yet.
        return (*touched, *self._forget(tracked, "cancelled" if tracked.leader is None else None, now))

    def _enter(self, call: Call, now: float) -> Tracked:
        assert call.id not in self._calls
        run, visit = self.runs.enter(call, self._workflows.get(call.workflow), now)
        tracked = self._calls[call.id] = Tracked(call=call, run=run, visit=visit)
        self.tenants.came(call.tenant)
        return tracked

    def _forget(
        self, tracked: Tracked, fate: Fate | None, now: float, outcome: Outcome | None = None
    ) -> Sequence[str]:
        """Let go of a call that has ended, or never began; returns the pools in which others may queue because of
        it.
        """
        del self._calls[tracked.call.id]
        self.tenants.went(tracked.call.tenant, tracked.served)
        had = outcome if outcome is not None else Outcome(fate="cancelled")
        return self._moved_on(tracked, fate, now, had)

    def _moved_on(self, tracked: Tracked, fate: Fate | None, now: float, had: Outcome) -> Sequence[str]:
        """A run has one open call less."""
        call, run = tracked.call, tracked.run
        workflow = self._workflows.get(call.workflow)
        self.runs.leave(
            call,
            fate,
            now,
            over=fate == "ok" and workflow is not None and workflow.ends_for_sure(call.stage, had.verdict),
            told=had.fate,
            verdict=had.verdict,
            service=had.total,
            queued=had.queued,
            tokens=had.prompt_tokens + had.output_tokens,
        )
        hurried = self._hurry_the_last(run, now)
        over = run.key not in self.runs
        return (*hurried, *self._lines.ended(tracked.entry, run, now, over=over, kept=tracked.kept))

    def _refuse(
        self, tracked: Tracked, reason: Reason, retry_after: float | None, now: float, out: list[Action]
    ) -> Sequence[str]:
        out.append(Refused(call=tracked.call.id, reason=reason, retry_after=retry_after))
        return self._forget(tracked, "error" if tracked.attempts else None, now, Outcome(fate="error"))

    def _view(self, tracked: Tracked) -> RunView:
        return tracked.run.view(lead=self.tenants.lead(tracked.call.tenant))

    # --- urgency ----------------------------------------------------------------------------------------------

    def _renewed(self, entry: Waiting, now: float) -> Key:
        view = self._view(self._calls[entry.call.id])
        key = self._policies[entry.call.pool].priority.key(entry.call, entry.estimate, view, now)
        return key if entry.followed is None else key.joined(entry.followed)

    def _hurry_the_last(self, run: Run, now: float) -> Sequence[str]:
        """The last of several calls that were open together holds up its whole run."""
        if len(run.open) != 1:
            return ()
        tracked = self._calls.get(next(iter(run.open)))
        if tracked is None or tracked.entry is None or not tracked.entry.queued:
            return ()
        return self._lines.hurry(tracked.entry, self._renewed(tracked.entry, now), now)

    # --- queues -----------------------------------------------------------------------------------------------

    def _serve(self, group: tuple[str, ...], now: float, out: list[Action]) -> Sequence[str]:
        """Start what can start in pools that share engines; returns the pools that something changed for besides."""
        passed: list[Waiting] = []
        for entry, choice in self._floor.starts(group, now, passed):
            self._start(entry, choice, now, out)
        refused = [entry for entry in passed if not self.fleet.untried(entry.call, entry.tried, now)]
        self._lines.push([entry for entry in passed if entry not in refused], now)
        return [pool for entry in refused for pool in self._give_up(entry, now, out)]

    def _give_up(self, entry: Waiting, now: float, out: list[Action]) -> Sequence[str]:
        """Every engine that there is for the call has failed it."""
        tracked = self._calls[entry.call.id]
        return self._refuse(tracked, tracked.trouble, 1.0, now, out)

    def _start(self, entry: Waiting, choice: EngineView, now: float, out: list[Action]) -> None:
        call = entry.call
        self._lines.take(entry)
        tracked, engine = self._calls[call.id], self.fleet.get(choice.name)
        assert engine is not None
        self._attempt += 1
        tracked.attempt, tracked.engine = self._attempt, engine.name
        tracked.attempts += 1
        prefill, decode = work(entry, choice.matched)
        slot = Slot(
            call=call.id,
            attempt=self._attempt,
            prefill=prefill,
            decode=decode,
            since=now,
            fresh=prefill + entry.estimate.output_tokens[0],
            borrowed=engine.pool != call.pool,
            urgency=urgency(entry.deadline, entry.estimate, now),
        )
        engine.take(slot, self._attempt)
        self._floor.sent(call, engine.name)
        out.append(
            Start(
                call=call.id,
                attempt=self._attempt,
                engine=engine.name,
                bucket=entry.key.bucket + (LOST_OFFSET if entry.rank == LOST else 0),
                queued=now - entry.since,
                slack=slack(entry.deadline, entry.estimate, now),
                visit=entry.visit,
                expected_cached=choice.matched,
            )
        )

    def _release(self, tracked: Tracked, now: float, out: list[Action]) -> Sequence[str]:
        """Give back the slot of a running call; returns the pools that may use it now."""
        engine = self._engine_of(tracked)
        assert tracked.attempt is not None
        tracked.served += engine.give_back(tracked.attempt, now)
        tracked.attempt, tracked.engine = None, ""
        settled = self.fleet.settle(engine, now)
        out += settled
        return (*self.fleet.borrowers[engine.pool], *(self._refuse_stranded(now, out) if settled else ()))

    def _current(self, call: str, attempt: int) -> Tracked | None:
        tracked = self._calls.get(call)
        return tracked if tracked is not None and tracked.attempt == attempt else None

    def _engine_of(self, tracked: Tracked) -> EngineState:
        engine = self.fleet.get(tracked.engine)
        assert engine is not None
        return engine

    # --- engines ----------------------------------------------------------------------------------------------

    def _reported(self, event: Reported, now: float, out: list[Action]) -> Sequence[str]:
        self.fleet.reported(event, now)
        if not event.alive:  # it may be left out for a while
            out += self._alarm.plan(now, busy=bool(self._calls))
        engine = self.fleet.get(event.engine)
        return () if engine is None else self.fleet.borrowers[engine.pool]

    def _fleet_event(self, event: FleetEvent, now: float, out: list[Action]) -> Sequence[str]:
        if isinstance(event, EngineUp) and self.fleet.get(event.engine) is not None:
            self.prefixes.add_engine(event.engine, event.limits.kv_tokens)
            for prefix in event.held:
                self.prefixes.sent(prefix, event.engine)
        if isinstance(event, Woken):
            self._alarm.rang()
            self._lines.release(self._reviews.held(self.fleet, now), now)
        out += self.fleet.handle(event, now)
        if isinstance(event, EngineUp):
            self._reviews.joined(self.fleet, event.engine)
        refused = self._refuse_stranded(now, out)
        out += self._alarm.plan(now, busy=bool(self._calls))
        return (*self._specs, *refused)

    def _refuse_stranded(self, now: float, out: list[Action]) -> Sequence[str]:
        """Let go the calls that wait in a pool which has no engine left and gets none."""
        touched: list[str] = []
        for pool in self._specs:
            if self._lines.waiting(pool) and self.fleet.stranded(pool):
                # A refusal may let a parked call queue, here or in another pool: look again after each.
                while (entry := self._lines.any_of(pool, now)) is not None:
                    self._lines.take(entry)
                    touched += self._refuse(self._calls[entry.call.id], "no_engine", 1.0, now, out)
        return touched
