"""Runs and stages are found again out of runs that are laid over one another, with all that names them taken away."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from random import Random

import pytest

from bench import inference
from bench.inference_agents import AGENTS, Agent, flows
from bench.inference_examples import flow, recordings
from bench.inference_overlay import Asked, Flow, least_in_flight, linked, score
from bench.inference_traces import TRACES
from bench.inference_traces import flows as sessions

FLIGHT = 12


def assert_found(runs: Sequence[Flow], f1: float, purity: float, seed: int = 1) -> None:
    assert least_in_flight(runs, FLIGHT, seed) >= 10
    found = score(linked(runs, FLIGHT, seed))
    assert found.f1 >= f1, found
    assert found.purity >= purity, found
    assert found.stages <= 3 * found.stages_true, found


@pytest.mark.untraced
@pytest.mark.parametrize("agent", AGENTS, ids=lambda agent: agent.__name__)
def test_the_runs_of_one_kind_of_agent_are_told_apart(agent: Agent) -> None:
    assert_found(flows(24, 3, [agent]), 0.98, 0.95)


@pytest.mark.untraced
def test_the_runs_of_many_kinds_of_agents_are_told_apart() -> None:
    assert_found(flows(90, 5), 0.98, 0.95)


@pytest.mark.untraced
@pytest.mark.parametrize("split", [True, False])
def test_the_sessions_of_a_coding_agent_are_told_apart_though_each_runs_several_times(split: bool) -> None:
    folder = TRACES / "miniswe"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    drawn = Random(2).choices(sessions(folder, split=split), k=30)
    found = score(linked(drawn, FLIGHT, 2, 0.0))
    assert found.f1 >= 0.95, found
    assert found.purity == 1.0


@pytest.mark.untraced
def test_the_runs_of_the_examples_of_ten_frameworks_are_told_apart() -> None:
    rng = Random(4)
    examples = {name: [flow(lines, rng) for lines in runs[:16]] for name, runs in recordings().items()}
    assert len(examples) == 10
    for runs in examples.values():
        assert_found(runs, 0.98, 0.95)
    mixed = [run for runs in examples.values() for run in runs[:6]]
    found = score(linked(rng.sample(mixed, len(mixed)), FLIGHT))
    assert found.f1 >= 0.98, found
    assert found.purity >= 0.95, found


def test_a_score_counts_pairs() -> None:
    def call(run: int, stage: str, found: str, placed: str) -> Asked:
        return Asked(run, stage, found, placed, "new", 0.0, 0)

    found = score([call(1, "a", "x", "s"), call(1, "b", "x", "s"), call(1, "b", "y", "s"), call(2, "b", "y", "t")])
    assert (found.precision, found.recall, found.f1) == (1 / 2, 1 / 3, 2 / 5)
    assert (found.purity, found.stages_true, found.stages) == (3 / 4, 2, 2)
    assert (found.runs_true, found.runs) == (2, 2)
    assert score([call(1, "a", "x", "s")]).f1 == 1.0


@pytest.mark.untraced
def test_the_benchmark_prints_a_line_for_each_source(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["inference", "--runs", "4", "--traces", "nowhere"])
    assert inference.main() in (0, 1)
    printed = capsys.readouterr()
    assert all(agent.__name__ in printed.out + printed.err for agent in AGENTS)
