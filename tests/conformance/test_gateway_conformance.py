"""What the gateway itself writes is as published: walked and intercepted answers, models, errors of every surface."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conformance.schemas import (
    check_chat,
    check_error,
    check_message_error,
    check_models,
    check_response,
    check_stream,
    read_stream,
)
from tests.gateway.shop import FAST, HOPELESS, REPAIRED, RIGHT, TOOLS, shop
from tests.gateway.support import CHAT, MODEL

AT_GENERATE = {"X-Workflow-Type": "shop", "X-Workflow-Stage": "generate"}
USAGE = {"include_usage": True}


def asking(question: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}], **more}


@pytest.mark.parametrize("question", [RIGHT, REPAIRED, HOPELESS])
async def test_a_walked_workflow_answers_as_a_model_does(tmp_path: Path, question: str) -> None:
    async with shop(tmp_path) as site:
        ask = asking(question, model="workflow/shop")
        check_chat((await site.up.http.post(CHAT, json=ask)).json())
        stream = await site.up.http.post(CHAT, json={**ask, "stream": True, "stream_options": USAGE})
        events = check_stream("chat", stream.content)
        assert events[-1]["usage"]["total_tokens"] > 0


@pytest.mark.parametrize("question", [RIGHT, REPAIRED])
async def test_a_conversation_whose_tools_the_gateway_runs_is_one_answer(tmp_path: Path, question: str) -> None:
    async with shop(tmp_path, tools="intercept") as site:
        ask = asking(question, model=MODEL, tools=TOOLS)
        check_chat((await site.up.http.post(CHAT, json=ask, headers=AT_GENERATE)).json())
        stream = {**ask, "stream": True, "stream_options": USAGE}
        check_stream("chat", (await site.up.http.post(CHAT, json=stream, headers=AT_GENERATE)).content)


async def test_what_the_engines_say_is_still_as_published_behind_the_gateway(tmp_path: Path) -> None:
    async with shop(tmp_path) as site:
        http = site.up.http
        check_models((await http.get("/v1/models")).json())
        check_stream("chat", (await http.post(CHAT, json=asking("hi", model=MODEL, stream=True))).content)
        check_response((await http.post("/v1/responses", json={"model": MODEL, "input": "hi"})).json())
        check_stream(
            "responses",
            (await http.post("/v1/responses", json={"model": MODEL, "input": "hi", "stream": True})).content,
        )
        ask = asking("hi", model=MODEL, max_tokens=9, stream=True)
        check_stream("messages", (await http.post("/v1/messages", json=ask)).content)


@pytest.mark.parametrize(
    "path", [CHAT, "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/rerank", "/tokenize"]
)
async def test_errors_have_openais_shape(tmp_path: Path, path: str) -> None:
    async with shop(tmp_path) as site:
        for body in (b"{", b"{}", b'{"model": "nobody", "messages": [], "prompt": "x", "input": "x"}'):
            reply = await site.up.http.post(path, content=body)
            assert reply.status_code in (400, 404)
            check_error(reply.json())
        check_error((await site.up.http.get(path)).json())


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
async def test_errors_have_anthropics_shape_where_they_must(tmp_path: Path, path: str) -> None:
    async with shop(tmp_path) as site:
        for body in (b"{", b"{}", b'{"model": "nobody", "messages": [{"role": "user", "content": "x"}]}'):
            reply = await site.up.http.post(path, content=body)
            assert reply.status_code in (400, 404)
            check_message_error(reply.json())
        check_message_error((await site.up.http.get(path)).json())
        unknown = await site.up.http.get("/v1/models/nobody", headers={"anthropic-version": "2023-06-01"})
        check_message_error(unknown.json())


async def test_the_last_event_of_a_broken_stream_is_as_published(tmp_path: Path) -> None:
    async with shop(tmp_path, options=FAST) as site:
        broken = {"X-Emulated-Fault": "die_after=8"}
        ask = {"model": MODEL, "input": "say a lot", "stream": True}
        reply = await site.up.http.post("/v1/responses", json=ask, headers=broken)
        *events, last = read_stream("responses", reply.content)
        assert (last["type"], last["sequence_number"]) == ("error", events[-1]["sequence_number"] + 1)
        message = asking("say a lot", model=MODEL, stream=True, max_tokens=50)
        reply = await site.up.http.post("/v1/messages", json=message, headers=broken)
        check_message_error(read_stream("messages", reply.content)[-1])
