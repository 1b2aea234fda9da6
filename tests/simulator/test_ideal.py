from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.emulated.model import Engine, EngineConfig, Sequence, StepTime
from simulator.ideal import remaining, rounds, service
from simulator.setup import A100, llm_engine
from tests.simulator.making import a_prompt, a_run, a_statement

CONFIG = EngineConfig(
    num_gpu_blocks=100,
    block_size=10,
    max_num_seqs=4,
    max_num_batched_tokens=64,
    step_time=StepTime(fixed=0.1, prefill_token=0.01, decode_sequence=0.03, context_token=0.002),
)
MEANS = {
    "retrieve": (308, 5, 0.23),
    "keywords": (667, 45, 1.14),
    "candidate": (11_748, 678, 18.2),
    "revise": (5963, 79, 3.33),
    "unit_test": (275, 4, 0.17),
    "write_test": (1109, 103, 2.54),
    "evaluate": (961, 22, 0.87),
}
"""Tokens in and out and seconds on an A100 by stage, as HexGen-Text2SQL has them."""


@given(prompt=st.integers(1, 400), output=st.integers(1, 60), cached=st.integers(0, 39))
def test_the_ideal_is_what_the_model_of_an_idle_engine_takes(prompt: int, output: int, cached: int) -> None:
    engine = Engine(CONFIG)
    hashes = tuple(range(prompt // 10))
    if cached and hashes:
        engine.add(Sequence(id="before", prompt=len(hashes[:cached]) * 10, output=1, hashes=hashes[:cached]))
        while not engine.idle:
            engine.step()
    found = min(len(hashes[:cached]), (prompt - 1) // 10) * 10
    engine.add(Sequence(id="call", prompt=prompt, output=output, hashes=hashes))
    seconds = 0.0
    while not engine.idle:
        seconds += engine.step().duration
    assert service(CONFIG, prompt, output, found) == pytest.approx(seconds)


@pytest.mark.parametrize("stage", MEANS)
def test_the_engines_of_the_workloads_take_the_seconds_that_were_measured(stage: str) -> None:
    config = llm_engine(step_time=A100).config
    assert config is not None
    prompt, output, measured = MEANS[stage]
    # The short stages' times are given to two digits; the long ones are nine tenths of all time.
    tolerance = 0.04 if measured > 1 else 0.16
    assert service(config, prompt, output) == pytest.approx(measured, rel=tolerance)


def test_a_round_takes_as_long_as_its_slowest_call_and_what_was_said_before_costs_nothing() -> None:
    first, again = a_prompt(1, 100), a_prompt(1, 200)
    plan = a_run("r", 0.0, [first, a_statement(0.5)], again, a_statement(3.0))
    # 100 new tokens each: a prompt of the same name and twice the length begins with the first.
    alone = service(CONFIG, 100, 11)
    (seconds,) = rounds([plan], {"llm": CONFIG})
    assert seconds == pytest.approx([alone, service(CONFIG, 200, 11, 100), 3.0])
    assert remaining(seconds) == pytest.approx([sum(seconds), sum(seconds[1:]), 3.0])


def test_prefixes_of_another_tenant_are_not_reused() -> None:
    mine, theirs = (a_run(tenant, 0.0, a_prompt(1), tenant=tenant) for tenant in ("mine", "theirs"))
    (first,), (second,) = rounds([mine, theirs], {"llm": CONFIG})
    assert first == second
