"""The HTTP engine: what it makes of a server's health, its silence and its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest

from backends.attached import AttachedServers
from backends.base import BackendError, Request
from backends.emulated.options import EmulatedOptions
from backends.emulated.server import serve
from backends.vllm import PLAIN_MOST, HttpEngine, connections
from policies.calls import Call
from tests.gateway.recorder import CHUNKS, WHOLE, Exchange, recording

NOBODY = "http://127.0.0.1:9"


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with connections(0.5) as session:
        yield session


def asks(body: bytes = b"{}", *, head: float = 5.0, idle: float = 5.0) -> Request:
    call = Call(id="c", pool="p", run="r", arrived=0.0)
    return Request(call=call, path="/v1/chat/completions", body=body, head_timeout=head, idle_timeout=idle)


async def ask(engine: HttpEngine, request: Request) -> tuple[int, bytes]:
    async with engine.open(request) as reply:
        return reply.status, b"".join([chunk async for chunk in reply.chunks])


async def test_a_server_without_metrics_is_alive_by_its_health(session: aiohttp.ClientSession) -> None:
    async with recording() as server:
        assert (await HttpEngine(server.url, session).report()).counters == {}
        server.metrics = b'vllm:num_requests_running{model_name="\xff"} 4\n'
        assert (await HttpEngine(server.url + "/", session).report()).running == 4


async def test_a_server_that_is_gone_is_told_from_one_that_is_not_ready(session: aiohttp.ClientSession) -> None:
    gone = HttpEngine(NOBODY, session)
    for probe, trouble in ((gone.check, "refused"), (gone.report, "broken")):
        with pytest.raises(BackendError) as caught:
            await probe()
        assert caught.value.trouble == trouble
        assert "127.0.0.1" not in str(caught.value)
    async with recording() as server:
        server.healthy = False
        with pytest.raises(BackendError) as caught:
            await HttpEngine(server.url, session).check()
        assert (caught.value.trouble, caught.value.retryable) == ("overloaded", True)


async def test_no_connection_is_a_refusal(session: aiohttp.ClientSession) -> None:
    with pytest.raises(BackendError) as caught:
        await ask(HttpEngine(NOBODY, session), asks())
    assert (caught.value.trouble, caught.value.retryable) == ("refused", True)


async def test_a_server_that_keeps_silent_is_given_up(session: aiohttp.ClientSession) -> None:
    left = asyncio.Event()

    async def silent(exchange: Exchange) -> None:
        await exchange.left()
        left.set()

    async with recording(silent) as server:
        with pytest.raises(BackendError) as caught:
            await ask(HttpEngine(server.url, session), asks(head=0.1))
        assert (caught.value.trouble, caught.value.retryable) == ("timeout", True)
        async with asyncio.timeout(5):
            await left.wait()


async def test_a_server_that_stops_in_the_middle_is_given_up(session: aiohttp.ClientSession) -> None:
    async def stops(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.write(CHUNKS[0])
        await exchange.left()

    async with recording(stops) as server, HttpEngine(server.url, session).open(asks(idle=0.1)) as reply:
        assert await anext(reply.chunks) == CHUNKS[0]
        with pytest.raises(BackendError) as caught:
            await anext(reply.chunks)
        assert caught.value.trouble == "timeout"


async def test_a_reader_that_takes_its_time_is_not_the_servers_fault(session: aiohttp.ClientSession) -> None:
    go_on = asyncio.Event()

    async def waits(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.write(CHUNKS[0])
        await go_on.wait()
        await exchange.pieces(CHUNKS[1:], started=True)

    async with recording(waits) as server, HttpEngine(server.url, session).open(asks(idle=0.2)) as reply:
        assert await anext(reply.chunks) == CHUNKS[0]
        await asyncio.sleep(0.5)  # more than the idle time, and nobody waits
        go_on.set()
        assert b"".join([chunk async for chunk in reply.chunks]) == b"".join(CHUNKS[1:])


async def test_a_body_cut_short_is_broken(session: aiohttp.ClientSession) -> None:
    faulty = EmulatedOptions(time_scale=1000.0, faults=True)
    body = b'{"messages": [{"role": "user", "content": "x"}], "stream": true}'
    async with serve(faulty) as server:
        engine = HttpEngine(server.url, session)
        for fault in ("die_before", "die_after=2"):
            request = asks(body)
            cut = Request(
                call=request.call,
                path=request.path,
                body=body,
                headers=(("content-type", "application/json"), ("X-Emulated-Fault", fault)),
                head_timeout=5,
            )
            with pytest.raises(BackendError) as caught:
                await ask(engine, cut)
            assert (caught.value.trouble, caught.value.retryable) == ("broken", True)


async def test_connections_are_used_again(session: aiohttp.ClientSession) -> None:
    assert session.connector is not None
    async with recording() as server:
        engine = HttpEngine(server.url, session)
        for _ in range(5):
            assert await ask(engine, asks()) == (200, WHOLE)
        assert len(server.ports) == 1


@pytest.mark.parametrize("size", [0, PLAIN_MOST, PLAIN_MOST + 1, 5 * PLAIN_MOST])
async def test_a_body_of_any_size_arrives_as_it_is(session: aiohttp.ClientSession, size: int) -> None:
    body = b'{"x": "' + b"y" * size + b'"}'
    async with recording() as server:
        assert (await ask(HttpEngine(server.url, session), asks(body)))[0] == 200
        assert server.last.body == body
        assert server.last.header("content-length") == str(len(body))


async def test_a_server_is_told_the_pools_key_and_nothing_unasked(
    session: aiohttp.ClientSession,
) -> None:
    async with recording() as server:
        await ask(HttpEngine(server.url, session, api_key="k"), asks())
        assert server.last.header("authorization") == "Bearer k"
        assert {name for name, _ in server.last.headers} == {"host", "authorization", "content-length"}


# --- the cluster of servers that run elsewhere --------------------------------------------------------------------


async def test_each_engine_of_a_pool_has_a_server_of_its_own(session: aiohttp.ClientSession) -> None:
    async with recording() as one, recording() as two:
        cluster = AttachedServers([one.url, NOBODY, two.url], session)
        engines = await asyncio.gather(*(cluster.start(f"p/{number}") for number in range(3)), return_exceptions=True)
        urls = [engine.url for engine in engines if isinstance(engine, HttpEngine)]
        assert sorted(urls) == sorted([one.url, two.url])
        (failed,) = [engine for engine in engines if isinstance(engine, BaseException)]
        assert isinstance(failed, BackendError)


async def test_a_server_that_was_given_back_is_taken_again(session: aiohttp.ClientSession) -> None:
    async with recording() as server:
        cluster = AttachedServers([server.url], session)
        await cluster.start("p/0")
        with pytest.raises(BackendError, match="in use") as caught:
            await cluster.start("p/1")
        assert not caught.value.retryable
        await cluster.stop("p/0")
        await cluster.stop("p/0")
        await cluster.stop("unknown")
        await cluster.start("p/1")
        await cluster.aclose()
        await cluster.start("p/2")


async def test_a_start_that_is_cancelled_keeps_no_server(session: aiohttp.ClientSession) -> None:
    async with recording() as server:
        cluster = AttachedServers([server.url], session)
        start = asyncio.create_task(cluster.start("p/0"))
        await asyncio.sleep(0)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        await cluster.start("p/1")
