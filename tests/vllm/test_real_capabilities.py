"""What a real vLLM server can do is found by asking it; it is told the order as it can be told; its sleep is seen."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import orjson

from backends.capabilities import Capabilities
from backends.vllm import HttpEngine
from tests.gateway.support import chat, running, settled, written
from tests.vllm.conftest import BLOCK, BLOCKS, LONGEST, MODEL, Pair
from tests.vllm.test_real_engine import CHAT, answer, asking, reported

CALM = 600.0


async def test_a_server_tells_what_it_can_do(pair: Pair, session: aiohttp.ClientSession) -> None:
    can = await HttpEngine(pair.urls[0], session).capabilities()
    assert can == Capabilities(
        version=can.version,
        models=(MODEL,),
        longest=LONGEST,
        block_size=BLOCK,
        kv_blocks=BLOCKS,
        prefix_caching=True,
        kv_events=can.kv_events,
        token_details=True,
        priority=True,
        sleeps=True,
        surfaces=frozenset(("chat", "completions", "responses", "messages", "tokenize")),
    )
    assert can.version.partition(".")[0].isdigit()
    assert (can.kv_tokens, can.ordering) == (BLOCK * BLOCKS, "header")


async def test_the_bodys_field_orders_as_the_header_does(pair: Pair, session: aiohttp.ClientSession) -> None:
    engine = HttpEngine(pair.urls[1], session)
    order: list[str] = []

    async def ask(name: str, priority: int, tokens: int) -> None:
        await answer(engine, asking(name, priority=priority, max_tokens=tokens, ignore_eos=True))
        order.append(name)

    async with asyncio.TaskGroup() as group:
        for number in range(16):  # as many as run at once
            group.create_task(ask(f"running {number}", 0, 300))
        await reported(engine, running=16)
        for number in range(3):
            group.create_task(ask(f"patient {number}", 10, 4))
        await reported(engine, running=16, waiting=3)
        for number in range(2):
            group.create_task(ask(f"urgent {number}", -10, 4))
    late = [name for name in order if not name.startswith("running")]
    assert [name.partition(" ")[0] for name in late] == ["urgent"] * 2 + ["patient"] * 3


async def test_a_priority_has_64_bits(pair: Pair, session: aiohttp.ClientSession) -> None:
    engine = HttpEngine(pair.urls[0], session)
    await answer(engine, asking("hello", priority=2**63 - 1, max_tokens=1))
    async with engine.open(asking("hello", priority=2**63, max_tokens=1)) as reply:
        assert reply.status == 400
        body = b"".join([chunk async for chunk in reply.chunks])
    assert "priority" in orjson.loads(body)["error"]["message"]


async def test_a_sleeping_server_takes_no_calls_until_it_wakes(
    pair: Pair, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    pool = {"model": MODEL, "backend": {"name": "vllm", "attach": pair.urls}}
    asleep = HttpEngine(pair.urls[0], session)
    body = chat(max_tokens=2) | {"model": MODEL}

    async def told(path: str) -> None:
        async with session.post(asleep.url + path) as reply:
            assert reply.status == 200

    async with running(tmp_path, written({"default": pool}), report_every=CALM) as up:
        names = {up.gateway.runtime.engines[name].url: name for name in up.gateway.runtime.engines}  # type: ignore[attr-defined]
        abilities = up.gateway.runtime.abilities
        assert abilities.of(names[asleep.url]).kv_tokens == BLOCK * BLOCKS
        await told("/sleep?level=1")
        try:
            await asleep.check()
            assert (await asleep.report()).asleep
            assert (await asleep.capabilities()).token_details is None
            await up.gateway.monitor.poll()
            replies = await asyncio.gather(*(up.http.post(CHAT, json=body) for _ in range(6)))
            assert [reply.status_code for reply in replies] == [200] * 6
            assert {reply.headers["x-workflow-engine"] for reply in replies} == {names[pair.urls[1]]}
        finally:
            await told("/wake_up")
        await up.gateway.monitor.poll()
        assert not (await asleep.report()).asleep
        replies = await asyncio.gather(*(up.http.post(CHAT, json=body) for _ in range(6)))
        assert {reply.headers["x-workflow-engine"] for reply in replies} == set(names.values())
        await settled(up.gateway)
