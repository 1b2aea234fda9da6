"""Chances of what comes next: the graph at first, the counts in the end, bounded in number."""

from __future__ import annotations

from dataclasses import replace

import pytest

from policies.snapshot import Record
from policies.transitions import DEEP, END, HALVED, MOVES, OVER, STAGES, Counts, Transition
from policies.workflow import START, Edge, Stage, Workflow
from tests.policies.making import nl2sql

STEP = Transition(workflow="nl2sql", stage="execute", visit=1, following="fix", next_visit=1)


def counted(counts: Counts, times: int = 1, **given: object) -> Counts:
    for _ in range(times):
        counts.count(replace(STEP, **given))  # type: ignore[arg-type]
    return counts


def ends(counts: Counts, stage: str) -> float:
    return counts.ends(counts.chances((stage, 1)), counts.beside((stage, 1)))


def fan(*, ordinary: bool = True) -> Workflow:
    """Two branches after a plan, joined again."""
    names = ("plan", "search", "read", "write")
    return Workflow(
        name="fan",
        stages={name: Stage(name=name, kind="llm") for name in names},
        edges=(
            Edge(source="start", target="plan"),
            Edge(source="plan", target="search", parallel=not ordinary),
            Edge(source="plan", target="read", parallel=True, chance=0.5),
            Edge(source="search", target="write"),
            Edge(source="read", target="write"),
        ),
    )


def test_at_first_the_graph_is_believed() -> None:
    counts = Counts(nl2sql())
    assert counts.chances((START, 1)) == {("generate", 1): 1.0, END: 0.0}
    assert counts.chances(("execute", 1)) == pytest.approx({("verify", 1): 0.7, ("fix", 1): 0.3, END: 0.0})
    assert ends(counts, "verify") == pytest.approx(0.9), "what is rendered is the end"


def test_a_way_back_leads_to_the_next_round_and_deep_rounds_are_one() -> None:
    counts = Counts(nl2sql())
    assert counts.chances(("fix", 1))[("execute", 2)] == 1.0
    assert counts.chances(("fix", 2))[("execute", DEEP)] == 1.0


def test_the_loop_bound_limits_how_often_a_stage_is_expected_again() -> None:
    stages = {"a": Stage(name="a", kind="llm", visits=2)}
    twice = Workflow(name="w", stages=stages, edges=(Edge(source="start", target="a"), Edge(source="a", target="a")))
    assert Counts(twice).chances(("a", 1)) == {("a", 2): 1.0, END: 0.0}
    assert Counts(twice).chances(("a", 2)) == {("a", 3): 0.0, END: 1.0}
    more = replace(twice, stages={"a": Stage(name="a", kind="llm", visits=DEEP + 3)})
    assert Counts(more).chances(("a", DEEP))[("a", DEEP)] == 0.75  # three more in the mean


def test_counts_outweigh_the_graph_as_they_grow() -> None:
    counts = counted(Counts(nl2sql()), 4)
    assert counts.chances(("execute", 1))[("fix", 1)] == pytest.approx((4 + 4 * (4 + 1.2) / 8) / 8)
    counted(counts, 400)
    assert counts.chances(("execute", 1))[("fix", 1)] > 0.98


def test_what_one_round_shows_is_a_prior_of_the_others() -> None:
    counts = counted(Counts(nl2sql()), 40)
    assert counts.chances(("execute", 2))[("fix", 2)] == pytest.approx((40 + 1.2) / 44)


def test_stages_and_edges_that_the_graph_lacks_join_it() -> None:
    counts = counted(Counts(nl2sql()), 36, following="plan", next_visit=1)
    counted(counts, stage="plan", following=OVER, next_visit=0)
    assert counts.chances(("execute", 1))[("plan", 1)] > 0.9
    assert counts.chances(("plan", 1)) == {END: 1.0}
    assert (counts.known("plan"), counts.known("fix"), counts.known("never")) == (True, True, False)


def test_a_workflow_without_a_graph_is_learned_from_nothing() -> None:
    counts = Counts(None)
    for following in ("b", "b", "b", OVER):
        counted(counts, stage="a", following=following, next_visit=0 if following == OVER else 1)
    assert counts.chances(("a", 1)) == {("b", 1): 0.75, END: 0.25}
    assert counts.chances(("a", 2)) == {("b", 2): 0.75, END: 0.25}, "a round never seen is like the others"
    assert counts.chances(("b", 1)) == {END: 1.0}


def test_how_often_runs_end_well_is_counted_where_they_end() -> None:
    counts = Counts(nl2sql())
    assert counts.well(("verify", 1), 0.5) == 0.5
    for fate in ("ok", "ok", "ok", "error"):
        counted(counts, stage="verify", following=OVER, next_visit=0, fate=fate)
    assert counts.well(("verify", 1), 0.5) == (3 + 2) / 8
    counted(counts, stage="verify", following=OVER, next_visit=0, fate=None)
    assert counts.well(("verify", 1), 0.5) == (3 + 2) / 8, "nobody knows how a run that was left idle ended"


def test_a_parallel_edge_is_taken_besides_the_others() -> None:
    counts = Counts(fan())
    assert counts.chances(("plan", 1)) == {("search", 1): 1.0, END: 0.0}
    assert counts.beside(("plan", 1)) == [(("read", 1), 0.5)]
    assert ends(counts, "plan") == 0.0
    assert fan().joins == {"write"}


def test_of_two_stages_that_begin_together_the_graph_says_which_is_beside() -> None:
    counts = Counts(fan())
    for _ in range(12):  # the parallel one arrives first
        counted(counts, stage="plan", following="read")
        counted(counts, stage="plan", following="search", beside=True)
    assert counts.chances(("plan", 1))[("search", 1)] == pytest.approx(1.0)
    assert counts.beside(("plan", 1)) == [(("read", 1), (12 + 2) / 16)]


def test_without_a_graph_the_first_is_the_way_and_the_others_are_beside() -> None:
    counts = Counts(None)
    for other in (True, False):
        counted(counts, stage="plan", following="search")
        if other:
            counted(counts, stage="plan", following="read", beside=True)
    assert counts.chances(("plan", 1)) == {("search", 1): 1.0, END: 0.0}
    assert counts.beside(("plan", 1)) == [(("read", 1), 0.5)]


def test_where_all_edges_are_parallel_all_branches_begin() -> None:
    counts = counted(Counts(fan(ordinary=False)), stage="plan", following="search")
    assert counts.chances(("plan", 1)) == {END: 1.0}
    assert counts.beside(("plan", 1)) == [(("search", 1), 1.0), (("read", 1), 2 / 5)]
    assert ends(counts, "plan") == 0.0


def test_the_width_of_a_stage_is_learned_from_where_the_graph_puts_it() -> None:
    graph = Workflow(name="w", stages={"map": Stage(name="map", kind="llm", width=8.0)})
    counts = Counts(graph)
    assert counts.stages["map"].width == 8.0
    counted(counts, 200, stage="map", following=OVER, next_visit=0, width=2)
    assert counts.stages["map"].width == pytest.approx(2.0, abs=0.2)


def test_old_counts_fade() -> None:
    counts = counted(Counts(None), int(HALVED))
    counted(counts, int(HALVED), following="verify")
    assert counts.chances(("execute", 1))[("verify", 1)] > 0.6


def test_counts_are_bounded_in_stages_and_in_pairs() -> None:
    counts = Counts(nl2sql())
    for number in range(3 * STAGES):
        counted(counts, following=f"s{number}")
    assert len(counts.stages) == STAGES
    assert counts.meet("one too many") is None
    counted(counts, stage="one too many")
    for number in range(MOVES * 3):
        names = list(counts.stages)
        counted(
            counts,
            stage=names[number % STAGES],
            visit=1 + number // STAGES % DEEP,
            following=names[number // (STAGES * DEEP) % STAGES],
        )
    assert len(counts.dump()["moves"]) == MOVES  # type: ignore[arg-type]


def test_a_client_may_name_its_stages_as_it_likes() -> None:
    for name in (START, ""):
        counts = counted(Counts(None), 3, stage="a", following=name)
        counted(counts, stage=name, following="a")
        counted(counts, stage="b", following=name, beside=True)
        again = Counts.load(None, Record(counts.dump()))
        for stage in counts.stages:
            for one in (counts, again):
                assert sum(one.chances((stage, 1)).values()) == pytest.approx(1.0)
                assert len(one.beside((stage, 1))) <= 1


def test_an_edge_to_a_stage_that_is_not_described_ends_the_run() -> None:
    edges = (Edge(source="a", target="elsewhere"), Edge(source="a", target="nowhere", parallel=True))
    counts = Counts(Workflow(name="w", stages={"a": Stage(name="a", kind="llm")}, edges=edges))
    assert counts.chances(("a", 1)) == {END: 1.0}
    assert counts.beside(("a", 1)) == []


def test_counts_are_read_back_as_they_were() -> None:
    counts = Counts(fan())
    counted(counts, 3, stage="plan", following="search", width=2)
    counted(counts, 2, stage="plan", following="read", beside=True)
    counted(counts, stage="search", following="late", visit=2, next_visit=9)
    counted(counts, stage="late", following=OVER, next_visit=0, fate="ok", width=3)
    counts.meet("late", "some pool")
    again = Counts.load(fan(), Record(counts.dump()))
    assert again.dump() == counts.dump()
    for stage in counts.stages:
        assert again.chances((stage, 1)) == counts.chances((stage, 1))
        assert again.beside((stage, 1)) == counts.beside((stage, 1))
