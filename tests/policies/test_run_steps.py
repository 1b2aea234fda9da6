"""Which steps a run is said to have taken: one after another, side by side, out of sight, to its end."""

from __future__ import annotations

from typing import Any

from policies.calls import Call, Fate
from policies.runs import Runs
from policies.transitions import OVER, Transition
from policies.workflow import Edge, Stage, Workflow
from tests.policies.making import a_step, nl2sql

GRAPH = nl2sql()


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
    runs = Runs(limit=100, idle=60.0)
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
