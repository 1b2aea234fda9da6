"""The dispatcher's decisions one by one, on cases small enough to work out by hand."""

from __future__ import annotations

import pytest

from policies.calls import Call, Outcome
from policies.catalog import Named, PolicySet
from policies.dispatcher import LOST_OFFSET, Limits
from policies.events import (
    Abort,
    Arrived,
    Drained,
    EngineGone,
    Event,
    Failed,
    Finished,
    FirstToken,
    Joined,
    Launch,
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
from policies.pool import EJECT_AFTER
from policies.priority import bucket
from policies.queue import LINES
from policies.workflow import Workflow
from tests.policies.making import FCFS, Desk, a_call, a_desk, a_pool, nl2sql

SLACK = PolicySet(admission=Named(name="queue_bound"))
WAIT = PolicySet(priority=Named(name="fcfs"), admission=Named(name="predicted_wait"))


def started(desk: Desk, call: Call) -> Start:
    start = desk.arrive(call)
    assert isinstance(start, Start)
    return start


def fail(desk: Desk, start: Start, trouble: Reason = "broken", *, final: bool = False) -> Start | Refused:
    event = Failed(call=start.call, attempt=start.attempt, trouble=trouble, final=final)
    [action] = [a for a in desk.dispatcher.handle(event, desk.now) if isinstance(a, Start | Refused)]
    return action


def order_of_service(desk: Desk, running: Start) -> list[str]:
    """Let the one running call end, and then each that starts in its place; who came in which order."""
    served = []
    following = desk.finish(running)
    while following:
        [running] = following
        served.append(running.call)
        following = desk.finish(running)
    return served


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


# --- failures ---


def test_a_failed_attempt_goes_to_an_engine_that_has_not_failed_it() -> None:
    desk = a_desk([a_pool(start=2, maximum=2)])
    first = started(desk, a_call())
    second = fail(desk, first)
    assert isinstance(second, Start)
    assert second.engine != first.engine
    assert second.attempt != first.attempt
    assert fail(desk, second, "crashed") == Refused(call="c", reason="crashed", retry_after=1.0)
    assert desk.dispatcher.calls == 0


def test_a_final_failure_is_not_tried_again() -> None:
    desk = a_desk([a_pool(start=2, maximum=2)])
    start = started(desk, a_call())
    assert fail(desk, start, final=True) == Refused(call="c", reason="broken", retry_after=None)


def test_attempts_are_bounded() -> None:
    desk = a_desk([a_pool(start=5, maximum=5)], limits=Limits(attempts=3))
    said: Start | Refused = started(desk, a_call())
    attempts = 0
    while isinstance(said, Start):
        attempts += 1
        said = fail(desk, said)
    assert attempts == 3


def test_a_pool_that_fails_all_the_time_spends_its_retries() -> None:
    desk = a_desk([a_pool(start=2, maximum=2, sequences=1000)])
    refused = []
    for number in range(40):
        said = fail(desk, started(desk, a_call(str(number))), "overloaded")
        refused.append(isinstance(said, Refused))
        if isinstance(said, Start):
            desk.finish(said)
    assert refused.index(True) > 10
    assert sum(refused[20:]) >= 15  # one call in five pays for a retry


def test_a_call_whose_untried_engine_goes_is_let_go_and_blocks_nobody() -> None:
    desk = a_desk([a_pool(minimum=0, start=2, maximum=2)])
    first, second = started(desk, a_call("1")), started(desk, a_call("2"))
    desk.tell(Failed(call="1", attempt=first.attempt, trouble="broken"), Start)
    assert desk.dispatcher.pool_view("p", 0.0).waiting == 1
    third = started(desk, a_call("3"))
    assert third.engine == first.engine
    assert desk.tell(Drained(engine=second.engine), Refused) == []
    event = Finished(call="3", attempt=third.attempt, outcome=Outcome(fate="ok"))
    assert desk.tell(event, Refused) == [Refused(call="1", reason="broken", retry_after=1.0)]
    desk.finish(second)
    assert desk.dispatcher.calls == 0


def test_a_call_that_waits_for_one_engine_lets_others_use_the_rest() -> None:
    desk = a_desk([a_pool(start=2, maximum=2)])
    first, second = started(desk, a_call("1")), started(desk, a_call("2"))
    assert desk.arrive(a_call("3")) is None
    [instead] = desk.tell(Failed(call="1", attempt=first.attempt, trouble="broken"), Start)
    assert (instead.call, instead.engine) == ("3", first.engine)
    [again] = desk.finish(second)
    assert (again.call, again.engine) == ("1", second.engine)


def test_an_engine_that_keeps_failing_is_left_out_and_tried_again_later() -> None:
    desk = a_desk([a_pool(start=2, maximum=2)])
    wakes: list[Wake] = []
    for number in range(EJECT_AFTER):
        start = started(desk, a_call(str(number)))
        while start.engine != "p/0":
            desk.tell(Left(call=start.call), Abort)
            start = started(desk, a_call(f"{number} again"))
        wakes = desk.tell(Failed(call=start.call, attempt=start.attempt, trouble="refused"), Wake)
        desk.tell(Left(call=start.call), Abort)
    assert wakes == [Wake(at=1.0)]
    busy = started(desk, a_call("busy"))
    assert busy.engine == "p/1"
    assert desk.arrive(a_call("waiting")) is None
    desk.now = 1.0
    [probe] = desk.tell(Woken(), Start)
    assert (probe.call, probe.engine) == ("waiting", "p/0")


# --- leaving, joining, recalling ---


def test_a_running_call_that_leaves_is_aborted_and_makes_room() -> None:
    desk = a_desk()
    start = started(desk, a_call("1"))
    desk.arrive(a_call("2"))
    actions = desk.dispatcher.handle(Left(call="1"), 0.0)
    assert actions[0] == Abort(call="1", attempt=start.attempt)
    assert isinstance(actions[1], Start)
    assert desk.dispatcher.handle(Left(call="1"), 0.0) == []


def test_what_arrives_after_the_end_changes_nothing() -> None:
    desk = a_desk()
    start = started(desk, a_call())
    desk.finish(start)
    late: list[Event] = [
        Finished(call="c", attempt=start.attempt, outcome=Outcome(fate="ok")),
        Failed(call="c", attempt=start.attempt, trouble="broken"),
        FirstToken(call="c", attempt=start.attempt),
        EngineGone(engine="nobody"),
        Reported(engine="nobody", alive=True),
    ]
    assert [desk.dispatcher.handle(event, 0.0) for event in late] == [[]] * len(late)


def test_a_follower_lends_its_urgency_to_its_leader() -> None:
    desk = a_desk(policies=SLACK)
    running = started(desk, a_call("running"))
    desk.arrive(a_call("leader", budget=100.0))
    desk.arrive(a_call("other", budget=20.0))
    desk.tell(Joined(call=a_call("follower", budget=4.0), leader="leader"), Start)
    desk.tell(Joined(call=a_call("idle follower", budget=400.0), leader="leader"), Start)
    assert order_of_service(desk, running) == ["leader", "other"]
    assert desk.dispatcher.calls == 2
    for call in ("follower", "idle follower"):
        desk.tell(Finished(call=call, attempt=None, outcome=Outcome(fate="ok", source="joined")), Start)
    assert desk.dispatcher.calls == 0


def test_a_call_that_becomes_the_most_urgent_starts_where_there_is_room_for_it() -> None:
    desk = a_desk([a_pool(sequences=8, work=1000)], policies=SLACK)
    started(desk, a_call("running", prompt_tokens=800, expected_output=0))
    assert desk.arrive(a_call("large", prompt_tokens=900, expected_output=0, budget=20.0)) is None
    assert desk.arrive(a_call("small", prompt_tokens=100, expected_output=0, budget=50.0)) is None
    [start] = desk.tell(Joined(call=a_call("follower", budget=5.0), leader="small"), Start)
    assert start.call == "small"


def test_a_leader_that_starves_is_not_set_back_by_a_follower() -> None:
    desk = a_desk(policies=SLACK)
    running = started(desk, a_call("running"))
    desk.arrive(a_call("leader"))
    desk.now = 29.0
    desk.arrive(a_call("other", arrived=29.0, budget=5.0))
    desk.tell(Joined(call=a_call("follower", arrived=29.0, budget=50.0), leader="leader"), Start)
    desk.now = 30.5
    assert order_of_service(desk, running) == ["leader", "other"]


def test_a_follower_whose_leader_is_refused_comes_again_as_the_first_of_its_run() -> None:
    desk = a_desk([a_pool(queue_calls=1)])
    started(desk, a_call("running"))
    desk.arrive(a_call("waiting"))
    desk.tell(Joined(call=a_call("follower"), leader="nobody"), Start)
    desk.tell(Left(call="follower"), Start)
    assert isinstance(desk.arrive(a_call("follower")), Refused)


def test_a_recalled_call_moves_its_run_without_taking_a_slot() -> None:
    desk = a_desk()
    started(desk, a_call("running"))
    assert desk.tell(Arrived(call=a_call("known", run="r", stage="execute"), recalled=True), Start) == []
    outcome = Outcome(fate="empty", source="cache")
    desk.tell(Finished(call="known", attempt=None, outcome=outcome), Start)
    [run] = [run for run in desk.dispatcher.runs if run.key[2] == "r"]
    assert (run.position, run.fate) == ("execute", "empty")
    assert desk.dispatcher.calls == 1


def test_a_waiting_call_whose_answer_turns_up_leaves_its_queue() -> None:
    desk = a_desk()
    running = started(desk, a_call("running"))
    desk.arrive(a_call("waiting"))
    outcome = Outcome(fate="ok", source="cache")
    desk.tell(Finished(call="waiting", attempt=None, outcome=outcome), Start)
    assert desk.dispatcher.pool_view("p", 0.0).waiting == 0
    assert desk.finish(running) == []
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
