"""The heart: one synchronous, pure state machine. Events in, actions out.

`handle(event, now)` holds all scheduling state; nothing in it awaits, reads a clock or draws from a chance that
it was not given. The same events at the same times give the same actions, so a journal of them can be replayed.
A call is, at any time, in exactly one place: not known, waiting in one queue, in one slot of one engine, or
following another call. Each way out of a place gives back what the place held.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from policies.calls import Call, Estimate, Fate
from policies.catalog import Policies
from policies.events import (
    Abort,
    Action,
    Arrived,
    Drained,
    EngineGone,
    EngineUp,
    Event,
    Failed,
    Finished,
    FirstToken,
    Joined,
    Left,
    Reason,
    Refused,
    Reported,
    Retire,
    Scaled,
    Start,
    Wake,
    Woken,
)
from policies.fleet import Fleet, groups
from policies.pool import EngineState, EngineView, PoolSpec, PoolView, Slot
from policies.profiles import Profiles
from policies.protocols import Admit
from policies.queue import LOST, StageQueues, Waiting
from policies.routing.placement import place, work
from policies.routing.prefix import PrefixIndex
from policies.runs import Run, Runs
from policies.slack import slack
from policies.workflow import Workflow

LOST_OFFSET = 1 << 30
"""Added to the engine's priority of a call that can no longer make its deadline."""
RETRY_SHARE, RETRY_FIRST, RETRY_MOST = 0.2, 10.0, 100.0
"""A pool earns this share of a retry with every call, starts with so many and saves up at most so many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of the scheduler's own state. `run_idle` in seconds; `prefix_blocks` per engine, a million tokens."""

    attempts: int = 3
    runs: int = 100_000
    run_idle: float = 900.0
    prefix_blocks: int = 16_384


@dataclass(slots=True, eq=False)
class _Tracked:
    """Where one call is: `attempt` and `engine` as it runs, `entry.queued` as it waits, `leader` as it follows.

    `trouble` is how its last attempt failed.
    """

    call: Call
    run: Run
    visit: int
    entry: Waiting | None = None
    attempt: int | None = None
    engine: str = ""
    attempts: int = 0
    leader: str | None = None
    trouble: Reason = "broken"


class Dispatcher:
    """All scheduling state of a gateway. Policies are given per pool."""

    def __init__(
        self,
        *,
        pools: Mapping[str, PoolSpec],
        workflows: Mapping[str, Workflow],
        policies: Mapping[str, Policies],
        limits: Limits,
        seed: int = 0,
    ) -> None:
        self._specs = pools
        self._workflows = workflows
        self._policies = policies
        self._limits = limits
        self._rng = Random(seed)  # noqa: S311 - drawn for load spreading and for replay, not for secrets
        self.fleet = Fleet(pools)
        self.runs = Runs(limit=limits.runs, idle=limits.run_idle)
        self.profiles = Profiles(pools, workflows)
        self.prefixes = PrefixIndex(limits.prefix_blocks)
        self._queues = {name: StageQueues() for name in pools}
        self._calls: dict[str, _Tracked] = {}
        self._retries = dict.fromkeys(pools, RETRY_FIRST)
        self._groups = groups(self.fleet.borrowers)
        self._order = 0
        self._attempt = 0
        self._wake_at: float | None = None

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take in one event and say what is to be done because of it. `now` never goes back."""
        out: list[Action] = []
        touched: Sequence[str] = ()
        match event:
            case Arrived():
                touched = self._arrived(event, now, out)
            case Joined():
                touched = self._joined(event, now)
            case FirstToken():
                touched = self._first_token(event)
            case Finished():
                touched = self._finished(event, now, out)
            case Failed():
                touched = self._failed(event, now, out)
            case Left():
                touched = self._left(event, now, out)
            case _:
                touched = self._fleet_event(event, now, out)
        for group in dict.fromkeys(self._groups[pool] for pool in touched):
            self._serve(group, now, out)
        for action in out:
            if isinstance(action, Retire):
                self.prefixes.drop_engine(action.engine)
        return out

    # --- what is known from outside -------------------------------------------------------------------------

    def pool_view(self, pool: str, now: float) -> PoolView:
        """A pool as admission and the admin API see it."""
        spec = self._specs[pool]
        queues = self._queues[pool]
        usable = [engine for engine in self.fleet.serving(pool) if engine.usable(now)]
        return PoolView(
            name=pool,
            waiting=len(queues),
            waiting_bytes=queues.body_bytes,
            queue_calls=spec.queue_calls,
            queue_bytes=spec.queue_bytes,
            running=sum(len(engine.slots) for engine in usable),
            slots=sum(engine.limits.sequences for engine in usable),
            mean_service=self.profiles.mean_service(pool),
        )

    def waiting_by_stage(self, pool: str) -> dict[str, int]:
        """How many calls wait in a pool, by stage; those of stages without a queue of their own under ''."""
        return self._queues[pool].by_stage()

    @property
    def calls(self) -> int:
        """How many calls are waiting, running or following."""
        return len(self._calls)

    # --- calls ------------------------------------------------------------------------------------------------

    def _arrived(self, event: Arrived, now: float, out: list[Action]) -> Sequence[str]:
        call = event.call
        tracked, estimate = self._enter(call, now)
        if event.recalled:
            return ()
        if self.fleet.stranded(call.pool):
            self._refuse(tracked, "no_engine", self.profiles.mean_service(call.pool), out)
            return ()
        policies, view, queues = self._policies[call.pool], tracked.run.view(), self._queues[call.pool]
        if view.first:
            verdict = policies.admission.decide(call, estimate, view, self.pool_view(call.pool, now), now)
            if not isinstance(verdict, Admit):
                self._refuse(tracked, "late" if verdict.late else "queue_full", verdict.retry_after, out)
                return ()
        elif queues.beyond(self._specs[call.pool], call):
            self._refuse(tracked, "overloaded", self.profiles.mean_service(call.pool), out)
            return ()
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
        self._retries[call.pool] = min(RETRY_MOST, self._retries[call.pool] + RETRY_SHARE)
        self._queues[call.pool].push(tracked.entry, now)
        return (call.pool,)

    def _joined(self, event: Joined, now: float) -> Sequence[str]:
        tracked, estimate = self._enter(event.call, now)
        tracked.leader = event.leader
        leader = self._calls.get(event.leader)
        if leader is None or leader.entry is None or not leader.entry.queued:
            return ()
        entry = leader.entry
        key = self._policies[leader.call.pool].priority.key(event.call, estimate, tracked.run.view(), now)
        joint = entry.key.joined(key)
        if joint != entry.key:
            self._queues[leader.call.pool].rekey(entry, joint, now)
        return (leader.call.pool,)

    def _first_token(self, event: FirstToken) -> Sequence[str]:
        tracked = self._current(event.call, event.attempt)
        if tracked is None:
            return ()
        engine = self._engine_of(tracked)
        engine.prefilled(event.attempt)
        engine.succeeded()
        return self.fleet.borrowers[engine.pool]

    def _finished(self, event: Finished, now: float, out: list[Action]) -> Sequence[str]:
        tracked = self._calls.get(event.call)
        if tracked is None or tracked.attempt != event.attempt:
            return ()
        call, outcome = tracked.call, event.outcome
        touched: Sequence[str] = ()
        if event.attempt is not None:
            engine = self._engine_of(tracked)
            touched = self._release(tracked, now, out)
            if outcome.fate in ("ok", "error", "empty"):
                engine.succeeded()
            if outcome.fate == "ok" or (call.kind == "sql" and outcome.fate in ("error", "empty")):
                # What an LLM engine declines at once says nothing of how long it takes to answer.
                self.profiles.observe(call, tracked.visit, outcome)
        elif tracked.entry is not None:
            self._queues[tracked.call.pool].remove(tracked.entry)
            touched = (call.pool,)
        self._forget(tracked, outcome.fate)
        return touched

    def _failed(self, event: Failed, now: float, out: list[Action]) -> Sequence[str]:
        tracked = self._current(event.call, event.attempt)
        if tracked is None or tracked.entry is None:
            return ()
        pool, engine = tracked.call.pool, self._engine_of(tracked)
        touched = self._release(tracked, now, out)
        if event.trouble != "overloaded":
            self.fleet.failed(engine, now)
        tracked.entry.tried.add(engine.name)
        tracked.trouble = event.trouble
        spent = tracked.attempts >= self._limits.attempts or self._retries[pool] < 1.0
        if event.final or spent:
            self._refuse(tracked, event.trouble, None if event.final else 1.0, out)
        else:
            self._retries[pool] -= 1.0
            self._wait_or_give_up(tracked.entry, now, out)
        self._plan_wake(now, out)
        return touched

    def _left(self, event: Left, now: float, out: list[Action]) -> Sequence[str]:
        tracked = self._calls.get(event.call)
        if tracked is None:
            return ()
        touched: Sequence[str] = ()
        if tracked.attempt is not None:
            out.append(Abort(call=event.call, attempt=tracked.attempt))
            touched = self._release(tracked, now, out)
        elif tracked.entry is not None:
            self._queues[tracked.call.pool].remove(tracked.entry)
            touched = (tracked.call.pool,)
        # A follower may come again under its own name, when its leader is refused: it has not begun yet.
        self._forget(tracked, "cancelled" if tracked.leader is None else None)
        return touched

    def _enter(self, call: Call, now: float) -> tuple[_Tracked, Estimate]:
        assert call.id not in self._calls
        run, visit = self.runs.enter(call, self._workflows.get(call.workflow), now)
        tracked = self._calls[call.id] = _Tracked(call=call, run=run, visit=visit)
        return tracked, self.profiles.estimate(call, visit, run.calls - 1)

    def _forget(self, tracked: _Tracked, fate: Fate | None) -> None:
        call = tracked.call
        del self._calls[call.id]
        workflow = self._workflows.get(call.workflow)
        last = workflow is not None and call.stage in workflow.stages and workflow.ends(call.stage) >= 1.0
        self.runs.leave(call, fate, over=last and fate == "ok")

    def _refuse(self, tracked: _Tracked, reason: Reason, retry_after: float | None, out: list[Action]) -> None:
        out.append(Refused(call=tracked.call.id, reason=reason, retry_after=retry_after))
        self._forget(tracked, "error" if tracked.attempts else None)

    # --- queues -----------------------------------------------------------------------------------------------

    def _serve(self, group: Sequence[str], now: float, out: list[Action]) -> None:
        """Start the best waiting calls of pools that share engines, until none of them can be placed.

        A call that finds no room keeps the engines that it could use: no call behind it gets them, or a large
        one would wait for ever. One that has failed elsewhere keeps fewer, so those behind it may pass.
        """
        kept: set[str] = set()
        if not self.fleet.has_room(group, kept, now):
            return
        queues = [queue for pool in group for queue in self._queues[pool].lines()]
        heads = [(head.place(), queue) for queue in queues if (head := queue.head(now)) is not None]
        heapq.heapify(heads)
        passed: list[Waiting] = []
        while heads:
            queue = heapq.heappop(heads)[1]
            head = queue.head(now)
            assert head is not None
            choice = place(
                head,
                self.fleet.serving(head.call.pool),
                kept=kept,
                prefixes=self.prefixes,
                routing=self._policies[head.call.pool].routing,
                rng=self._rng,
                now=now,
            )
            if choice is not None:
                self._start(head, choice, now, out)
            else:
                serving = self.fleet.serving(head.call.pool)
                kept.update(engine.name for engine in serving if engine.name not in head.tried)
                if head.tried:
                    self._queues[head.call.pool].remove(head)
                    passed.append(head)
            if not self.fleet.has_room(group, kept, now):
                break
            following = queue.head(now)
            if following is not None and following is not head:
                heapq.heappush(heads, (following.place(), queue))
        for entry in passed:
            self._wait_or_give_up(entry, now, out)

    def _wait_or_give_up(self, entry: Waiting, now: float, out: list[Action]) -> None:
        """Go on waiting for an engine that has not failed this call yet, as long as there is one."""
        if self._untried(entry, now):
            self._queues[entry.call.pool].push(entry, now)
        else:
            tracked = self._calls[entry.call.id]
            self._refuse(tracked, tracked.trouble, 1.0, out)

    def _start(self, entry: Waiting, choice: EngineView, now: float, out: list[Action]) -> None:
        call = entry.call
        self._queues[entry.call.pool].remove(entry)
        tracked, engine = self._calls[call.id], self.fleet.get(choice.name)
        assert engine is not None
        self._attempt += 1
        tracked.attempt, tracked.engine = self._attempt, engine.name
        tracked.attempts += 1
        prefill, decode = work(entry, choice.matched)
        slot = Slot(call.id, self._attempt, prefill, decode, now, choice.matched)
        engine.take(slot, self._attempt)
        self.prefixes.sent(call.prefix, engine.name)
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

    def _release(self, tracked: _Tracked, now: float, out: list[Action]) -> Sequence[str]:
        """Give back the slot of a running call; returns the pools that may use it now."""
        engine = self._engine_of(tracked)
        assert tracked.attempt is not None
        engine.give_back(tracked.attempt)
        tracked.attempt, tracked.engine = None, ""
        out += self.fleet.settle(engine, now)
        return self.fleet.borrowers[engine.pool]

    def _untried(self, entry: Waiting, now: float) -> bool:
        return any(
            engine.name not in entry.tried and (engine.usable(now) or engine.status == "starting")
            for engine in self.fleet.serving(entry.call.pool)
        )

    def _current(self, call: str, attempt: int) -> _Tracked | None:
        tracked = self._calls.get(call)
        return tracked if tracked is not None and tracked.attempt == attempt else None

    def _engine_of(self, tracked: _Tracked) -> EngineState:
        engine = self.fleet.get(tracked.engine)
        assert engine is not None
        return engine

    # --- engines ----------------------------------------------------------------------------------------------

    def _fleet_event(
        self,
        event: Reported | Scaled | Drained | EngineUp | EngineGone | Woken,
        now: float,
        out: list[Action],
    ) -> Sequence[str]:
        pools: Sequence[str] = tuple(self._specs)
        match event:
            case Reported():
                self.fleet.reported(event, now)
                engine = self.fleet.get(event.engine)
                pools = () if engine is None else self.fleet.borrowers[engine.pool]
            case Scaled():
                out += self.fleet.scaled(event.pool, event.engines, now)
            case Drained():
                out += self.fleet.drained(event.engine, now)
            case EngineUp():
                if self.fleet.get(event.engine) is not None:
                    self.prefixes.add_engine(event.engine, event.limits.prefix_blocks)
                self.fleet.up(event)
            case EngineGone():
                out += self.fleet.gone(event.engine, now)
            case Woken():
                self._wake_at = None
                out += self.fleet.woken(now)
        self._refuse_stranded(now, out)
        self._plan_wake(now, out)
        return pools

    def _refuse_stranded(self, now: float, out: list[Action]) -> None:
        """Let go the calls that wait in a pool which has no engine left and gets none."""
        for pool, queues in self._queues.items():
            if not queues or not self.fleet.stranded(pool):
                continue
            for queue in queues.lines():
                while (entry := queue.head(now)) is not None:
                    self._queues[entry.call.pool].remove(entry)
                    self._refuse(self._calls[entry.call.id], "no_engine", 1.0, out)

    def _plan_wake(self, now: float, out: list[Action]) -> None:
        """Ask to be woken when the fleet has something to try again; only failures and the fleet's own events
        change when that is."""
        at = self.fleet.next_turn(now)
        if at is not None and at != self._wake_at:
            out.append(Wake(at=at))
        self._wake_at = at
