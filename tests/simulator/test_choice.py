from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from simulator.choice import RATES, Choice
from simulator.setup import A100
from simulator.workload import RunPlan

FAST = replace(
    A100,
    fixed=A100.fixed / 2,
    prefill_token=A100.prefill_token / 2,
    decode_sequence=A100.decode_sequence / 2,
    context_token=A100.context_token / 2,
)


def a_recording(folder: Path, name: str = "one.json") -> Path:
    """A session of two turns, the second of which repeats the blocks of the first."""
    turns = [{"hash_ids": [1, 2, 3], "out": 5}, {"hash_ids": [1, 2, 3, 4], "out": 7, "think_time": 2.0}]
    path = folder / name
    path.write_text(json.dumps({"tool_tokens": 64, "system_tokens": 0, "requests": turns}))
    return path


@pytest.mark.parametrize("workload", RATES)
def test_every_workload_has_the_runs_that_were_asked_for(workload: str) -> None:
    setup = Choice(workload=workload, runs=10)(RATES[workload][0], 1)
    assert len(setup.workload.runs) == 10
    assert setup.workload.name == workload


def test_sessions_are_read_from_a_folder(tmp_path: Path) -> None:
    a_recording(tmp_path)
    choice = Choice(workload="coding", runs=3, sessions=tmp_path)
    assert [len(run.rounds) for run in choice(1.0, 1).workload.runs] == [2, 2, 2]
    assert choice.title == "coding, recorded sessions"


def test_repairs_make_runs_longer() -> None:
    few, many = (Choice(workload="nl2sql", runs=40, repairs=repairs) for repairs in (0.2, 3.0))
    assert many(1.0, 1).workload.calls > 1.3 * few(1.0, 1).workload.calls
    assert (few.title, many.title) == ("nl2sql, 0.2 repairs", "nl2sql, 3 repairs")


def pauses(run: RunPlan) -> float:
    return sum(round.pause for round in run.rounds)


@pytest.mark.parametrize("workload", ["fanout", "coding"])
def test_on_engines_twice_as_fast_deadlines_are_half_as_long_and_pauses_as_they_were(workload: str) -> None:
    choice = Choice(workload=workload, runs=12)
    usual, fast = choice(0.1, 1), replace(choice, step_time=FAST)(0.1, 1)
    for was, run in zip(usual.workload.runs, fast.workload.runs, strict=True):
        assert run.rounds == was.rounds
        assert run.budget - pauses(run) == pytest.approx((was.budget - pauses(was)) / 2)
    assert all(spec.config is not None and spec.config.step_time == FAST for spec in fast.engines.values())
    before, after = usual.workflows[workload].deadline, fast.workflows[workload].deadline
    assert after == (None if before is None else pytest.approx(before / 2))


def test_statements_take_as_long_beside_engines_of_any_speed() -> None:
    choice = Choice(workload="nl2sql", runs=12)
    usual, fast = choice(1.0, 1), replace(choice, step_time=FAST)(1.0, 1)
    assert fast.engines["warehouse"] == usual.engines["warehouse"]
    ratios = {run.budget / was.budget for was, run in zip(usual.workload.runs, fast.workload.runs, strict=True)}
    assert all(0.5 < ratio < 0.6 for ratio in ratios)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"workload": "sql"}, r"no workload named 'sql' \(there are nl2sql, coding, fanout, mixed\)"),
        ({"runs": 0}, "runs: there must be at least one, not 0"),
        ({"repairs": 10.0}, "repairs: must lie between 0 and 10, not at 10"),
        ({"repairs": float("nan")}, "repairs: must lie between 0 and 10"),
        ({"workload": "mixed", "repairs": 1.0}, "repairs: only nl2sql has them, not mixed"),
        ({"sessions": Path()}, "sessions: only coding has them, not nl2sql"),
        ({"workload": "coding", "sessions": Path("/no/such")}, "sessions: there is no directory /no/such"),
    ],
)
def test_what_cannot_be_is_one_line(given: dict[str, object], told: str) -> None:
    usual: dict[str, object] = {"workload": "nl2sql", "runs": 5}
    with pytest.raises(ValueError, match=told):
        Choice(**usual | given)  # type: ignore[arg-type]
