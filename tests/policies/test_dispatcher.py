"""The dispatcher's decisions one by one, on cases small enough to work out by hand."""

from __future__ import annotations

import pytest

from policies.calls import Call, Outcome
from policies.catalog import Named, PolicySet
from policies.dispatcher import LOST_OFFSET
from policies.events import (
    Arrived,
    Drained,
    EngineGone,
    Failed,
    Finished,
    FirstToken,
    Launch,
    Left,
    Refused,
    Reported,
    Retire,
    Scaled,
    Start,
    Wake,
    Woken,
)
from policies.priority import bucket
from policies.queue import LINES
from policies.workflow import Workflow
from tests.policies.making import FCFS, Desk, a_call, a_desk, a_pool, nl2sql, order_of_service, started

SLACK = PolicySet(admission=Named(name="queue_bound"))
WAIT = PolicySet(priority=Named(name="fcfs"), admission=Named(name="predicted_wait"))


# --- who is next ---


@pytest.mark.parametrize(
    ("priority", "served"), [("fcfs", ["calm", "hurried"]), ("least_slack", ["hurried", "calm"])]
)
def test_least_slack_serves_the_hurried_call_that_fcfs_lets_wait(priority: str, served: list[str]) -> None:
    desk = a_desk(policies=PolicySet(priority=Named(name=priority), admission=Named(name="queue_bound")))
    running = started(desk, a_call("running"))
    desk.arrive(a_call("calm", budget=60.0))
    desk.arrive(a_call("hurried", budget=3.0))
    assert order_of_service(desk, running) == served


def runs_in_time(priority: str) -> int:
    """Two runs of several seconds and four short ones on one engine: how many of them make their deadline."""
    desk = a_desk(policies=PolicySet(priority=Named(name=priority), admission=Named(name="queue_bound")))
    deadlines = {"long 1": 30.0, "long 2": 31.0, "short 1": 4.0, "short 2": 5.5, "short 3": 6.5, "short 4": 7.5}
    seconds = {name: 6.0 if name.startswith("long") else 1.0 for name in deadlines}
    following = [started(desk, a_call("first"))]
    for name, deadline in deadlines.items():
        desk.arrive(a_call(name, budget=deadline))
    made = 0
    while following:
        [start] = following
        desk.now += seconds.get(start.call, 1.0)
        made += desk.now <= deadlines.get(start.call, 0.0)
        following = desk.finish(start, total=1.0)
    return made


def test_least_slack_makes_more_deadlines_than_fcfs() -> None:
    assert runs_in_time("fcfs") == 2
    assert runs_in_time("least_slack") == 6


def test_a_run_with_more_still_to_come_goes_before_one_at_its_end() -> None:
    pools = [a_pool("gen"), a_pool("fix"), a_pool("sql", kind="sql")]
    desk = a_desk(pools, policies=SLACK, workflows=[nl2sql(None)])
    running = started(desk, a_call("running", pool="gen"))
    desk.arrive(a_call("end", pool="gen", workflow="nl2sql", stage="verify", budget=9.0))
    desk.arrive(a_call("beginning", pool="gen", workflow="nl2sql", stage="generate", budget=9.0))
    assert order_of_service(desk, running) == ["beginning", "end"]


def test_a_call_that_can_no_longer_make_it_lets_the_others_pass_and_tells_the_engine() -> None:
    desk = a_desk(policies=SLACK)
    running = started(desk, a_call("running"))
    desk.arrive(a_call("lost", budget=2.0))
    desk.now = 1.8
    desk.arrive(a_call("live", arrived=1.8, budget=20.0))
    [live] = desk.finish(running)
    assert live.call == "live"
    assert live.bucket < bucket(1e9, 0.25)
    [lost] = desk.finish(live)
    assert lost.bucket == bucket(1.0, 0.25) + LOST_OFFSET
    assert lost.slack == pytest.approx(-0.8)


def test_calls_without_stages_of_their_own_share_a_queue() -> None:
    desk = a_desk()
    running = started(desk, a_call("running"))
    for number in range(LINES + 10):
        desk.arrive(a_call(f"c{number}", stage=f"stage {number}"))
    waiting = desk.dispatcher.waiting_by_stage("p")
    assert len(waiting) == LINES + 1
    assert waiting[""] == 10
    assert order_of_service(desk, running) == [f"c{number}" for number in range(LINES + 10)]
    assert desk.dispatcher.waiting_by_stage("p") == {}


# --- room ---


@pytest.mark.parametrize("stage", ["", "another"])
def test_a_large_call_is_not_passed_for_ever_by_small_ones(stage: str) -> None:
    desk = a_desk([a_pool(sequences=8, work=1000)])
    small = [started(desk, a_call(f"s{n}", prompt_tokens=400, expected_output=0)) for n in range(2)]
    assert desk.arrive(a_call("large", prompt_tokens=900, expected_output=0)) is None
    assert desk.arrive(a_call("late", stage=stage, prompt_tokens=100, expected_output=0)) is None
    assert desk.finish(small[0]) == []
    [large, late] = desk.finish(small[1])
    assert (large.call, late.call) == ("large", "late")


def test_a_large_call_that_leaves_lets_those_behind_it_start() -> None:
    desk = a_desk([a_pool(sequences=8, work=1000)])
    started(desk, a_call("running", prompt_tokens=800, expected_output=0))
    assert desk.arrive(a_call("large", prompt_tokens=900, expected_output=0)) is None
    assert desk.arrive(a_call("small", prompt_tokens=100, expected_output=0)) is None
    [small] = desk.tell(Left(call="large"), Start)
    assert small.call == "small"


def test_a_call_larger_than_any_engine_gets_an_empty_one() -> None:
    desk = a_desk([a_pool(sequences=8, work=1000)])
    assert started(desk, a_call("huge", prompt_tokens=50_000)).call == "huge"


def test_the_first_token_makes_room_for_the_next_prompt() -> None:
    desk = a_desk([a_pool(sequences=8, work=1000)])
    running = started(desk, a_call("running", prompt_tokens=800, expected_output=10))
    assert desk.arrive(a_call("next", prompt_tokens=500, expected_output=10)) is None
    [following] = desk.tell(FirstToken(call="running", attempt=running.attempt), Start)
    assert following.call == "next"


def test_what_an_engine_holds_of_a_prompt_is_not_counted_as_work() -> None:
    desk = a_desk([a_pool(sequences=8, work=1000)])
    prefix = tuple(range(10))
    first = started(desk, a_call("first", prompt_tokens=700, prefix=prefix, expected_output=0))
    assert first.expected_cached == 0
    again = started(desk, a_call("again", prompt_tokens=700, prefix=prefix, expected_output=0))
    assert again.expected_cached == 640


def test_a_borrowed_engine_serves_when_the_own_is_full() -> None:
    desk = a_desk([a_pool("a", lenders=("a", "b")), a_pool("b")])
    assert started(desk, a_call("1", pool="a")).engine == "a/0"
    assert started(desk, a_call("2", pool="a")).engine == "b/0"
    assert desk.arrive(a_call("3", pool="b")) is None


def test_calls_of_pools_that_share_engines_are_served_in_one_order() -> None:
    desk = a_desk([a_pool("a", lenders=("b",), minimum=0, start=0), a_pool("b")], policies=SLACK)
    running = started(desk, a_call("running", pool="b"))
    desk.arrive(a_call("own", pool="b", budget=50.0))
    desk.arrive(a_call("guest", pool="a", budget=5.0))
    assert order_of_service(desk, running) == ["guest", "own"]


def test_engines_that_report_free_memory_are_given_what_waits_for_it() -> None:
    policies = PolicySet(filters=(Named(name="kv_below", params=(("use", 0.5),)),))
    desk = a_desk([a_pool(sequences=4)], policies=policies)
    started(desk, a_call("running"))
    assert desk.tell(Reported(engine="p/0", alive=True, kv_use=0.9), Start) == []
    assert desk.arrive(a_call("waiting")) is None
    [start] = desk.tell(Reported(engine="p/0", alive=True, kv_use=0.2), Start)
    assert start.call == "waiting"


def test_a_sleeping_engine_is_passed_over_and_given_what_waits_when_it_wakes() -> None:
    desk = a_desk([a_pool(sequences=4, start=2, maximum=2)], policies=SLACK)
    assert desk.tell(Reported(engine="p/0", alive=True, asleep=True), Start) == []
    assert {started(desk, a_call(f"{number}")).engine for number in range(4)} == {"p/1"}
    assert desk.arrive(a_call("waiting")) is None
    [start] = desk.tell(Reported(engine="p/0", alive=True), Start)
    assert (start.call, start.engine) == ("waiting", "p/0")


def test_calls_wait_for_the_only_engine_to_wake() -> None:
    desk = a_desk([a_pool(sequences=4)], policies=SLACK)
    assert desk.tell(Reported(engine="p/0", alive=True, asleep=True), Start) == []
    assert desk.arrive(a_call("waiting")) is None
    [start] = desk.tell(Reported(engine="p/0", alive=True), Start)
    assert start.call == "waiting"


# --- whether at all ---


def test_predicted_wait_refuses_only_first_calls_and_its_retry_after_is_true() -> None:
    desk = a_desk([a_pool(prior_service=2.0)], policies=WAIT)
    running = started(desk, a_call("running", run="r"))
    assert desk.arrive(a_call("mid-run", run="r", budget=5.0)) is None
    assert desk.arrive(a_call("patient")) is None
    # Three calls of two seconds stand before it, and of its five seconds three are left for waiting.
    hurried = {"run": "run of hurried", "budget": 5.0}
    assert desk.arrive(a_call("hurried", **hurried)) == Refused(call="hurried", reason="late", retry_after=4.0)
    for desk.now in (2.0, 4.0):
        assert isinstance(desk.arrive(a_call("too early", **hurried, arrived=desk.now - 0.1)), Refused)
        [running] = desk.finish(running, total=2.0)
    assert running.call == "patient"
    assert desk.arrive(a_call("again", **hurried, arrived=4.0)) is None
    desk.now = 6.0
    [again] = desk.finish(running, total=2.0)
    assert again.slack == 1.0  # two seconds of work, three to the deadline


def test_a_full_queue_refuses_first_calls_only() -> None:
    desk = a_desk([a_pool(queue_calls=1, prior_service=2.0)])
    started(desk, a_call("running", run="r"))
    assert desk.arrive(a_call("waiting")) is None
    assert desk.arrive(a_call("other")) == Refused(call="other", reason="queue_full", retry_after=2.0)
    assert desk.arrive(a_call("mid-run", run="r")) is None


def test_a_refused_run_may_begin_again_with_a_deadline_of_its_own() -> None:
    desk = a_desk([a_pool(queue_calls=1)])
    running = started(desk, a_call("running"))
    waiting = a_call("waiting")
    desk.arrive(waiting)
    assert isinstance(desk.arrive(a_call("1", run="r", budget=5.0)), Refused)
    order_of_service(desk, running)
    again = started(desk, a_call("2", run="r", arrived=30.0, budget=9.0))
    assert again.visit == 1
    [run] = [run for run in desk.dispatcher.runs if run.key[2] == "r"]
    assert run.deadline == 39.0


def test_a_pool_without_an_engine_refuses_at_once() -> None:
    desk = a_desk(start=False)
    assert desk.arrive(a_call()) == Refused(call="c", reason="no_engine", retry_after=1.0)


def test_while_its_first_engine_starts_a_pool_lets_calls_wait() -> None:
    desk = a_desk(policies=WAIT, start=False)
    desk.tell(Scaled(pool="p", engines=1), Launch)
    assert desk.arrive(a_call(budget=5.0)) is None
    assert [start.call for start in desk.up("p/0")] == ["c"]


def test_calls_that_wait_while_the_only_engine_is_drained_wait_for_its_successor() -> None:
    desk = a_desk()
    running = started(desk, a_call("running"))
    desk.arrive(a_call("waiting", stage="x"))
    assert desk.tell(Drained(engine="p/0"), Refused) == []
    outcome = Outcome(fate="ok")
    made = desk.tell(Finished(call="running", attempt=running.attempt, outcome=outcome), Launch)
    assert made == [Launch(pool="p", engine="p/1")], "the pool has room for one engine"
    [start] = desk.up("p/1")
    assert (start.call, start.engine) == ("waiting", "p/1")


def test_a_call_whose_engine_ended_waits_for_the_one_that_takes_its_place() -> None:
    desk = a_desk()
    start = started(desk, a_call("c"))
    assert desk.tell(EngineGone(engine="p/0"), Launch) == [Launch(pool="p", engine="p/1")]
    assert desk.tell(Failed(call="c", attempt=start.attempt, trouble="broken"), Refused) == []
    [again] = desk.up("p/1")
    assert (again.call, again.engine) == ("c", "p/1")


def test_even_a_run_under_way_finds_an_end_to_the_queue() -> None:
    desk = a_desk([a_pool(queue_calls=2, queue_bytes=1000)])
    started(desk, a_call("1", run="r"))
    for index in range(8):
        assert refusals(desk, a_call(f"w{index}", run="r")) == []
    [refused] = refusals(desk, a_call("one too many", run="r"))
    assert (refused.reason, refused.retry_after) == ("overloaded", 1.0)
    for index in range(8):
        desk.tell(Left(call=f"w{index}"), Refused)
    assert refusals(desk, a_call("large", run="r", body_bytes=4000)) == []
    assert [one.reason for one in refusals(desk, a_call("larger", run="r", body_bytes=1))] == ["overloaded"]


def test_one_id_in_two_workflows_is_two_runs() -> None:
    desk = a_desk(workflows=[])
    for workflow, budget in (("a", 1.0), ("b", 9.0)):
        desk.arrive(a_call(f"of {workflow}", run="7", workflow=workflow, budget=budget))
    assert [run.deadline for run in desk.dispatcher.runs] == [1.0, 9.0]


def refusals(desk: Desk, call: Call) -> list[Refused]:
    return desk.tell(Arrived(call=call), Refused)


def test_calls_that_wait_when_the_last_engine_goes_are_let_go() -> None:
    desk = a_desk([a_pool(minimum=0)])
    running = started(desk, a_call("running"))
    desk.arrive(a_call("waiting", stage="x"))
    [refused] = desk.tell(Drained(engine="p/0"), Refused)
    assert (refused.call, refused.reason) == ("waiting", "no_engine")
    outcome = Outcome(fate="ok")
    retired = desk.tell(Finished(call="running", attempt=running.attempt, outcome=outcome), Retire)
    assert retired == [Retire(pool="p", engine="p/0")]
    assert desk.dispatcher.calls == 0


# --- runs and what is learned ---


def test_a_run_is_forgotten_after_a_stage_that_nothing_follows() -> None:
    pools = [a_pool("gen"), a_pool("fix"), a_pool("sql", kind="sql")]
    stages, edges = nl2sql().stages, nl2sql().edges[:1]
    desk = a_desk(pools, workflows=[Workflow(name="short", stages=stages, edges=edges)])
    of_run = {"run": "r", "pool": "gen", "workflow": "short", "stage": "generate"}
    desk.finish(started(desk, a_call("1", **of_run)), fate="timeout")
    assert len(desk.dispatcher.runs) == 1
    desk.finish(started(desk, a_call("2", **of_run)))
    assert len(desk.dispatcher.runs) == 0


def test_what_an_engine_took_is_learned_and_what_it_did_not_finish_is_not() -> None:
    desk = a_desk([a_pool(prior_service=5.0)])
    desk.finish(started(desk, a_call("1")), fate="timeout", total=60.0)
    assert desk.dispatcher.profiles.mean_service("p") == 5.0
    desk.finish(started(desk, a_call("2")), fate="error", total=0.1)
    assert desk.dispatcher.profiles.mean_service("p") == 5.0, "an engine declines at once"
    desk.finish(started(desk, a_call("3")), total=2.0)
    assert desk.dispatcher.profiles.mean_service("p") == 2.0
    desk.finish(started(desk, a_call("4", kind="sql")), fate="error", total=4.0)
    assert desk.dispatcher.profiles.mean_service("p") == 3.0, "a statement runs until it fails"


def test_a_wake_up_is_asked_for_once() -> None:
    desk = a_desk(start=False)
    desk.tell(Scaled(pool="p", engines=1), Launch)
    assert desk.tell(EngineGone(engine="p/0"), Wake) == [Wake(at=0.5)]
    assert desk.tell(Scaled(pool="p", engines=1), Launch) == [Launch(pool="p", engine="p/1")]
    assert desk.tell(Woken(), Wake) == []


def test_policies_are_those_of_the_calls_own_pool() -> None:
    desk = a_desk([a_pool("a"), a_pool("b")], policies={"a": FCFS, "b": SLACK})
    for pool, served in (("a", ["calm", "hurried"]), ("b", ["hurried", "calm"])):
        running = started(desk, a_call(f"running {pool}", pool=pool))
        desk.arrive(a_call(f"calm {pool}", pool=pool, budget=60.0))
        desk.arrive(a_call(f"hurried {pool}", pool=pool, budget=3.0))
        assert [call.split()[0] for call in order_of_service(desk, running)] == served
