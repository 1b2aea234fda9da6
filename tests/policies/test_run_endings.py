"""What is told of a run when it has ended: when that was and how, what it was repaired by, and what it waited for."""

from __future__ import annotations

import pytest

from policies.calls import Call, Fate, Outcome
from policies.events import Joined, Left, Recalled, Start
from policies.runs import STAGES, Run, Runs
from policies.workflow import Workflow
from tests.policies.making import a_call, a_desk, a_pool, a_step, nl2sql, started


class Course:
    """Runs of the graph nl2sql, and those that have been told to have ended."""

    def __init__(self, graph: Workflow | None = None) -> None:
        self.over: list[Run] = []
        self.runs = Runs(limit=100, idle=60.0)
        self.runs.watch(self.over.append)
        self._graph = graph
        self._number = 0

    def enter(self, stage: str, now: float = 0.0, *, final: bool = False, told: Fate | None = None) -> Call:
        self._number += 1
        call = a_step(self._number, stage, arrived=now, final=final, told=told)
        self.runs.enter(call, self._graph, now)
        return call

    def ends(self, call: Call, now: float, fate: Fate | None = "ok", *, queued: float = 0.0) -> None:
        self.runs.leave(call, fate, now, queued=queued, service=now - call.arrived - queued)

    def passes(self, stage: str, begin: float, end: float, fate: Fate = "ok", *, final: bool = False) -> None:
        self.ends(self.enter(stage, begin, final=final), end, fate)


def test_a_run_is_told_once_with_the_end_of_its_last_call() -> None:
    course = Course()
    course.passes("generate", 1.0, 2.0)
    assert not course.over
    course.passes("verify", 3.0, 4.5, "empty", final=True)
    [run] = course.over
    assert (run.started, run.left, run.last, run.calls) == (1.0, 4.5, "empty", 2)


def test_a_run_that_is_forgotten_ended_with_its_last_call() -> None:
    course = Course()
    course.passes("generate", 0.0, 2.0)
    other = a_call("other", run="another", arrived=100.0)
    course.runs.enter(other, None, 100.0)
    [run] = course.over
    assert (run.left, run.last) == (2.0, "ok")


def test_of_siblings_the_one_that_ends_last_says_how_the_run_ended() -> None:
    course = Course()
    slow, quick = course.enter("map"), course.enter("map", final=True)
    course.ends(quick, 1.0, "error")
    course.ends(slow, 2.0)
    assert [(run.left, run.last) for run in course.over] == [(2.0, "ok")]


def test_a_run_whose_only_call_is_refused_has_ended_badly() -> None:
    desk, over = a_desk([a_pool(queue_calls=1)]), list[Run]()
    desk.dispatcher.runs.watch(over.append)
    desk.arrive(a_call("runs", run="one", final=True))
    desk.arrive(a_call("waits", run="two", final=True))
    desk.arrive(a_call("refused", run="three", final=True))
    [run] = over
    assert (run.key[2], run.last, run.calls) == ("three", "error", 0)


def test_a_follower_that_goes_on_by_its_own_right_has_one_run() -> None:
    desk, over = a_desk([a_pool(sequences=2)]), list[Run]()
    desk.dispatcher.runs.watch(over.append)
    started(desk, a_call("leader", run="one"))
    desk.tell(Joined(call=a_call("follower", run="two", final=True), leader="leader"), Start)
    desk.tell(Left(call="follower"), Start)
    assert not over
    desk.finish(started(desk, a_call("follower", run="two", final=True)))
    assert [(run.key[2], run.last) for run in over] == [("two", "ok")]


def test_a_client_that_leaves_ends_the_run_of_its_call() -> None:
    desk, over = a_desk(), list[Run]()
    desk.dispatcher.runs.watch(over.append)
    started(desk, a_call("leaves", run="one", final=True))
    desk.tell(Left(call="leaves"), Start)
    assert [run.last for run in over] == ["cancelled"]


def test_a_call_that_is_recalled_can_end_its_run() -> None:
    desk, over = a_desk([a_pool()], workflows=[nl2sql()]), list[Run]()
    desk.dispatcher.runs.watch(over.append)
    call = a_step(1, "generate", pool="p", final=True)
    desk.tell(Recalled(call=call, outcome=Outcome(fate="ok", source="cache")), Start)
    assert [(run.last, dict(run.longest.by_stage)) for run in over] == [("ok", {})]


@pytest.mark.parametrize(("fate", "repairs"), [("ok", 0), ("error", 1), ("empty", 1), ("timeout", 1)])
def test_what_follows_a_stage_that_went_wrong_is_a_repair(fate: Fate, repairs: int) -> None:
    course = Course()
    course.passes("execute", 0.0, 1.0, fate)
    course.passes("fix", 1.0, 2.0)
    course.passes("execute", 2.0, 3.0, final=True)
    assert [run.repairs for run in course.over] == [repairs]


def test_what_tries_the_same_stage_again_repairs_nothing() -> None:
    course = Course()
    course.passes("generate", 0.0, 1.0, "error")
    course.passes("generate", 1.0, 2.0, final=True)
    assert course.over[0].repairs == 0


def test_a_tool_that_the_client_ran_is_repaired_like_any_other() -> None:
    course = Course(nl2sql())
    course.passes("generate", 0.0, 1.0)
    course.ends(course.enter("fix", 2.0, told="error", final=True), 3.0)
    assert course.over[0].repairs == 1


def test_the_longest_chain_of_calls_has_queues_and_service_of_each_stage() -> None:
    course = Course()
    course.passes("plan", 0.0, 1.0)
    short, long = course.enter("left", 1.0), course.enter("right", 1.0)
    course.ends(short, 3.0)
    course.ends(long, 5.0, queued=3.0)
    course.passes("plan", 6.0, 6.5, final=True)
    [run] = course.over
    assert run.longest.by_stage == {"plan": 1.5, "right": 4.0}
    assert run.longest.seconds == pytest.approx(5.5)
    assert run.path == pytest.approx(1.0 + 2.0 + 0.5), "of service alone, the other branch is the longer one"


def test_a_chain_of_ever_new_stages_does_not_grow_without_end() -> None:
    course = Course()
    for number in range(STAGES + 50):
        course.passes(f"stage{number}", float(number), number + 1.0)
    course.passes("last", 1000.0, 1001.0, final=True)
    [run] = course.over
    assert len(run.longest.by_stage) <= STAGES + 1
    assert sum(run.longest.by_stage.values()) == pytest.approx(run.longest.seconds)
