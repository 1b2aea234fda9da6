from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median, stdev

import pytest

from policies.catalog import PolicySet
from policies.workflow import START
from simulator.setup import Setup
from simulator.workload import RunPlan, bursty, poisson
from simulator.workloads.coding import coding, coding_like, recording
from simulator.workloads.fanout import fanout
from simulator.workloads.mixed import SHARES, mixed
from simulator.workloads.nl2sql import SHAPES, nl2sql

SESSIONS = Path(__file__).parents[3] / "shared" / "data" / "coding_sessions"
with_sessions = pytest.mark.skipif(not SESSIONS.is_dir(), reason=f"the public coding sessions are not in {SESSIONS}")
WORKLOADS: dict[str, Callable[..., Setup]] = {
    "nl2sql": nl2sql,
    "coding_like": coding_like,
    "fanout": fanout,
    "mixed": mixed,
}


def stages_of(run: RunPlan) -> list[str]:
    """The stages of a run, round by round; all calls of a round are of one."""
    named = [{call.stage for call in round.calls} for round in run.rounds]
    assert all(len(names) == 1 for names in named)
    return [names.pop() for names in named]


@pytest.mark.untraced
@pytest.mark.parametrize("name", WORKLOADS)
def test_a_seed_draws_the_same_runs_at_any_rate(name: str) -> None:
    made = WORKLOADS[name]
    slow, fast, other = (made(runs=30, rate=rate, seed=seed) for rate, seed in ((0.5, 1), (1.0, 1), (1.0, 2)))
    assert made(runs=30, rate=0.5, seed=1) == slow
    drawn = [{run.id: run.rounds for run in setup.workload.runs} for setup in (slow, fast, other)]
    assert drawn[0] == drawn[1]
    assert drawn[1] != drawn[2]
    assert {run.id: run.budget for run in slow.workload.runs} == {run.id: run.budget for run in fast.workload.runs}
    assert slow.workload.runs[-1].at > fast.workload.runs[-1].at


@pytest.mark.parametrize("name", WORKLOADS)
def test_runs_keep_to_their_graph_and_their_pools(name: str) -> None:
    setup = WORKLOADS[name](runs=60, rate=1.0, seed=3)
    assert [run.at for run in setup.workload.runs] == sorted(run.at for run in setup.workload.runs)
    for run in setup.workload.runs:
        graph = setup.workflows[run.workflow]
        allowed = {(edge.source, edge.target) for edge in graph.edges}
        assert {*pairwise([START, *stages_of(run)])} <= allowed
        entered = Counter(call.stage for call in run.calls)
        for call in run.calls:
            stage = graph.stages[call.stage]
            assert (stage.pool, stage.kind) == (call.pool, call.kind) == (call.pool, setup.pools[call.pool].kind)
            assert entered[call.stage] <= stage.visits
        assert run.budget > 0
    setup.scenario(PolicySet())  # would raise where the pools do not fit the runs


@pytest.mark.parametrize("name", ["nl2sql", "fanout"])
def test_the_graphs_chances_are_those_of_the_runs(name: str) -> None:
    setup = WORKLOADS[name](runs=800, rate=1.0, seed=4)
    (graph,) = setup.workflows.values()
    went = Counter(pair for run in setup.workload.runs for pair in pairwise([*stages_of(run), ""]))
    left: Counter[str] = Counter()
    for (source, _), times in went.items():
        left[source] += times
    for edge in graph.edges:
        if edge.chance is not None:
            assert went[edge.source, edge.target] / left[edge.source] == pytest.approx(edge.chance, abs=0.05)


def test_questions_have_the_shapes_that_were_measured() -> None:
    setup = nl2sql(runs=800, rate=1.0, seed=5)
    calls = [call for run in setup.workload.runs for call in run.calls]
    for stage, shape in SHAPES.items():
        those = [call for call in calls if call.stage == stage]
        assert fmean(call.output for call in those) == pytest.approx(shape.output, rel=0.1, abs=1)
        assert fmean(call.prompt for call in those) == pytest.approx(shape.prompt, rel=0.12)
    models = sum(call.kind == "llm" for call in calls) / len(setup.workload.runs)
    assert models == pytest.approx(15.9, rel=0.25)
    unrevised = sum("revise" not in stages_of(run) for run in setup.workload.runs) / len(setup.workload.runs)
    assert unrevised == pytest.approx(0.73, abs=0.03)


def test_what_fails_is_revised_and_the_revision_repeats_it() -> None:
    for run in nl2sql(runs=80, rate=1.0, seed=6, repairs=2.0).workload.runs:
        answered = {call.answer: call.output for call in run.calls}
        for before, after in pairwise(run.rounds):
            failed = sum(call.fate != "ok" for call in before.calls)
            if before.calls[0].stage == "execute":
                assert (after.calls[0].stage == "revise") == (failed > 0)
            if after.calls[0].stage == "revise":
                assert len(after.calls) == failed
                given = [call.segments[-1] for call in after.calls]
                assert all(answered[name] == tokens for name, tokens in given)


@pytest.mark.parametrize("repairs", [0.5, 3.0])
def test_repairs_come_as_often_as_asked_for(repairs: float) -> None:
    runs = nl2sql(runs=800, rate=1.0, seed=7, repairs=repairs).workload.runs
    rounds = [stages_of(run).count("revise") for run in runs]
    assert fmean(rounds) == pytest.approx(repairs, abs=4 * stdev(rounds) / len(rounds) ** 0.5)


def test_more_repairs_than_a_run_makes_are_refused() -> None:
    with pytest.raises(ValueError, match="repairs must lie between"):
        nl2sql(runs=1, rate=1.0, seed=1, repairs=10.0)


def test_deadlines_come_in_classes() -> None:
    single = nl2sql(runs=1, rate=1.0, seed=8).workload.runs[0].budget / 2.5
    runs = nl2sql(runs=400, rate=1.0, seed=8, deadlines=((0.5, 1.8), (0.5, 5.0))).workload.runs
    counts = Counter(round(run.budget / single, 6) for run in runs)
    assert counts.keys() == {1.8, 5.0}
    assert counts[1.8] == pytest.approx(200, abs=40)


def test_workers_stand_side_by_side_on_one_document_and_all_are_reduced() -> None:
    for run in fanout(runs=60, rate=1.0, seed=9).workload.runs:
        for before, after in pairwise(run.rounds):
            if before.calls[0].stage == "work":
                assert 3 <= len(before.calls) <= 8
                assert len({call.segments[:3] for call in before.calls}) == 1
                said = [(call.answer, call.output) for call in before.calls]
                assert list(after.calls[0].segments[2:]) == said


def test_sessions_like_the_recorded_ones_grow_as_those_do() -> None:
    runs = coding_like(runs=150, rate=1.0, seed=10, scale=1.0, calls=10_000, longest_pause=1e9).workload.runs
    calls = [len(run.rounds) for run in runs]
    assert median(calls) == pytest.approx(45, rel=0.2)
    turns = [round.calls[0] for run in runs for round in run.rounds]
    assert median(call.prompt for call in turns) == pytest.approx(104_644, rel=0.2)
    assert median(call.output for call in turns) == pytest.approx(216, rel=0.1)
    assert median(round.pause for run in runs for round in run.rounds[1:]) == pytest.approx(10, rel=0.15)
    assert max(call.prompt for call in turns) <= 160_000 + 15_210


def test_shorter_forms_of_sessions_keep_to_their_bounds() -> None:
    runs = coding_like(runs=50, rate=1.0, seed=10, calls=5, longest_pause=3.0).workload.runs
    assert max(len(run.rounds) for run in runs) == 5
    assert max(round.pause for run in runs for round in run.rounds) == 3.0


def test_a_recording_is_read_as_stretches_of_equal_text(tmp_path: Path) -> None:
    def request(*blocks: int, out: int = 7, pause: float = 0.0) -> dict[str, object]:
        return {"hash_ids": list(blocks), "in": 64 * len(blocks), "out": out, "think_time": pause}

    helper = {"tool_tokens": 64, "system_tokens": 0, "requests": [request(9, 10)]}
    requests = [request(1, 2, 3), request(1, 2, 3, 4, pause=2.5), helper, request(1, 2, 7, 8, out=0)]
    session = {"tool_tokens": 100, "system_tokens": 30, "requests": requests}
    (tmp_path / "one.json").write_text(json.dumps(session))
    turns = recording(tmp_path / "one.json", scale=0.5)
    assert [turn.runs for turn in turns] == [((1, 96),), ((1, 128),), ((9, 64),), ((1, 64), (7, 64))]
    assert [turn.system for turn in turns] == [64, 64, 32, 64]
    assert [(turn.output, turn.pause) for turn in turns] == [(7, 0.0), (7, 2.5), (7, 0.0), (1, 0.0)]
    (run,) = coding(tmp_path, runs=1, rate=1.0, seed=1, scale=0.5).workload.runs
    first, second, _, last = [round.calls[0].segments for round in run.rounds]
    assert first[0] == second[0] == last[0]
    assert first[1][0] == second[1][0]
    assert [tokens for _, tokens in last] == [64, 64]


def test_a_folder_without_recordings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no recordings"):
        coding(tmp_path, runs=1, rate=1.0, seed=1)


@with_sessions
def test_recorded_sessions_are_read_whole() -> None:
    sizes = [len(recording(path)) for path in sorted(SESSIONS.glob("*.json"))]
    assert len(sizes) == 24
    assert sum(sizes) == 872 - 2 + 5 + 7  # two of the entries are sub-agents with calls of their own
    data = json.loads((SESSIONS / "trace_0006.json").read_bytes())
    turns = recording(SESSIONS / "trace_0006.json")
    for turn, request in zip(turns, data["requests"], strict=True):
        assert 0 <= request["in"] - sum(tokens for _, tokens in turn.runs) < 64
        assert turn.output == request["out"]
    runs = coding(SESSIONS, runs=5, rate=0.1, seed=1).workload.runs
    assert max(call.prompt for run in runs for call in run.calls) < 100_000  # a quarter of the longest


def test_tenants_have_their_shares_and_share_no_text() -> None:
    runs = mixed(runs=200, rate=1.0, seed=11).workload.runs
    assert Counter(run.tenant for run in runs) == {tenant: 200 * share for tenant, share in SHARES.items()}
    texts = {tenant: set[int]() for tenant in SHARES}
    for run in runs:
        texts[run.tenant] |= {name for call in run.calls for name, _ in call.segments}
    assert not texts["analysts"] & texts["developers"]
    assert not texts["analysts"] & texts["research"]


def test_bursts_keep_the_mean_and_lie_where_they_lay_at_any_rate() -> None:
    slow, fast = (bursty(40_000, rate, 12) for rate in (1.0, 2.0))
    assert 40_000 / slow[-1] == pytest.approx(1.0, rel=0.1)
    counts = Counter(int(at / 10.0) for at in slow)
    assert fmean(count**2 for count in counts.values()) > 1.5 * fmean(counts.values()) ** 2
    end = min(slow[-1], fast[-1])
    busy = Counter(int(at / 50.0) for at in slow if at < end)
    same = Counter(int(at / 50.0) for at in fast if at < end)
    assert fmean(abs(same[spell] - 2 * busy[spell]) / same[spell] for spell in same) < 0.3


def test_arrivals_at_twice_the_rate_come_in_half_the_time() -> None:
    slow, fast = poisson(5000, 1.0, 13), poisson(5000, 2.0, 13)
    assert [2 * at for at in fast] == pytest.approx(slow)
    assert 5000 / slow[-1] == pytest.approx(1.0, rel=0.05)
