"""What the dispatcher does when an attempt fails, a call leaves, joins another or is answered elsewhere."""

from __future__ import annotations

from policies.calls import Outcome
from policies.catalog import Named, PolicySet
from policies.dispatcher import Limits
from policies.events import (
    Abort,
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
    Recalled,
    Refused,
    Reported,
    Scaled,
    Start,
    Wake,
    Woken,
)
from policies.pool import EJECT_AFTER, REST_LONGEST
from tests.policies.making import Desk, a_call, a_desk, a_pool, order_of_service, started

SLACK = PolicySet(admission=Named(name="queue_bound"))


def fail(desk: Desk, start: Start, trouble: Reason = "broken", *, final: bool = False) -> Start | Refused:
    event = Failed(call=start.call, attempt=start.attempt, trouble=trouble, final=final)
    [action] = [a for a in desk.dispatcher.handle(event, desk.now) if isinstance(a, Start | Refused)]
    return action


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


def test_a_call_goes_to_the_one_engine_that_it_names_and_lets_others_pass_while_it_waits() -> None:
    desk = a_desk([a_pool(start=2, maximum=2)])
    first, second = started(desk, a_call("1")), started(desk, a_call("2"))
    assert desk.arrive(a_call("3", only=second.engine)) is None
    assert desk.arrive(a_call("4")) is None
    [passed] = desk.finish(first)
    assert (passed.call, passed.engine) == ("4", first.engine)
    [at_last] = desk.finish(second)
    assert (at_last.call, at_last.engine) == ("3", second.engine)


def test_a_call_whose_only_engine_fails_it_or_is_gone_is_refused_though_there_are_others() -> None:
    desk = a_desk([a_pool(start=2, maximum=2)])
    start = started(desk, a_call(only="p/1"))
    assert start.engine == "p/1"
    assert fail(desk, start) == Refused(call="c", reason="broken", retry_after=1.0)
    assert desk.arrive(a_call("later", only="p/7")) == Refused(call="later", reason="no_engine", retry_after=1.0)
    assert desk.dispatcher.calls == 0


def test_an_engine_that_wants_to_be_asked_nothing_for_a_while_is_asked_nothing() -> None:
    desk = a_desk([a_pool()])
    start = started(desk, a_call("1"))
    said = desk.dispatcher.handle(Failed(call="1", attempt=start.attempt, trouble="overloaded", rest=7.0), desk.now)
    assert said == [Refused(call="1", reason="overloaded", retry_after=1.0), Wake(at=desk.now + 7.0)]
    assert desk.arrive(a_call("2")) is None
    desk.now += 6.9
    assert desk.tell(Woken(), Start) == []
    desk.now += 0.1
    [at_last] = desk.tell(Woken(), Start)
    assert at_last.call == "2"


def test_an_engine_cannot_ask_to_be_left_alone_for_ever() -> None:
    desk = a_desk([a_pool()])
    start = started(desk, a_call("1"))
    said = desk.tell(Failed(call="1", attempt=start.attempt, trouble="overloaded", rest=1e9), Wake)
    assert said == [Wake(at=desk.now + REST_LONGEST)]


def test_an_engine_that_keeps_failing_is_left_out_and_tried_again_later() -> None:
    desk = a_desk([a_pool(start=2, maximum=2)])
    wakes: list[Wake] = []
    for number in range(EJECT_AFTER):
        start = started(desk, a_call(str(number)))
        while start.engine != "p/0":
            desk.tell(Left(call=start.call), Abort)
            start = started(desk, a_call(f"{number} again"))
        wakes = desk.tell(Failed(call=start.call, attempt=start.attempt, trouble="broken"), Wake)
        desk.tell(Left(call=start.call), Abort)
    assert wakes == [Wake(at=1.0)]
    busy = started(desk, a_call("busy"))
    assert busy.engine == "p/1"
    assert desk.arrive(a_call("waiting")) is None
    desk.now = 1.0
    [probe] = desk.tell(Woken(), Start)
    assert (probe.call, probe.engine) == ("waiting", "p/0")


def test_an_engine_at_which_nobody_listens_is_left_out_at_once_where_others_can_serve() -> None:
    desk = a_desk([a_pool(start=2, maximum=2, sequences=4)])
    start = started(desk, a_call("first"))
    again = fail(desk, start, "refused")
    assert isinstance(again, Start)
    others = [started(desk, a_call(str(number))) for number in range(3)]
    assert {one.engine for one in (again, *others)} == {"p/0", "p/1"} - {start.engine}
    alone = a_desk([a_pool(start=1, maximum=1)])
    assert isinstance(fail(alone, started(alone, a_call("1")), "refused"), Refused)
    assert started(alone, a_call("2")).engine == "p/0"


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
    outcome = Outcome(fate="empty", source="cache")
    assert desk.tell(Recalled(call=a_call("known", run="r", stage="execute"), outcome=outcome), Start) == []
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


def test_who_waits_when_the_last_engine_goes_with_its_call_is_refused() -> None:
    """One engine does not come up and is tried again after a pause; the other was told to go and has a last call."""
    desk = a_desk([a_pool(maximum=2)])
    first = started(desk, a_call("first"))
    [launch] = desk.tell(Scaled(pool="p", engines=2), Launch)
    desk.arrive(a_call("waiting"))
    desk.tell(EngineGone(engine=launch.engine), Launch)
    desk.tell(Drained(engine=first.engine), Launch)
    refused = desk.tell(Finished(call="first", attempt=first.attempt, outcome=Outcome(fate="ok")), Refused)
    assert [(one.call, one.reason) for one in refused] == [("waiting", "no_engine")]
