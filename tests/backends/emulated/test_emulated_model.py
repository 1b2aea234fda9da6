"""The pure model: what steps cost, who runs, and where blocks go."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.emulated.model import Engine, EngineConfig, Sequence, Step, StepTime

BLOCK = 4
COSTS = StepTime(fixed=1.0, prefill_token=0.1, decode_sequence=0.01, context_token=0.001)


def engine(blocks: int = 64, seats: int = 8, budget: int = 64) -> Engine:
    return Engine(
        EngineConfig(
            num_gpu_blocks=blocks,
            block_size=BLOCK,
            max_num_seqs=seats,
            max_num_batched_tokens=budget,
            step_time=COSTS,
        )
    )


def sequence(name: str, prompt: int, output: int, priority: int = 0, text: str | None = None) -> Sequence:
    """Sequences of the same `text` have equal tokens as far as both go."""
    hashes = tuple(hash((text or name, index)) for index in range((prompt + output) // BLOCK))
    return Sequence(id=name, prompt=prompt, output=output, priority=priority, hashes=hashes)


def finish(engine: Engine) -> list[Step]:
    steps = []
    while not engine.idle:
        steps.append(engine.step())
    return steps


def test_a_lone_sequence_costs_its_prefill_and_then_one_step_a_token() -> None:
    model = engine()
    model.add(sequence("a", prompt=10, output=3))
    steps = finish(model)
    assert [step.duration for step in steps] == pytest.approx([1 + 1.0 + 0.010, 1.01 + 0.011, 1.01 + 0.012])
    assert [step.tokens for step in steps] == [("a",)] * 3
    assert [step.finished for step in steps] == [(), (), ("a",)]
    assert (model.prompt_tokens, model.generation_tokens, model.prefill_tokens_computed) == (10, 3, 10)


def test_a_long_prompt_is_computed_in_chunks_beside_those_that_decode() -> None:
    model = engine(budget=8)
    model.add(sequence("short", prompt=4, output=9))
    model.step()
    model.add(sequence("long", prompt=20, output=1))
    steps = [model.step() for _ in range(3)]
    # Each step has 8 tokens: one for the decode, seven for the chunk.
    assert [step.tokens for step in steps] == [("short",), ("short",), ("short", "long")]
    assert steps[2].finished == ("long",)
    assert steps[0].duration == pytest.approx(1 + 0.7 + 0.01 + 0.001 * (5 + 7))


def test_no_more_sequences_run_than_there_are_seats() -> None:
    model = engine(seats=2)
    for name in "abc":
        model.add(sequence(name, prompt=4, output=2))
    model.step()
    assert (model.running, model.waiting) == (2, 1)
    model.step()
    assert (model.running, model.waiting) == (0, 1)


def test_the_queue_is_in_order_of_priority_and_then_of_arrival() -> None:
    model = engine(seats=1)
    for name, priority in (("late", 5), ("first", 0), ("second", 0), ("urgent", -3)):
        model.add(sequence(name, prompt=4, output=1, priority=priority))
    assert [step.finished[0] for step in finish(model)] == ["urgent", "first", "second", "late"]


def test_a_known_beginning_is_taken_from_the_cache_but_for_its_last_token() -> None:
    model = engine()
    model.add(sequence("a", prompt=16, output=1, text="same"))
    model.step()
    model.add(sequence("b", prompt=16, output=1, text="same"))
    model.add(sequence("c", prompt=18, output=1, text="same"))
    step = model.step()
    assert step.admitted == (("b", 12), ("c", 16))
    assert (model.prefix_queries, model.prefix_hits) == (16 + 16 + 18, 12 + 16)
    assert model.prefill_tokens_computed == 16 + 4 + 2


def test_sequences_admitted_in_one_step_share_what_they_have_in_common() -> None:
    model = engine()
    model.add(sequence("a", prompt=16, output=1, text="same"))
    model.add(sequence("b", prompt=17, output=1, text="same"))
    assert model.step().admitted == (("a", 0), ("b", 16))
    assert model.blocks.peak == 5


def test_an_answer_is_found_in_the_cache_when_the_next_turn_repeats_it() -> None:
    model = engine()
    model.add(sequence("turn 1", prompt=8, output=9, text="talk"))
    finish(model)
    model.add(sequence("turn 2", prompt=20, output=1, text="talk"))
    # 8 of the prompt and 8 of the answer: its last token was never computed.
    assert model.step().admitted == (("turn 2", 16),)


def test_an_idle_engine_uses_no_blocks_although_its_cache_is_full() -> None:
    model = engine(blocks=8)
    for name in "abc":
        model.add(sequence(name, prompt=12, output=1))
    model.begin()
    assert model.kv_use == 0.75
    model.end()
    finish(model)
    assert model.kv_use == 0
    assert model.blocks.resident == 8
    assert model.blocks.peak == 6


def test_the_least_recently_used_content_is_evicted_first() -> None:
    model = engine(blocks=8)
    for name in ("old", "new", "old", "big"):
        model.add(sequence(name, prompt=13 if name != "big" else 17, output=1, text=name))
        finish(model)
    model.add(sequence("old again", prompt=13, output=1, text="old"))
    model.add(sequence("new again", prompt=13, output=1, text="new"))
    cached = dict(model.begin().admitted)
    assert cached == {"old again": 12, "new again": 0}


def test_the_end_of_a_prefix_is_evicted_before_its_beginning() -> None:
    model = engine(blocks=8)
    for name, prompt in (("long", 29), ("other", 9)):
        model.add(sequence(name, prompt=prompt, output=1))
        finish(model)
    model.add(sequence("long again", prompt=29, output=1, text="long"))
    assert model.step().admitted == (("long again", 20),)


def test_the_latest_of_the_least_urgent_is_preempted_and_computes_its_tokens_again() -> None:
    model = engine(blocks=6)
    model.add(sequence("urgent", prompt=8, output=8, priority=-1))
    model.add(sequence("patient", prompt=8, output=8, priority=1))
    steps = finish(model)
    assert [step.preempted for step in steps if step.preempted] == [("patient",)]
    assert model.preemptions == 1
    order = [name for step in steps for name in step.finished]
    assert order == ["urgent", "patient"]
    assert Counter(name for step in steps for name in step.tokens) == {"urgent": 8, "patient": 8}
    # What it has to compute again counts as work, not as another lookup.
    assert model.prefill_tokens_computed > 16
    assert model.prefix_queries == 16


def test_a_sequence_may_preempt_itself() -> None:
    model = engine(blocks=4)
    model.add(sequence("first", prompt=4, output=10))
    model.add(sequence("second", prompt=4, output=10))
    preempted = [name for step in finish(model) for name in step.preempted]
    assert set(preempted) == {"second"}


def test_a_prompt_waits_until_all_of_it_fits() -> None:
    model = engine(blocks=5, budget=8)
    model.add(sequence("a", prompt=8, output=2))
    model.add(sequence("b", prompt=13, output=1))
    assert model.step().admitted == (("a", 0),)
    assert [model.step().admitted for _ in range(2)] == [(), (("b", 0),)]


def test_an_abort_gives_the_blocks_back_at_once_even_within_a_step() -> None:
    model = engine()
    for name in "abc":
        model.add(sequence(name, prompt=8, output=5))
    assert model.abort("c")
    assert model.begin().tokens == ("a", "b")
    assert model.abort("a")
    assert model.blocks.used == 2
    model.end()
    assert (model.generation_tokens, model.running, model.waiting) == (1, 1, 0)
    assert not model.abort("a")


def test_an_id_used_again_within_a_step_is_another_sequence() -> None:
    model = engine()
    model.add(sequence("a", prompt=8, output=1))
    model.begin()
    model.abort("a")
    model.add(sequence("a", prompt=8, output=1))
    model.end()
    assert (model.generation_tokens, model.waiting) == (0, 1)
    assert [step.tokens for step in finish(model)] == [("a",)]


def test_forgetting_empties_the_cache_and_restarts_the_peak() -> None:
    model = engine()
    model.add(sequence("a", prompt=16, output=1, text="same"))
    finish(model)
    model.add(sequence("live", prompt=4, output=2))
    model.step()
    model.blocks.forget()
    assert (model.blocks.resident, model.blocks.peak, model.blocks.used) == (0, 1, 1)
    finish(model)
    model.add(sequence("b", prompt=16, output=1, text="same"))
    assert model.step().admitted == (("b", 0),)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (sequence("twin", 4, 1), "twin"),
        (sequence("empty", 0, 1), "at least one token"),
        (sequence("mute", 1, 0), "at least one token"),
        (sequence("huge", 200, 57), "256 tokens"),
    ],
)
def test_a_sequence_that_could_never_run_is_refused(wrong: Sequence, message: str) -> None:
    model = engine()
    model.add(sequence("twin", 4, 1))
    with pytest.raises(ValueError, match=message):
        model.add(wrong)
    assert model.waiting == 1


def test_steps_do_not_overlap() -> None:
    model = engine()
    with pytest.raises(RuntimeError, match="no step"):
        model.end()
    assert model.begin() == Step(duration=1.0)
    with pytest.raises(RuntimeError, match="under way"):
        model.begin()


@pytest.mark.parametrize("limits", [{"blocks": 0}, {"seats": 0}, {"budget": 0}, {"seats": 9, "budget": 8}])
def test_limits_that_make_no_engine_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must"):
        engine(**limits)


arrivals = st.tuples(st.integers(1, 30), st.integers(1, 12), st.integers(-1, 1), st.sampled_from(["x", "y", None]))
events = st.one_of(arrivals, st.integers(0, 30), st.none())


@settings(max_examples=150)
@given(st.lists(events, max_size=40), st.integers(11, 24), st.integers(1, 5), st.integers(5, 40))
def test_no_block_and_no_token_is_lost(
    happenings: list[tuple[int, int, int, str | None] | int | None], blocks: int, seats: int, budget: int
) -> None:
    """An arrival (a tuple), an abort (a number) or a step (None), in any order and on any small engine."""
    model = engine(blocks, seats, budget)
    expected: dict[str, int] = {}
    produced: Counter[str] = Counter()
    finished: list[str] = []

    def step() -> None:
        preempting = model.preemptions
        done = model.step()
        produced.update(done.tokens)
        finished.extend(done.finished)
        assert done.tokens or done.duration > 1 or model.preemptions > preempting
        assert len(done.preempted) == model.preemptions - preempting

    for number, happening in enumerate(happenings):
        if happening is None:
            if not model.idle:
                step()
        elif isinstance(happening, int):
            if model.abort(str(happening)):
                del expected[str(happening)]
        else:
            prompt, output, priority, text = happening
            model.add(sequence(str(number), prompt, output, priority, text))
            expected[str(number)] = output
        assert 0 <= model.blocks.used <= model.blocks.peak <= blocks
        assert model.running <= seats
        assert model.prefix_hits <= model.prefix_queries
    for _ in range(2000):
        if model.idle:
            break
        step()
    assert model.idle
    assert {name: produced[name] for name in expected} == expected
    assert set(expected) <= set(finished)
    assert len(finished) == len(set(finished))
    assert model.blocks.used == 0
    model.add(sequence("all of it", prompt=blocks * BLOCK - 1, output=1))
    assert any("all of it" in done.finished for done in finish(model))
    assert model.blocks.peak == blocks
