"""Engines that fail, before and after their first byte: what the client is told, what is tried again, and where."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest

from backends.emulated.options import EmulatedOptions
from backends.emulated.server import serve
from tests.gateway.recorder import CHUNKS, JSON, WHOLE, Answer, Exchange, Recorder, politely, recording
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
    until,
    written,
)

FAULTY = EmulatedOptions(time_scale=1000.0, faults=True)
SHORT = {"connect": "1s", "head": "800ms", "idle": "800ms", "total": "10s"}
CALM = 60.0
"""Seconds between two reports: none disturbs what a test counts."""


class Pair:
    """A gateway before two engines of one pool."""

    def __init__(self, up: Running, engines: list[Recorder]) -> None:
        self.up = up
        self.engines = engines

    @property
    def hits(self) -> list[int]:
        """The requests that each engine has had."""
        return [len(engine.seen) for engine in self.engines]

    async def post(self, *, stream: bool = False) -> httpx.Response:
        return await self.up.http.post(CHAT, json=chat(stream=stream))

    def use(self, *answers: Answer) -> None:
        """What the engine says that is tried first, second, …: whichever that is."""
        left = list(answers)

        async def next_answer(exchange: Exchange) -> None:
            await (left.pop(0) if left else politely)(exchange)

        for engine in self.engines:
            engine.answer = next_answer

    def attempts(self) -> dict[str, float]:
        """Slots, failures and ejections, by engine."""
        return {engine.name: engine.failures for engine in self.up.gateway.runtime.dispatcher.fleet}


@asynccontextmanager
async def a_pair(folder: Path, *, engines: int = 2, **sections: Any) -> AsyncIterator[Pair]:
    async with AsyncExitStack() as stack:
        recorders = [await stack.enter_async_context(recording()) for _ in range(engines)]
        pools = {"default": attached(*(recorder.url for recorder in recorders))}
        up = await stack.enter_async_context(
            running(folder, written(pools, **{"timeouts": SHORT, **sections}), report_every=CALM)
        )
        yield Pair(up, recorders)
        await settled(up.gateway)


REFUSAL = b'{"error": {"message": "no"}}'


def says(status: int, *headers: tuple[str, str]) -> Answer:
    return lambda exchange: exchange.whole(REFUSAL, status=status, headers=[*JSON, *headers])


async def hangs(exchange: Exchange) -> None:
    await exchange.left()


async def promises(exchange: Exchange) -> None:
    """A head, a role and a comment, and never more."""
    await exchange.head()
    await exchange.write(CHUNKS[0] + b": wait\n\n")
    await exchange.left()


async def ends_early(exchange: Exchange) -> None:
    await exchange.pieces(CHUNKS[:1])


async def ends_inside_an_event(exchange: Exchange) -> None:
    await exchange.pieces([CHUNKS[0], CHUNKS[1][:20]])


# --- before the first content ---------------------------------------------------------------------------------

RETRIED: list[tuple[Answer, bool]] = [
    (says(503), False),
    (says(503), True),
    (says(429), True),
    (says(401), False),
    (says(403), True),
    (says(504), True),
    (hangs, True),
    (promises, True),
    (ends_early, True),
    (ends_inside_an_event, True),
]


@pytest.mark.parametrize(("fault", "stream"), RETRIED)
async def test_a_call_that_failed_before_its_first_content_is_tried_on_the_other_engine(
    tmp_path: Path, fault: Answer, stream: bool
) -> None:
    async with a_pair(tmp_path) as pair:
        pair.use(fault)
        reply = await pair.post(stream=stream)
        assert reply.status_code == 200
        assert reply.content == (b"".join(CHUNKS) if stream else WHOLE)
        assert pair.hits == [1, 1]


GIVEN_UP: list[tuple[Answer, bool, int, str]] = [
    (says(204), False, 502, "engine_broke"),
    (lambda exchange: exchange.whole(b"<html>", headers=[("content-type", "text/html")]), False, 502, "engine_broke"),
    (lambda exchange: exchange.whole(b"<html>", headers=[("content-type", "text/html")]), True, 502, "engine_broke"),
    (lambda exchange: exchange.whole(WHOLE), True, 502, "engine_broke"),
    (lambda exchange: exchange.whole(b'{"choices": ['), False, 502, "engine_broke"),
    (lambda exchange: exchange.whole(b"", status=302, headers=[("location", "http://10.0.0.1/")]), False, 502,
     "engine_broke"),
    (lambda exchange: exchange.pieces([CHUNKS[0], b"data: {nonsense\n\n"]), True, 502, "engine_broke"),
    (lambda exchange: exchange.pieces([b"data: [1]\n\n"]), True, 502, "engine_broke"),
]  # fmt: skip


@pytest.mark.parametrize(("fault", "stream", "status", "code"), GIVEN_UP)
async def test_an_answer_that_would_be_no_better_elsewhere_is_not_tried_again(
    tmp_path: Path, fault: Answer, stream: bool, status: int, code: str
) -> None:
    async with a_pair(tmp_path) as pair:
        pair.use(fault, fault)
        reply = await pair.post(stream=stream)
        assert (reply.status_code, error_of(reply)["code"]) == (status, code)
        assert sum(pair.hits) == 1
        assert "10.0.0.1" not in reply.text + str(reply.headers)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [500, 502])
async def test_what_an_engine_says_itself_goes_to_the_client_as_it_is(
    tmp_path: Path, status: int, stream: bool
) -> None:
    async with a_pair(tmp_path) as pair:
        pair.use(says(status, ("x-of-the-engine", "yes")))
        reply = await pair.post(stream=stream)
        assert (reply.status_code, reply.content) == (status, REFUSAL)
        assert reply.headers["x-of-the-engine"] == "yes"
        assert reply.headers.get_list("content-type") == ["application/json"]
        assert reply.headers["x-workflow-id"]
        assert sum(pair.hits) == 1


@pytest.mark.parametrize(
    ("after", "rests", "told"),
    [
        ("7.5", (7.0, 7.5), "7.5"),
        ("999999999", (59.0, 60.0), "999999999"),
        ("Fri, 31 Dec 2999 23:59:59 GMT", (59.0, 60.0), "Fri, 31 Dec 2999 23:59:59 GMT"),
        ("Fri, 31 Dec 1999 23:59:59 GMT", (-9.0, 0.0), "Fri, 31 Dec 1999 23:59:59 GMT"),
        *(
            (nonsense, (-1e12, 0.0), "1")
            for nonsense in (
                "-5",
                "1e9",
                "9" * 400,
                "soon",
                "inf",
                "",
                "Sat, 21 Nov 2026 23:00:00 +999999999999999999",
            )
        ),
    ],
)
async def test_an_engine_may_say_in_every_way_how_long_it_wants_to_rest(
    tmp_path: Path, after: str, rests: tuple[float, float], told: str
) -> None:
    async with a_pair(tmp_path, engines=1) as pair:
        pair.use(says(429, ("retry-after", after)))
        reply = await pair.post()
        assert (reply.status_code, reply.headers.get_list("retry-after")) == (429, [told])
        [engine] = pair.up.gateway.runtime.dispatcher.fleet
        least, most = rests
        assert least <= engine.ejected_until - pair.up.gateway.runtime.now() <= most


@pytest.mark.parametrize("after", [None, "7"])
@pytest.mark.parametrize("status", [429, 503])
async def test_a_lone_engine_that_wants_to_rest_is_not_asked_again_before_that(
    tmp_path: Path, status: int, after: str | None
) -> None:
    async with a_pair(tmp_path, engines=1) as pair:
        pair.use(says(status, *([("retry-after", after)] if after else [])))
        reply = await pair.post()
        assert (reply.status_code, reply.content) == (status, REFUSAL)
        assert reply.headers["retry-after"] == (after or "1")
        [engine] = pair.up.gateway.runtime.dispatcher.fleet
        assert engine.usable(pair.up.gateway.runtime.now()) == (after is None)
        assert engine.failures == 0
        assert pair.hits == [1]


@pytest.mark.parametrize("stream", [False, True])
async def test_an_engines_retry_after_reaches_the_client_when_all_are_overloaded(
    tmp_path: Path, stream: bool
) -> None:
    async with a_pair(tmp_path) as pair:
        pair.use(says(429, ("retry-after", "7")), says(503, ("retry-after", "9")))
        reply = await pair.post(stream=stream)
        assert (reply.status_code, reply.content) == (503, REFUSAL)
        assert reply.headers["retry-after"] == "9"
        assert pair.hits == [1, 1]


async def test_engines_that_hang_are_given_up_in_time(tmp_path: Path) -> None:
    async with a_pair(tmp_path) as pair:
        pair.use(hangs, hangs)
        reply = await pair.post(stream=True)
        assert (reply.status_code, error_of(reply)["code"]) == (504, "engine_timeout")
        assert pair.hits == [1, 1]


async def test_a_whole_call_has_a_longest_time(tmp_path: Path) -> None:
    async with a_pair(tmp_path, timeouts={**SHORT, "total": "400ms"}) as pair:
        pair.use(hangs, hangs)
        reply = await pair.post()
        assert (reply.status_code, error_of(reply)["code"]) == (504, "deadline_exceeded")


@pytest.mark.parametrize("most", [1, 2, 3])
async def test_a_call_is_tried_no_more_often_than_the_limits_say(tmp_path: Path, most: int) -> None:
    async with a_pair(tmp_path, engines=4, limits={"attempts": most}) as pair:
        pair.use(*[says(503)] * 4)
        assert (await pair.post()).status_code == 503
        assert sum(pair.hits) == most
        assert max(pair.hits) == 1


async def test_connections_that_are_refused_fail_over_at_once(tmp_path: Path) -> None:
    async with recording() as good:
        async with recording() as gone:
            text = written({"default": attached(gone.url, good.url)}, timeouts=SHORT)
            up = await (stack := AsyncExitStack()).enter_async_context(running(tmp_path, text, report_every=CALM))
        async with stack:
            for _ in range(4):
                assert (await up.http.post(CHAT, json=chat())).status_code == 200
            assert len(good.seen) == 4
            await settled(up.gateway)


@pytest.mark.parametrize("stream", [False, True])
async def test_when_every_engine_is_gone_the_client_is_told_when_to_come_again(tmp_path: Path, stream: bool) -> None:
    async with AsyncExitStack() as stack:
        async with recording() as one, recording() as two:
            text = written({"default": attached(one.url, two.url)}, timeouts=SHORT)
            up = await stack.enter_async_context(running(tmp_path, text, report_every=0.1))
            assert (await up.http.get("/ready")).status_code == 200
        for _ in range(3):
            reply = await up.http.post(CHAT, json=chat(stream=stream))
            assert (reply.status_code, error_of(reply)["code"]) == (503, "pool_unavailable")
            assert int(reply.headers["retry-after"]) >= 1
        await until(lambda: bool(up.gateway.runtime.ready()), "the pool's being unready")
        assert (await up.http.get("/ready")).status_code == 503
        assert (await up.http.get("/health")).status_code == 200
        await settled(up.gateway)


async def test_a_server_that_comes_back_is_used_again(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    async with running(tmp_path, written({"default": attached(url)}), report_every=0.1) as up:
        assert (await up.http.post(CHAT, json=chat())).status_code == 503
        async with serve(FAULTY, port=port):
            await until(lambda: not up.gateway.runtime.ready(), "the pool's being ready")
            assert (await up.http.post(CHAT, json=chat(max_tokens=3))).status_code == 200
            await settled(up.gateway)


# --- after the first content ------------------------------------------------------------------------------------


async def stalls(exchange: Exchange) -> None:
    await exchange.head()
    await exchange.write(CHUNKS[0] + CHUNKS[1])
    await exchange.left()


ERROR = b'data: {"error": {"message": "CUDA at 0x7f00", "code": 500}}\n\n'
CUT: list[Answer] = [
    stalls,
    lambda exchange: exchange.pieces(CHUNKS[:2]),
    lambda exchange: exchange.pieces([*CHUNKS[:2], CHUNKS[2][:30]]),
    lambda exchange: exchange.pieces([*CHUNKS[:2], b"data: {nonsense\n\n", *CHUNKS[2:]]),
    lambda exchange: exchange.pieces([CHUNKS[0] + CHUNKS[1] + b"data: {nonsense\n\n" + CHUNKS[2] + CHUNKS[3]]),
    lambda exchange: exchange.pieces([*CHUNKS[:2], b"data: 5\n\n", *CHUNKS[2:]]),
    lambda exchange: exchange.pieces([*CHUNKS[:2], ERROR]),
    lambda exchange: exchange.pieces([*CHUNKS[:2], b"data: " + b"x" * 3_000_000]),
]


@pytest.mark.parametrize("fault", CUT, ids=range(len(CUT)))
async def test_a_stream_that_breaks_ends_with_an_error_and_is_not_tried_again(tmp_path: Path, fault: Answer) -> None:
    async with a_pair(tmp_path) as pair:
        pair.use(fault)
        reply = await pair.post(stream=True)
        before = broken_off(reply)
        assert [f"data: {event}\n\n".encode() for event in before] == list(CHUNKS[:2])
        assert "0x7f00" not in reply.text
        assert sum(pair.hits) == 1


async def test_a_stream_that_ends_inside_an_event_is_broken_even_after_its_done(tmp_path: Path) -> None:
    async with a_pair(tmp_path) as pair:
        pair.use(lambda exchange: exchange.pieces([*CHUNKS, b'data: {"ch']))
        *before, last = events((await pair.post(stream=True)).text)
        assert before == events(b"".join(CHUNKS).decode())
        assert "inside an event" in json.loads(last)["error"]["message"]


async def test_an_error_as_the_first_event_is_told_in_the_stream(tmp_path: Path) -> None:
    async with a_pair(tmp_path) as pair:
        pair.use(lambda exchange: exchange.pieces([CHUNKS[0], ERROR]))
        assert broken_off(await pair.post(stream=True)) == events(CHUNKS[0].decode())
        assert sum(pair.hits) == 1


# --- engines that are left out, and come back --------------------------------------------------------------------


def ejected(up: Running) -> list[str]:
    now = up.gateway.runtime.now()
    return [engine.name for engine in up.gateway.runtime.dispatcher.fleet if engine.ejected_until > now]


async def test_an_engine_that_keeps_failing_is_left_out_and_let_in_again_one_call_at_a_time(tmp_path: Path) -> None:
    async with a_pair(tmp_path) as pair:
        bad = pair.engines[0]
        bad.answer = says(500)
        statuses = [(await pair.post()).status_code for _ in range(12)]
        assert statuses.count(500) == len(bad.seen) == 3
        assert ejected(pair.up) == ["default/0"]
        entered, let_go = asyncio.Event(), asyncio.Event()

        async def slowly(exchange: Exchange) -> None:
            entered.set()
            await let_go.wait()
            await politely(exchange)

        bad.answer = slowly
        await until(lambda: not ejected(pair.up), "the engine's return")
        trial = asyncio.create_task(until_hit(pair, entered))
        await entered.wait()
        others = await asyncio.gather(*(pair.post() for _ in range(12)))
        assert {reply.status_code for reply in others} == {200}
        assert len(bad.seen) == 4  # the trial, and nobody beside it
        let_go.set()
        assert await trial == 200
        bad.answer = politely
        await asyncio.gather(*(pair.post() for _ in range(8)))
        assert len(bad.seen) > 4


async def until_hit(pair: Pair, entered: asyncio.Event) -> int:
    """Ask until the bad engine has got a call; returns how that one ended."""
    while True:
        reply = await pair.post()
        if entered.is_set():
            return reply.status_code


async def test_the_last_engine_is_never_left_out(tmp_path: Path) -> None:
    async with a_pair(tmp_path, engines=1) as pair:
        pair.use(*[says(500)] * 8)
        assert [(await pair.post()).status_code for _ in range(9)] == [500] * 8 + [200]


@pytest.mark.slow
@pytest.mark.untraced
async def test_a_storm_of_failures_is_not_made_worse_by_retries(tmp_path: Path) -> None:
    calls = 1000
    async with a_pair(tmp_path, engines=3) as pair:
        pair.use(*[says(503)] * 4 * calls)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=50)) as session:

            async def one() -> int:
                async with session.post(pair.up.url + CHAT, json=chat()) as reply:
                    return reply.status

            statuses = await asyncio.gather(*(one() for _ in range(calls)))
        assert set(statuses) == {503}
        assert calls <= sum(pair.hits) <= 1.25 * calls
