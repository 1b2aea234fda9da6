"""Leaps of the pure model: many decoding steps in one go, with the same end as one by one."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.emulated.model import Engine, EngineConfig, Sequence, StepTime

COSTS = StepTime(fixed=1.0, prefill_token=0.1, decode_sequence=0.01, context_token=0.001)
FAR = 10_000


def engine(blocks: int = 64, seats: int = 8, budget: int = 64, block: int = 4) -> Engine:
    return Engine(
        EngineConfig(
            num_gpu_blocks=blocks,
            block_size=block,
            max_num_seqs=seats,
            max_num_batched_tokens=budget,
            step_time=COSTS,
        )
    )


def sequence(
    name: str, prompt: int, output: int, priority: int = 0, text: str | None = None, *, block: int = 4
) -> Sequence:
    hashes = tuple(hash((text or name, index)) for index in range((prompt + output) // block))
    return Sequence(id=name, prompt=prompt, output=output, priority=priority, hashes=hashes)


def decoding(model: Engine, *sequences: Sequence) -> Engine:
    """The model after the step that computes these prompts."""
    for one in sequences:
        model.add(one)
    assert len(model.step().tokens) == len(sequences)
    return model


@dataclass
class Course:
    """What became of a series of arrivals: when each got its first token and when it was done."""

    firsts: dict[str, float] = field(default_factory=dict)
    ends: dict[str, float] = field(default_factory=dict)
    preempted: list[str] = field(default_factory=list)
    cached: dict[str, int] = field(default_factory=dict)
    steps: int = 0


def course(model: Engine, arrivals: list[tuple[float, Sequence]], most: int) -> Course:
    """Serve what arrives in virtual time, with leaps of at most so many steps."""
    seen, now, coming = Course(), 0.0, sorted(arrivals, key=lambda arrival: arrival[0])
    while coming or not model.idle:
        if model.idle:
            now = max(now, coming[0][0])
        while coming and coming[0][0] <= now:
            model.add(coming.pop(0)[1])
        step = model.begin(most)
        end = now + step.duration
        while coming and coming[0][0] < end:
            end = now + model.cut(coming[0][0] - now)
            model.add(coming.pop(0)[1])
        model.end()
        seen.steps += 1
        seen.preempted += step.preempted
        seen.cached |= dict(step.admitted)
        seen.firsts |= dict.fromkeys(step.first, end)
        if end == now + step.duration:
            seen.ends |= dict.fromkeys(step.finished, end)
        now = end
    return seen


def counters(model: Engine) -> tuple[int, ...]:
    return (
        model.prompt_tokens,
        model.generation_tokens,
        model.prefill_tokens_computed,
        model.prefix_queries,
        model.prefix_hits,
        model.preemptions,
        model.blocks.used,
        model.blocks.peak,
        model.blocks.resident,
    )


moments = st.integers(0, 120_000)
shapes = st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(-1, 1), st.sampled_from(["x", "y", None]))


limits = st.tuples(st.integers(20, 60), st.integers(1, 5), st.integers(5, 40), st.sampled_from([4, 4, 7]))


@pytest.mark.slow
@settings(max_examples=300)
@given(st.lists(st.tuples(moments, shapes), min_size=1, max_size=14), limits, st.integers(2, 60))
def test_leaps_end_where_single_steps_would(
    happenings: list[tuple[int, tuple[int, int, int, str | None]]], limits: tuple[int, int, int, int], most: int
) -> None:
    blocks, seats, budget, block = limits
    # Steps last multiples of 0.001. No arrival is a multiple of it after another one, and so after the start of a
    # busy time, lest it fall on the very end of a step, where a rounding would decide.
    arrivals = [
        (at / 1000 + number * 1e-5, sequence(str(number), *shape, block=block))
        for number, (at, shape) in enumerate(happenings)
    ]
    single, leaping = (engine(blocks, seats, budget, block) for _ in range(2))
    expected, seen = course(single, arrivals, 1), course(leaping, arrivals, most)
    assert seen.ends == pytest.approx(expected.ends, rel=1e-9)
    assert seen.firsts == pytest.approx(expected.firsts, rel=1e-9)
    assert list(seen.ends) == list(expected.ends)
    assert (seen.preempted, seen.cached) == (expected.preempted, expected.cached)
    assert counters(leaping) == counters(single)
    assert seen.steps <= expected.steps
    assert len(seen.ends) == len(arrivals)


@pytest.mark.parametrize("block", [1, 2])
def test_blocks_of_a_token_or_two_leap_as_well(block: int) -> None:
    arrivals = [
        (number * 9.0005, sequence(str(number), 5 + number, 30, text="xy"[number % 2], block=block))
        for number in range(9)
    ]
    single, leaping = (engine(90 // block, 4, 16, block) for _ in range(2))
    expected, seen = course(single, arrivals, 1), course(leaping, arrivals, FAR)
    assert seen.ends == pytest.approx(expected.ends, rel=1e-9)
    assert counters(leaping) == counters(single)
    assert expected.preempted
    assert seen.steps < expected.steps


def test_a_leap_lasts_until_the_first_sequence_finishes() -> None:
    model = decoding(engine(), sequence("long", 8, 30), sequence("short", 8, 12))
    step = model.begin(FAR)
    assert (step.steps, step.tokens, step.first, step.finished) == (11, ("long", "short"), (), ("short",))
    assert step.duration == pytest.approx(sum(1.02 + 0.001 * 2 * (9 + number) for number in range(11)))
    model.end()
    assert (model.generation_tokens, model.running) == (24, 1)
    assert model.begin(5).steps == 5


def test_no_step_with_a_prompt_in_it_is_a_leap() -> None:
    model = decoding(engine(budget=8), sequence("short", 4, 20))
    model.add(sequence("long", 20, 5))
    steps = []
    for _ in range(4):
        steps.append(model.begin(FAR))
        model.end()
    assert [step.steps for step in steps] == [1, 1, 1, 4]
    assert [step.first for step in steps] == [(), (), ("long",), ()]


def test_a_first_token_is_told_once_even_after_a_preemption() -> None:
    model = engine(blocks=6)
    seen = course(model, [(0.0, sequence("a", 8, 12, -1)), (0.0, sequence("b", 8, 12, 1))], FAR)
    assert seen.preempted == ["b"]
    assert seen.firsts["b"] == seen.firsts["a"] < seen.ends["a"] < seen.ends["b"]


def test_a_leap_goes_on_while_those_that_wait_have_no_seat() -> None:
    model = decoding(engine(seats=1), sequence("a", 8, 20))
    model.add(sequence("b", 8, 20))
    assert model.begin(FAR).steps == 19


def test_a_leap_goes_on_while_the_next_in_line_lacks_blocks() -> None:
    model = decoding(engine(blocks=8), sequence("a", 8, 20))
    model.add(sequence("b", 24, 2))
    assert model.begin(FAR).steps == 19
    model.end()
    assert model.step().admitted == (("b", 0),)


def test_a_leap_ends_before_a_block_that_the_next_in_line_shares() -> None:
    model = decoding(engine(blocks=7), sequence("a", 8, 20, text="same"))
    model.add(sequence("b", 25, 2, text="same"))
    # It needs seven blocks: they are there in the one step in which all that "a" holds is full and can be shared.
    assert model.begin(FAR).steps == 3
    model.end()
    step = model.begin(FAR)
    assert (step.steps, step.admitted) == (1, (("b", 12),))


def test_a_leap_ends_before_memory_does() -> None:
    model = decoding(engine(blocks=6), sequence("a", 8, 14), sequence("b", 8, 14))
    leap = model.begin(FAR)
    assert (leap.steps, leap.preempted) == (4, ())
    model.end()
    assert model.begin(FAR).preempted == ("b",)


def test_a_cut_leap_ends_with_the_step_under_way() -> None:
    model = decoding(engine(), sequence("a", 8, 30))
    leap = model.begin(FAR)
    durations = [1.01 + 0.001 * (9 + number) for number in range(leap.steps)]
    assert leap.duration == pytest.approx(sum(durations))
    assert model.cut(sum(durations[:10]) + 0.5) == pytest.approx(sum(durations[:11]))
    # A later moment does not make it longer again, an earlier one makes it shorter still.
    assert model.cut(leap.duration) == pytest.approx(sum(durations[:11]))
    assert model.cut(sum(durations[:4]) + 0.5) == pytest.approx(sum(durations[:5]))
    assert (leap.steps, leap.finished) == (29, ("a",))
    model.end()
    assert model.generation_tokens == 1 + 5
    assert model.begin(FAR).steps == 24


def test_a_cut_at_the_end_of_a_step_starts_no_other() -> None:
    model, twin = (decoding(engine(), sequence("a", 8, 30)) for _ in range(2))
    model.begin(FAR)
    two_steps = twin.begin(2).duration
    assert model.cut(two_steps) == two_steps
    assert model.cut(0.0) == pytest.approx(1.01 + 0.001 * 9)
    model.end()
    assert model.generation_tokens == 1 + 1


def test_a_cut_leaves_a_single_step_and_a_whole_leap_as_they_are() -> None:
    model = engine()
    with pytest.raises(RuntimeError, match="no step"):
        model.cut(0.0)
    model.add(sequence("a", 8, 30))
    for most in (FAR, FAR):
        step = model.begin(most)
        assert model.cut(step.duration) == step.duration
        model.end()
    assert model.idle


def test_a_sequence_aborted_within_a_leap_is_let_go_at_once_and_the_leap_goes_on() -> None:
    model = decoding(engine(), sequence("a", 8, 30), sequence("b", 8, 20))
    leap = model.begin(FAR)
    assert model.abort("a")
    assert (model.blocks.used, model.running) == (3, 1)
    model.end()
    assert leap.finished == ("b",)
    assert model.idle
    assert model.generation_tokens == 2 + 19
    assert model.blocks.used == 0


def test_an_output_block_is_findable_from_the_end_of_its_leap() -> None:
    model = decoding(engine(), sequence("a", 8, 31, text="talk"))
    model.begin(FAR)
    model.cut(12.0)
    model.add(sequence("b", 21, 2, text="talk"))
    assert model.blocks.resident == 2
    model.end()
    assert model.blocks.resident == 4 + 1
    assert model.begin(FAR).admitted == (("b", 20),)
