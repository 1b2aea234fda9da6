"""Emulated engines that fail on demand: what their clients are told, and that nobody else notices."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from backends.emulated.options import EmulatedOptions
from backends.emulated.server import EmulatedServer, serve
from tests.gateway.support import (
    CHAT,
    Running,
    attached,
    broken_off,
    chat,
    error_of,
    events,
    running,
    settled,
    written,
)

FAULTY = EmulatedOptions(time_scale=1000.0, faults=True)
SHORT = {"connect": "2s", "head": "2s", "idle": "2s", "total": "20s"}


@asynccontextmanager
async def two_emulated(folder: Path, **more: str) -> AsyncIterator[tuple[Running, list[EmulatedServer]]]:
    async with serve(FAULTY) as one, serve(FAULTY) as two:
        pools = {"default": attached(one.url, two.url)}
        async with running(folder, written(pools, timeouts={**SHORT, **more}), report_every=60) as up:
            yield up, [one, two]
            await settled(up.gateway, one, two)


def asked(fault: str) -> dict[str, str]:
    return {"X-Emulated-Fault": fault}


# The fault goes on to whichever engine is tried, so each attempt meets it.
ALL_FAIL = [
    ("html", True, 502, "engine_broke"),
    ("die_before", False, 502, "engine_broke"),
    ("die_before", True, 502, "engine_broke"),
    ("hang", True, 504, "engine_timeout"),
    ("die_after=0", False, 502, "engine_broke"),
    ("die_after=0", True, 502, "engine_broke"),
    ("die_after=1", True, 502, "engine_broke"),
    ("stall_after=1", True, 504, "engine_timeout"),
    ("stall_after=1", False, 504, "engine_timeout"),
    ("garbage_after=0", False, 502, "engine_broke"),
    ("garbage_after=1", True, 502, "engine_broke"),
]


@pytest.mark.parametrize(("fault", "stream", "status", "code"), ALL_FAIL)
async def test_a_fault_before_the_first_content_has_a_status(
    tmp_path: Path, fault: str, stream: bool, status: int, code: str
) -> None:
    async with two_emulated(tmp_path) as (up, _):
        reply = await up.http.post(CHAT, json=chat(stream=stream, max_tokens=6), headers=asked(fault))
        assert (reply.status_code, error_of(reply)["code"]) == (status, code)
        assert "127.0.0.1" not in reply.text


@pytest.mark.parametrize(("fault", "status"), [("refuse", 503), ("status=429", 429), ("status=500", 500)])
@pytest.mark.parametrize("stream", [True, False])
async def test_what_the_last_engine_says_is_the_answer(tmp_path: Path, fault: str, stream: bool, status: int) -> None:
    async with two_emulated(tmp_path) as (up, _):
        reply = await up.http.post(CHAT, json=chat(stream=stream, max_tokens=6), headers=asked(fault))
        assert reply.status_code == status
        assert fault.partition("=")[0] in error_of(reply)["message"]


@pytest.mark.parametrize("fault", ["die_after=3", "stall_after=3", "garbage_after=3"])
async def test_a_fault_after_the_first_content_leaves_other_streams_untouched(tmp_path: Path, fault: str) -> None:
    patient = {"head": "5s", "idle": "5s", "total": "30s"}  # a busy machine may stand still for a while, too
    async with two_emulated(tmp_path, **patient) as (up, servers):

        async def one(index: int) -> httpx.Response:
            headers = asked(fault) if index % 4 == 0 else {}
            body = chat(f"<<echo:tag{index:04}>>", stream=True, max_tokens=20)
            return await up.http.post(CHAT, json=body, headers=headers)

        replies = await asyncio.gather(*(one(index) for index in range(24)))
        for index, reply in enumerate(replies):
            if index % 4 == 0:
                texts = content(broken_off(reply))
                assert len(broken_off(reply)) == 3
            else:
                *before, last = events(reply.text)
                assert last == "[DONE]"
                texts = content(before)
                assert texts == (f"tag{index:04}" * 12)[:80]
            assert texts in f"tag{index:04}" * 12
        assert all(server.engine.prompt_tokens for server in servers)


def content(read: list[str]) -> str:
    return "".join(json.loads(event)["choices"][0]["delta"].get("content", "") for event in read)
