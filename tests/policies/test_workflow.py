"""The call graph: what follows a stage, with which chance, and where branches join."""

from __future__ import annotations

import pytest

from policies.calls import Fate
from policies.workflow import Edge, Stage, Workflow
from tests.policies.making import nl2sql


def graph(*edges: Edge, visits: int = 40) -> Workflow:
    names = {edge.target for edge in edges} | {edge.source for edge in edges} - {"start"}
    return Workflow(
        name="w",
        edges=edges,
        stages={name: Stage(name=name, kind="llm", visits=visits) for name in sorted(names)},
    )


@pytest.mark.parametrize(
    ("stage", "fate", "following"),
    [
        ("start", "ok", "generate"),
        ("generate", "ok", "execute"),
        ("generate", "timeout", "execute"),
        ("execute", "ok", "verify"),
        ("execute", "empty", "fix"),
        ("execute", "timeout", None),
        ("verify", "ok", "answer"),
        ("answer", "ok", None),
        ("unheard of", "ok", None),
    ],
)
def test_the_outcome_selects_the_next_stage(stage: str, fate: Fate, following: str | None) -> None:
    assert nl2sql().following(stage, fate) == following


def test_an_edge_that_names_the_outcome_goes_before_one_that_takes_any() -> None:
    workflow = graph(Edge(source="a", target="any"), Edge(source="a", target="b", on=frozenset({"error"})))
    assert workflow.following("a", "error") == "b"
    assert workflow.following("a", "ok") == "any"


def test_a_run_begins_where_the_start_points_to() -> None:
    assert nl2sql().first() == "generate"
    assert Workflow(name="empty").first() is None


def test_the_chance_that_a_run_ends_counts_a_rendering_stage_as_the_end() -> None:
    workflow = nl2sql()
    assert workflow.ends("generate") == 0.0
    assert workflow.ends("verify") == pytest.approx(0.9)
    assert workflow.ends("answer") == 1.0


def test_edges_without_a_chance_share_what_the_others_leave() -> None:
    workflow = graph(
        Edge(source="a", target="b", chance=0.4),
        Edge(source="a", target="c"),
        Edge(source="a", target="d"),
        Edge(source="a", target="e", parallel=True),
        Edge(source="a", target="f", parallel=True, chance=0.2),
    )
    assert workflow.ways("a") == [("b", 0.4), ("c", pytest.approx(0.3)), ("d", pytest.approx(0.3))]
    assert workflow.beside("a") == [("e", 1.0), ("f", 0.2)]
    assert workflow.ways("unheard of") == workflow.beside("unheard of") == []


def test_a_run_goes_on_while_one_of_its_branches_does() -> None:
    ending = graph(Edge(source="a", target="b", chance=0.5), Edge(source="a", target="c", parallel=True, chance=0.5))
    assert ending.ends("a") == 0.25


def test_branches_that_began_together_join_where_both_lead() -> None:
    workflow = graph(
        Edge(source="start", target="plan"),
        Edge(source="plan", target="left"),
        Edge(source="plan", target="right", parallel=True),
        Edge(source="left", target="deeper"),
        Edge(source="deeper", target="join"),
        Edge(source="right", target="join"),
        Edge(source="join", target="plan"),
    )
    assert workflow.joins == {"join"}
    assert nl2sql().joins == frozenset()


def test_stages_are_ordered_by_how_few_edges_lead_to_them() -> None:
    assert nl2sql().order == ("generate", "execute", "verify", "fix", "answer")
    assert graph(Edge(source="far", target="alone")).order == ("alone", "far")


def test_an_edge_is_found_by_its_ends() -> None:
    edge = nl2sql().edge("verify", "fix")
    assert edge is not None
    assert edge.chance == 0.1
    assert nl2sql().edge("fix", "verify") is None


@pytest.mark.parametrize(
    ("position", "arrived", "told"),
    [
        ("generate", "verify", ("execute", "ok")),
        ("generate", "fix", ("execute", "error")),
        ("fix", "fix", ("execute", "error")),
        ("verify", "fix", None),
        ("generate", "generate", None),
        ("unheard of", "fix", None),
    ],
)
def test_the_stage_that_comes_next_tells_how_the_tool_between_ended(
    position: str, arrived: str, told: tuple[str, Fate] | None
) -> None:
    assert nl2sql().inferred(position, arrived) == told


def test_an_edge_to_a_stage_that_is_not_described_ends_the_run() -> None:
    workflow = Workflow(
        name="w", stages={"a": Stage(name="a", kind="llm")}, edges=(Edge(source="a", target="elsewhere"),)
    )
    assert workflow.ends("a") == 1.0


@pytest.mark.parametrize(
    ("stage", "verdict", "over"),
    [
        ("verify", None, False),
        ("verify", "ok", True),  # a rendered answer is all that follows
        ("verify", "error", False),
        ("execute", "timeout", True),
        ("execute", "error", False),
        ("answer", None, True),
        ("unheard of", "ok", False),
    ],
)
def test_a_verdict_says_whether_the_run_is_over(stage: str, verdict: Fate | None, over: bool) -> None:
    assert nl2sql().ends_for_sure(stage, verdict) is over


def test_beside_a_parallel_branch_no_verdict_ends_a_run() -> None:
    workflow = graph(
        Edge(source="a", target="b", on=frozenset({"error"})), Edge(source="a", target="c", parallel=True)
    )
    assert not workflow.ends_for_sure("a", "ok")
