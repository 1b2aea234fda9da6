"""Random lives of a dispatcher: any sequence of numbers becomes one, and each of its steps is checked.

The checks keep a book of their own, made of nothing but the events fed and the actions answered, and compare the
dispatcher's state with it.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count
from random import Random

from policies.calls import Call, Fate, Knobs, Outcome
from policies.catalog import Named, PolicySet
from policies.dispatcher import Dispatcher, Limits
from policies.events import (
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
    Launch,
    Left,
    Reason,
    Recalled,
    Refused,
    Reported,
    Retire,
    Scaled,
    Start,
    Wake,
    Woken,
)
from policies.pool import EngineLimits, PoolSpec
from tests.policies.making import a_desk, a_pool, nl2sql

Op = tuple[int, int]
Step = tuple[Event, float, list[Action]]

POOLS = {
    spec.name: spec
    for spec in (
        a_pool("gen", sequences=2, work=4000, maximum=3, start=2, lenders=("gen", "fix"), queue_calls=6),
        a_pool("fix", sequences=2, work=4000, maximum=2, lenders=("fix", "gen"), queue_calls=6),
        a_pool("sql", kind="sql", maximum=3, start=2, queue_calls=5, queue_bytes=900),
        a_pool("big", sequences=3, minimum=0, maximum=2, queue_calls=5),
    )
}
POLICIES = {
    "gen": PolicySet(),
    "fix": PolicySet(),
    "sql": PolicySet(priority=Named(name="fcfs"), admission=Named(name="queue_bound")),
    "big": PolicySet(
        priority=Named(name="edf", params=(("patience", 4.0),)),
        filters=(Named(name="kv_below", params=(("use", 0.8),)),),
        scorers=(Named(name="least_running"), Named(name="round_robin"), Named(name="own_pool")),
        picker=Named(name="two_choices"),
    ),
}
PLACES = (
    ("gen", "nl2sql", "generate"),
    ("gen", "nl2sql", "verify"),
    ("fix", "nl2sql", "fix"),
    ("sql", "nl2sql", "execute"),
    ("sql", "", ""),
    ("big", "unheard of", "stage"),
)
FATES: tuple[Fate, ...] = ("ok", "error", "empty", "timeout")
TROUBLES: tuple[Reason, ...] = ("refused", "broken", "timeout", "overloaded", "crashed")


def a_dispatcher(gen: PolicySet = POLICIES["gen"]) -> Dispatcher:
    """The dispatcher that all lives begin with."""
    policies = POLICIES | {"gen": gen, "fix": gen}
    return a_desk(
        POOLS.values(), policies=policies, workflows=[nl2sql()], limits=Limits(runs=40, run_idle=60.0), start=False
    ).dispatcher


@dataclass
class Life:
    """One life of a dispatcher, its book, and everything that was said."""

    dispatcher: Dispatcher = field(default_factory=a_dispatcher)
    steps: list[Step] = field(default_factory=list)
    now: float = 1000.0
    wake: float | None = None
    calls: dict[str, Call] = field(default_factory=dict)
    waiting: set[str] = field(default_factory=set)
    running: dict[str, Start] = field(default_factory=dict)
    aside: set[str] = field(default_factory=set)
    ended: Counter[str] = field(default_factory=Counter)
    starts: Counter[str] = field(default_factory=Counter)
    tried: dict[str, set[str]] = field(default_factory=dict)
    launched: dict[str, str] = field(default_factory=dict)
    starting: dict[str, str] = field(default_factory=dict)
    drained: set[str] = field(default_factory=set)
    retired: set[str] = field(default_factory=set)
    ids: count[int] = field(default_factory=count)

    def begin(self) -> None:
        for spec in POOLS.values():
            self.feed(Scaled(pool=spec.name, engines=spec.start))

    def feed(self, event: Event) -> None:
        """One step of the life: the event, the book brought up to date, and every check."""
        self._step(event)
        acted = self._step(Woken())
        assert all(isinstance(action, Wake) for action in acted), "a wake-up was needed that nobody asked for"

    def _step(self, event: Event) -> list[Action]:
        mid_run = self._is_mid_run(event.call) if isinstance(event, Arrived) else False
        actions = self.dispatcher.handle(event, self.now)
        self.steps.append((event, self.now, actions))
        self._note_event(event)
        for action in actions:
            self._note_action(action, mid_run=mid_run)
        self._check_all()
        return actions

    def do(self, op: Op) -> None:
        """What two numbers mean here and now."""
        which, chance = op
        acts = self._acts()
        acts[which % len(acts)](Random(chance))

    def end(self) -> None:
        """Let every call come to its end, served where there is an engine for it."""
        while self.dispatcher.calls:
            for call in sorted(self.running):
                self._finish(call, "ok")
            for call in sorted(self.aside):
                self.feed(Left(call=call))
            if self.waiting and not self.running:
                for engine in sorted(self.starting):
                    self._come_up(engine)
                if not self.running:
                    self.feed(Left(call=min(self.waiting)))
        assert set(self.ended) == set(self.calls)
        assert all(times == 1 for times in self.ended.values())
        assert all(not engine.slots and engine.work == 0.0 for engine in self.dispatcher.fleet)

    # --- what can happen ---

    def _acts(self) -> list[Callable[[Random], None]]:
        often = (self._arrive, self._arrive, self._arrive, self._answer, self._answer, self._up)
        at_times = (self._token, self._leave, self._fail, self._fail, self._pass, self._report)
        seldom = (self._join, self._recall, self._scale, self._drain, self._lose, self._stale)
        return [*often * 4, *at_times * 2, *seldom]

    def _new_call(self, rng: Random) -> Call:
        pool, workflow, stage = rng.choice(PLACES)
        call = Call(
            id=f"call {next(self.ids)}",
            pool=pool,
            run=f"run {rng.randrange(12)}",
            tenant=rng.choice(("", "other")),
            arrived=self.now,
            workflow=workflow,
            stage=stage,
            kind=POOLS[pool].kind,
            budget=rng.choice((None, 0.5, 5.0, 50.0)),
            priority=rng.choice((0, 0, -2, 4)),
            prompt_tokens=rng.choice((10, 500, 2500, 9000)),
            prefix=tuple(range(rng.randrange(12))),
            body_bytes=rng.choice((10, 400)),
            expected_output=rng.choice((None, 50, 400)),
            told=rng.choice((None, "ok", "error")),
            final=rng.random() < 0.2,
            knobs=Knobs(max_tokens=rng.choice((None, 100))),
        )
        self.calls[call.id] = call
        return call

    def _arrive(self, rng: Random) -> None:
        self.feed(Arrived(call=self._new_call(rng)))

    def _join(self, rng: Random) -> None:
        leader = rng.choice(sorted(self.waiting | set(self.running)) or ["nobody"])
        self.feed(Joined(call=self._new_call(rng), leader=leader))

    def _recall(self, rng: Random) -> None:
        self.feed(Recalled(call=self._new_call(rng), outcome=Outcome(fate="ok", source="cache")))

    def _answer(self, rng: Random) -> None:
        if self.running:
            self._finish(rng.choice(sorted(self.running)), rng.choice(FATES))

    def _finish(self, call: str, fate: Fate) -> None:
        outcome = Outcome(fate=fate, total=0.3 + len(call) / 10, output_tokens=40)
        self.feed(Finished(call=call, attempt=self.running[call].attempt, outcome=outcome))

    def _token(self, rng: Random) -> None:
        if self.running:
            start = self.running[rng.choice(sorted(self.running))]
            self.feed(FirstToken(call=start.call, attempt=start.attempt))

    def _fail(self, rng: Random) -> None:
        if self.running:
            start = self.running[rng.choice(sorted(self.running))]
            trouble, final = rng.choice(TROUBLES), rng.random() < 0.2
            self.feed(Failed(call=start.call, attempt=start.attempt, trouble=trouble, final=final))

    def _leave(self, rng: Random) -> None:
        here = sorted(self.waiting | set(self.running) | self.aside)
        if here:
            self.feed(Left(call=rng.choice(here)))

    def _scale(self, rng: Random) -> None:
        self.feed(Scaled(pool=rng.choice(sorted(POOLS)), engines=rng.choice((0, 2, 3, 4))))

    def _drain(self, rng: Random) -> None:
        self.feed(Drained(engine=rng.choice(sorted(self.launched))))

    def _up(self, rng: Random) -> None:
        if self.starting:
            self._come_up(rng.choice(sorted(self.starting)))

    def _come_up(self, engine: str) -> None:
        self.feed(EngineUp(engine=engine, limits=POOLS[self.launched[engine]].limits))

    def _lose(self, rng: Random) -> None:
        self.feed(EngineGone(engine=rng.choice(sorted(self.launched))))

    def _report(self, rng: Random) -> None:
        engine, alive = rng.choice(sorted(self.launched)), rng.random() < 0.7
        self.feed(Reported(engine=engine, alive=alive, kv_use=rng.random()))

    def _stale(self, rng: Random) -> None:
        """What comes too late to mean anything."""
        call, outcome = rng.choice(sorted(self.calls) or ["nobody"]), Outcome(fate="ok")
        before = self.dispatcher.calls
        late: list[Event] = [
            Finished(call=call, attempt=0, outcome=outcome),
            Failed(call=call, attempt=0, trouble="broken"),
            FirstToken(call=call, attempt=0),
            Left(call="nobody"),
            EngineUp(engine="nobody", limits=EngineLimits(sequences=1)),
            EngineGone(engine="nobody"),
            Reported(engine="nobody", alive=False),
            Drained(engine="nobody"),
        ]
        self.feed(rng.choice(late))
        assert self.dispatcher.calls == before

    def _pass(self, rng: Random) -> None:
        """Let time go by, with every wake-up on the way."""
        until = self.now + rng.choice((0.01, 0.3, 2.0, 40.0))
        while self.wake is not None and self.wake <= until:
            self.now, self.wake = max(self.now, self.wake), None
            self.feed(Woken())
        self.now = until
        self.feed(Woken())

    # --- the book ---

    def _is_mid_run(self, call: Call) -> bool:
        return any(run.key == (call.tenant, call.workflow, call.run) and run.calls for run in self.dispatcher.runs)

    def _note_event(self, event: Event) -> None:
        match event:
            case Arrived():
                self.waiting.add(event.call.id)
            case Recalled():
                self.aside.add(event.call.id)
                self._over(event.call.id)
            case Joined():
                self.aside.add(event.call.id)
            case Left() | Finished(attempt=None):
                self._over(event.call)
            case Finished() if self._is_current(event.call, event.attempt):
                self._over(event.call)
            case Failed() if self._is_current(event.call, event.attempt):
                self.tried.setdefault(event.call, set()).add(self.running.pop(event.call).engine)
                self.waiting.add(event.call)
            case EngineUp() | EngineGone():
                self.starting.pop(event.engine, None)
            case Drained():
                self.drained.add(event.engine)

    def _is_current(self, call: str, attempt: int | None) -> bool:
        return call in self.running and self.running[call].attempt == attempt

    def _over(self, call: str) -> None:
        if call in self.waiting or call in self.running or call in self.aside:
            self.ended[call] += 1
        self.waiting.discard(call)
        self.aside.discard(call)
        self.running.pop(call, None)

    def _note_action(self, action: Action, *, mid_run: bool) -> None:
        match action:
            case Start():
                self._note_start(action)
            case Refused():
                assert action.call in self.waiting
                assert not (mid_run and action.reason in ("queue_full", "late"))
                assert action.retry_after is None or 0.0 <= action.retry_after < 1e6
                self._over(action.call)
            case Launch():
                assert action.engine not in self.launched
                self.launched[action.engine] = self.starting[action.engine] = action.pool
            case Retire():
                assert action.engine not in self.retired
                assert all(start.engine != action.engine for start in self.running.values())
                assert not self.dispatcher.prefixes.blocks(action.engine)
                self.retired.add(action.engine)
                self.starting.pop(action.engine, None)
            case Wake():
                assert action.at > self.now
                self.wake = action.at

    def _note_start(self, start: Start) -> None:
        engine, call = self.dispatcher.fleet.get(start.engine), self.calls[start.call]
        assert start.call in self.waiting
        assert engine is not None
        assert engine.usable(self.now)
        assert start.engine not in self.drained
        assert start.engine not in self.tried.get(start.call, ())
        assert engine.pool in (POOLS[call.pool].lenders or (call.pool,))
        assert len(engine.slots) == 1 or engine.work <= engine.limits.work
        self.waiting.discard(start.call)
        self.running[start.call] = start
        self.starts[start.call] += 1
        assert self.starts[start.call] <= Limits().attempts

    # --- the checks ---

    def _check_all(self) -> None:
        self._check_engines()
        turn = self.dispatcher.fleet.next_turn(self.now)
        assert turn is None or (self.wake is not None and self.wake <= turn), "nobody asked to be woken"
        for pool, spec in POOLS.items():
            self._check_pool(pool, spec)
        assert self.dispatcher.calls == len(self.waiting) + len(self.running) + len(self.aside)
        assert sum(len(run.open) for run in self.dispatcher.runs) == self.dispatcher.calls
        assert len(self.dispatcher.runs) <= max(40, self.dispatcher.calls)

    def _check_engines(self) -> None:
        for engine in self.dispatcher.fleet:
            assert engine.name not in self.retired
            assert set(engine.slots) == {s.attempt for s in self.running.values() if s.engine == engine.name}
            assert len(engine.slots) <= engine.limits.sequences
            assert engine.work == sum(slot.work for slot in engine.slots.values()) >= 0.0
            assert engine.slots or engine.status in ("starting", "ready")

    def _check_pool(self, pool: str, spec: PoolSpec) -> None:
        waiting = [self.calls[call] for call in self.waiting if self.calls[call].pool == pool]
        view = self.dispatcher.pool_view(pool, self.now)
        assert self.dispatcher.waiting_by_stage(pool) == Counter(call.stage for call in waiting)
        assert view.waiting == len(waiting)
        assert view.waiting_bytes == sum(call.body_bytes for call in waiting)
        own = self.dispatcher.fleet.of(pool)
        assert sum(engine.status != "gone" for engine in own) <= spec.maximum
        assert sum(engine.status in ("starting", "ready") for engine in own) <= self.dispatcher.fleet.target(pool)
        assert not (waiting and self.dispatcher.fleet.stranded(pool))
        for engine in self.dispatcher.fleet.serving(pool):
            if engine.usable(self.now) and not engine.slots:
                assert all(engine.name in self.tried.get(call.id, ()) for call in waiting), "an idle engine"


def lived(ops: Iterable[Op]) -> Life:
    """The life that these numbers are, to its end."""
    life = Life()
    life.begin()
    for op in ops:
        life.do(op)
    life.end()
    return life


def some_ops(seed: int, length: int) -> list[Op]:
    """Numbers for one life, always the same for a seed."""
    rng = Random(seed)
    return [(rng.randrange(10_000), rng.randrange(10_000)) for _ in range(length)]


def replayed(steps: Iterable[Step], dispatcher: Dispatcher) -> int | None:
    """The first step that a fresh dispatcher takes otherwise; None when it does everything again."""
    for index, (event, now, actions) in enumerate(steps):
        if dispatcher.handle(event, now) != actions:
            return index
    return None


def digest(steps: Iterable[Step]) -> str:
    return hashlib.sha256(repr(list(steps)).encode()).hexdigest()


if __name__ == "__main__":
    sys.stdout.write(digest(lived(some_ops(int(sys.argv[1]), int(sys.argv[2]))).steps))
