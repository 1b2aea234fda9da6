"""A thousand streams at once through one gateway: none lost, none mixed up."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import orjson
import pytest

from backends.emulated.options import EmulatedOptions
from backends.emulated.server import serve
from gateway.openai import sse
from tests.gateway.support import attached, chat, running, settled, until, written

STREAMS, TOKENS, ENGINES = 1000, 12, 4
# Steps of half a second: a stream lasts for six, so that they are open at once and the machine is not the limit.
ENGINE = EmulatedOptions(
    decode_step=0.5, decode_sequence=0.0, max_num_seqs=256, num_gpu_blocks=16384, prefill_rate=1e6
)

UNHURRIED = {"connect": "30s"}
"""All of it runs on one loop here, which is busy for seconds with a thousand clients that come at once."""


def tag(index: int) -> str:
    """Nineteen bytes, no multiple of a token's four: no piece of it is like another."""
    return f"[stream {index:04} here] "


async def one(session: aiohttp.ClientSession, url: str, index: int) -> tuple[str, str, str]:
    """One stream; returns its run, its engine and its text. Fails where an event is not as it must be."""
    body = orjson.dumps(chat(f"<<echo:{tag(index)}>>", stream=True, max_tokens=TOKENS))
    headers = {"X-Workflow-Id": f"run-{index}", "X-Request-Id": f"request-{index}"}
    async with session.post(url + "/v1/chat/completions", data=body, headers=headers) as reply:
        assert reply.status == 200, await reply.text()
        assert reply.headers["X-Request-Id"] == f"request-{index}"
        events = sse.Events()
        whole = sse.Assembler()
        async for piece in reply.content.iter_any():
            for event in events.feed(piece):
                whole.add(event)
    assert whole.done
    assert events.rest() == b""
    assert whole.id == f"chatcmpl-request-{index}"
    assert whole.finish_reason == "length"
    return reply.headers["X-Workflow-Id"], reply.headers["X-Workflow-Engine"], str(whole.message()["content"])


@pytest.mark.slow
async def test_a_thousand_streams_at_once_are_all_whole_and_none_is_mixed_up(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(serve(ENGINE)) for _ in range(ENGINES)]
        pools = {"default": attached(*(server.url for server in servers), sequences=STREAMS // ENGINES)}
        up = await stack.enter_async_context(running(tmp_path, written(pools, timeouts=UNHURRIED), report_every=60))
        connector = aiohttp.TCPConnector(limit=0)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        calls = [asyncio.create_task(one(session, up.url, index)) for index in range(STREAMS)]
        # All of them, as a rule; half is what also a machine shows that is busy with something else.
        await until(lambda: up.gateway.door.inside > STREAMS // 2, "many streams at once", within=30)
        replies = await asyncio.gather(*calls)
        for index, (run, _, text) in enumerate(replies):
            assert run == f"run-{index}"
            assert text == (tag(index) * TOKENS)[: TOKENS * 4]
        spread = Counter(engine for _, engine, _ in replies)
        assert spread == {f"default/{number}": STREAMS // ENGINES for number in range(ENGINES)}
        await settled(up.gateway, *servers)
        metrics = up.gateway.metrics.text().decode()
        assert f'cortex_calls_total{{outcome="ok",source="engine"}} {STREAMS}.0' in metrics
        assert f'cortex_attempts_total{{pool="default"}} {STREAMS}.0' in metrics
