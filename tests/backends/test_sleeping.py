"""Servers that are put to sleep instead of being ended, and woken instead of being started."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from backends.base import BackendError
from backends.launcher import LaunchedServers, LaunchOptions
from backends.sleeping import SleepMode
from backends.vllm import HttpEngine, connections
from tests.backends.test_launcher import gone
from tests.gateway.recorder import Exchange, recording
from tests.gateway.support import children

EMULATED = (sys.executable, "-m", "backends.emulated", "--model", "m")


@asynccontextmanager
async def servers(asleep: int = 1, *flags: str) -> AsyncIterator[LaunchedServers]:
    async with connections(2.0) as session:
        cluster = LaunchedServers(
            LaunchOptions(command=[*EMULATED, *flags], asleep=asleep, grace=1.0, ready=20.0),
            connect=lambda url: HttpEngine(url, session),
            sleep=SleepMode(session),
        )
        try:
            yield cluster
        finally:
            await cluster.aclose()


def processes() -> set[int]:
    """The servers that run for this process."""
    return {pid for keeper in children("backends.keeper") for pid in children("backends.emulated", parent=keeper)}


async def started(cluster: LaunchedServers, name: str) -> HttpEngine:
    engine = await cluster.start(name)
    assert isinstance(engine, HttpEngine)
    return engine


async def test_a_server_that_sleeps_is_woken_under_another_name() -> None:
    async with servers(1, "--dev-mode") as cluster:
        first = await started(cluster, "p/0")
        before = processes()
        await cluster.stop("p/0")
        assert processes() == before
        async with connections(2.0) as session, session.get(f"{first.url}/is_sleeping") as reply:
            assert await reply.json() == {"is_sleeping": True}
        again = await started(cluster, "p/1")
        assert (again.url, processes()) == (first.url, before)
        await again.check()
        async with connections(2.0) as session, session.get(f"{first.url}/is_sleeping") as reply:
            assert await reply.json() == {"is_sleeping": False}
        ended = asyncio.create_task(cluster.ended("p/1"))
        os.kill(before.pop(), signal.SIGKILL)
        await asyncio.wait_for(ended, 10)
    assert not processes()


async def test_no_more_sleep_than_shall_and_all_end_with_the_cluster() -> None:
    async with servers(1, "--dev-mode") as cluster:
        await asyncio.gather(*(cluster.start(f"p/{number}") for number in range(3)))
        assert len(processes()) == 3
        await asyncio.gather(*(cluster.stop(f"p/{number}") for number in range(3)))
        (sleeper,) = processes()
    assert await gone(sleeper)


async def test_a_server_without_sleep_mode_is_ended(caplog: pytest.LogCaptureFixture) -> None:
    async with servers() as cluster:
        await cluster.start("p/0")
        await cluster.stop("p/0")
        assert not processes()
    assert "the server answers 404" in caplog.text


async def test_one_that_does_not_wake_gives_way_to_a_new_one(caplog: pytest.LogCaptureFixture) -> None:
    async with servers(1, "--dev-mode") as cluster:
        first = await started(cluster, "p/0")
        await cluster.stop("p/0")
        (sleeper,) = processes()
        os.kill(sleeper, signal.SIGKILL)
        assert await gone(sleeper)
        second = await started(cluster, "p/1")
        assert second.url != first.url
        await second.check()
    assert "engine did not wake engine=p/1 reason=the server is not reachable" in caplog.text


async def test_a_wake_that_is_cancelled_leaves_no_process() -> None:
    async with servers(1, "--dev-mode") as cluster:
        await cluster.start("p/0")
        await cluster.stop("p/0")
        (sleeper,) = processes()
        os.kill(sleeper, signal.SIGSTOP)  # it does not answer
        waking = asyncio.create_task(cluster.start("p/1"))
        await asyncio.sleep(0)
        waking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waking
        assert await gone(sleeper)


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with connections(2.0) as made:
        yield made


@pytest.mark.parametrize("answer", [b'{"is_sleeping": false}', b'{"is_sleeping": 1}', b"[]", b"no"])
async def test_a_server_sleeps_when_it_says_so(session: aiohttp.ClientSession, answer: bytes) -> None:
    async def say(exchange: Exchange) -> None:
        await exchange.whole(answer)

    async with recording() as server:
        server.tell = say
        with pytest.raises(BackendError):
            await SleepMode(session).sleep(server.url)
        assert [seen.path for seen in (*server.seen, *server.questions)] == ["/sleep", "/is_sleeping"]


async def test_a_server_that_sleeps_on_is_not_awake(session: aiohttp.ClientSession) -> None:
    async def say(exchange: Exchange) -> None:
        await exchange.whole(b'{"is_sleeping": true}')

    async with recording() as server:
        server.tell = say
        with pytest.raises(BackendError, match="sleeps on"):
            await SleepMode(session, api_key="k").wake(server.url)
        assert {seen.header("authorization") for seen in (*server.seen, *server.questions)} == {"Bearer k"}
