"""A pool of real vLLM servers grows and shrinks under load, and loses one to SIGKILL."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from bench.kill import victims
from tests.gateway.support import CHAT, Running, broken_off, chat, running, settled, until, written
from tests.vllm.conftest import ARGS, BLOCK, ENVIRONMENT, MODEL, VLLM

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]  # a start takes a minute or two
ADMIN = {"Authorization": "Bearer admin"}
STAGE = "You write queries for the shop, and nothing else. " * 40
START = 300.0


@dataclass(frozen=True, slots=True)
class Site:
    """A gateway, and the processes that were there before it."""

    up: Running
    others: set[int]

    def processes(self) -> set[int]:
        """Those of its servers."""
        return set(victims()) - self.others


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    """A gateway with one server, which may have another."""
    launch = {
        "command": [str(VLLM / "bin" / "vllm"), "serve"],
        "model": str(model),
        "args": ARGS,
        "env": ENVIRONMENT,
        "gpus": 0,
        "ready": "5m",
    }
    pool = {
        "model": MODEL,
        "backend": {"name": "vllm", "launch": launch},
        "engines": {"min": 1, "max": 2},
        "concurrency": {"sequences": 2},
    }
    text = written({"default": pool}, admin={"token": "admin"}, timeouts={"warm": "60s"})
    others = set(victims())
    async with running(tmp_path_factory.mktemp("scaling"), text) as up:
        await until(lambda: ready(up) == 1, "the first server", within=START)
        yield Site(up, others)
    assert set(victims()) <= others


def ready(up: Running) -> int:
    return sum(engine.status == "ready" for engine in up.gateway.runtime.dispatcher.fleet)


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    engine: str
    cached: int


class Clients:
    """Four clients that ask without a pause, each time something else of the same stage."""

    def __init__(self, up: Running) -> None:
        self.answers: list[Answer] = []
        self._up = up
        self._over = False

    async def __aenter__(self) -> Clients:
        self._tasks = [asyncio.create_task(self._ask_on(number)) for number in range(4)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over = True
        await asyncio.gather(*self._tasks)

    async def _ask_on(self, client: int) -> None:
        count = 0
        while not self._over:
            count += 1
            system, user = ({"role": "system", "content": STAGE}, {"role": "user", "content": f"{client}: {count}"})
            body = {**chat(max_tokens=8, ignore_eos=True), "model": MODEL, "messages": [system, user]}
            reply = await self._up.http.post(CHAT, json=body, timeout=120)
            usage = reply.json().get("usage") or {"prompt_tokens_details": {"cached_tokens": 0}}
            engine = reply.headers.get("x-workflow-engine", "")
            self.answers.append(Answer(reply.status_code, engine, usage["prompt_tokens_details"]["cached_tokens"]))

    def of(self, engine: str) -> list[Answer]:
        return [answer for answer in self.answers if answer.engine == engine]


async def scale(up: Running, engines: int) -> None:
    reply = await up.http.post("/admin/pools/default/scale", json={"engines": engines}, headers=ADMIN)
    assert reply.status_code == 200


async def test_a_pool_grows_and_shrinks_under_load_and_loses_no_call(site: Site) -> None:
    up, first = site.up, site.processes()
    async with Clients(up) as clients:
        await until(lambda: len(clients.answers) > 8, "the first answers", within=60)
        await scale(up, 2)
        await until(lambda: len(clients.of("default/1")) > 4, "calls on the second server", within=START)
        # The very first of them finds what its stage has in common: it was there before the server took a call.
        assert clients.of("default/1")[0].cached >= len(STAGE) / 4 * 0.5 // BLOCK * BLOCK
        second = site.processes() - first
        assert second
        await scale(up, 1)
        await until(lambda: site.processes() in (first, second), "one server's end", within=60)
        seen = len(clients.answers)
        await until(lambda: len(clients.answers) > seen + 8, "calls on the one that stays", within=60)
    assert {answer.status for answer in clients.answers} == {200}
    assert len(up.gateway.runtime.engines) == 1
    await settled(up.gateway)


async def test_a_stream_whose_server_is_killed_ends_by_an_error(site: Site) -> None:
    up, before = site.up, site.processes()
    assert ready(up) == 1
    body = {**chat(max_tokens=2000, ignore_eos=True, stream=True), "model": MODEL}
    text = ""
    async with up.http.stream("POST", CHAT, json=body, timeout=120) as reply:
        async for piece in reply.aiter_text():
            if text.count("data: ") < 4 <= (text + piece).count("data: "):
                os.kill(min(before), signal.SIGKILL)  # the server itself; its engine is a child of it
            text += piece
    whole = httpx.Response(reply.status_code, headers=reply.headers, text=text)
    assert len(broken_off(whole)) >= 4
    await until(lambda: not before & site.processes(), "the end of all its processes", within=60)
    await until(lambda: bool(site.processes()), "another server's start", within=60)
    await settled(up.gateway)
