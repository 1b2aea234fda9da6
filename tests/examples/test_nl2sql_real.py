"""The demo on vLLM servers: what they may choose from, and how it goes on engines with the same surface."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from backends.emulated.options import EmulatedOptions
from backends.emulated.server import EmulatedServer, serve
from examples.nl2sql import agent, choices, database, demo, demo_vllm, questions, servers
from examples.nl2sql.play import DATABASE, Round, play
from examples.nl2sql.questions import Question
from examples.nl2sql.script import FILE

ASKED = demo_vllm.chosen(questions.load())
PROMPTS = {path.stem: path.read_text(encoding="utf-8") for path in FILE.parent.glob("prompts/*.md")}
FAST = EmulatedOptions(time_scale=50.0, num_gpu_blocks=400, block_size=16, max_model_len=4096)


@pytest.fixture(scope="module", autouse=True)
def _database() -> None:
    """Where the demos look for it."""
    database.make(DATABASE)


def offered(question: Question, stage: str, sql: str = "") -> list[str]:
    known = {"question": question.text, "schema": "t(a)", "sql": sql, "error": "no", "rows": "| a |"}
    return choices.choices(question, agent.fill(PROMPTS[stage], known))


def statements(texts: list[str]) -> list[str]:
    calls = [json.loads(text.removeprefix("<tool_call>").removesuffix("</tool_call>")) for text in texts]
    assert {call["name"] for call in calls} <= {"execute_sql"}
    return [call["arguments"]["sql"] for call in calls]


def test_twenty_questions_are_asked_that_can_be_answered_and_gone_wrong_about() -> None:
    assert len(ASKED) == demo_vllm.QUESTIONS
    assert all(question.mistakes and not question.unrepairable for question in ASKED)


@pytest.mark.parametrize("question", ASKED, ids=lambda question: question.text)
def test_a_writer_may_say_all_statements_and_a_fixer_all_but_the_failed_one(question: Question) -> None:
    every = {question.gold, *(mistake.sql for mistake in question.mistakes)}
    assert set(statements(offered(question, "generate"))) == every
    for sql in every:
        assert set(statements(offered(question, "fix", sql))) == every - {sql}


def test_a_fixer_that_has_no_other_statement_may_say_the_failed_one() -> None:
    question = next(question for question in questions.load() if not question.mistakes)
    assert statements(offered(question, "fix", question.gold)) == [question.gold]


def test_a_reviewer_says_the_verdict_that_is_due() -> None:
    question = next(question for question in ASKED if question.mistakes[0].kind == "rows")
    assert offered(question, "verify", question.mistakes[0].sql) == [f"WRONG: {question.mistakes[0].quote}"]
    assert offered(question, "verify", question.gold)[0].startswith("OK:")


@pytest.fixture
async def pair() -> AsyncIterator[list[EmulatedServer]]:
    """Two engines of vLLM's surface, without a script: what they say is by chance, as with random weights."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(serve(FAST)) for _ in range(2)]


async def test_all_runs_end_and_an_engine_says_nothing_but_what_it_was_offered(pair: list[EmulatedServer]) -> None:
    at = await servers.attached([server.url for server in pair])
    assert (at.block_size, at.kv_blocks) == (16, 400)
    played = await round_of(at, ASKED[:8])
    assert (played.errors, len(played.results)) == ({}, 8)
    for question in ASKED[:8]:
        tried = [sql for sql, _ in played.results[question.text].attempts]
        assert set(tried) <= {question.gold, *(mistake.sql for mistake in question.mistakes)}
        assert played.results[question.text].failure or tried[-1] == question.gold
    assert sum(result.repairs for result in played.results.values()) > 0
    calls = sum(2 * result.repairs + 2 for result in played.results.values())
    assert 8 <= played.engines["vllm:request_queue_time_seconds_count"] <= calls


async def test_caches_are_emptied_between_rounds(pair: list[EmulatedServer]) -> None:
    at = await servers.attached([server.url for server in pair])
    warm = [(await round_of(at, ASKED[:2])).engines["vllm:prefix_cache_hits_total"] for _ in range(2)]
    await at.forget()
    cold = (await round_of(at, ASKED[:2])).engines["vllm:prefix_cache_hits_total"]
    assert warm[1] > warm[0]
    assert cold < warm[1]


async def round_of(at: servers.Servers, asked: list[Question]) -> Round:
    return await play(demo_vllm.playing(at, asked), {"LAYOUT": "isolated", "AFFINITY": "1"}, lambda: None)


async def test_the_demo_prints_a_table_of_what_the_servers_did(
    pair: list[EmulatedServer], capsys: pytest.CaptureFixture[str]
) -> None:
    urls = [f"{server.url}/v1" for server in pair]
    assert await demo.main(["--attach", *urls, "--layout", "isolated stage pools"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"model calls / repairs.* \d+ / \d+", said)
    assert re.search(r"prefill tokens computed.* [\d,]{4,}", said)


async def test_without_servers_the_demo_says_in_a_line_what_to_do(
    tmp_path: Path, pair: list[EmulatedServer], capsys: pytest.CaptureFixture[str]
) -> None:
    assert await demo.main(["--vllm", str(tmp_path)]) == 2
    assert "run `make vllm`" in capsys.readouterr().out
    assert await demo.main(["--attach", pair[0].url, "http://127.0.0.1:1"]) == 2
    assert "no vLLM server answers at http://127.0.0.1:1 (ConnectError)" in capsys.readouterr().out
    async with serve(EmulatedOptions(num_gpu_blocks=500)) as other:
        assert await demo.main(["--attach", pair[0].url, other.url]) == 2
    assert "must be alike" in capsys.readouterr().out


async def test_a_server_that_goes_away_ends_the_demo_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(serve(FAST))
        two = await stack.enter_async_context(AsyncExitStack())
        other = await two.enter_async_context(serve(EmulatedOptions(num_gpu_blocks=400, block_size=16)))
        playing = asyncio.create_task(demo.main(["--attach", one.url, other.url, "--layout", "shared round-robin"]))
        while other.engine.idle and not playing.done():
            await asyncio.wait([playing], timeout=0.01)
        await two.aclose()
        assert await playing == 2
    assert "a server went away" in capsys.readouterr().out


async def test_a_machine_with_too_little_memory_is_told_so(tmp_path: Path) -> None:
    vllm, meminfo = tmp_path / "bin" / "vllm", tmp_path / "meminfo"
    vllm.parent.mkdir()
    vllm.touch()
    meminfo.write_text("MemTotal: 8000000 kB\nMemAvailable:    2000000 kB\n")
    with pytest.raises(servers.NoServersError, match=r"need 5 GB of memory, and 2\.0 GB are free"):
        servers.check(tmp_path, meminfo)
    servers.check(tmp_path, tmp_path / "none")
