"""A workflow called as a model: the gateway walks the graph, and the client sees one answer."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from backends.emulated.options import EmulatedOptions
from backends.emulated.server import serve
from gateway.walk import TABLE_ROWS, table
from tests.gateway.recorder import Exchange, recording
from tests.gateway.shop import (
    COUNT,
    EMPTY,
    FAST,
    HOPELESS,
    JUDGED,
    MISSPELT,
    REPAIRED,
    REVENUE,
    RIGHT,
    SPEECHLESS,
    Shop,
    sections,
    shop,
    warehouse,
)
from tests.gateway.support import attached, metric, running, settled, until, written

CHAT = "/v1/chat/completions"
ADMIN = {"Authorization": "Bearer secret"}


def asking(question: str, **more: Any) -> dict[str, Any]:
    return {"model": "workflow/shop", "messages": [{"role": "user", "content": question}], **more}


async def ask(site: Shop, question: str, **headers: str) -> dict[str, Any]:
    reply = await site.up.http.post(CHAT, json=asking(question), headers=headers)
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


def path(answer: dict[str, Any]) -> list[str]:
    return [f"{step['stage']}:{step['outcome']}" for step in answer["workflow"]["path"]]


async def test_every_way_through_the_graph_ends_in_an_answer_or_in_words(tmp_path: Path) -> None:
    judged = ["fix:ok", "execute:ok", "verify:ok", "answer:ok"]
    ways: dict[str, list[str]] = {
        RIGHT: ["generate:ok", "execute:ok", "verify:ok", "answer:ok"],
        REPAIRED: ["generate:ok", "execute:error", *judged],
        EMPTY: ["generate:ok", "execute:empty", *judged],
        JUDGED: ["generate:ok", "execute:ok", "verify:error", *judged],
        HOPELESS: ["generate:ok", "execute:error"] + ["fix:ok", "execute:error"] * 3,
    }
    async with shop(tmp_path) as site:
        for question, way in ways.items():
            answer = await ask(site, question)
            assert path(answer) == ["retrieve:ok", *way], question
            hopeless = question == HOPELESS
            assert answer["workflow"]["outcome"] == ("error" if hopeless else "ok")
            message = answer["choices"][0]["message"]
            assert message["role"] == "assistant"
            assert ("everything does not exist" in message["content"]) is hopeless
        assert len(site.up.gateway.runtime.dispatcher.runs) == 0


async def test_the_answer_shows_the_statement_and_its_rows(tmp_path: Path) -> None:
    async with shop(tmp_path) as site:
        answer = await ask(site, REPAIRED)
        assert answer["workflow"]["sql"] == REVENUE
        assert answer["choices"][0]["message"]["content"] == (
            f"2 row(s) of region, revenue by {REVENUE}\n\n"
            "| region | revenue |\n| --- | --- |\n| north | 55 |\n| south | 27 |\n"
        )
        assert answer["choices"][0]["finish_reason"] == "stop"


async def test_each_stage_is_asked_in_its_own_pool_and_the_usage_is_their_sum(tmp_path: Path) -> None:
    async with shop(tmp_path) as site:
        answer = await ask(site, RIGHT)
        read = site.read()
        assert (read["generate"] > 0, read["verify"] > 0, read["fix"]) == (True, True, 0)
        assert answer["usage"]["prompt_tokens"] == sum(read.values())
        written_tokens = sum(server.engine.generation_tokens for server in site.engines.values())
        assert answer["usage"]["completion_tokens"] == written_tokens
        assert answer["usage"]["total_tokens"] == sum(read.values()) + written_tokens
        await ask(site, REPAIRED)
        again = site.read()
        assert all(again[stage] > read[stage] for stage in again)
        attempts = {pool: metric(site.up.gateway, "cortex_attempts_total", pool=pool) for pool in again}
        assert attempts == {"generate": 2, "fix": 1, "verify": 2}


async def test_a_streamed_walk_is_one_message_with_one_id(tmp_path: Path) -> None:
    async with shop(tmp_path) as site:
        whole = await ask(site, REPAIRED)
        body = asking(REPAIRED, stream=True, stream_options={"include_usage": True})
        reply = await site.up.http.post(CHAT, json=body)
        assert reply.headers["content-type"].startswith("text/event-stream")
        events = [text.removeprefix("data: ") for text in reply.text.split("\n\n") if text]
        assert events[-1] == "[DONE]"
        chunks = [json.loads(event) for event in events[:-1]]
        assert len({chunk["id"] for chunk in chunks}) == 1
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
        assert deltas[0]["role"] == "assistant"
        said = "".join(delta.get("content", "") for delta in deltas)
        assert said == whole["choices"][0]["message"]["content"]
        assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
        assert chunks[-1]["choices"] == []
        assert chunks[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
        plain = await site.up.http.post(CHAT, json=asking(REPAIRED, stream=True))
        assert '"usage"' not in plain.text


async def test_a_run_can_be_seen_on_its_way(tmp_path: Path) -> None:
    slow = EmulatedOptions(decode_step=0.01)
    async with shop(tmp_path, options=slow, admin={"token": "secret"}) as site:

        async def seen() -> list[dict[str, Any]]:
            reply = await site.up.http.get("/admin/runs", headers=ADMIN)
            runs: list[dict[str, Any]] = reply.json()["runs"]
            return runs

        async with site.up.http.stream(
            "POST", CHAT, json=asking(REPAIRED), headers={"X-Workflow-Id": "mine", "X-Workflow-Final": "true"}
        ) as _:
            pass
        assert await seen() == []
        request = site.up.http.build_request(
            "POST", CHAT, json=asking(REPAIRED), headers={"X-Workflow-Id": "mine", "X-Workflow-Final": "true"}
        )
        sending = asyncio.create_task(site.up.http.send(request))
        await until(lambda: slots(site, "fix") == 1, "a call of the fixer")
        (run,) = await seen()
        assert (run["id"], run["workflow"], run["stage"], run["open_calls"]) == ("mine", "shop", "fix", 1)
        assert run["visits"] == {"retrieve": 1, "generate": 1, "execute": 1, "fix": 1}
        assert run["history"][-1] == {"stage": "execute", "outcome": "error"}
        assert 0 < run["deadline_in_s"] < 60
        assert (await sending).status_code == 200
        assert await seen() == []


def slots(site: Shop, pool: str) -> int:
    return sum(len(engine.slots) for engine in site.up.gateway.runtime.dispatcher.fleet.of(pool))


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([{"role": "user", "content": "  \n "}], "question"),
        ([{"role": "system", "content": "hello"}], "question"),
        ([{"role": "user", "content": RIGHT}, {"role": "user", "content": ""}], "question"),
    ],
)
async def test_a_walk_without_a_question_is_refused(tmp_path: Path, messages: list[object], words: str) -> None:
    async with shop(tmp_path) as site:
        reply = await site.up.http.post(CHAT, json={"model": "workflow/shop", "messages": messages})
        assert reply.status_code == 400
        assert reply.json()["error"]["param"] == "messages"
        assert words in reply.json()["error"]["message"]
        assert sum(site.read().values()) == 0


async def test_the_last_question_counts_on_one_line(tmp_path: Path) -> None:
    async with shop(tmp_path) as site:
        parts = [{"type": "text", "text": "How many\n orders "}, {"type": "text", "text": " are there?"}]
        messages = [
            {"role": "user", "content": HOPELESS},
            {"role": "assistant", "content": "42"},
            {"role": "user", "content": parts},
        ]
        reply = await site.up.http.post(CHAT, json={"model": "workflow/shop", "messages": messages})
        assert reply.json()["workflow"]["sql"] == COUNT


async def test_a_header_that_names_another_workflow_does_not_change_the_one_that_is_walked(tmp_path: Path) -> None:
    async with shop(tmp_path) as site:
        answer = await ask(site, RIGHT, **{"X-Workflow-Type": "another"})
        assert answer["workflow"]["outcome"] == "ok"


async def test_a_model_that_writes_no_sql_is_sent_to_be_repaired_and_given_up_on(tmp_path: Path) -> None:
    async with shop(tmp_path) as site:
        answer = await ask(site, SPEECHLESS)
        assert path(answer)[:3] == ["retrieve:ok", "generate:error", "execute:error"]
        assert answer["workflow"]["outcome"] == "error"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fault", "status", "code"), [("status=400", 400, "invalid_value"), ("die_before", 502, "engine_broke")]
)
async def test_an_engine_that_fails_inside_a_stage_fails_the_walk_with_a_status(
    tmp_path: Path, fault: str, status: int, code: str, stream: bool
) -> None:
    async with shop(tmp_path) as site:
        reply = await site.up.http.post(CHAT, json=asking(RIGHT, stream=stream), headers={"X-Emulated-Fault": fault})
        assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
        assert "generate" in reply.json()["error"]["message"] or status == 502
        assert (await ask(site, RIGHT))["workflow"]["outcome"] == "ok"


async def test_fenced_sql_and_bare_sql_are_understood(tmp_path: Path) -> None:
    texts = [f"Sure:\n```SQL\n{COUNT}\n```\nDone.", f" {COUNT}", "```\nVALUES (1)\n```"]
    said = iter(texts)

    async def answer(exchange: Exchange) -> None:
        text = next(said) if "TASK generate" in exchange.seen.body.decode() else "OK"
        message = {"role": "assistant", "content": text}
        document = {"id": "x", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
        await exchange.whole(json.dumps(document).encode())

    async with recording(answer) as engine:
        pools = {stage: attached(engine.url) for stage in ("generate", "fix", "verify")}
        async with running(
            tmp_path, written({**pools, "warehouse": warehouse(tmp_path)}, **sections(tmp_path))
        ) as up:
            for text in texts:
                reply = await up.http.post(CHAT, json=asking(text))
                assert reply.json()["workflow"]["outcome"] == "ok"
            bodies = [seen.document for seen in engine.seen]
            assert [body["messages"][0]["content"].split("\n")[0] for body in bodies[:2]] == [
                "TASK generate",
                "TASK verify",
            ]
            assert bodies[0]["tools"][0]["function"]["name"] == "execute_sql"
            assert (bodies[0]["temperature"], bodies[0]["max_tokens"]) == (0, 200)
            assert "tools" not in bodies[1]
            # Each stage's prefix is the same for every question: only the last line differs.
            firsts = [body["messages"][0]["content"] for body in bodies[::2]]
            assert len({first[: first.index("Question:")] for first in firsts}) == 1
            await settled(up.gateway)


async def test_a_workflow_that_only_renders_answers_without_any_engine(tmp_path: Path) -> None:
    (tmp_path / "hello.md").write_text("You asked: {{question}}")
    flow = {"stages": {"answer": {"render": "hello.md"}}, "edges": [{"from": "start", "to": "answer"}]}
    async with serve(FAST) as server:
        text = written({"default": attached(server.url)}, workflows={"greet": flow})
        async with running(tmp_path, text) as up:
            body = {"model": "workflow/greet", "messages": [{"role": "user", "content": "hi"}]}
            reply = await up.http.post(CHAT, json=body)
            assert reply.json()["choices"][0]["message"]["content"] == "You asked: hi"
            assert reply.json()["usage"]["total_tokens"] == 0
            await settled(up.gateway, server)


def test_a_table_is_cut_and_its_cells_stay_in_their_place() -> None:
    rows: list[list[Any]] = [["a|b", None, 1.5, {"x": [1]}, "two\nlines"]]
    assert table(["a", "b", "c", "d", "e"], rows) == (
        '| a | b | c | d | e |\n| --- | --- | --- | --- | --- |\n| a\\|b |  | 1.5 | {"x":[1]} | two lines |'
    )
    long = table(["n"], [[n] for n in range(TABLE_ROWS + 7)])
    assert long.endswith(f"| {TABLE_ROWS - 1} |\n(7 more rows)")
    assert MISSPELT not in long
