"""How fast engines are: told from calls whose times are made of known parts."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.calls import Fate, Kind, Outcome
from policies.events import Finished, Start
from policies.pace import FIXED, PREFILL, PRESSURE_MOST, SEQUENCE, Line, Pace
from policies.pool import INFLOW_MEMORY, EngineLimits, EngineState, Slot
from tests.policies.making import a_call, a_desk, a_pool

PARTS = [(0.02, 2e-4, 1e-4), (0.006, 5e-5, 2e-5), (0.08, 1e-3, 6e-4)]
"""Seconds of a step, more for each sequence in it, and for each token of prompt: three kinds of engines."""


def answer(computed: float, crowd: float, pressure: float, parts: tuple[float, float, float], tokens: int) -> Outcome:
    """A call as an engine of these parts serves it, exactly."""
    fixed, sequence, prefill = parts
    first = prefill * computed
    total = first + (tokens - 1) * (fixed + sequence * crowd) / (1.0 - pressure)
    return Outcome(fate="ok", first_token=first, total=total, output_tokens=tokens)


def taught(parts: tuple[float, float, float], calls: int = 600, noise: float = 0.0, **fixed: float) -> Pace:
    rng, pace = Random(1), Pace()
    for _ in range(calls):
        computed = fixed.get("computed", rng.uniform(100.0, 8000.0))
        crowd = fixed.get("crowd", rng.uniform(1.0, 40.0))
        pressure = fixed.get("pressure", rng.uniform(0.0, 0.7))
        exact = answer(computed, crowd, pressure, parts, rng.randrange(2, 500))
        first = exact.first_token
        assert first is not None
        stretched = Outcome(
            fate="ok",
            first_token=first * rng.uniform(1 - noise, 1 + noise),
            total=first + (exact.total - first) * rng.uniform(1 - noise, 1 + noise),
            output_tokens=exact.output_tokens,
        )
        pace.learn(stretched, computed=computed, crowd=crowd, pressure=pressure)
    return pace


def test_before_anything_is_seen_the_usual_is_believed() -> None:
    pace = Pace()
    assert (pace.prefill, pace.sequence) == (PREFILL, SEQUENCE)
    assert pace.decode(10.0, 3.0, 0.5) == pytest.approx(10 * (FIXED + 3 * SEQUENCE) / 0.5)


@pytest.mark.parametrize("parts", PARTS)
def test_the_parts_of_which_times_are_made_are_recovered(parts: tuple[float, float, float]) -> None:
    fixed, sequence, prefill = parts
    pace = taught(parts)
    assert pace.prefill == pytest.approx(prefill, rel=0.1)
    assert pace.sequence == pytest.approx(sequence, rel=0.1)
    for crowd in (1.0, 10.0, 40.0):
        assert pace.decode(200.0, crowd, 0.0) == pytest.approx(200 * (fixed + sequence * crowd), rel=0.1)
        assert pace.decode(200.0, crowd, 0.5) == pytest.approx(2 * pace.decode(200.0, crowd, 0.0))


@pytest.mark.parametrize("parts", PARTS)
def test_times_that_scatter_are_told_in_the_mean(parts: tuple[float, float, float]) -> None:
    fixed, sequence, prefill = parts
    pace = taught(parts, calls=1500, noise=0.2)
    assert pace.prefill == pytest.approx(prefill, rel=0.1)
    assert pace.decode(100.0, 20.0, 0.0) == pytest.approx(100 * (fixed + sequence * 20), rel=0.1)


def test_engines_that_become_slower_are_found_out() -> None:
    rng, pace = Random(2), Pace()
    for parts in (PARTS[1], PARTS[2]):
        for _ in range(800):
            computed, crowd = rng.uniform(100.0, 8000.0), rng.uniform(1.0, 40.0)
            pace.learn(answer(computed, crowd, 0.2, parts, 50), computed=computed, crowd=crowd, pressure=0.2)
    assert pace.prefill == pytest.approx(6e-4, rel=0.1)
    assert pace.decode(100.0, 20.0, 0.0) == pytest.approx(100 * 0.1, rel=0.1)


def test_where_all_calls_are_alike_what_they_took_is_still_told() -> None:
    parts = (0.03, 1e-4, 2e-4)
    pace = taught(parts, computed=1000.0, crowd=8.0, pressure=0.0)
    assert pace.decode(100.0, 8.0, 0.0) == pytest.approx(100 * (0.03 + 8e-4), rel=0.1)
    assert pace.prefill == pytest.approx(PREFILL, rel=0.1), "nothing tells the prompt from the rest"


def test_an_answer_of_one_token_teaches_nothing() -> None:
    pace = Pace()
    pace.learn(
        Outcome(fate="ok", total=10.0, first_token=9.0, output_tokens=1), computed=10.0, crowd=1.0, pressure=0.0
    )
    assert (pace.prefill, pace.decode(1.0, 0.0, 0.0)) == (PREFILL, FIXED)


def test_answers_in_one_piece_teach_the_steps_as_far_as_the_prompt_is_known() -> None:
    rng, pace = Random(3), Pace()
    for _ in range(600):
        computed, crowd = rng.uniform(100.0, 8000.0), rng.uniform(1.0, 40.0)
        whole = answer(computed, crowd, 0.3, (0.03, 1e-3, PREFILL), 200)
        pace.learn(replace(whole, first_token=None), computed=computed, crowd=crowd, pressure=0.3)
    assert pace.prefill == PREFILL
    assert pace.decode(100.0, 20.0, 0.0) == pytest.approx(100 * 0.05, rel=0.1)


def test_an_answer_in_one_piece_that_came_sooner_than_its_prompt_takes_leaves_nothing_negative() -> None:
    pace = Pace()
    for _ in range(50):
        pace.learn(Outcome(fate="ok", total=0.1, output_tokens=20), computed=1e9, crowd=1.0, pressure=0.0)
    assert 0.0 <= pace.decode(1.0, 1.0, 0.0) < FIXED


@pytest.mark.parametrize("rate", [0.0, 100.0, 1e4, 1e12])
def test_pressure_is_a_share_that_leaves_time_for_decoding(rate: float) -> None:
    assert Pace().pressure(rate) == min(PRESSURE_MOST, rate * PREFILL)


numbers = st.floats(0.0, 1e6)


@settings(max_examples=80)
@given(st.lists(st.tuples(numbers, st.floats(-1e3, 1e6)), max_size=40))
def test_no_line_is_ever_negative_whatever_it_is_shown(points: list[tuple[float, float]]) -> None:
    line = Line(0.02, 1e-4, 10.0)
    for x, y in points:
        line.observe(x, y)
        assert line.base >= 0.0
        assert line.slope >= 0.0
        assert line.base + line.slope * 1e6 < 1e18


# --- what an engine shows of itself ---


def an_engine() -> EngineState:
    return EngineState("e", "p", EngineLimits(sequences=9), status="ready")


def a_slot(attempt: int, prefill: float, since: float = 0.0) -> Slot:
    return Slot(call=str(attempt), attempt=attempt, prefill=prefill, decode=0.0, since=since)


def test_the_pressure_on_an_engine_is_that_of_the_prompts_it_was_given_of_late() -> None:
    state = an_engine()
    assert state.pressure(0.0) == 0.0
    state.take(a_slot(1, 40_000.0), 1)
    assert state.pressure(0.0) == pytest.approx(40_000 * PREFILL / INFLOW_MEMORY)
    assert state.pressure(INFLOW_MEMORY) == pytest.approx(state.pressure(0.0) / 2.718281828)
    state.take(a_slot(2, 1e9, INFLOW_MEMORY), 2)
    assert state.pressure(INFLOW_MEMORY) == PRESSURE_MOST


def test_an_engine_learns_from_what_was_computed_before_a_calls_first_token() -> None:
    state, rng = an_engine(), Random(4)
    for attempt in range(1, 400):
        before, own = rng.uniform(0.0, 8000.0), 500.0  # only what is before it tells calls apart
        now = 1000.0 * attempt  # so long after the last one that nothing presses
        state.take(a_slot(-attempt, before, now), attempt)
        slot = a_slot(attempt, own, now)
        state.take(slot, attempt)
        state.prefilled(attempt)
        state.give_back(attempt, now)
        state.learn(slot, answer(before + own, 2.0, 0.0, (0.02, 0.0, 3e-4), 2), now)
        state.give_back(-attempt, now)
    assert state.pace.prefill == pytest.approx(3e-4, rel=0.1)


def test_all_engines_of_a_pool_share_one_pace_and_other_pools_have_their_own() -> None:
    desk = a_desk([a_pool("a", start=2, maximum=2), a_pool("b")])
    paces = {engine.name: engine.pace for engine in desk.dispatcher.fleet}
    assert paces["a/0"] is paces["a/1"]
    assert paces["a/0"] is not paces["b/0"]


@pytest.mark.parametrize(
    ("fate", "kind", "learned"), [("ok", "llm", True), ("error", "llm", False), ("ok", "sql", False)]
)
def test_only_answers_of_language_models_tell_of_the_pace(fate: Fate, kind: Kind, learned: bool) -> None:
    desk = a_desk([a_pool()])
    start = desk.arrive(a_call(kind=kind, prompt_tokens=5000))
    assert isinstance(start, Start)
    desk.now = 60.0
    outcome = Outcome(fate=fate, first_token=50.0, total=60.0, output_tokens=10)
    desk.tell(Finished(call="c", attempt=start.attempt, outcome=outcome), Start)
    [engine] = desk.dispatcher.fleet
    assert (engine.pace.decode(1.0, 1.0, 0.0) > FIXED + SEQUENCE) is learned
