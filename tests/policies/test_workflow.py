"""The call graph against chains worked out by hand."""

from __future__ import annotations

import pytest

from policies.calls import Fate
from policies.workflow import MAX_HOPS, Edge, Stage, Workflow
from tests.policies.making import nl2sql

SECONDS = {"generate": 2.0, "execute": 0.5, "verify": 1.0, "fix": 3.0}


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
        Edge(source="a", target="b", chance=0.4), Edge(source="a", target="c"), Edge(source="a", target="d")
    )
    means = {"a": 0.0, "b": 10.0, "c": 100.0, "d": 1000.0}
    assert workflow.remaining(means.__getitem__)[-1]["a"] == pytest.approx(4.0 + 30.0 + 300.0)


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


def test_what_remains_on_a_line_is_the_sum_of_what_follows() -> None:
    workflow = graph(Edge(source="start", target="a"), Edge(source="a", target="b"), Edge(source="b", target="c"))
    means = {"a": 1.0, "b": 2.0, "c": 4.0}
    assert workflow.remaining(means.__getitem__)[-1] == {"a": 6.0, "b": 4.0, "c": 0.0}


def test_what_remains_in_a_loop_is_that_of_the_absorbing_chain() -> None:
    # execute: E = 0.7 (1 + V) + 0.3 (3 + F); verify: V = 0.1 (3 + F); fix: F = 0.5 + E. Solved by hand:
    # E = 0.7 + 0.07 (3 + F) + 0.3 (3 + F) = 1.81 + 0.37 F, F = 0.5 + 1.81 + 0.37 F, so F = 2.31 / 0.63.
    fix = 2.31 / 0.63
    plain = nl2sql()
    stages = {name: Stage(name=name, kind=stage.kind, visits=30) for name, stage in plain.stages.items()}
    workflow = Workflow(name="long", stages=stages, edges=plain.edges)
    last = workflow.remaining(SECONDS.__getitem__)[-1]
    assert last["fix"] == pytest.approx(fix)
    assert last["execute"] == pytest.approx(fix - 0.5)
    assert last["verify"] == pytest.approx(0.1 * (3.0 + fix))
    assert last["generate"] == pytest.approx(fix)
    assert last["answer"] == 0.0


def test_each_further_hop_adds_one_step_of_the_chain() -> None:
    table = nl2sql().remaining(SECONDS.__getitem__)
    assert table[0] == dict.fromkeys(nl2sql().stages, 0.0)
    assert table[1]["execute"] == pytest.approx(0.7 * 1.0 + 0.3 * 3.0)
    assert table[2]["execute"] == pytest.approx(0.7 * (1.0 + 0.1 * 3.0) + 0.3 * (3.0 + 0.5))


def test_a_path_is_no_longer_than_its_loop_bounds_allow() -> None:
    assert len(nl2sql().remaining(SECONDS.__getitem__)) == 1 + 11
    endless = graph(Edge(source="a", target="a"), visits=1000)
    table = endless.remaining(lambda stage: 1.0)
    assert len(table) == 1 + MAX_HOPS
    assert table[-1]["a"] == MAX_HOPS


def test_an_edge_to_a_stage_that_is_not_described_costs_nothing() -> None:
    workflow = Workflow(
        name="w", stages={"a": Stage(name="a", kind="llm")}, edges=(Edge(source="a", target="elsewhere"),)
    )
    assert workflow.remaining(lambda stage: 1.0)[-1] == {"a": 0.0}
    assert workflow.ends("a") == 1.0
