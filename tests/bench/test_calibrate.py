"""The calibration: engines whose step time is known must be found to have it."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median_high

import pytest
from aiohttp import web

from backends.emulated.model import EngineConfig, StepTime
from backends.emulated.options import EmulatedOptions
from backends.emulated.profile import read_step_time
from backends.emulated.server import serve
from bench.calibrate.__main__ import main
from bench.calibrate.fit import Fit, Observation, errors, fit, spread
from bench.calibrate.jobs import Job, draw, predicted
from bench.calibrate.measure import Point, Scope, decode, observe, plan, prefill
from bench.calibrate.server import Answer, Unmeasurable, connected

TRUE = StepTime(fixed=0.02, prefill_token=0.0002, decode_sequence=0.002, context_token=0.000004)
KINDS = ("prefill", "decode", "jobs")
KNOWN = Fit(step_time=TRUE, overhead=0.003)


def observations() -> list[Observation]:
    """What an exact clock would see of the known engine."""
    blank = Observation(kind="prefill", seconds=0.0, steps=1, prefill=0, decoding=0, context=0.0)
    reading = [replace(blank, prefill=size, context=size, requests=1) for size in (32, 100, 400, 900, 1500)]
    writing = [
        replace(blank, kind="decode", decoding=batch, context=batch * size)
        for batch in (1, 2, 4, 8)
        for size in (50, 500)
    ]
    return [replace(seen, seconds=KNOWN.seconds(seen)) for seen in reading + writing]


def near(found: Fit, share: float) -> bool:
    steps = [(0, 1, 50), (0, 8, 4000), (512, 0, 512), (256, 4, 2000)]
    return all(abs(found.step_time.of(*step) / TRUE.of(*step) - 1) < share for step in steps)


def test_exact_times_give_the_exact_coefficients() -> None:
    found = fit(observations())
    assert near(found, 1e-6)
    assert found.overhead == pytest.approx(KNOWN.overhead)
    score = errors(found, observations())
    assert score.r2 == pytest.approx(1.0)
    assert score.p95 < 1e-6


@pytest.mark.parametrize("wild", [{2: 5.0, 9: 5.0}, {5: 0.1}, {0: 0.1, 8: 20.0}])
def test_a_wild_measurement_does_not_bend_the_fit(wild: dict[int, float]) -> None:
    seen = observations()
    for index, factor in wild.items():
        seen[index] = replace(seen[index], seconds=seen[index].seconds * factor)
    assert near(fit(seen), 0.02)


def test_no_coefficient_is_negative() -> None:
    # Steps that get shorter with the context: without the bound, its coefficient would be below 0.
    seen = [replace(one, seconds=one.seconds * (1 - one.context / 6_000)) for one in observations()]
    found = fit(seen)
    assert found.step_time.context_token == 0.0
    assert found.step_time.fixed > 0
    assert errors(found, seen).median < 0.1


def test_a_fit_needs_both_kinds_of_step() -> None:
    with pytest.raises(ValueError, match="nothing was measured that has a prefill token"):
        fit([seen for seen in observations() if seen.kind == "decode"])
    with pytest.raises(ValueError, match="nothing was measured that has a decoding sequence"):
        fit([seen for seen in observations() if seen.kind == "prefill"])


def test_errors_are_relative_to_what_was_measured() -> None:
    score = spread([1.1, 2.0, 3.0, 8.0], [1.0, 2.0, 4.0, 10.0])
    assert score.points == 4
    assert score.median == pytest.approx(0.15)
    assert score.p95 == pytest.approx(0.25)
    assert spread([2.0], [1.0]).r2 == 0.0


def test_a_long_prompt_counts_as_the_chunks_that_the_budget_makes_of_it() -> None:
    answer = Answer(sent=1.0, seen=((1.5, 1),), prompt=2500, cached=0)
    seen = prefill(answer, 1000)
    assert (seen.seconds, seen.steps, seen.prefill, seen.context) == (0.5, 3, 2500, 1000 + 2000 + 2500)
    cached = prefill(replace(answer, cached=2000), 1000)
    assert (cached.steps, cached.prefill, cached.context) == (1, 500, 2500)


def test_decoding_is_timed_only_while_all_do_it() -> None:
    # Steps of one second; the second stream begins two later, and one of its chunks holds two tokens.
    early = Answer(sent=0.0, seen=tuple((float(at), at) for at in range(1, 9)), prompt=10, cached=0)
    late = Answer(sent=0.0, seen=((3.0, 1), (4.0, 2), (6.0, 4), (7.0, 5), (8.0, 6), (30.0, 7)), prompt=10, cached=0)
    seen = decode([early, late], least=2)
    assert seen is not None
    assert (seen.seconds, seen.decoding) == (1.0, 2)
    assert seen.context == 10 + (3 + 8) / 2 + 10 + (1 + 6) / 2


def test_sequences_that_take_turns_are_no_batch() -> None:
    first = Answer(sent=0.0, seen=((1.0, 1), (2.0, 2)), prompt=10, cached=0)
    assert decode([first, replace(first, seen=((3.0, 1), (4.0, 2)))], least=1) is None


def test_a_plan_stays_within_the_servers_memory_and_holds_points_out() -> None:
    scope = Scope(longest=4096, batch=16, steps=16)
    points = plan(scope, max_model_len=1024, capacity=4000)
    assert max(point.prompt for point in points) <= 1024 - 16
    assert all(max(point.batch, 1) * point.prompt <= 3600 for point in points)
    assert {point.batch for point in points} == {0, 1, 2, 4, 8, 16}
    for kind in (True, False):
        held_out = [point.held_out for point in points if (point.batch > 0) is kind]
        assert 0.2 < sum(held_out) / len(held_out) < 0.5
    assert plan(scope, None, None)[8].prompt == 4096
    with pytest.raises(Unmeasurable, match="room for"):
        plan(scope, max_model_len=60, capacity=4000)


@pytest.mark.parametrize(
    "wrong", [{"longest": 10}, {"batch": 1}, {"steps": 1}, {"repeats": 0}, {"budget": 0}, {"jobs": 0}]
)
def test_a_scope_too_small_to_measure_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be at least"):
        Scope(**wrong)


def test_jobs_in_the_model_take_the_steps_that_they_share() -> None:
    config = EngineConfig(
        num_gpu_blocks=1000, block_size=16, max_num_seqs=8, max_num_batched_tokens=1000, step_time=TRUE
    )
    alone = KNOWN.overhead + TRUE.of(100, 0, 100) + TRUE.of(0, 1, 101)
    assert predicted(KNOWN, config, [Job(0.0, 100, 2)]) == pytest.approx([alone])
    # The second comes while the first reads: its reading shares the step in which the first writes.
    shared = TRUE.of(50, 1, 101 + 50)
    first, second = predicted(KNOWN, config, [Job(0.0, 100, 2), Job(0.001, 50, 1)])
    assert first == pytest.approx(KNOWN.overhead + TRUE.of(100, 0, 100) + shared)
    assert second == pytest.approx(first - 0.001)
    # One that comes long after finds an idle engine.
    assert predicted(KNOWN, config, [Job(0.0, 100, 2), Job(60.0, 100, 2)]) == pytest.approx([alone, alone])


def test_jobs_are_drawn_alike_for_one_seed() -> None:
    one, other = (draw(KNOWN, count=20, longest=512, batch=8, chance=random.Random(3)) for _ in range(2))
    assert one == other
    assert all(32 <= job.prompt <= 256 and 8 <= job.output <= 128 for job in one)
    assert [job.at for job in one] == sorted(job.at for job in one)


@contextmanager
def engine_process(*flags: str) -> Iterator[str]:
    """The address of an engine in a process of its own."""
    command = [sys.executable, "-m", "backends.emulated", "--with-parent", *flags]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        yield json.loads(process.stdout.readline())["url"]
        process.terminate()


@pytest.fixture
def engine() -> Iterator[str]:
    """An engine of the known step time."""
    flags = [
        *(f"--decode-step={TRUE.fixed}", f"--prefill-rate={1 / TRUE.prefill_token}"),
        *(f"--decode-sequence={TRUE.decode_sequence}", f"--context-token={TRUE.context_token}"),
        *("--num-gpu-blocks=1000", "--max-num-batched-tokens=512"),
    ]
    with engine_process(*flags) as url:
        yield url


def miss(found: StepTime) -> float:
    """By how much of it the time of a step is missed, in the middle of several steps."""
    steps = [(0, 1, 50), (0, 2, 300), (0, 4, 200), (0, 4, 2000), (64, 0, 64), (512, 0, 512)]
    return median_high(abs(found.of(*step) / TRUE.of(*step) - 1) for step in steps)


@pytest.mark.slow
def test_the_step_time_of_a_running_engine_is_found(
    engine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "engine.json"
    scope = ["--longest=600", "--batch=4", "--steps=6", "--repeats=1", "--budget=512", "--jobs=6", "--seed=1"]
    for _ in range(3):  # a machine that is busy with something else is measured again
        assert main([engine + "/v1/", f"--out={out}", "--machine=a desk", *scope]) == 0
        found = read_step_time(out)
        profile = json.loads(out.read_text())
        if miss(found) < 0.1 and all(profile["errors"][kind]["median"] < 0.15 for kind in KINDS):
            break
    assert miss(found) < 0.1
    assert (profile["machine"], profile["model"]) == ("a desk", "cortex-emulated")
    assert profile["limits"]["num_gpu_blocks"] == 1000
    told = capsys.readouterr().out
    for kind in KINDS:
        assert profile["errors"][kind]["median"] < 0.15
        assert f"\n{kind} " in told
    again = EmulatedOptions(profile=str(out))
    assert again.engine_config().step_time == found


async def test_prompts_of_token_ids_have_exactly_the_length_asked_for() -> None:
    async with serve(EmulatedOptions(time_scale=1000.0)) as server, connected(server.url, None, 1) as up:
        answer = await up.stream(up.prompt(77), 5)
        assert (answer.prompt, answer.seen[-1][1], answer.cached) == (77, 5, 0)
        assert up.prompt(40) != up.prompt(40)
        with pytest.raises(Unmeasurable, match="answers 400"):
            await up.stream(up.prompt(77), 10**6)


async def test_seats_that_are_too_few_are_noticed() -> None:
    options = EmulatedOptions(time_scale=100.0, max_num_seqs=1)
    async with serve(options) as server, connected(server.url, None) as up:
        assert await observe(up, Point(batch=2, prompt=32, held_out=False), Scope(steps=4)) is None


def test_an_engine_that_decodes_one_at_a_time_is_measured_as_far_as_it_goes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "engine.json"
    scope = ["--longest=70", "--batch=2", "--steps=4", "--repeats=1", "--jobs=2"]
    with engine_process("--max-num-seqs=1", "--decode-step=0.01") as url:
        assert main([url, f"--out={out}", *scope]) == 0
    assert "left out: 2 sequences of 32 tokens never decoded all together" in capsys.readouterr().out
    assert read_step_time(out).of(0, 1, 50) == pytest.approx(0.01, rel=0.3)


@asynccontextmanager
async def plain(events: list[bytes], status: int = 200, tokens: list[int] | None = None) -> AsyncIterator[str]:
    """A server that has the two routes of OpenAI's API that are needed and streams these events to every request."""

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "plain"}]})

    async def complete(request: web.Request) -> web.StreamResponse:
        wants_text = isinstance((await request.json())["prompt"], list)
        if wants_text or status != 200:
            return web.Response(status=400, text="prompt must be a text")
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"".join(b"data: " + event + b"\n\n" for event in events))
        return response

    async def tokenize(_: web.Request) -> web.Response:
        return web.json_response({"tokens": tokens}) if tokens else web.Response(status=404)

    app = web.Application()
    app.add_routes([web.get("/v1/models", models), web.post("/v1/completions", complete)])
    app.add_routes([web.post("/tokenize", tokenize)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


TOKEN = b'{"choices":[{"text":"x"}]}'
USAGE = b'{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2}}'


@pytest.mark.parametrize("tokens", [None, [3, 4, 5]])
async def test_a_server_that_takes_no_token_ids_is_sent_words(tokens: list[int] | None) -> None:
    async with plain([TOKEN, TOKEN, USAGE, b"[DONE]"], tokens=tokens) as url, connected(url, "plain") as up:
        prompt = up.prompt(8)
        assert isinstance(prompt, str)
        assert len(prompt.split()) == 8
        assert up.told.capacity is None
        assert up.told.version is None
        answer = await up.stream(prompt, 2)
        assert [count for _, count in answer.seen] == [1, 2]
        assert answer.prompt == 9


async def test_running_usage_counts_tokens_that_came_in_one_chunk() -> None:
    pair = b'{"choices":[{"text":"xy"}],"usage":{"prompt_tokens":9,"completion_tokens":2}}'
    async with plain([pair, b"[DONE]"]) as url, connected(url, None) as up:
        assert [count for _, count in (await up.stream("words", 2)).seen] == [2]


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([TOKEN, TOKEN, b"[DONE]"], "without usage"),
        ([TOKEN, USAGE, b"[DONE]"], "2 tokens were asked for, and a stream showed 1"),
        ([TOKEN, b"<html>"], "not JSON: b'<html>'"),
        ([TOKEN, b'{"error":{"message":"out of memory"}}'], "broke off: .*out of memory"),
    ],
)
async def test_streams_that_cannot_be_counted_are_named(events: list[bytes], message: str) -> None:
    async with plain(events) as url, connected(url, None) as up:
        with pytest.raises(Unmeasurable, match=message):
            await up.stream("words", 2)


async def test_a_model_that_is_not_served_is_named() -> None:
    async with plain([]) as url:
        with pytest.raises(Unmeasurable, match="serves no other, but plain"):
            async with connected(url, "other"):
                pass


def test_where_nothing_listens_the_command_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "engine.json"
    assert main(["http://127.0.0.1:9", f"--out={out}"]) == 1
    assert "127.0.0.1:9" in capsys.readouterr().err
    assert not out.exists()
    with pytest.raises(SystemExit):
        main(["http://127.0.0.1:9", f"--out={out}", "--batch=1"])
    assert "batch must be at least 2" in capsys.readouterr().err
