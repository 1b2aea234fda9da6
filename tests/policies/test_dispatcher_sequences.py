"""Whatever happens, in whatever order: nothing is lost, nothing is done twice, and all of it can be done again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.catalog import Named, PolicySet
from policies.events import Arrived, Left, Start
from tests.policies.layouts import BUDGETS, GATES, LAYOUTS, ORDERS, Setting, lived_under
from tests.policies.making import a_call, a_desk, a_pool
from tests.policies.sequences import Op, a_dispatcher, digest, lived, replayed, some_ops

ROOT = Path(__file__).parents[2]

any_life = st.lists(st.tuples(st.integers(0, 41), st.integers(0, 2**16)), min_size=40, max_size=150)
moderately = settings(max_examples=60)


@pytest.mark.untraced
@moderately
@given(any_life)
def test_no_order_of_events_loses_or_doubles_anything(ops: list[Op]) -> None:
    steps = lived(ops).steps
    assert replayed(steps, a_dispatcher()) is None, "the same events gave other actions"


@pytest.mark.untraced
@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=30)
@given(
    ops=any_life,
    order=st.sampled_from(list(ORDERS)),
    gate=st.sampled_from(list(GATES)),
    budget=st.sampled_from(list(BUDGETS)),
)
def test_under_any_layout_order_gate_and_budget_nothing_is_lost_doubled_passed_or_owed(
    layout: str, order: str, gate: str, budget: str, ops: list[Op]
) -> None:
    setting = Setting(layout=layout, order=order, gate=gate, budget=budget)
    steps = lived_under(setting, ops).steps
    assert replayed(steps, setting.dispatcher()) is None


@pytest.mark.untraced
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_long_life_under_any_layout_and_order_can_be_lived_again(layout: str, order: str) -> None:
    setting = Setting(layout=layout, order=order, gate="aimd")
    steps = lived_under(setting, some_ops(1, 250)).steps
    assert replayed(steps, setting.dispatcher()) is None


@pytest.mark.untraced
@pytest.mark.parametrize("seed", range(12))
def test_a_long_life_loses_and_doubles_nothing_and_can_be_lived_again(seed: int) -> None:
    steps = lived(some_ops(seed, 300)).steps
    assert replayed(steps, a_dispatcher()) is None


@pytest.mark.untraced
@pytest.mark.parametrize(
    "changed",
    [
        PolicySet(priority=Named(name="least_slack", params=(("quantum", 5.0),))),
        PolicySet(priority=Named(name="fcfs")),
        PolicySet(scorers=(Named(name="least_running"),)),
    ],
    ids=["another quantum", "another priority", "another scorer"],
)
def test_a_replay_under_another_policy_decides_otherwise(changed: PolicySet) -> None:
    steps = lived(some_ops(4, 400)).steps
    assert replayed(steps, a_dispatcher()) is None
    assert replayed(steps, a_dispatcher(changed)) is not None


def test_decisions_do_not_depend_on_how_strings_are_hashed() -> None:
    here = digest(lived(some_ops(5, 250)).steps)
    command = [sys.executable, "-m", "tests.policies.sequences", "5", "250"]
    for hashed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hashed}
        there = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        assert there.stdout == here


def test_a_call_that_leaves_in_the_step_of_its_grant_gives_its_slot_back() -> None:
    desk = a_desk([a_pool(sequences=1)])
    first = desk.arrive(a_call("first"))
    assert isinstance(first, Start)
    assert desk.arrive(a_call("second")) is None
    assert desk.arrive(a_call("third")) is None
    [granted] = desk.finish(first)
    assert granted.call == "second"
    [instead] = desk.tell(Left(call="second"), Start)  # at the same moment, before anybody has used the slot
    assert instead.call == "third"
    assert desk.finish(instead) == []
    assert desk.dispatcher.calls == 0
    assert desk.tell(Arrived(call=a_call("fourth")), Start)
