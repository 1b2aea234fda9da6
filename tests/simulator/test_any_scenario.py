"""Whatever clients do and engines suffer: every call comes to one end, and the same comes of the same."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.events import Action, Arrived, Event, Finished, Left, Refused
from simulator.driver import simulate
from simulator.workload import CallPlan, RunPlan
from simulator.world import Fault
from tests.simulator.making import a_prompt, a_run, a_scenario, a_setup, a_statement

ROOT = Path(__file__).parents[2]
PRINTED = """
from policies.catalog import PolicySet
from simulator.driver import simulate
from simulator.workloads.mixed import mixed
result = simulate(mixed(runs=25, rate=1.0, seed=1).shared().scenario(PolicySet()))
print(result.runs, result.stages, result.total, result.events)
"""

calls: st.SearchStrategy[CallPlan] = st.one_of(
    st.builds(a_statement, st.floats(0.0, 5.0)),
    st.builds(a_prompt, st.integers(1, 4), st.integers(1, 1050), output=st.integers(1, 60)),
)
faults = st.builds(
    Fault, engine=st.sampled_from(["db/0", "db/1", "llm/0", "llm/1"]), at=st.floats(0, 30), kind=st.just("dies")
)


@st.composite
def runs(draw: st.DrawFn) -> list[RunPlan]:
    number = draw(st.integers(1, 8))
    return [
        a_run(
            str(index),
            draw(st.floats(0, 20)),
            *draw(st.lists(st.lists(calls, min_size=1, max_size=3), min_size=1, max_size=3)),
            patience=draw(st.none() | st.floats(0, 15)),
        )
        for index in range(number)
    ]


@pytest.mark.untraced
@settings(max_examples=60)
@given(plans=runs(), trouble=st.lists(faults, max_size=3), retries=st.integers(0, 1))
def test_every_call_comes_to_one_end(plans: list[RunPlan], trouble: list[Fault], retries: int) -> None:
    arrived, ends = list[str](), Counter[str]()

    def note(event: Event, actions: list[Action], now: float) -> None:
        if isinstance(event, Arrived):
            arrived.append(event.call.id)
        if isinstance(event, Finished | Left):
            ends[event.call] += 1
        ends.update(action.call for action in actions if isinstance(action, Refused))

    setup = a_setup(plans, workers=2, startup=3.0)
    result = simulate(a_scenario(setup, faults=tuple(trouble), retries=retries, overtime=500.0), note)
    assert ends == Counter(arrived)
    assert len(result.runs) == len(plans)
    given_up = {run.id for run in plans if run.patience is not None}
    assert all(run.ended is not None for run in result.runs if run.id not in given_up and not result.refusals)


@pytest.mark.untraced
def test_a_result_does_not_hang_on_how_a_process_hashes_text() -> None:
    printed = {
        subprocess.run(
            [sys.executable, "-c", PRINTED],
            env=os.environ | {"PYTHONHASHSEED": seed},
            cwd=ROOT,
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1
    assert "RunRecord" in printed.pop()
