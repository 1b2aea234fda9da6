"""Calls to two real vLLM servers through a gateway."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from backends.vllm import HttpEngine
from tests.gateway.support import CHAT, events, running, settled, until, written
from tests.vllm.conftest import MODEL, Pair
from tests.vllm.test_real_engine import reported

ADMIN = {"Authorization": "Bearer admin"}
SQL = {
    "type": "function",
    "function": {
        "name": "execute_sql",
        "description": "Runs a query.",
        "parameters": {"type": "object", "properties": {"sql": {"type": "string"}}, "required": ["sql"]},
    },
}


def asking(text: str, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **more}


def pool(*urls: str, sequences: int = 8) -> dict[str, object]:
    backend = {"name": "vllm", "attach": list(urls)}
    return {"model": MODEL, "backend": backend, "concurrency": {"sequences": sequences}}


def text_of(pair: Pair) -> str:
    return written({"default": pool(*pair.urls)}, admin={"token": "admin"})


@pytest.mark.parametrize("stream", [False, True])
async def test_a_tool_is_called(pair: Pair, tmp_path: Path, stream: bool) -> None:
    said = '<tool_call>\n{"name": "execute_sql", "arguments": {"sql": "SELECT 1"}}\n</tool_call>'
    body = asking("How many?", tools=[SQL], structured_outputs={"choice": [said]}, max_tokens=200, stream=stream)
    async with running(tmp_path, text_of(pair)) as up:
        reply = await up.http.post(CHAT, json=body, timeout=60)
        assert reply.status_code == 200, reply.text
        calls = streamed_calls(reply.text) if stream else whole_calls(reply.json())
        assert calls == [("execute_sql", {"sql": "SELECT 1"})]
        await settled(up.gateway)


def whole_calls(document: dict[str, Any]) -> list[tuple[str, Any]]:
    functions = [call["function"] for call in document["choices"][0]["message"]["tool_calls"]]
    return [(one["name"], json.loads(one["arguments"])) for one in functions]


def streamed_calls(text: str) -> list[tuple[str, Any]]:
    *chunks, last = events(text)
    assert last == "[DONE]"
    names, pieces = dict[int, str](), dict[int, str]()
    for chunk in chunks:
        for choice in json.loads(chunk)["choices"]:
            for call in choice["delta"].get("tool_calls") or ():
                index, function = call["index"], call["function"]
                names[index] = names.get(index, "") + (function.get("name") or "")
                pieces[index] = pieces.get(index, "") + (function.get("arguments") or "")
    return [(names[index], json.loads(pieces[index])) for index in names]


async def test_a_client_that_leaves_ends_its_generation(
    pair: Pair, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    engines = [HttpEngine(url, session) for url in pair.urls]
    async with running(tmp_path, text_of(pair)) as up:
        before = await written_tokens(engines)
        body = asking("Tell me more.", max_tokens=2000, ignore_eos=True, stream=True)
        async with up.http.stream("POST", CHAT, json=body, timeout=60) as reply:
            await anext(reply.aiter_text())
        for engine in engines:
            await reported(engine, running=0)
        assert 0 < await written_tokens(engines) - before < 1500
        await settled(up.gateway)


async def written_tokens(engines: list[HttpEngine]) -> float:
    return sum([(await engine.report()).counters["generation_tokens"] for engine in engines])


async def test_an_engine_that_drains_ends_its_stream_first(pair: Pair, tmp_path: Path) -> None:
    async with running(tmp_path, text_of(pair)) as up:
        body = asking("Tell me more.", max_tokens=600, ignore_eos=True, stream=True)
        async with up.http.stream("POST", CHAT, json=body, timeout=60) as reply:
            engine = reply.headers["x-workflow-engine"]
            pieces = aiter(reply.aiter_text())
            text = await anext(pieces)
            assert (await up.http.post(f"/admin/engines/{engine}/drain", headers=ADMIN)).status_code == 200
            assert engine in up.gateway.runtime.engines
            other = await up.http.post(CHAT, json=asking("Hello.", max_tokens=2), timeout=60)
            assert other.headers["x-workflow-engine"] != engine
            text += "".join([piece async for piece in pieces])
        assert text.endswith("data: [DONE]\n\n")
        await until(lambda: engine not in up.gateway.runtime.engines, "the engine's end")


async def test_an_idle_pools_engine_is_borrowed_and_given_back(pair: Pair, tmp_path: Path) -> None:
    pools = {name: pool(url, sequences=2) for name, url in zip(("writers", "menders"), pair.urls, strict=True)}
    stages = {"write": {"pool": "writers"}, "mend": {"pool": "menders"}}
    edges = [{"from": "start", "to": "write"}, {"from": "write", "to": "mend"}]
    text = written(pools, workflows={"query": {"stages": stages, "edges": edges}}, policies={"layout": "adaptive"})
    async with running(tmp_path, text) as up:

        async def served(stage: str, number: int) -> str:
            headers = {"X-Workflow-Type": "query", "X-Workflow-Stage": stage}
            body = asking(f"{stage} {number}", max_tokens=60, ignore_eos=True)
            reply = await up.http.post(CHAT, json=body, headers=headers, timeout=120)
            assert reply.status_code == 200, reply.text
            return str(reply.headers["x-workflow-engine"])

        async def crowd(stage: str, calls: int) -> Counter[str]:
            return Counter(await asyncio.gather(*(served(stage, number) for number in range(calls))))

        await crowd("write", 4)
        await crowd("mend", 4)  # what a stage takes is known from calls
        borrowed = await crowd("write", 16)
        assert borrowed["menders/0"] > 0
        assert borrowed["writers/0"] > 0
        assert all(engine.on_loan == 0 for engine in up.gateway.runtime.dispatcher.fleet)
        assert (await crowd("mend", 4))["menders/0"] > 0
        await settled(up.gateway)
