"""The gate, the tenants' accounts and keys that age, as the dispatcher makes use of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

import pytest

from policies.calls import Call, Estimate, Outcome
from policies.catalog import Named, PolicySet, make_all
from policies.dispatcher import Dispatcher, Limits
from policies.events import (
    Abort,
    Arrived,
    Drained,
    Failed,
    Joined,
    Left,
    Recalled,
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
from tests.policies.making import FCFS, Desk, a_call, a_desk, a_pool, nl2sql, order_of_service, started

ONE_RUN = Named(name="aimd", params=(("start", 1), ("least", 1), ("step", 0)))
ROOMY = a_pool(sequences=8)


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


def test_a_parked_call_is_hurried_by_who_follows_it() -> None:
    desk = a_desk([a_pool()], policies=PolicySet(), gate=ONE_RUN)
    running = started(desk, a_call("running", final=True))
    desk.arrive(a_call("parked", run="r", budget=100.0))
    desk.arrive(a_call("followed", run="r", budget=100.0))
    desk.tell(Joined(call=a_call("follower", budget=4.0), leader="followed"), Start)
    assert order_of_service(desk, running) == ["followed", "parked"]


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
        event = Recalled(call=a_call("last", run="r", final=True), outcome=Outcome(fate="ok", source="cache"))
        assert names(desk.tell(event, Start)) == ["parked"]


def test_calls_that_are_parked_when_the_last_engine_goes_are_let_go() -> None:
    desk = a_desk([a_pool(sequences=8, minimum=0)], gate=ONE_RUN)
    started(desk, a_call("first"))
    assert desk.arrive(a_call("parked")) is None
    [refused] = desk.tell(Drained(engine="p/0"), Refused)
    assert (refused.call, refused.reason) == ("parked", "no_engine")


def test_calls_that_are_let_through_by_the_refusal_of_others_are_let_go_as_well() -> None:
    gate = Named(name="aimd", params=(("start", 2), ("least", 2), ("step", 0)))
    desk = a_desk([a_pool(sequences=1, minimum=0)], gate=gate)
    started(desk, a_call("running"))
    for number in range(5):  # one queues, the others are parked
        assert desk.arrive(a_call(str(number))) is None
    refused = desk.tell(Drained(engine="p/0"), Refused)
    assert sorted(one.call for one in refused) == ["0", "1", "2", "3", "4"]
    assert desk.dispatcher.calls == 1


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


def test_calls_that_run_side_by_side_share_the_engines_time_second_by_second() -> None:
    desk = a_desk([a_pool(sequences=2)])
    long = started(desk, a_call("long", tenant="a"))
    brief = started(desk, a_call("brief", tenant="b"))
    desk.now = 4.0  # two seconds each
    desk.finish(brief)
    desk.now = 7.0  # and three alone
    desk.finish(long)
    assert (desk.dispatcher.tenants.had("a"), desk.dispatcher.tenants.had("b")) == (5.0, 2.0)


@pytest.mark.parametrize("seed", range(3))
def test_the_account_of_a_tenant_alone_is_the_time_that_the_engine_was_busy(seed: int) -> None:
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
            running.append(started(desk, a_call(str(number), tenant="a", arrived=desk.now)))
    for start in running:
        desk.finish(start)
    assert desk.dispatcher.tenants.had("a") == pytest.approx(busy)
