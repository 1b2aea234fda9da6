"""Where runs stand: deadline, visits, outcomes; and that they give their memory back."""

from __future__ import annotations

from typing import Any

import pytest

from policies.calls import Call, Fate
from policies.runs import ENDED_LEAST, ENDED_MOST, HISTORY, STAGES, WORKFLOWS, Run, Runs
from policies.transitions import OVER, Transition
from policies.workflow import Edge, Stage, Workflow
from tests.policies.making import a_call, nl2sql

GRAPH = nl2sql()


def a_step(number: int, stage: str = "generate", **given: Any) -> Call:
    return a_call(f"c{number}", **{"run": "r", "workflow": "nl2sql", "stage": stage} | given)


def some_runs(*, limit: int = 100, idle: float = 60.0) -> Runs:
    return Runs(limit=limit, idle=idle)


def through(runs: Runs, call: Call, fate: Fate = "ok", now: float = 0.0) -> Run:
    """Let a call enter and end; its run."""
    run, _ = runs.enter(call, GRAPH, now)
    runs.leave(call, fate, 0.0)
    return run


def test_the_deadline_is_that_of_the_first_call() -> None:
    runs = some_runs()
    first, _ = runs.enter(a_step(1, arrived=100.0, budget=5.0), GRAPH, 100.0)
    again, _ = runs.enter(a_step(2, arrived=103.0, budget=50.0), GRAPH, 103.0)
    assert again is first
    assert (again.deadline, again.started) == (105.0, 100.0)


@pytest.mark.parametrize(("budget", "deadline"), [(None, 8.0), (3.0, 3.0), (0.0, 0.0)])
def test_without_a_deadline_of_its_own_a_run_has_that_of_its_workflow(budget: float | None, deadline: float) -> None:
    run, _ = some_runs().enter(a_step(1, budget=budget), GRAPH, 0.0)
    assert run.deadline == deadline


def test_a_run_of_no_workflow_has_no_deadline() -> None:
    run, _ = some_runs().enter(a_step(1, workflow=""), None, 0.0)
    assert run.deadline is None


def test_only_the_first_call_opens_a_run() -> None:
    runs = some_runs()
    run, _ = runs.enter(a_step(1), GRAPH, 0.0)
    assert run.view().first
    runs.enter(a_step(2), GRAPH, 0.0)
    assert not run.view().first


def test_runs_of_two_tenants_are_two_runs() -> None:
    runs = some_runs()
    one, _ = runs.enter(a_step(1, tenant="one"), GRAPH, 0.0)
    other, _ = runs.enter(a_step(2, tenant="other"), GRAPH, 0.0)
    assert one is not other
    assert len(runs) == 2


def test_visits_are_counted_by_stage_unless_the_call_says_which_it_is() -> None:
    runs, visits = some_runs(), []
    for number, (stage, said) in enumerate((("fix", 0), ("execute", 0), ("fix", 0), ("fix", 7), ("fix", 0))):
        call = a_step(number, stage, visit=said)
        visits.append(runs.enter(call, GRAPH, 0.0)[1])
        runs.leave(call, "ok", 0.0)
    assert visits == [1, 1, 2, 7, 8]


def test_stage_names_without_end_share_one_counter() -> None:
    runs = some_runs()
    for number in range(STAGES + 50):
        call = a_step(number, f"stage {number}")
        run, _ = runs.enter(call, GRAPH, 0.0)
    assert len(run.visits) == STAGES + 1
    assert run.visits[""] == 50
    for number in range(STAGES + 50):
        runs.leave(a_step(number, f"stage {number}"), None, 0.0)
    assert len(run.visits) == STAGES + 1


def test_a_run_stands_where_its_last_call_is_and_remembers_how_calls_ended() -> None:
    runs = some_runs()
    run = through(runs, a_step(1, "generate"))
    assert (run.position, run.fate) == ("generate", "ok")
    run = through(runs, a_step(2, "execute"), "error")
    assert (run.position, run.fate) == ("execute", "error")
    runs.enter(a_step(3, "fix"), GRAPH, 0.0)
    assert (run.position, run.fate) == ("fix", None)
    assert list(run.history) == [("generate", "ok"), ("execute", "error")]


def test_a_call_that_ends_after_the_run_has_moved_on_does_not_move_it_back() -> None:
    runs = some_runs()
    slow = a_step(1, "generate")
    runs.enter(slow, GRAPH, 0.0)
    run, _ = runs.enter(a_step(2, "verify"), GRAPH, 0.0)
    runs.leave(slow, "ok", 0.0)
    assert (run.position, run.fate) == ("verify", None)


@pytest.mark.parametrize(
    ("next_stage", "told", "tool"),
    [
        ("fix", None, [("execute", "error")]),
        ("fix", "empty", [("execute", "empty")]),
        ("verify", None, [("execute", "ok")]),
        ("elsewhere", "error", [("execute", "error")]),
        ("elsewhere", None, []),
    ],
)
def test_the_outcome_of_a_tool_that_the_client_ran_is_told_or_inferred(
    next_stage: str, told: Fate | None, tool: list[tuple[str, Fate]]
) -> None:
    runs = some_runs()
    through(runs, a_step(1, "generate"))
    run, _ = runs.enter(a_step(2, next_stage, told=told), GRAPH, 0.0)
    assert list(run.history) == [("generate", "ok"), *tool]


def test_a_tool_is_not_told_of_where_none_can_have_run() -> None:
    runs = some_runs()
    through(runs, a_step(1, "verify"))
    run, _ = runs.enter(a_step(2, "elsewhere", told="ok"), GRAPH, 0.0)
    assert list(run.history) == [("verify", "ok")]


def test_a_history_is_bounded() -> None:
    runs = some_runs()
    for number in range(HISTORY + 20):
        run = through(runs, a_step(number))
    assert len(run.history) == HISTORY


def test_a_refused_first_call_leaves_no_run_behind() -> None:
    runs = some_runs()
    call = a_step(1)
    runs.enter(call, GRAPH, 0.0)
    runs.leave(call, None, 0.0)
    assert len(runs) == 0


def test_a_call_that_never_began_is_not_counted() -> None:
    runs = some_runs()
    through(runs, a_step(1, "fix"))
    refused = a_step(2, "fix")
    run, _ = runs.enter(refused, GRAPH, 0.0)
    runs.leave(refused, None, 0.0)
    assert (run.calls, run.visits["fix"]) == (1, 1)


def test_a_declared_end_takes_effect_with_the_last_call() -> None:
    runs = some_runs()
    slow, final = a_step(1), a_step(2, final=True)
    runs.enter(slow, GRAPH, 0.0)
    runs.enter(final, GRAPH, 0.0)
    runs.leave(final, "ok", 0.0)
    assert len(runs) == 1
    runs.leave(slow, "cancelled", 0.0)
    assert len(runs) == 0


def test_a_run_that_its_graph_says_is_over_is_forgotten() -> None:
    runs = some_runs()
    call = a_step(1)
    runs.enter(call, GRAPH, 0.0)
    runs.leave(call, "ok", 0.0, over=True)
    assert len(runs) == 0


def test_an_end_that_was_told_already_changes_nothing() -> None:
    runs = some_runs()
    call = a_step(1)
    runs.enter(call, GRAPH, 0.0)
    runs.leave(call, "ok", 0.0)
    runs.leave(call, "error", 0.0)
    [run] = runs
    assert list(run.history) == [("generate", "ok")]
    runs.leave(a_step(2, run="unheard of"), "ok", 0.0)


def test_runs_beyond_the_limit_go_and_the_least_recently_seen_go_first() -> None:
    runs = some_runs(limit=3)
    for number in range(5):
        through(runs, a_step(number, run=f"r{number}"))
        assert len(runs) <= 3
    assert [run.key[2] for run in runs] == ["r2", "r3", "r4"]


def test_entering_a_run_that_is_known_pushes_none_out() -> None:
    runs = some_runs(limit=2)
    for number, run in enumerate(("a", "b", "a", "b")):
        through(runs, a_step(number, run=run))
    assert [run.calls for run in runs] == [2, 2]


def test_a_run_with_an_open_call_is_kept_beyond_limit_and_idle_time() -> None:
    runs = some_runs(limit=2, idle=10.0)
    held, _ = runs.enter(a_step(0, run="held"), GRAPH, 0.0)
    for number in range(1, 30):
        through(runs, a_step(number, run=f"r{number}"), now=number * 100.0)
    assert held in list(runs)
    assert len(runs) <= 2


def test_idle_runs_are_forgotten_as_others_come() -> None:
    runs = some_runs(idle=10.0)
    for number in range(20):
        through(runs, a_step(number, run=f"r{number}"), now=0.0)
    for number in range(20, 40):
        through(runs, a_step(number, run="late"), now=11.0)
    assert [run.key[2] for run in runs] == ["late"]


# --- what a run has had ---------------------------------------------------------------------------------------


def test_a_run_adds_up_what_its_calls_have_had() -> None:
    runs = some_runs()
    for number, (service, queued, tokens) in enumerate(((2.0, 0.5, 700), (3.0, 0.25, 900))):
        call = a_step(number)
        run, _ = runs.enter(call, GRAPH, 0.0)
        runs.leave(call, "ok", 0.0, service=service, queued=queued, tokens=tokens)
    view = run.view(lead=1.5)
    assert (view.attained, view.path, view.waited, view.context, view.lead) == (5.0, 5.0, 0.75, 900, 1.5)
    assert view.visits == {"generate": 2}


def test_calls_that_are_open_together_lengthen_the_path_by_the_longest() -> None:
    runs = some_runs()
    steps = [a_step(number, "map") for number in range(3)]
    for step in steps:
        run, _ = runs.enter(step, None, 0.0)
    for step, service in zip(steps, (1.0, 5.0, 2.0), strict=True):
        runs.leave(step, "ok", 0.0, service=service)
    assert (run.view().attained, run.view().path) == (8.0, 5.0)
    through(runs, a_step(9, "reduce"))
    assert run.view().path == 5.0


def test_a_call_that_never_began_adds_nothing() -> None:
    runs = some_runs()
    through(runs, a_step(1))
    call = a_step(2)
    run, _ = runs.enter(call, GRAPH, 0.0)
    runs.leave(call, None, 0.0, service=9.0, queued=9.0, tokens=9)
    view = run.view()
    assert (view.attained, view.path, view.waited, view.context) == (0.0, 0.0, 0.0, 0)


def test_the_last_of_several_open_calls_is_told_apart() -> None:
    runs = some_runs()
    steps = [a_step(number, "map") for number in range(3)]
    run, _ = runs.enter(steps[0], None, 0.0)
    assert (run.view().siblings, run.view().last) == (0, False)
    for step in steps[1:]:
        runs.enter(step, None, 0.0)
    assert (run.view().siblings, run.view().last) == (2, False)
    runs.leave(steps[0], "ok", 0.0)
    assert (run.view().siblings, run.view().last) == (1, False)
    runs.leave(steps[1], "ok", 0.0)
    assert (run.view().siblings, run.view().last) == (0, True)
    runs.leave(steps[2], "ok", 0.0)
    runs.enter(a_step(7, "reduce"), None, 0.0)
    assert (run.view().siblings, run.view().last) == (0, False)


def test_entries_are_counted_over_all_runs_of_a_workflow_and_bounded() -> None:
    runs = some_runs(limit=10_000)
    for number in range(4):
        run = through(runs, a_step(number, run=f"r{number}"))
    assert run.view().entered == {"generate": 4}
    for number in range(2 * STAGES):
        run = through(runs, a_step(number, f"s{number}", run=f"q{number}"))
    assert len(run.view().entered) == STAGES + 1
    for number in range(WORKFLOWS):
        through(runs, a_step(number, workflow=f"w{number}"))
    assert through(runs, a_step(1, run="late")).view().entered == {"generate": 1}


def test_how_long_runs_last_is_said_once_enough_have_ended() -> None:
    runs = some_runs()

    def lasting(number: int, seconds: float) -> Run:
        call = a_step(number, run=f"r{number}", final=True)
        run, _ = runs.enter(call, GRAPH, 0.0)
        runs.leave(call, "ok", seconds)
        return run

    for number in range(ENDED_LEAST):
        run = lasting(number, float(number + 1))
        assert (run.view().p95 is None) == (number + 1 < ENDED_LEAST)
    assert run.view().p95 == pytest.approx(19.0, rel=0.06)
    for number in range(4 * ENDED_MOST):
        run = lasting(number, 100.0)
    assert run.view().p95 == pytest.approx(100.0, rel=0.06)


# --- transitions ----------------------------------------------------------------------------------------------


class Course:
    """Runs whose transitions are noted, as `stage visit > following visit`, with `+` for one beside another."""

    def __init__(self, graph: Workflow | None = GRAPH, **given: Any) -> None:
        self.seen: list[Transition] = []
        self.runs = Runs(**{"limit": 100, "idle": 60.0} | given, learn=self.seen.append)
        self._graph = graph
        self._number = 0

    def enter(self, stage: str, now: float = 0.0, **given: Any) -> Call:
        self._number += 1
        call = a_step(self._number, stage, **given)
        self.runs.enter(call, self._graph, now)
        return call

    def passes(self, *stages: str) -> None:
        for stage in stages:
            self.runs.leave(self.enter(stage), "ok", 0.0)

    def ends(self, call: Call, fate: Fate | None = "ok", **given: Any) -> None:
        self.runs.leave(call, fate, 0.0, **given)

    def told(self) -> list[str]:
        return [
            f"{one.stage} {one.visit} > {one.following} {one.next_visit}".replace(f"{OVER} 0", "over")
            + "+" * one.beside
            for one in self.seen
        ]


def test_each_step_of_a_run_is_told_and_its_declared_end() -> None:
    course = Course()
    course.passes("generate", "execute", "fix", "execute")
    course.ends(course.enter("verify", final=True))
    assert course.told() == [
        "start 1 > generate 1",
        "generate 1 > execute 1",
        "execute 1 > fix 1",
        "fix 1 > execute 2",
        "execute 2 > verify 1",
        "verify 1 > over",
    ]
    assert (course.seen[-1].fate, course.seen[-1].width) == ("ok", 1)


def test_a_run_that_is_left_idle_has_ended_but_nobody_knows_how() -> None:
    course = Course(idle=10.0)
    course.passes("generate")
    course.ends(course.enter("generate", 11.0, run="other"))
    assert course.told() == ["start 1 > generate 1", "start 1 > generate 1", "generate 1 > over"]
    assert course.seen[-1].fate is None


def test_a_run_that_its_graph_says_is_over_has_ended_there() -> None:
    course = Course()
    course.passes("generate")
    course.ends(course.enter("verify"), over=True)
    assert course.told()[-1] == "verify 1 > over"


def test_calls_of_one_stage_that_are_open_together_are_one_round_of_their_width() -> None:
    course = Course(None)
    siblings = [course.enter("map") for _ in range(3)]
    for call in siblings[:2]:
        course.ends(call)
    siblings.append(course.enter("map"))
    for call in siblings[2:]:
        course.ends(call, "error")
    course.passes("reduce")
    assert course.told() == ["start 1 > map 1", "map 1 > reduce 1"]
    assert (course.seen[-1].width, course.seen[-1].fate) == (3, "error")


def test_the_visit_of_calls_that_are_open_together_is_the_same() -> None:
    runs = some_runs()
    assert [runs.enter(a_step(number, "map"), None, 0.0)[1] for number in range(3)] == [1, 1, 1]
    for number in range(3):
        runs.leave(a_step(number, "map"), "ok", 0.0)
    assert runs.enter(a_step(3, "map"), None, 0.0)[1] == 2


def test_branches_begin_beside_each_other_and_join() -> None:
    course = Course(None)
    course.passes("plan")
    left, right = course.enter("left"), course.enter("right")
    course.ends(left)
    course.ends(right)
    course.passes("join")
    assert course.told()[1:] == ["plan 1 > left 1", "plan 1 > right 1+", "left 1 > join 1", "right 1 > join 1"]


def test_inside_a_branch_the_graph_says_what_has_followed_what() -> None:
    names = ("plan", "left", "deeper", "right", "join")
    edges = (
        Edge(source="plan", target="left"),
        Edge(source="plan", target="right", parallel=True),
        Edge(source="left", target="deeper"),
        Edge(source="deeper", target="join"),
        Edge(source="right", target="join"),
    )
    stages = {name: Stage(name=name, kind="llm") for name in names}
    course = Course(Workflow(name="nl2sql", stages=stages, edges=edges))
    course.passes("plan")
    left, right = course.enter("left"), course.enter("right")
    course.ends(left)
    course.passes("deeper")
    course.ends(right)
    course.passes("join")
    assert course.told()[1:] == [
        "plan 1 > left 1",
        "plan 1 > right 1+",
        "left 1 > deeper 1",
        "deeper 1 > join 1",
        "right 1 > join 1",
    ]


def test_a_tool_out_of_sight_is_a_step_of_its_own() -> None:
    course = Course()
    course.passes("generate", "fix", "verify")
    assert course.told() == [
        "start 1 > generate 1",
        "generate 1 > execute 1",
        "execute 1 > fix 1",
        "fix 1 > execute 2",
        "execute 2 > verify 1",
    ]
    assert [one.fate for one in course.seen] == [None, "ok", "error", "ok", "ok"]


def test_a_run_that_jumps_to_a_stage_that_the_graph_lacks_is_followed_there() -> None:
    course = Course()
    course.passes("generate", "somewhere else")
    assert course.told()[-1] == "generate 1 > somewhere else 1"


def test_a_step_is_told_once_however_often_a_refused_call_comes_again() -> None:
    course = Course()
    course.passes("generate")
    for _ in range(3):
        course.ends(course.enter("execute"), None)
    course.passes("execute", "verify")
    assert course.told() == ["start 1 > generate 1", "generate 1 > execute 1", "execute 1 > verify 1"]


def test_a_round_of_which_one_call_was_refused_has_taken_place() -> None:
    course = Course(None)
    one, other = course.enter("map"), course.enter("map")
    course.ends(one)
    course.ends(other, None)
    course.passes("reduce")
    assert course.told() == ["start 1 > map 1", "map 1 > reduce 1"]


# --- bounds ---------------------------------------------------------------------------------------------------


def test_run_ids_without_end_cost_neither_memory_nor_time() -> None:
    runs = some_runs(limit=1000)
    for number in range(60_000):
        call = a_call("c", run=str(number), workflow="nl2sql", stage="generate")
        runs.enter(call, GRAPH, 0.0)
        if number % 2:
            runs.leave(call, "ok", 0.0)
        else:
            runs.leave(call, "error", 0.0, over=True)
        assert len(runs) <= 1000


def test_open_runs_beyond_the_limit_are_kept_and_forgotten_once_they_are_not() -> None:
    runs = some_runs(limit=10)
    for number in range(500):
        runs.enter(a_step(number, run=f"r{number}"), GRAPH, 0.0)
    assert len(runs) == 500
    for number in range(500):
        runs.leave(a_step(number, run=f"r{number}"), "ok", 0.0)
    for number in range(100):
        through(runs, a_step(number, run=f"late {number}"))
    assert len(runs) <= 10


def test_a_clock_that_stands_still_and_a_deadline_in_the_past_change_nothing() -> None:
    runs = some_runs()
    for number in range(50):
        run = through(runs, a_step(number, arrived=100.0, budget=-5.0), now=100.0)
    assert (run.deadline, run.calls, len(runs)) == (95.0, 50, 1)
