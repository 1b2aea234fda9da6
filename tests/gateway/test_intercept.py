"""SQL tool calls that the gateway runs itself, for clients that drive themselves and need not know."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import duckdb
import pytest
from openai import AsyncOpenAI

from gateway.gateway import Gateway
from gateway.intercept import CALLS_MOST
from policies.runs import Run
from tests.gateway.recorder import Answer, Exchange, Recorder, recording
from tests.gateway.shop import (
    COUNT,
    HOPELESS,
    MISSPELT,
    REPAIRED,
    REVENUE,
    RIGHT,
    TOOLS,
    database,
    sections,
    shop,
    warehouse,
)
from tests.gateway.support import MODEL, Running, attached, metric, running, settled, written

CHAT = "/v1/chat/completions"
AT_GENERATE = {"X-Workflow-Type": "shop", "X-Workflow-Stage": "generate"}
DESCRIBING = {"type": "function", "function": {"name": "describe_tables", "parameters": {"type": "object"}}}
FOREIGN = {"type": "function", "function": {"name": "send_mail", "parameters": {"type": "object"}}}


def conversation(question: str, **more: Any) -> dict[str, Any]:
    content = f"TASK generate\nQuestion: {question}\n"
    return {"model": MODEL, "messages": [{"role": "user", "content": content}], "tools": TOOLS, **more}


def chunks(text: str) -> list[dict[str, Any]]:
    """The events of a stream that ended well."""
    events = [event.removeprefix("data: ") for event in text.split("\n\n") if event and not event.startswith(":")]
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]


def news(text: str) -> list[dict[str, Any]]:
    """What a stream says of the tools that were run."""
    return [json.loads(event.removeprefix(": cortex ")) for event in text.split("\n\n") if event.startswith(":")]


def deltas(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [chunk["choices"][0]["delta"] for chunk in found if chunk["choices"]]


async def test_a_conversation_with_a_tool_is_one_message(tmp_path: Path) -> None:
    async with shop(tmp_path, tools="intercept") as site:
        reply = await site.up.http.post(CHAT, json=conversation(RIGHT), headers=AT_GENERATE)
        answer = reply.json()
        message = answer["choices"][0]["message"]
        assert message["content"] == "Let me count. There are four."
        assert not message.get("tool_calls")
        assert answer["choices"][0]["finish_reason"] == "stop"
        engines = [server.engine for server in site.engines.values()]
        assert answer["usage"]["prompt_tokens"] == sum(engine.prompt_tokens for engine in engines)
        assert answer["usage"]["completion_tokens"] == sum(engine.generation_tokens for engine in engines)
        assert site.read()["generate"] > 0
        assert site.read()["verify"] > 0, "after SQL that went well the graph goes on at verify"
        assert metric(site.up.gateway, "cortex_attempts_total", pool="warehouse") == 1


async def test_a_streamed_conversation_shows_no_tool_call_and_one_id(tmp_path: Path) -> None:
    async with shop(tmp_path, tools="intercept") as site:
        body = conversation(RIGHT, stream=True, stream_options={"include_usage": True})
        reply = await site.up.http.post(CHAT, json=body, headers=AT_GENERATE)
        found = chunks(reply.text)
        assert len({chunk["id"] for chunk in found}) == 1
        said = deltas(found)
        assert "".join(delta.get("content") or "" for delta in said) == "Let me count. There are four."
        assert not any(delta.get("tool_calls") for delta in said)
        assert [delta["role"] for delta in said if "role" in delta] == ["assistant"]
        reasons = [chunk["choices"][0].get("finish_reason") for chunk in found if chunk["choices"]]
        assert [reason for reason in reasons if reason] == ["stop"]
        engines = [server.engine for server in site.engines.values()]
        (usage,) = [chunk["usage"] for chunk in found if chunk.get("usage")]
        assert usage["prompt_tokens"] == sum(engine.prompt_tokens for engine in engines)
        assert usage["completion_tokens"] == sum(engine.generation_tokens for engine in engines)
        plain = await site.up.http.post(CHAT, json=conversation(RIGHT, stream=True), headers=AT_GENERATE)
        assert not any(chunk.get("usage") for chunk in chunks(plain.text))


@pytest.mark.parametrize("stream", [False, True])
async def test_the_outcome_of_the_tool_selects_the_pool_of_the_next_turn(tmp_path: Path, stream: bool) -> None:
    async with shop(tmp_path, tools="intercept") as site:
        headers, ended = {**AT_GENERATE, "X-Workflow-Id": "one"}, list[Run]()
        site.up.gateway.runtime.dispatcher.runs.watch(ended.append)
        reply = await site.up.http.post(CHAT, json=conversation(REPAIRED, stream=stream), headers=headers)
        assert reply.status_code == 200
        pools = {pool: metric(site.up.gateway, "cortex_attempts_total", pool=pool) for pool in site.engines}
        assert pools == {"generate": 1, "fix": 1, "verify": 1}
        said = "".join(delta.get("content") or "" for delta in deltas(chunks(reply.text))) if stream else None
        assert (said if stream else reply.json()["choices"][0]["message"]["content"]) == "North leads."
        assert metric(site.up.gateway, "cortex_attempts_total", pool="warehouse") in {
            2,
            3,
        }  # what fails ahead fails again
        (run,) = (one for one in ended if one.workflow == "shop")  # others are of statements ahead of their calls
        assert [stage for stage, _ in run.history] == ["generate", "execute", "fix", "execute", "verify"]
        assert run.position == "verify"


@pytest.mark.parametrize("stream", [False, True])
async def test_at_the_loop_bound_the_last_tool_call_reaches_the_client(tmp_path: Path, stream: bool) -> None:
    async with shop(tmp_path, tools="intercept", visits=2) as site:
        reply = await site.up.http.post(CHAT, json=conversation(HOPELESS, stream=stream), headers=AT_GENERATE)
        if stream:
            found = chunks(reply.text)
            pieces = [call for delta in deltas(found) for call in delta.get("tool_calls") or ()]
            arguments = "".join(piece["function"].get("arguments") or "" for piece in pieces)
            assert [chunk["choices"][0]["finish_reason"] for chunk in found][-1] == "tool_calls"
            assert len({chunk["id"] for chunk in found}) == 1
        else:
            (choice,) = reply.json()["choices"]
            arguments = choice["message"]["tool_calls"][0]["function"]["arguments"]
            assert choice["finish_reason"] == "tool_calls"
        assert json.loads(arguments) == {"sql": "SELECT meaning FROM everything"}
        pools = {pool: metric(site.up.gateway, "cortex_attempts_total", pool=pool) for pool in site.engines}
        assert pools == {"generate": 1, "fix": 2, "verify": 0}


async def test_what_is_passed_is_passed_byte_for_byte(tmp_path: Path) -> None:
    async with shop(tmp_path, tools="pass") as site:
        url = site.engines["generate"].url
        whole = await site.up.http.post(CHAT, json=conversation(RIGHT), headers=AT_GENERATE)
        assert whole.json()["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "execute_sql"
        direct = await site.up.http.post(url + CHAT, json=conversation(RIGHT))
        assert same(whole.json()) == same(direct.json())
        stream = await site.up.http.post(CHAT, json=conversation(RIGHT, stream=True), headers=AT_GENERATE)
        assert any(delta.get("tool_calls") for delta in deltas(chunks(stream.text)))
        assert metric(site.up.gateway, "cortex_attempts_total", pool="warehouse") == 0


def same(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer without what differs from one time to the next."""
    calls = answer["choices"][0]["message"]["tool_calls"]
    for call in calls:
        call["id"] = ""
    details = {"prompt_tokens_details": None}
    return {**answer, "id": "", "created": 0, "usage": {**answer["usage"], **details}}


@pytest.mark.parametrize(
    ("configured", "header", "runs"), [("pass", "intercept", True), ("intercept", "pass", False)]
)
async def test_one_call_can_say_otherwise_than_the_configuration(
    tmp_path: Path, configured: str, header: str, runs: bool
) -> None:
    async with shop(tmp_path, tools=configured) as site:
        headers = {**AT_GENERATE, "X-Workflow-Tools": header}
        reply = await site.up.http.post(CHAT, json=conversation(RIGHT), headers=headers)
        assert (not reply.json()["choices"][0]["message"].get("tool_calls")) is runs
        assert metric(site.up.gateway, "cortex_attempts_total", pool="warehouse") == float(runs)


async def test_without_a_workflow_the_header_alone_intercepts_and_the_call_stays_in_its_pool(tmp_path: Path) -> None:
    async with shop(tmp_path) as site:
        headers = {"X-Workflow-Tools": "intercept"}
        body = {**conversation(RIGHT), "model": "generate"}
        reply = await site.up.http.post(CHAT, json=body, headers=headers)
        assert reply.json()["choices"][0]["message"]["content"] == "Let me count. There are four."
        assert metric(site.up.gateway, "cortex_attempts_total", pool="generate") == 2


# --- engines that say what the test wants ---------------------------------------------------------------------


def call(name: str = "execute_sql", arguments: str = json.dumps({"sql": COUNT}), number: int = 0) -> dict[str, Any]:
    return {"id": f"call-{number}", "type": "function", "function": {"name": name, "arguments": arguments}}


def turn(*calls: dict[str, Any], content: str | None = None, **more: object) -> Answer:
    """An answer that says this and makes these calls, streamed or whole as it is asked for."""
    message = {"role": "assistant", "content": content, **({"tool_calls": list(calls)} if calls else {})}
    reason = "tool_calls" if calls else "stop"

    async def answer(exchange: Exchange) -> None:
        if not exchange.seen.document.get("stream"):
            choice = {"index": 0, "message": message, "finish_reason": reason}
            await exchange.whole(json.dumps({"id": "own", "choices": [choice], **more}).encode())
            return
        first: dict[str, Any] = {"role": "assistant"}
        pieces = [{"index": index, **one} for index, one in enumerate(calls)]
        # Content beside the end, as some servers send it.
        last: dict[str, Any] = {"content": content} if content else {}
        parts = [(first, None), *(({"tool_calls": [piece]}, None) for piece in pieces), (last, reason)]
        events = [
            {"id": "own", "choices": [{"index": 0, "delta": delta, "finish_reason": end}]} for delta, end in parts
        ]
        await exchange.pieces([b"data: " + json.dumps(event).encode() + b"\n\n" for event in events] + [DONE])

    return answer


DONE = b"data: [DONE]\n\n"


@asynccontextmanager
async def scripted(folder: Path, *turns: Answer, **visits: int) -> AsyncIterator[tuple[Running, Recorder]]:
    """The shop with one engine for all stages that answers these turns in order; `visits` bounds some stages."""
    left = list(turns)

    async def answer(exchange: Exchange) -> None:
        await left.pop(0)(exchange)

    async with recording(answer) as engine:
        pools = {stage: attached(engine.url) for stage in ("generate", "fix", "verify")}
        flow = sections(folder, tools="intercept")
        for stage, most in visits.items():
            flow["workflows"]["shop"]["stages"][stage]["visits"] = most
        text = written({**pools, "warehouse": warehouse(folder)}, policies={"layout": "isolated"}, **flow)
        async with running(folder, text) as up:
            yield up, engine
            assert left == []
            await settled(up.gateway)


@pytest.mark.parametrize("arguments", ["{", "[1]", "{}", '{"sql": 7}', '{"sql": "SELECT 1", "database": "x"}'])
async def test_broken_arguments_are_told_to_the_model(tmp_path: Path, arguments: str) -> None:
    async with scripted(tmp_path, turn(call(arguments=arguments)), turn(content="Sorry.")) as (up, engine):
        reply = await up.http.post(CHAT, json=conversation(RIGHT), headers=AT_GENERATE)
        assert reply.json()["choices"][0]["message"]["content"] == "Sorry."
        asked, told = engine.last.document["messages"][-2:]
        assert asked["tool_calls"][0]["function"]["arguments"] == arguments
        assert (told["role"], told["tool_call_id"]) == ("tool", "call-0")
        assert json.loads(told["content"])["error"]["code"] == "invalid_arguments"
        assert metric(up.gateway, "cortex_attempts_total", pool="warehouse") == 0


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("execute_sql", {"sql": COUNT, "limit": "5"}, "limit: must be a whole number"),
        ("execute_sql", {"sql": COUNT, "dialect": "klingon"}, "dialect: must be one of duckdb, sqlite"),
        ("execute_sql", {"sql": COUNT, "params": [[1]]}, "params: must hold null, booleans, numbers"),
        ("execute_sql", {"sql": COUNT, "params": [1]}, "the statement has no $1"),
        ("execute_sql", {"sql": "SELECT ? AS x", "params": [2**64]}, "more than 64 bits as text"),
        ("execute_sql", {"sql": COUNT, "database": 5}, "database: must be a string"),
        ("describe_tables", {"database": "x"}, "database: must be one of shop"),
        ("describe_tables", {"tables": "orders"}, "tables: must be a list"),
        ("describe_tables", {"tables": ["orders", "nowhere"]}, "no table named 'nowhere'"),
    ],
)
async def test_arguments_are_told_to_be_wrong_in_the_words_of_http(
    tmp_path: Path, name: str, arguments: dict[str, Any], words: str
) -> None:
    asked = call(name, json.dumps(arguments))
    async with scripted(tmp_path, turn(asked), turn(content="Sorry.")) as (up, engine):
        body = conversation(RIGHT, tools=[*TOOLS, DESCRIBING])
        await up.http.post(CHAT, json=body, headers={**AT_GENERATE, "X-Workflow-Tools": "intercept"})
        assert words in json.loads(engine.last.document["messages"][-1]["content"])["error"]["message"]
        if name == "execute_sql":
            over_http = await up.http.post("/v1/sql", content=json.dumps(arguments))
            assert words in over_http.json()["error"]["message"]


@pytest.mark.parametrize(
    ("arguments", "rows"),
    [
        ({"sql": "SELECT id FROM orders WHERE region = ? ORDER BY id", "params": ["north"]}, [[1], [3]]),
        ({"query": "SELECT id FROM orders ORDER BY id", "limit": 2, "reason": "the client's own"}, [[1], [2]]),
        ({"sql": 'SELECT "text" AS x', "dialect": "sqlite", "database": "shop"}, [["text"]]),
    ],
)
async def test_everything_that_a_question_may_hold_is_passed_on(
    tmp_path: Path, arguments: dict[str, Any], rows: list[Any]
) -> None:
    async with scripted(tmp_path, turn(call(arguments=json.dumps(arguments))), turn(content="Done.")) as (up, engine):
        await up.http.post(CHAT, json=conversation(RIGHT), headers=AT_GENERATE)
        assert json.loads(engine.last.document["messages"][-1]["content"])["rows"] == rows


async def test_a_model_that_asks_for_some_tables_gets_these_alone(tmp_path: Path) -> None:
    with duckdb.connect(str(database(tmp_path / "shop.duckdb"))) as connection:
        connection.execute("CREATE TABLE regions (name VARCHAR)")
    asked = call("describe_tables", json.dumps({"tables": ["REGIONS"]}))
    async with scripted(tmp_path, turn(asked), turn(content="Done.")) as (up, engine):
        headers = {**AT_GENERATE, "X-Workflow-Tools": "intercept"}
        await up.http.post(CHAT, json=conversation(RIGHT, tools=[DESCRIBING]), headers=headers)
        answer = json.loads(engine.last.document["messages"][-1]["content"])
        assert answer["text"] == "regions(name VARCHAR) -- 0 rows\n"


# --- what it tells of itself ------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_the_reply_tells_which_tools_were_run_and_how_that_went(tmp_path: Path, stream: bool) -> None:
    turns = [
        turn(call(), call(arguments='{"query": "SELEC 1"}', number=1), content="A "),
        turn(call(arguments="nonsense"), call(number=1)),
        turn(content="B"),
    ]
    async with scripted(tmp_path, *turns) as (up, _):
        reply = await up.http.post(CHAT, json=conversation(RIGHT, stream=stream), headers=AT_GENERATE)
        ran = news(reply.text) if stream else reply.json()["cortex"]["tools"]
        assert all(one.pop("ms") >= 0 for one in ran)
        cache = [one.pop("cache") for one in ran]
        assert cache[0] in (("joined", "hit") if stream else ("miss",))  # a stream's first one ran ahead
        assert cache[1:] == [None, None, "hit"]
        assert ran == [
            {"name": "execute_sql", "sql": COUNT, "outcome": "ok", "rows": 1},
            {"name": "execute_sql", "sql": "SELEC 1", "outcome": "error", "rows": None},
            {"name": "execute_sql", "sql": None, "outcome": "error", "rows": None},
            {"name": "execute_sql", "sql": COUNT, "outcome": "ok", "rows": 1},
        ]
        assert reply.headers.get("x-workflow-tools-run") == (None if stream else "4")
        if not stream:
            assert list(reply.json()["cortex"]) == ["tools"]


async def test_the_official_client_passes_over_what_a_stream_says_of_its_tools(tmp_path: Path) -> None:
    async with (
        scripted(tmp_path, turn(call(), content="A "), turn(content="B")) as (up, _),
        AsyncOpenAI(base_url=f"{up.url}/v1", api_key="unused", max_retries=0, default_headers=AT_GENERATE) as client,
    ):
        said = [
            chunk.choices[0].delta.content or ""
            async for chunk in await client.chat.completions.create(**conversation(RIGHT, stream=True))
        ]
        assert "".join(said) == "A B"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("turns", "visits", "why"),
    [
        ([[call(), call("send_mail", "{}", 1)]], {}, "other calls too"),
        ([[call(number=number) for number in range(CALLS_MOST + 1)]], {}, f"more than {CALLS_MOST} calls"),
        (
            [[call(arguments='{"sql": "SELEC"}')], [call()]],
            {"execute": 1},
            "the stage 'execute' is entered 1 times at most (visits)",
        ),
    ],
)
async def test_a_call_that_comes_back_to_the_client_says_why(
    tmp_path: Path, turns: list[list[dict[str, Any]]], visits: dict[str, int], why: str, stream: bool
) -> None:
    async with scripted(tmp_path, *(turn(*calls) for calls in turns), **visits) as (up, _):
        body = conversation(RIGHT, stream=stream, tools=[*TOOLS, FOREIGN])
        reply = await up.http.post(CHAT, json=body, headers=AT_GENERATE)
        said = news(reply.text)[-1] if stream else reply.json()["cortex"]
        assert why in said["passed"]


# --- turns that pass ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_a_turn_that_also_calls_a_foreign_tool_passes_whole_and_unexecuted(
    tmp_path: Path, stream: bool
) -> None:
    calls = [call(), call("send_mail", "{}", 1)]
    async with scripted(tmp_path, turn(*calls, content="Both.")) as (up, engine):
        body = conversation(RIGHT, stream=stream, tools=[*TOOLS, FOREIGN])
        reply = await up.http.post(CHAT, json=body, headers=AT_GENERATE)
        if stream:
            got = [one for delta in deltas(chunks(reply.text)) for one in delta.get("tool_calls") or ()]
            assert [one["function"]["name"] for one in got] == ["execute_sql", "send_mail"]
            assert "".join(delta.get("content") or "" for delta in deltas(chunks(reply.text))) == "Both."
        else:
            assert reply.json()["choices"][0]["message"]["tool_calls"] == calls
        assert len(engine.seen) == 1
        assert metric(up.gateway, "cortex_attempts_total", pool="warehouse") == 0


async def test_a_single_turn_goes_out_as_the_engine_wrote_it(tmp_path: Path) -> None:
    async with scripted(tmp_path, turn(content="Hello.", usage={"prompt_tokens": 1, "mine": 2})) as (up, _):
        reply = await up.http.post(CHAT, json=conversation(RIGHT), headers=AT_GENERATE)
        assert reply.json()["usage"] == {"prompt_tokens": 1, "mine": 2}


ODD_CALLS: list[Any] = [
    {"id": "x"},
    {"id": "x", "function": {"name": "execute_sql"}},
    {"id": "x", "function": {"name": "execute_sql", "arguments": None}},
    {"id": "x", "function": {"name": "execute_sql", "arguments": {"sql": COUNT}}},
    {"function": {"name": "execute_sql", "arguments": "{}"}},
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("one", ODD_CALLS)
async def test_a_call_that_is_not_formed_as_one_passes(tmp_path: Path, one: dict[str, Any], stream: bool) -> None:
    async with scripted(tmp_path, turn(one)) as (up, _):
        reply = await up.http.post(CHAT, json=conversation(RIGHT, stream=stream), headers=AT_GENERATE)
        if stream:
            got = [call for delta in deltas(chunks(reply.text)) for call in delta.get("tool_calls") or ()]
            assert got == [{"index": 0, **one}]
        else:
            assert reply.json()["choices"][0]["message"]["tool_calls"] == [one]
        assert metric(up.gateway, "cortex_attempts_total", pool="warehouse") == 0


async def test_a_text_in_the_place_of_a_call_passes(tmp_path: Path) -> None:
    odd: Any = "nonsense"
    async with scripted(tmp_path, turn(odd)) as (up, _):
        reply = await up.http.post(CHAT, json=conversation(RIGHT), headers=AT_GENERATE)
        assert reply.json()["choices"][0]["message"]["tool_calls"] == [odd]


async def test_tool_calls_that_are_no_list_are_a_broken_answer(tmp_path: Path) -> None:
    async def odd(exchange: Exchange) -> None:
        await exchange.whole(b'{"choices": [{"index": 0, "message": {"role": "assistant", "tool_calls": 5}}]}')

    async with scripted(tmp_path, odd) as (up, _):
        reply = await up.http.post(CHAT, json=conversation(RIGHT), headers=AT_GENERATE)
        assert (reply.status_code, reply.json()["error"]["code"]) == (502, "engine_broke")


async def test_streamed_chunks_without_a_choice_or_a_delta_do_no_harm(tmp_path: Path) -> None:
    async def odd(exchange: Exchange) -> None:
        choices: list[object] = [
            5,
            [5],
            [{"index": 0, "delta": {"content": "Hi."}}],
            [{"index": 0, "delta": "x"}],
            [{"index": 0, "delta": {"tool_calls": 5}}],
            [{"index": 0, "delta": None, "finish_reason": "stop"}],
        ]
        events = [f"data: {json.dumps({'id': 'own', 'choices': some})}\n\n".encode() for some in choices]
        await exchange.pieces([*events, DONE])

    async with scripted(tmp_path, odd) as (up, _):
        reply = await up.http.post(CHAT, json=conversation(RIGHT, stream=True), headers=AT_GENERATE)
        found = [chunk["choices"][0] for chunk in chunks(reply.text)]
        assert [one["delta"] for one in found] == [{"content": "Hi."}, {"tool_calls": 5}, {}]
        assert found[-1]["finish_reason"] == "stop"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_turn_of_too_many_calls_passes_unexecuted(tmp_path: Path, stream: bool) -> None:
    most = [call(number=number) for number in range(CALLS_MOST)]
    over = [*most, call(number=CALLS_MOST)]
    async with scripted(tmp_path, turn(*most), turn(*over)) as (up, engine):
        reply = await up.http.post(CHAT, json=conversation(RIGHT, stream=stream), headers=AT_GENERATE)
        answers = [m for m in engine.last.document["messages"] if m["role"] == "tool"]
        assert [answer["tool_call_id"] for answer in answers] == [one["id"] for one in most]
        if stream:
            got = [one for delta in deltas(chunks(reply.text)) for one in delta.get("tool_calls") or ()]
            assert len(got) == len(over)
        else:
            assert reply.json()["choices"][0]["message"]["tool_calls"] == over
        assert metric(up.gateway, "cortex_attempts_total", pool="warehouse") == 1, "they were all the same"


@pytest.mark.parametrize("bounds", [{"execute": 1}, {"verify": 1, "fix": 1}])
async def test_a_turn_that_no_outcome_of_could_be_continued_is_not_run(
    tmp_path: Path, bounds: dict[str, int]
) -> None:
    bad, revenue = (call(arguments=json.dumps({"sql": sql})) for sql in (MISSPELT, REVENUE))
    turns = [turn(bad), turn(revenue)] if "execute" in bounds else [turn(bad), turn(call()), turn(revenue)]
    async with scripted(tmp_path, *turns, **bounds) as (up, _):
        reply = await up.http.post(CHAT, json=conversation(RIGHT), headers=AT_GENERATE)
        assert reply.json()["choices"][0]["message"]["tool_calls"] == [revenue]
        assert metric(up.gateway, "cortex_attempts_total", pool="warehouse") == len(turns) - 1


@pytest.mark.parametrize("stream", [False, True])
async def test_statements_that_get_no_answer_fail_the_call_as_one_would(tmp_path: Path, stream: bool) -> None:
    async with scripted(tmp_path, turn(call(), call(number=1))) as (up, _):
        (tmp_path / "shop.duckdb").unlink()
        reply = await up.http.post(CHAT, json=conversation(RIGHT, stream=stream), headers=AT_GENERATE)
        if stream:
            error = json.loads(reply.text.split("\n\n")[-2].removeprefix("data: "))["error"]
        else:
            assert reply.status_code == 503
            error = reply.json()["error"]
        assert error["code"] == "pool_unavailable"


@pytest.mark.parametrize("stream", [False, True])
async def test_several_calls_of_one_turn_are_all_answered_in_order(tmp_path: Path, stream: bool) -> None:
    bad = call(arguments=json.dumps({"sql": MISSPELT}), number=1)
    async with scripted(tmp_path, turn(call(), bad, content="A "), turn(content="B")) as (up, engine):
        reply = await up.http.post(CHAT, json=conversation(RIGHT, stream=stream), headers=AT_GENERATE)
        answers = [m for m in engine.last.document["messages"] if m["role"] == "tool"]
        assert [answer["tool_call_id"] for answer in answers] == ["call-0", "call-1"]
        assert json.loads(answers[0]["content"])["rows"] == [[4]]
        assert "amuont" in json.loads(answers[1]["content"])["error"]["message"]
        assert metric(up.gateway, "cortex_attempts_total", pool="fix") == 1, "one call that fails decides"
        if stream:
            assert "".join(delta.get("content") or "" for delta in deltas(chunks(reply.text))) == "A B"
        else:
            assert reply.json()["choices"][0]["message"]["content"] == "A B"


async def refuse(exchange: Exchange) -> None:
    await exchange.whole(b'{"error": {"message": "the context is too long", "type": "BadRequestError"}}', status=400)


async def test_a_later_turn_that_is_refused_keeps_its_status_where_nothing_has_gone_out(tmp_path: Path) -> None:
    async with scripted(tmp_path, turn(call()), refuse) as (up, _):
        reply = await up.http.post(CHAT, json=conversation(RIGHT), headers=AT_GENERATE)
        assert reply.status_code == 400
        assert reply.json()["error"]["message"] == "the context is too long"


async def die(exchange: Exchange) -> None:
    await exchange.whole(b"{}", status=500)


async def cut(exchange: Exchange) -> None:
    await exchange.pieces([b'data: {"id":"own","choices":[{"index":0,"delta":{"content":"half"}}]}\n\n'])


@pytest.mark.parametrize(
    ("second", "words"), [(refuse, "the context is too long"), (die, "failed"), (cut, "broke off")]
)
async def test_a_later_turn_that_fails_ends_the_stream_with_an_error(
    tmp_path: Path, second: Answer, words: str
) -> None:
    async with scripted(tmp_path, turn(call(), content="Wait. "), second) as (up, _):
        reply = await up.http.post(CHAT, json=conversation(RIGHT, stream=True), headers=AT_GENERATE)
        assert reply.status_code == 200
        events = [event.removeprefix("data: ") for event in reply.text.split("\n\n") if event]
        assert "[DONE]" not in events
        assert words in json.loads(events[-1])["error"]["message"]


async def test_the_last_call_of_a_run_ends_it_after_its_last_turn(tmp_path: Path) -> None:
    seen: list[int] = []

    async def look(exchange: Exchange) -> None:
        """The second turn: the run of the first is still there."""
        (run,) = gateway[0].runtime.dispatcher.runs
        seen.append(run.calls)
        await turn(content="Done.")(exchange)

    gateway: list[Gateway] = []
    async with scripted(tmp_path, turn(call()), look) as (up, _):
        gateway.append(up.gateway)
        headers = {**AT_GENERATE, "X-Workflow-Final": "true", "X-Workflow-Id": "r"}
        await up.http.post(CHAT, json=conversation(RIGHT), headers=headers)
        assert seen == [3], "a turn, its statement, and this turn are one run"
        assert len(up.gateway.runtime.dispatcher.runs) == 0
