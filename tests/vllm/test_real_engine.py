"""A real vLLM server does what the gateway takes for granted."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import aiohttp
import orjson

from backends.base import Request
from backends.vllm import HttpEngine
from policies.calls import Call
from tests.vllm.conftest import BLOCK, MODEL, Pair

CHAT = "/v1/chat/completions"


def asking(text: str, *, headers: tuple[tuple[str, str], ...] = (), **more: Any) -> Request:
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], **more}
    return Request(
        call=Call(id="c", pool="p", run="r", arrived=0.0),
        path=CHAT,
        body=orjson.dumps(body),
        headers=(("content-type", "application/json"), *headers),
        head_timeout=60,
        idle_timeout=60,
    )


async def answer(engine: HttpEngine, request: Request) -> dict[str, Any]:
    async with engine.open(request) as reply:
        assert reply.status == 200
        document: dict[str, Any] = orjson.loads(b"".join([chunk async for chunk in reply.chunks]))
    return document


async def reported(engine: HttpEngine, *, running: int, waiting: int | None = None) -> None:
    until = time.monotonic() + 30
    while True:
        report = await engine.report()
        if report.running == running and waiting in {None, report.waiting}:
            return
        assert time.monotonic() < until, report
        await asyncio.sleep(0.01)


async def test_each_replica_has_a_prefix_cache_of_its_own(pair: Pair, session: aiohttp.ClientSession) -> None:
    one, two = (HttpEngine(url, session) for url in pair.urls)
    request = asking("the same words over and over " * 40, max_tokens=2)
    cached = []
    for engine in (one, one, two, two):
        usage = (await answer(engine, request))["usage"]
        cached.append(usage["prompt_tokens_details"]["cached_tokens"])
    assert cached[0] == cached[2] == 0
    assert cached[1] == cached[3] >= BLOCK
    report = await one.report()
    assert report.counters["prefix_hits"] >= cached[1]
    salted = asking("the same words over and over " * 40, max_tokens=2, cache_salt="another tenant")
    assert (await answer(one, salted))["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


async def test_a_stream_comes_in_events_and_ends_with_its_usage(pair: Pair, session: aiohttp.ClientSession) -> None:
    engine = HttpEngine(pair.urls[0], session)
    request = asking(
        "yes or no?",
        stream=True,
        stream_options={"include_usage": True},
        structured_outputs={"choice": ["yes", "no"]},
    )
    async with engine.open(request) as reply:
        text = b"".join([chunk async for chunk in reply.chunks]).decode()
    events = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    chunks = [orjson.loads(event) for event in events[:-1]]
    said = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])
    assert said in {"yes", "no"}
    assert chunks[-1]["usage"]["completion_tokens"] > 0


async def test_whoever_leaves_stops_the_generation(pair: Pair, session: aiohttp.ClientSession) -> None:
    engine = HttpEngine(pair.urls[0], session)
    before = (await engine.report()).counters["generation_tokens"]
    async with engine.open(asking("tell me more", max_tokens=2000, ignore_eos=True, stream=True)) as reply:
        await anext(aiter(reply.chunks))
    await reported(engine, running=0)
    assert (await engine.report()).counters["generation_tokens"] - before < 1500


async def test_the_urgent_overtake_in_the_engines_queue(pair: Pair, session: aiohttp.ClientSession) -> None:
    engine = HttpEngine(pair.urls[0], session)
    order: list[str] = []

    async def ask(name: str, priority: int, tokens: int) -> None:
        headers = (("X-Vllm-Priority", str(priority)),)
        await answer(engine, asking(name, headers=headers, max_tokens=tokens, ignore_eos=True))
        order.append(name)

    async with asyncio.TaskGroup() as group:
        for number in range(16):  # as many as run at once
            group.create_task(ask(f"running {number}", 0, 300))
        await reported(engine, running=16)
        for number in range(4):
            group.create_task(ask(f"patient {number}", 10, 4))
        await reported(engine, running=16, waiting=4)
        for number in range(3):
            group.create_task(ask(f"urgent {number}", -10, 4))
    late = [name for name in order if not name.startswith("running")]
    assert [name.partition(" ")[0] for name in late] == ["urgent"] * 3 + ["patient"] * 4
