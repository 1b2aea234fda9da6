"""The gate, the loans, the budgets, the tenants' accounts and keys that age, as the dispatcher makes use of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policies.calls import Call, Estimate, Outcome
from policies.catalog import Named, PolicySet, make_all
from policies.dispatcher import Dispatcher, Limits
from policies.events import (
    Abort,
    Action,
    Arrived,
    Drained,
    Event,
    Failed,
    Finished,
    FirstToken,
    Launch,
    Left,
    Refused,
    Scaled,
    Start,
    Wake,
    Woken,
)
from policies.gate import PARKED_MOST
from policies.pool import EngineState, PoolSpec
from policies.priority import bucket
from policies.protocols import Key, Priority, RunView
from tests.policies.making import FCFS, Desk, a_call, a_desk, a_pool, nl2sql
from tests.policies.sequences import POLICIES, POOLS, Life, Op, replayed

ONE_RUN = Named(name="aimd", params=(("start", 1), ("least", 1), ("step", 0)))
ROOMY = a_pool(sequences=8)


def started(desk: Desk, call: Call) -> Start:
    start = desk.arrive(call)
    assert isinstance(start, Start)
    return start


def names(starts: Iterable[Start]) -> list[str]:
    return [start.call for start in starts]


def engine(desk: Desk, name: str) -> EngineState:
    state = desk.dispatcher.fleet.get(name)
    assert state is not None
    return state


def ordered_by(priority: Priority, pools: Iterable[PoolSpec] = (a_pool(),)) -> Desk:
    """A dispatcher under a priority that no configuration names, with its engines up."""
    specs = {spec.name: spec for spec in pools}
    policies = dict.fromkeys(specs, dataclasses.replace(make_all(FCFS), priority=priority))
    desk = Desk(Dispatcher(pools=specs, workflows={}, policies=policies, limits=Limits()))
    for spec in specs.values():
        desk.scale(spec.name, spec.start)
    return desk


# --- the gate ---


def test_a_parked_call_starts_when_the_run_before_it_ends() -> None:
    desk = a_desk([ROOMY], gate=ONE_RUN)
    first = started(desk, a_call("first", final=True))
    assert desk.arrive(a_call("parked")) is None
    assert names(desk.finish(first)) == ["parked"]


def test_between_the_calls_of_a_run_its_place_is_not_given_away() -> None:
    desk = a_desk([ROOMY], gate=ONE_RUN)
    first = started(desk, a_call("first", run="r"))
    assert desk.arrive(a_call("parked")) is None
    assert desk.finish(first) == []
    last = started(desk, a_call("last", run="r", final=True))
    assert names(desk.finish(last)) == ["parked"]


def test_a_run_that_ends_by_its_graph_frees_its_place() -> None:
    pools = [a_pool("gen", sequences=8), a_pool("fix"), a_pool("sql", kind="sql")]
    desk = a_desk(pools, workflows=[dataclasses.replace(nl2sql(), edges=())], gate=ONE_RUN)
    first = started(desk, a_call("first", pool="gen", workflow="nl2sql", stage="verify"))
    assert desk.arrive(a_call("parked", pool="gen")) is None
    assert names(desk.finish(first)) == ["parked"]


def test_calls_for_tools_are_never_parked() -> None:
    desk = a_desk([ROOMY, a_pool("sql", kind="sql", sequences=2)], gate=ONE_RUN)
    started(desk, a_call("first"))
    started(desk, a_call("tool", pool="sql", kind="sql"))


def test_parked_calls_count_as_waiting_and_fill_the_queue_for_new_runs() -> None:
    desk = a_desk([a_pool(sequences=8, queue_calls=2)], gate=ONE_RUN)
    started(desk, a_call("first"))
    assert [desk.arrive(a_call(name)) for name in ("second", "third")] == [None, None]
    assert desk.dispatcher.pool_view("p", 0.0).waiting == 2
    refused = desk.arrive(a_call("fourth"))
    assert isinstance(refused, Refused)
    assert refused.reason == "queue_full"


def test_a_parked_call_that_leaves_is_neither_aborted_nor_started_later() -> None:
    desk = a_desk([ROOMY], gate=ONE_RUN)
    first = started(desk, a_call("first", final=True))
    for name in ("leaves", "stays"):
        assert desk.arrive(a_call(name)) is None
    assert desk.tell(Left(call="leaves"), Abort) == []
    assert desk.dispatcher.pool_view("p", 0.0).waiting == 1
    assert names(desk.finish(first)) == ["stays"]
    assert desk.dispatcher.calls == 1


def test_a_running_call_that_leaves_for_good_frees_the_place_of_its_run() -> None:
    desk = a_desk([ROOMY], gate=ONE_RUN)
    started(desk, a_call("first", final=True))
    assert desk.arrive(a_call("parked")) is None
    assert names(desk.tell(Left(call="first"), Start)) == ["parked"]


def test_a_review_that_widens_the_window_starts_what_is_parked() -> None:
    desk = a_desk([ROOMY], gate=Named(name="aimd", params=(("start", 1), ("least", 1), ("step", 1))))
    started(desk, a_call("first"))
    assert [desk.arrive(a_call(name)) for name in ("second", "third")] == [None, None]
    desk.now = 2.0
    assert names(desk.tell(Woken(), Start)) == ["second"]
    desk.now = 4.0
    assert names(desk.tell(Woken(), Start)) == ["third"]


def test_wake_ups_alone_bring_a_parked_call_through_in_the_end() -> None:
    desk = a_desk([ROOMY], gate=ONE_RUN)
    started(desk, a_call("first"))
    actions = desk.dispatcher.handle(Arrived(call=a_call("parked")), desk.now)
    assert actions == []
    at, starts = 2.0, list[Start]()
    while not starts:
        desk.now = at
        actions = desk.dispatcher.handle(Woken(), desk.now)
        starts = [action for action in actions if isinstance(action, Start)]
        [at] = [action.at for action in actions if isinstance(action, Wake)]
    assert names(starts) == ["parked"]
    assert PARKED_MOST < desk.now <= PARKED_MOST + 2.0


def test_wake_ups_for_reviews_are_asked_for_only_while_calls_are_open() -> None:
    desk = a_desk([ROOMY], gate=ONE_RUN, start=False)
    assert desk.tell(Scaled(pool="p", engines=1), Wake) == []
    assert desk.up("p/0") == []
    assert desk.tell(Woken(), Wake) == []
    [wake] = desk.tell(Arrived(call=a_call("first")), Wake)
    assert wake == Wake(at=2.0)
    desk.now = 1.0
    assert desk.tell(Arrived(call=a_call("second")), Wake) == [], "it is asked for already"
    desk.now = 2.0
    assert desk.tell(Woken(), Wake) == [Wake(at=4.0)]
    for call in ("first", "second"):
        assert desk.tell(Left(call=call), Wake) == []
    desk.now = 4.0
    assert desk.tell(Woken(), Wake) == []


@pytest.mark.parametrize("kind", ["recalled", "tool"])
def test_a_run_that_ends_by_a_call_that_the_gate_never_saw_frees_its_place(kind: str) -> None:
    desk = a_desk([ROOMY, a_pool("sql", kind="sql")], gate=ONE_RUN)
    first = started(desk, a_call("first", run="r"))
    assert desk.arrive(a_call("parked")) is None
    assert desk.finish(first) == []
    if kind == "tool":
        last = started(desk, a_call("last", run="r", pool="sql", kind="sql", final=True))
        assert names(desk.finish(last)) == ["parked"]
    else:
        desk.tell(Arrived(call=a_call("last", run="r", final=True), recalled=True), Start)
        event = Finished(call="last", attempt=None, outcome=Outcome(fate="ok", source="cache"))
        assert names(desk.tell(event, Start)) == ["parked"]


def test_calls_that_are_parked_when_the_last_engine_goes_are_let_go() -> None:
    desk = a_desk([a_pool(sequences=8, minimum=0)], gate=ONE_RUN)
    started(desk, a_call("first"))
    assert desk.arrive(a_call("parked")) is None
    [refused] = desk.tell(Drained(engine="p/0"), Refused)
    assert (refused.call, refused.reason) == ("parked", "no_engine")


@pytest.mark.parametrize("bound", ["calls", "bytes"])
def test_even_a_parked_run_finds_an_end_to_the_queue(bound: str) -> None:
    pool = a_pool(sequences=8, queue_calls=1) if bound == "calls" else a_pool(sequences=8, queue_bytes=100)
    desk = a_desk([pool], gate=ONE_RUN)
    started(desk, a_call("first"))
    assert desk.arrive(a_call("parked", run="r", body_bytes=100)) is None
    said = [desk.arrive(a_call(f"next {n}", run="r", body_bytes=100)) for n in range(5)]
    assert isinstance(said[-1], Refused)


def test_a_parked_call_starts_when_the_run_before_it_is_refused_after_a_failure() -> None:
    desk = a_desk([a_pool(start=2, maximum=2)], gate=ONE_RUN)
    first = started(desk, a_call("first", final=True))
    tool = started(desk, a_call("tool", kind="sql"))
    assert desk.arrive(a_call("parked")) is None
    assert desk.tell(Failed(call="first", attempt=first.attempt, trouble="broken"), Start) == []
    actions = desk.dispatcher.handle(Drained(engine=tool.engine), desk.now)
    assert [action.call for action in actions if isinstance(action, Refused)] == ["first"]
    assert [action.call for action in actions if isinstance(action, Start)] == ["parked"]


def test_no_wake_up_is_asked_for_in_the_past() -> None:
    desk = a_desk([ROOMY], policies=dataclasses.replace(FCFS, budget=Named(name="adaptive")))
    desk.now = 1000.0
    [wake] = desk.tell(Arrived(call=a_call("first", arrived=1000.0)), Wake)
    assert wake.at >= desk.now


# --- keys that age, siblings ---


@dataclass(frozen=True)
class Ageing:
    """First come first, but each step of a call's priority is a second gained for each second waited."""

    every: float = 1.0

    def key(self, call: Call, estimate: Estimate, run: RunView, now: float) -> Key:
        moment = call.arrived - call.priority * (now - call.arrived)
        return Key(start=(moment,), bucket=bucket(moment, 0.25), until=now + self.every)


@pytest.mark.parametrize(("stage", "seconds", "served"), [("", 4.0, "slow"), ("", 6.0, "fast"), ("x", 6.0, "fast")])
def test_a_key_made_anew_moves_a_call_past_another(stage: str, seconds: float, served: str) -> None:
    desk = ordered_by(Ageing())
    running = started(desk, a_call("running"))
    desk.arrive(a_call("slow"))
    desk.now = 3.0
    desk.arrive(a_call("fast", arrived=3.0, priority=1, stage=stage))
    desk.now = seconds + 0.5
    [start] = desk.finish(running)
    assert start.call == served


def test_a_key_that_still_holds_is_not_made_anew() -> None:
    desk = ordered_by(Ageing(every=100.0))
    running = started(desk, a_call("running"))
    desk.arrive(a_call("slow"))
    desk.now = 3.0
    desk.arrive(a_call("fast", arrived=3.0, priority=1))
    desk.now = 50.0
    assert names(desk.finish(running)) == ["slow"]


@dataclass(frozen=True)
class LastFirst:
    """The last of several siblings goes first, else first come."""

    def key(self, call: Call, estimate: Estimate, run: RunView, now: float) -> Key:
        return Key(start=(0.0 if run.last else 1.0, call.arrived), bucket=0)


@pytest.mark.parametrize("how", ["leaves", "ends"])
def test_the_last_sibling_of_a_fan_out_is_hurried(how: str) -> None:
    desk = ordered_by(LastFirst(), [a_pool(sequences=2)])
    running = started(desk, a_call("running"))
    sibling = started(desk, a_call("sibling", run="fan"))
    desk.arrive(a_call("other", arrived=0.1))
    desk.arrive(a_call("last", arrived=0.2, run="fan"))
    [first] = desk.tell(Left(call="sibling"), Start) if how == "leaves" else desk.finish(sibling)
    assert first.call == "last"
    assert names(desk.finish(running)) == ["other"]


def test_a_sibling_that_is_not_the_last_waits_its_turn() -> None:
    desk = ordered_by(LastFirst(), [a_pool(sequences=1)])
    running = started(desk, a_call("running", run="fan"))
    desk.arrive(a_call("other", arrived=0.1))
    for number in (1, 2):
        desk.arrive(a_call(f"sibling {number}", arrived=0.2, run="fan"))
    [first] = desk.finish(running)
    assert first.call == "other"
    desk.tell(Left(call="sibling 1"), Start)
    assert names(desk.finish(first)) == ["sibling 2"]


# --- tenants ---


@dataclass(frozen=True)
class LeastServed:
    """The tenant that is the least ahead goes first."""

    def key(self, call: Call, estimate: Estimate, run: RunView, now: float) -> Key:
        return Key(start=(run.lead, call.arrived), bucket=0)


def test_the_tenant_that_has_had_less_goes_first() -> None:
    desk = ordered_by(LeastServed())
    greedy = started(desk, a_call("greedy 1", tenant="greedy"))
    desk.arrive(a_call("modest 1", tenant="modest"))
    desk.now = 5.0
    [modest] = desk.finish(greedy)
    desk.arrive(a_call("greedy 2", tenant="greedy", arrived=5.0))
    desk.arrive(a_call("modest 2", tenant="modest", arrived=5.1))
    desk.now = 6.0
    assert names(desk.finish(modest)) == ["modest 2"]
    assert (desk.dispatcher.tenants.had("greedy"), desk.dispatcher.tenants.had("modest")) == (5.0, 1.0)


def test_calls_that_run_one_after_another_account_for_the_engines_time() -> None:
    desk = a_desk()
    running = started(desk, a_call("0", tenant="a"))
    for number in range(1, 9):
        desk.arrive(a_call(str(number), tenant="ab"[number % 2]))
    for seconds in range(1, 9):
        desk.now += seconds
        [running] = desk.finish(running)
    assert (desk.dispatcher.tenants.had("a"), desk.dispatcher.tenants.had("b")) == (1 + 3 + 5 + 7, 2 + 4 + 6 + 8)


def test_what_failed_attempts_took_is_on_the_account_too() -> None:
    desk = a_desk([a_pool(start=2, maximum=2)])
    first = started(desk, a_call("c", tenant="a"))
    desk.now = 3.0
    [second] = desk.tell(Failed(call="c", attempt=first.attempt, trouble="broken"), Start)
    desk.now = 5.0
    desk.finish(second)
    assert desk.dispatcher.tenants.had("a") == 5.0


@pytest.mark.parametrize("seed", range(3))
def test_all_accounts_together_are_the_time_that_the_engine_was_busy(seed: int) -> None:
    desk, rng = a_desk([a_pool(sequences=6)]), Random(seed)
    running: list[Start] = []
    busy = 0.0
    for number in range(40):
        seconds = rng.random()
        busy += seconds if running else 0.0
        desk.now += seconds
        if running and (len(running) == 6 or rng.random() < 0.5):
            desk.finish(running.pop(rng.randrange(len(running))))
        else:
            running.append(started(desk, a_call(str(number), tenant=rng.choice("ab"), arrived=desk.now)))
    for start in running:
        desk.finish(start)
    had = desk.dispatcher.tenants.had
    assert had("a") + had("b") == pytest.approx(busy)


# --- loans ---

GATED = dataclasses.replace(
    FCFS,
    borrowing=Named(name="gated"),
    scorers=(Named(name="own_pool", weight=9.0), Named(name="free_work")),
)


def lending_desk(*, guests: int = 1, seats: int = 10, owners: int = 1, **given: int) -> Desk:
    """A pool `guest` that may borrow from a pool `owner`, both with budgets of 1000."""
    pools = [
        a_pool("guest", sequences=guests, work=1000, lenders=("guest", "owner")),
        a_pool("owner", sequences=seats, work=1000, maximum=4, start=owners, **given),
    ]
    return a_desk(pools, policies=GATED)


def guest(name: str, work: int = 100, **given: float) -> Call:
    return a_call(name, pool="guest", prompt_tokens=work, expected_output=0, **given)


def owner(name: str, work: int = 100, **given: float) -> Call:
    return a_call(name, pool="owner", prompt_tokens=work, expected_output=0, **given)


def test_borrowed_work_stays_within_its_share_and_the_owner_gets_the_rest() -> None:
    desk = lending_desk()
    assert [started(desk, guest(str(n))).engine for n in range(6)] == ["guest/0"] + ["owner/0"] * 5
    assert desk.arrive(guest("beyond")) is None
    assert engine(desk, "owner/0").on_loan == 500
    assert started(desk, owner("own", 500)).engine == "owner/0"


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.lists(st.tuples(st.sampled_from("ggootf"), st.integers(1, 600)), max_size=60))
def test_borrowed_work_never_exceeds_its_share_and_is_accounted_for(steps: list[tuple[str, int]]) -> None:
    desk, running = lending_desk(), dict[str, Start]()
    for count, (what, number) in enumerate(steps):
        event: Event = Woken()
        if what in "go":
            event = Arrived(call=(guest if what == "g" else owner)(str(count), number))
        elif running:
            start = running[sorted(running)[number % len(running)]]
            event = FirstToken(call=start.call, attempt=start.attempt)
            if what == "f":
                del running[start.call]
                event = Finished(call=start.call, attempt=start.attempt, outcome=Outcome(fate="ok"))
        running |= {start.call: start for start in desk.tell(event, Start)}
        lent = engine(desk, "owner/0")
        assert lent.on_loan == sum(slot.work for slot in lent.slots.values() if slot.borrowed)
        assert 0.0 <= lent.on_loan <= 500.0
        assert engine(desk, "guest/0").on_loan == 0.0


def test_an_engine_is_not_lent_while_calls_of_its_own_pool_wait() -> None:
    desk = lending_desk(guests=1)
    started(desk, guest("at home"))
    large = started(desk, owner("running", 500))
    assert desk.arrive(owner("large", 900)) is None
    assert desk.arrive(guest("guest")) is None
    assert names(desk.finish(large)) == ["large"]
    assert desk.dispatcher.pool_view("guest", 0.0).waiting == 1  # the engine is full, but nobody of its own waits


def test_the_owners_calls_come_first_however_urgent_a_guest_is() -> None:
    desk = lending_desk(seats=1)
    started(desk, guest("at home"))
    running = started(desk, owner("running"))
    assert desk.arrive(guest("guest", arrived=0.0)) is None
    desk.now = 5.0
    assert desk.arrive(owner("own", arrived=5.0)) is None
    [start] = desk.finish(running)
    assert (start.call, start.engine) == ("own", "owner/0")
    assert names(desk.finish(start)) == ["guest"]


def test_a_guest_that_is_not_lent_an_engine_does_not_keep_it_from_others() -> None:
    desk = lending_desk()
    started(desk, guest("at home"))
    assert desk.arrive(guest("too large", 600)) is None
    assert started(desk, owner("own")).engine == "owner/0"


def test_a_guest_gets_what_the_owners_calls_leave_of_a_new_engine_at_once() -> None:
    desk = lending_desk(seats=4)
    started(desk, guest("at home"))
    for number in range(4):
        started(desk, owner(str(number)))
    assert desk.arrive(guest("guest")) is None
    assert desk.arrive(owner("own")) is None
    [name] = [launch.engine for launch in desk.tell(Scaled(pool="owner", engines=2), Launch)]
    assert sorted(names(desk.up(name))) == ["guest", "own"]


# --- budgets ---


def test_an_adaptive_budget_that_grows_makes_room_and_one_that_shrinks_takes_it() -> None:
    params = (("start", 1000), ("least", 100), ("most", 9000), ("grow", 2), ("cut", 0.5), ("period", 5))
    policies = dataclasses.replace(FCFS, budget=Named(name="adaptive", params=params))
    desk = a_desk([a_pool(sequences=9)], policies=policies)
    first = started(desk, a_call("first", expected_output=200))
    assert desk.arrive(a_call("second", expected_output=200)) is None
    desk.tell(Woken(), Start)
    assert engine(desk, "p/0").budget == 1000
    desk.now = 5.0
    assert names(desk.tell(Woken(), Start)) == ["second"]
    assert engine(desk, "p/0").budget == 2000
    desk.tell(FirstToken(call="first", attempt=first.attempt), Start)  # after five seconds: congested
    desk.now = 10.0
    desk.tell(Woken(), Start)
    assert engine(desk, "p/0").budget == 1000
    assert desk.arrive(a_call("third", expected_output=1)) is None
    assert names(desk.finish(first)) == ["third"]


def test_the_pools_own_bound_holds_under_any_budget() -> None:
    params = (("start", 5000), ("least", 5000))
    policies = dataclasses.replace(FCFS, budget=Named(name="adaptive", params=params))
    desk = a_desk([a_pool(sequences=9, work=1000)], policies=policies)
    started(desk, a_call("first", expected_output=200))
    assert desk.arrive(a_call("second", expected_output=200)) is None


# --- whatever happens ---

SLOT_OF_ALL = PolicySet(
    priority=Named(name="hexagent"),
    budget=Named(name="adaptive", params=(("start", 3000), ("least", 1000), ("most", 5000))),
    borrowing=Named(name="gated"),
    scorers=(Named(name="least_delay"),),
)
GATES = (
    Named(name="aimd", params=(("start", 2), ("least", 1))),
    Named(name="pause_restore", params=(("share", 0.5),)),
)


@dataclass
class Orchestrated(Life):
    """A life under a gate, budgets and loans; what is parked stands in no queue."""

    def feed(self, event: Event) -> None:
        self._step(event)

    def _note_action(self, action: Action, *, mid_run: bool) -> None:
        if isinstance(action, Wake):
            self.wake = action.at
        else:
            super()._note_action(action, mid_run=mid_run)
        if isinstance(action, Start):
            self._note_room(engine_of(self.dispatcher, action.engine))

    def _note_room(self, state: EngineState) -> None:
        assert len(state.slots) == 1 or state.work <= state.budget
        assert state.on_loan <= 0.5 * min(state.budget, state.limits.work)

    def _check_pool(self, pool: str, spec: PoolSpec) -> None:
        waiting = [self.calls[call] for call in self.waiting if self.calls[call].pool == pool]
        view, gate = self.dispatcher.pool_view(pool, self.now), self.dispatcher.gate
        assert view.waiting == len(waiting)
        queued = sum(self.dispatcher.waiting_by_stage(pool).values())
        assert (queued, gate.parked(pool)) == (len(waiting) - gate.parked(pool), len(waiting) - queued)
        assert not gate.parked("sql")
        for state in self.dispatcher.fleet.of(pool):
            assert state.on_loan == sum(slot.work for slot in state.slots.values() if slot.borrowed) >= 0.0


def engine_of(dispatcher: Dispatcher, name: str) -> EngineState:
    state = dispatcher.fleet.get(name)
    assert state is not None
    return state


def a_dispatcher(gate: Named) -> Dispatcher:
    policies = POLICIES | dict.fromkeys(("gen", "fix"), SLOT_OF_ALL)
    limits = Limits(runs=40, run_idle=60.0)
    return a_desk(
        POOLS.values(), policies=policies, workflows=[nl2sql()], limits=limits, gate=gate, start=False
    ).dispatcher


@pytest.mark.parametrize("gate", GATES, ids=lambda gate: gate.name)
@settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
)
@given(ops=st.lists(st.tuples(st.integers(0, 41), st.integers(0, 2**16)), min_size=40, max_size=150))
def test_under_gate_budgets_and_loans_no_call_is_lost_or_doubled(gate: Named, ops: list[Op]) -> None:
    life = Orchestrated(a_dispatcher(gate))
    life.begin()
    for op in ops:
        life.do(op)
    life.end()
    assert all(not state.on_loan for state in life.dispatcher.fleet)
    assert all(life.dispatcher.gate.parked(pool) == 0 for pool in POOLS)
    assert all(earlier <= later for earlier, later in pairwise(now for _, now, _ in life.steps))
    assert replayed(life.steps, a_dispatcher(gate)) is None
