"""SIGTERM in the middle of streams, as orchestrators send it: what is open ends whole, what is new is told no."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from tests.gateway.support import chat
from tests.gateway.test_lifecycle import START, serving

pytestmark = pytest.mark.traced

CHAT = "/v1/chat/completions"
STREAMS = 12
TOKENS = 300
"""Of one stream: three seconds, in which it is told to stop and new clients come."""


async def streamed(http: httpx.AsyncClient, begun: asyncio.Semaphore) -> list[str]:
    """The lines of one long answer; `begun` is released at its first content."""
    body = chat("<<echo:abc >>", max_tokens=TOKENS, stream=True)
    async with http.stream("POST", CHAT, json=body) as reply:
        assert reply.status_code == 200
        lines = reply.aiter_lines()
        while "abc" not in (line := await anext(lines)):
            pass
        begun.release()
        return [line, *[line async for line in lines]]


async def refused(url: str) -> bool:
    """Whether a new client gets no for an answer; one that came just in time must be answered as ever. Who was in the
    kernel's queue when the gateway left off listening is refused by it, after the connection."""
    async with httpx.AsyncClient(base_url=url, timeout=START, trust_env=False) as late:
        try:
            reply = await late.post(CHAT, json=chat("late", max_tokens=1))
        except (httpx.ConnectError, httpx.ReadError):
            return True
    assert reply.status_code in (200, 503), reply.text
    return reply.status_code == 503


async def test_all_open_streams_end_whole_while_new_calls_are_refused(tmp_path: Path) -> None:
    async with serving(tmp_path) as (cortex, http):
        begun = asyncio.Semaphore(0)
        async with asyncio.TaskGroup() as tasks, asyncio.timeout(START):
            open_ones = [tasks.create_task(streamed(http, begun)) for _ in range(STREAMS)]
            for _ in range(STREAMS):
                await begun.acquire()
            cortex.process.terminate()
            while not await refused(cortex.url):
                pass
            assert not any(task.done() for task in open_ones), "they were open all the while"
        for task in open_ones:
            lines = task.result()
            assert lines[-2:] == ["data: [DONE]", ""]
            assert sum('"content"' in line for line in lines) == TOKENS
        async with asyncio.timeout(START):
            assert await cortex.process.wait() == 0
