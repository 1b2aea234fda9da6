"""Clients that leave: whatever was held for them is given back, and the engine stops at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from starlette.types import Message

from backends.emulated.options import EmulatedOptions
from backends.emulated.server import EmulatedServer, serve
from gateway.asgi import ClientLeft, while_present
from policies.calls import Call, Outcome
from tests.gateway.rawhttp import connected, request
from tests.gateway.recorder import Exchange, Recorder, recording
from tests.gateway.support import Running, attached, chat, running, settled, until, written

SLOW = EmulatedOptions(decode_step=0.02)
LONG = 5_000
"""Tokens of an answer that nobody will wait for: 100 s of them."""
AT_ONCE = 1.0
"""Seconds within which all is given back. Alone on a machine it takes milliseconds; `bench/disconnect.py` says how
many, and 250 ms are what is promised."""


@asynccontextmanager
async def one_engine(folder: Path, **options: Any) -> AsyncIterator[tuple[Running, EmulatedServer]]:
    async with serve(SLOW) as server:
        text = written({"default": attached(server.url, **options)})
        async with running(folder, text, report_every=60) as up:
            yield up, server
            await settled(up.gateway, server)


def slots(up: Running) -> int:
    return sum(len(engine.slots) for engine in up.gateway.runtime.dispatcher.fleet)


def waiting(up: Running) -> int:
    return up.gateway.runtime.dispatcher.pool_view("default", 0.0).waiting


def cancelled(up: Running) -> int:
    line = next(
        line
        for line in up.gateway.metrics.text().decode().splitlines()
        if line.startswith('cortex_cancellations_total{endpoint="chat"}')
    )
    return int(float(line.split()[1]))


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_stops_the_engine_and_gives_its_slot_back(tmp_path: Path, stream: bool) -> None:
    async with one_engine(tmp_path) as (up, server):
        async with connected(up.url) as raw:
            await raw.send(request(chat(stream=stream, max_tokens=LONG)))
            if stream:
                await raw.reader.readuntil(b'"content":"')
            await until(lambda: server.engine.running == 1, "the generation")
            assert slots(up) == 1
            raw.leave()
            took = await until(lambda: server.engine.running == 0 and slots(up) == 0, "the end", within=AT_ONCE)
        assert took < AT_ONCE
        assert server.engine.generation_tokens < LONG
        await until(lambda: cancelled(up) == 1)


async def test_a_client_that_shuts_its_end_politely_has_left_too(tmp_path: Path) -> None:
    async with one_engine(tmp_path) as (up, server), connected(up.url) as raw:
        await raw.send(request(chat(max_tokens=LONG)))
        await until(lambda: server.engine.running == 1)
        raw.writer.close()
        await until(lambda: server.engine.running == 0 and slots(up) == 0, within=AT_ONCE)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_while_it_waits_in_the_queue_never_reaches_an_engine(
    tmp_path: Path, stream: bool
) -> None:
    async with one_engine(tmp_path, sequences=1) as (up, server):
        async with connected(up.url) as first, connected(up.url) as second, connected(up.url) as third:
            await first.send(request(chat(stream=True, max_tokens=LONG)))
            await first.reader.readuntil(b'"content":"')
            await second.send(request(chat(stream=stream, max_tokens=LONG)))
            await third.send(request(chat("the third", max_tokens=2)))
            await until(lambda: waiting(up) == 2, "both in the queue")
            second.leave()
            await until(lambda: waiting(up) == 1, "the queue", within=AT_ONCE)
            assert (server.engine.running, slots(up)) == (1, 1)
            first.leave()
            assert (await third.reply()).status == 200
        assert server.engine.prompt_tokens > 0


async def stays_silent(exchange: Exchange) -> None:
    await exchange.left()


async def only_the_head(exchange: Exchange) -> None:
    await exchange.head()
    await exchange.left()


async def half_a_body(exchange: Exchange) -> None:
    await exchange.head(headers=[("content-type", "application/json"), ("content-length", "1000")])
    await exchange.write(b'{"choices": ')
    await exchange.left()


@pytest.mark.parametrize(
    ("answer", "stream"),
    [(stays_silent, True), (stays_silent, False), (only_the_head, True), (half_a_body, False)],
)
async def test_a_client_that_leaves_before_the_answer_has_begun_closes_the_engines_connection(
    tmp_path: Path, answer: Any, stream: bool
) -> None:
    ended = asyncio.Event()

    async def told(exchange: Exchange) -> None:
        await answer(exchange)
        ended.set()

    async with recording(told) as engine, running(tmp_path, written({"default": attached(engine.url)})) as up:
        async with connected(up.url) as raw:
            await raw.send(request(chat(stream=stream)))
            await until(lambda: len(engine.seen) == 1, "the attempt")
            raw.leave()
            await until(ended.is_set, "the engine's hearing of it", within=AT_ONCE)
        await settled(up.gateway)
        assert len(engine.seen) == 1


async def test_a_client_that_leaves_in_its_body_is_nobody(tmp_path: Path) -> None:
    async with recording() as engine, running(tmp_path, written({"default": attached(engine.url)})) as up:
        async with connected(up.url) as raw:
            await raw.send(request(chat())[:-20])
            await until(lambda: up.gateway.door.inside == 1, "the request")
        await until(lambda: up.gateway.door.inside == 0, "its end", within=AT_ONCE)
        await settled(up.gateway)
        assert engine.seen == []


async def test_a_client_that_does_not_read_holds_the_engine_back_and_can_still_leave(tmp_path: Path) -> None:
    event = b'data: {"choices":[{"index":0,"delta":{"content":"' + b"x" * 60_000 + b'"}}]}\n\n'
    sent = 0
    ended = asyncio.Event()

    async def gushes(exchange: Exchange) -> None:
        nonlocal sent
        await exchange.head()
        gone = asyncio.create_task(exchange.left())
        while not gone.done():
            await exchange.write(event)
            sent += len(event)
        ended.set()

    async with recording(gushes) as engine, running(tmp_path, written({"default": attached(engine.url)})) as up:
        async with connected(up.url) as raw:
            await raw.send(request(chat(stream=True)))
            raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
            before = -1
            while before < sent:  # until nothing more goes through
                before = sent
                await asyncio.sleep(0.2)
            assert sent < 64_000_000
            raw.leave()
            await until(ended.is_set, within=AT_ONCE)
        await settled(up.gateway)


async def test_others_streams_go_on_when_one_client_leaves(tmp_path: Path) -> None:
    async with one_engine(tmp_path) as (up, server), connected(up.url) as raw:
        await raw.send(request(chat(stream=True, max_tokens=LONG)))
        await raw.reader.readuntil(b'"content":"')
        other = asyncio.create_task(up.http.post("/v1/chat/completions", json=chat("other", max_tokens=8)))
        await until(lambda: server.engine.running == 2)
        raw.leave()
        assert (await other).json()["usage"]["completion_tokens"] == 8


async def test_many_clients_that_come_and_go_leave_nothing_behind(tmp_path: Path) -> None:
    async def one(url: str, index: int) -> None:
        async with connected(url) as raw:
            await raw.send(request(chat(f"client {index}", stream=index % 2 == 0, max_tokens=LONG)))
            await asyncio.sleep(index % 10 * 0.01)  # so that they leave in every phase

    async with one_engine(tmp_path, sequences=8) as (up, server):
        await asyncio.gather(*(one(up.url, index) for index in range(120)))
        await settled(up.gateway, server)
        assert (await up.http.post("/v1/chat/completions", json=chat(max_tokens=2))).status_code == 200


# --- the same step of the loop -----------------------------------------------------------------------------------


class Client:
    """A client of the bare application, whose leaving is decided to the step."""

    def __init__(self) -> None:
        self.gone = asyncio.get_running_loop().create_future()
        self._body: list[Message] = [{"type": "http.request", "body": orjson.dumps(chat(stream=True))}]
        self.sent: list[Message] = []
        self.watched = False

    async def receive(self) -> Message:
        if self._body:
            return self._body.pop()
        self.watched = True
        await self.gone
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)


@pytest.fixture
async def taken(tmp_path: Path) -> AsyncIterator[tuple[Running, Recorder]]:
    """A gateway with one engine of one slot."""
    async with recording() as engine:
        text = written({"default": attached(engine.url, sequences=1)})
        async with running(tmp_path, text, report_every=60) as up:
            yield up, engine
            await settled(up.gateway)


async def test_a_client_that_leaves_in_the_step_in_which_it_is_granted_a_slot_gives_it_back(
    taken: tuple[Running, Recorder],
) -> None:
    up, _ = taken
    runtime = up.gateway.runtime
    serve_chat = up.gateway.relay.endpoint("chat")
    scope = {"type": "http", "headers": [], "state": {"caller": up.gateway.access.caller([]), "place": None}}
    for steps in range(-4, 8):
        client = Client()
        blocking = Call(id=f"blocking{steps}", pool="default", run="r", arrived=runtime.now())
        async with runtime.ticket(blocking) as ticket:
            attempt = (await ticket.start()).attempt
            call = asyncio.ensure_future(serve_chat(scope, client.receive, client.send))
            await until(lambda: waiting(up) == 1, "the client in the queue")
            await until(partial(getattr, client, "watched"), "the watch over the client")
            if steps < 0:
                client.gone.set_result(None)
                await passing(-steps - 1)
            ticket.finished(attempt, Outcome(fate="ok"))
            if steps >= 0:
                await passing(steps)
                client.gone.set_result(None)
        await call
        assert client.sent == [] or steps > 2
        await settled(up.gateway)
    assert (await up.http.post("/v1/chat/completions", json=chat())).status_code == 200


async def test_a_client_that_leaves_as_its_time_is_up_has_left() -> None:
    gone = asyncio.get_running_loop().create_future()

    async def receive() -> Message:
        await gone
        return {"type": "http.disconnect"}

    async def waits(limit: asyncio.Timeout) -> None:
        async with while_present(receive), limit:
            asyncio.get_running_loop().call_soon(gone.set_result, None)
            limit.reschedule(0.0)
            await asyncio.sleep(60)

    for _ in range(3):
        with pytest.raises((ClientLeft, TimeoutError)):
            await waits(asyncio.timeout(None))
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        gone = asyncio.get_running_loop().create_future()


async def test_whoever_cancels_the_gateways_own_work_is_not_taken_for_a_client() -> None:
    never = asyncio.get_running_loop().create_future()

    async def waits() -> None:
        async with while_present(lambda: never):
            await asyncio.sleep(60)

    task = asyncio.create_task(waits())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def passing(steps: int) -> None:
    """Let the loop take so many steps."""
    for _ in range(steps):
        await asyncio.sleep(0)
