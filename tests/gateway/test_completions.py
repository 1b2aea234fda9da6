"""The same deterministic request is computed once: recalled byte for byte, and read along while it comes."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import pytest_asyncio

from backends.emulated.options import EmulatedOptions
from backends.emulated.server import EmulatedServer, serve
from gateway.journal import blueprint_of, replay, steps
from gateway.openai.splice import values
from policies.artifacts import Artifact, Name
from policies.events import Event
from tests.backends.artifacts.conftest import RedisServer
from tests.backends.artifacts.conftest import redis_server as redis_server  # noqa: PLC0414 - a fixture of here too
from tests.gateway.rawhttp import connected, request
from tests.gateway.recorder import Exchange, Recorder, recording
from tests.gateway.shop import REPAIRED, RIGHT, TOOLS, shop
from tests.gateway.support import (
    CHAT,
    MODEL,
    Running,
    attached,
    broken_off,
    chat,
    metric,
    running,
    settled,
    until,
    written,
)

TEXT = "/v1/completions"
FAST = EmulatedOptions(time_scale=50.0)
KEYS = {"keys": [{"key": "a", "tenant": "one"}, {"key": "b", "tenant": "two"}]}
KEEN = {"Authorization": "Bearer a", "X-Workflow-Type": "w", "X-Workflow-Stage": "keen"}
AT_ONCE = 1.0
"""Seconds within which an engine hears that nobody reads any more; alone on a machine it takes milliseconds."""


def flow(recall: object = "1h") -> dict[str, object]:
    edges = [{"from": "start", "to": "keen"}, {"from": "keen", "to": "plain"}]
    return {"w": {"stages": {"keen": {"recall": recall}, "plain": {}}, "edges": edges}}


@asynccontextmanager
async def before(engine: str, folder: Path, recall: object = "1h", **sections: Any) -> AsyncIterator[Running]:
    """A gateway before an engine; at the end nothing may still be held."""
    pool = attached(engine, sequences=64)
    text = written({"default": pool}, **{"workflows": flow(recall), "auth": KEYS, **sections})
    async with running(folder, text) as up:
        up.http.headers.update(KEEN)
        yield up
        await settled(up.gateway)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Running, EmulatedServer]]:
    async with serve(FAST, model=MODEL) as server, before(server.url, tmp_path_factory.mktemp("one")) as up:
        yield up, server


module_loop = pytest.mark.asyncio(loop_scope="module")


def said(reply: httpx.Response) -> tuple[int, str, bytes]:
    return reply.status_code, reply.headers["content-type"], reply.content


def cache(reply: httpx.Response) -> str | None:
    found: str | None = reply.headers.get("x-workflow-cache")
    return found


def exact(content: str = "hello", **more: Any) -> dict[str, Any]:
    return chat(content, **{"temperature": 0, "max_tokens": 8, **more})


# --- what is kept ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 0.0}, {"temperature": 0.7, "seed": 0}])
@pytest.mark.parametrize("more", [{}, {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}])
@pytest.mark.parametrize("path", [CHAT, TEXT])
@module_loop
async def test_what_was_computed_once_comes_again_byte_for_byte(
    shared: tuple[Running, EmulatedServer], path: str, more: dict[str, Any], sampling: dict[str, Any]
) -> None:
    up, server = shared
    asked = f"{path} {more} {sampling}"
    about = {"messages": [{"role": "user", "content": asked}]} if path == CHAT else {"prompt": asked}
    body = {"model": MODEL, "max_tokens": 8, **about, **more, **sampling}
    first = await up.http.post(path, json=body)
    assert first.status_code == 200
    computed = server.engine.prompt_tokens
    again = [await up.http.post(path, json=body, headers={"X-Request-Id": f"{number}"}) for number in range(2)]
    assert [cache(reply) for reply in (first, *again)] == ["miss", "hit", "hit"]
    assert {said(reply) for reply in again} == {said(first)}
    assert [reply.headers["x-request-id"] for reply in again] == ["0", "1"]
    assert "x-workflow-engine" in first.headers
    assert not any("x-workflow-engine" in reply.headers for reply in again)
    assert server.engine.prompt_tokens == computed


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in exact().items() if name not in names}


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (without("temperature"), {}),
        (exact(temperature=None), {}),
        (exact(temperature=0.1), {}),
        (exact(temperature=None, seed=None), {}),
        (exact(), {"X-Workflow-Stage": "plain"}),
        (exact(), {"X-Workflow-Stage": "unheard-of"}),
        (exact(), {"X-Workflow-Type": "unheard-of"}),
    ],
)
@module_loop
async def test_what_may_not_be_the_same_or_nobody_wants_recalled_is_asked_again_and_nobody_looks(
    shared: tuple[Running, EmulatedServer], body: dict[str, Any], headers: dict[str, str]
) -> None:
    up, _ = shared
    await up.http.post(CHAT, json=exact())
    replies = [await up.http.post(CHAT, json=body, headers=headers) for _ in range(2)]
    assert [cache(reply) for reply in replies] == [None, None]
    assert len({reply.json()["id"] for reply in replies}) == 2


@pytest.mark.parametrize(
    "other",
    [
        {"messages": [{"role": "user", "content": "hello "}]},
        {"max_tokens": 7},
        {"seed": 1},
        {"temperature": 0.5, "seed": 1},
        {"stream": True},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"b": 1, "a": 1}}}]},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"a": 1, "b": 1}}}]},
        {"x_unknown": 12345678901234567890123},
        {"x_unknown": 12345678901234567890124},
        {"x_unknown": "1"},
        {"x_unknown": 1},
    ],
)
@module_loop
async def test_another_request_has_another_answer(
    shared: tuple[Running, EmulatedServer], other: dict[str, Any]
) -> None:
    up, _ = shared
    await up.http.post(CHAT, json=exact())
    reply = await up.http.post(CHAT, json=exact(**other))
    assert (reply.status_code, cache(reply)) == (200, "miss")


@module_loop
async def test_members_that_change_nothing_in_the_answer_and_the_order_of_all_do_not_count(
    shared: tuple[Running, EmulatedServer],
) -> None:
    up, _ = shared
    first = await up.http.post(CHAT, json=exact("silent"))
    more = {"user": "u", "metadata": {"a": "b"}, "store": True, "priority": 3, "cache_salt": "s", "request_id": "r"}
    body = dict(reversed((exact("silent") | more).items()))
    again = await up.http.post(CHAT, json=body)
    assert cache(again) == "hit"
    assert said(again) == said(first)


@pytest.mark.parametrize("end", [b"\r\n", b"\r"])
async def test_an_engines_own_line_ends_come_again_as_they_were(tmp_path: Path, end: bytes) -> None:
    pieces = [piece.replace(b"\n", end) for piece in (b": hm\n\n", CHUNK % 1, END % (1, b"stop"), DONE)]

    async def answer(exchange: Exchange) -> None:
        await exchange.pieces([*pieces, b"\n" if end == b"\r" else b""])

    async with recording(answer) as engine, before(engine.url, tmp_path) as up:
        replies = [await up.http.post(CHAT, json=exact(stream=True)) for _ in range(2)]
        assert [cache(reply) for reply in replies] == ["miss", "hit"]
        assert replies[0].content.startswith(b"".join(pieces)[:-1])
        assert said(replies[0]) == said(replies[1])
        assert len(engine.seen) == 1


@module_loop
async def test_tenants_and_their_pages_of_state_see_nothing_of_it(shared: tuple[Running, EmulatedServer]) -> None:
    up, _ = shared
    other = {"Authorization": "Bearer b"}
    assert cache(await up.http.post(CHAT, json=exact("mine"))) == "miss"
    assert cache(await up.http.post(CHAT, json=exact("mine"), headers=other)) == "miss"
    shelf = up.gateway.state.artifacts.memory.shelf
    kept = [name for name in shelf if name.scope == ("completions", "default")]
    assert {name.tenant for name in kept} == {"one", "two"}
    key = next(name.key for name in kept if name.tenant == "one")
    for topic, within in itertools.product(("completions", "default"), ("tenant", "workflow")):
        at, scope = f"/v1/state/{topic}", {"scope": within}
        assert (await up.http.get(at, params=scope)).json()["keys"] == []
        assert (await up.http.get(f"{at}/{key}", params=scope)).status_code == 404
        assert not (await up.http.delete(f"{at}/{key}", params=scope)).json()["deleted"]
        assert (await up.http.post(at, json={"key": key, "value": "false", **scope})).json()["kept"]
    assert cache(await up.http.post(CHAT, json=exact("mine"))) == "hit"
    assert orjson.loads((await up.http.post(CHAT, json=exact("mine"))).content)["object"] == "chat.completion"


async def test_what_was_kept_ends_with_its_time(tmp_path: Path) -> None:
    async with serve(FAST, model=MODEL) as server, before(server.url, tmp_path, recall="200ms") as up:
        first = await up.http.post(CHAT, json=exact())
        async with asyncio.timeout(10):
            while cache(again := await up.http.post(CHAT, json=exact())) == "hit":
                assert said(again) == said(first)
        assert cache(again) == "miss"
        assert again.json()["id"] != first.json()["id"]


async def test_a_second_gateway_finds_it_in_redis(tmp_path: Path, redis_server: RedisServer) -> None:
    state = {"redis": redis_server.url, "timeout": "5s"}
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    async with (
        serve(FAST, model=MODEL) as server,
        before(server.url, tmp_path / "one", state=state) as one,
        before(server.url, tmp_path / "other", state=state) as other,
    ):
        for body in (exact(), exact(stream=True)):
            first = await one.http.post(CHAT, json=body)
            await until(lambda: not one.gateway.state.artifacts._behind, "that Redis has it")
            computed = server.engine.prompt_tokens
            again = await other.http.post(CHAT, json=body)
            assert (cache(first), cache(again)) == ("miss", "hit")
            assert said(again) == said(first)
            assert server.engine.prompt_tokens == computed
        assert metric(other.gateway, "cortex_artifact_lookups_total", tier="redis", result="hit") == 2


async def test_without_its_redis_it_is_recalled_all_the_same(tmp_path: Path) -> None:
    state = {"redis": "redis://127.0.0.1:1/0"}
    async with serve(FAST, model=MODEL) as server, before(server.url, tmp_path, state=state) as up:
        replies = [await up.http.post(CHAT, json=exact(stream=True)) for _ in range(2)]
        assert [cache(reply) for reply in replies] == ["miss", "hit"]
        assert said(replies[0]) == said(replies[1])


async def test_what_was_computed_while_redis_was_asked_is_not_computed_again(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    asked, answer, first = asyncio.Event(), asyncio.Event(), itertools.count()
    state = {"redis": redis_server.url, "timeout": "5s"}
    async with serve(FAST, model=MODEL) as server, before(server.url, tmp_path, state=state) as up:
        shared = up.gateway.state.artifacts.shared
        assert shared is not None
        find = shared.find

        async def slow_once(name: Name) -> Artifact | None:
            number, found = next(first), await find(name)
            if not number:
                asked.set()
                await answer.wait()
            return found

        shared.find = slow_once  # type: ignore[method-assign]
        waiting = asyncio.create_task(up.http.post(CHAT, json=exact()))
        await asked.wait()
        other = await up.http.post(CHAT, json=exact())
        answer.set()
        assert (cache(other), cache(await waiting)) == ("miss", "hit")
        assert said(other) == said(await waiting)


# --- what is not ----------------------------------------------------------------------------------------------

CHUNK = b'data: {"id":"%d","choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":null}]}\n\n'
END = b'data: {"id":"%d","choices":[{"index":0,"delta":{},"finish_reason":"%b"}]}\n\n'
DONE = b"data: [DONE]\n\n"
WHOLE = b'{"id":"%d","choices":[{"index":0,"message":{"role":"assistant","content":"Hi"},"finish_reason":%b}]}'


async def refusing(exchange: Exchange, number: int) -> None:
    await exchange.whole(b'{"error":{"message":"no %d"}}' % number, status=400)


async def without_an_end(exchange: Exchange, number: int) -> None:
    await exchange.whole(WHOLE % (number, b"null"))


async def aborted(exchange: Exchange, number: int) -> None:
    await exchange.whole(WHOLE % (number, b'"abort"'))


async def without_choices(exchange: Exchange, number: int) -> None:
    await exchange.whole(b'{"id":"%d","choices":null}' % number)


async def too_large(exchange: Exchange, number: int) -> None:
    await exchange.whole(WHOLE % (number, b'"stop"') + b" " * 100_000)


async def streamed_without_an_end(exchange: Exchange, number: int) -> None:
    await exchange.pieces([CHUNK % number, DONE])


async def half_ended(exchange: Exchange, number: int) -> None:
    other = (CHUNK % number).replace(b'"index":0', b'"index":1')
    await exchange.pieces([CHUNK % number, other, END % (number, b"stop"), DONE])


async def streamed_too_long(exchange: Exchange, number: int) -> None:
    await exchange.pieces([*[CHUNK % number] * 1000, END % (number, b"stop"), DONE])


@pytest.mark.parametrize(
    ("answer", "stream"),
    [
        (refusing, False),
        (refusing, True),
        (without_an_end, False),
        (aborted, False),
        (without_choices, False),
        (too_large, False),
        (streamed_without_an_end, True),
        (half_ended, True),
        (streamed_too_long, True),
    ],
)
async def test_what_is_no_whole_answer_or_too_large_a_one_is_passed_on_and_not_kept(
    tmp_path: Path, answer: Any, stream: bool
) -> None:
    numbers = itertools.count(1)
    async with (
        recording(lambda exchange: answer(exchange, next(numbers))) as engine,
        before(engine.url, tmp_path, state={"value": "20kB"}) as up,
    ):
        replies = [await up.http.post(CHAT, json=exact(stream=stream)) for _ in range(2)]
        assert [cache(reply) for reply in replies] == ["miss", "miss"]
        assert len(engine.seen) == 2
        assert replies[0].content == replies[1].content.replace(b'"2"', b'"1"').replace(b"no 2", b"no 1")
        assert len(up.gateway.state.artifacts.memory.shelf) == 0


async def test_an_answer_that_lacks_a_choice_is_not_kept(tmp_path: Path) -> None:
    async def one(exchange: Exchange) -> None:
        await exchange.pieces([CHUNK % 1, END % (1, b"stop"), DONE])

    async def two(exchange: Exchange) -> None:
        other = (END % (1, b"stop")).replace(b'"index":0', b'"index":1')
        await exchange.pieces([CHUNK % 1, END % (1, b"stop"), other, DONE])

    prompts = {"model": MODEL, "prompt": ["a", "b"], "temperature": 0, "stream": True}
    async with recording(one) as engine, before(engine.url, tmp_path) as up:
        for path, body in ((CHAT, exact(stream=True, n=2)), (TEXT, prompts)):
            engine.answer = one
            assert [cache(await up.http.post(path, json=body)) for _ in range(2)] == ["miss", "miss"]
            engine.answer = two
            assert [cache(await up.http.post(path, json=body)) for _ in range(2)] == ["miss", "hit"]


async def cut(exchange: Exchange) -> None:
    await exchange.pieces([CHUNK % 1, END % (1, b"stop")])


async def failing(exchange: Exchange) -> None:
    await exchange.pieces([CHUNK % 1, b'data: {"error": {"message": "out of memory"}}\n\n', DONE])


async def babbling(exchange: Exchange) -> None:
    await exchange.pieces([CHUNK % 1 + b"data: {nonsense\n\n", DONE])


@pytest.mark.parametrize("answer", [cut, failing, babbling])
async def test_a_stream_that_breaks_off_does_so_for_each_and_is_not_kept(tmp_path: Path, answer: Any) -> None:
    async with recording(answer) as engine, before(engine.url, tmp_path) as up:
        for seen in (1, 2):
            assert broken_off(await up.http.post(CHAT, json=exact(stream=True)))[0] == (CHUNK % 1)[6:-2].decode()
            assert len(engine.seen) == seen
        assert len(up.gateway.state.artifacts.memory.shelf) == 0


# --- at the same time -----------------------------------------------------------------------------------------


class Gate:
    """An engine that begins at once, and says the rest when it is let."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.left = asyncio.Event()

    async def __call__(self, exchange: Exchange) -> None:
        stream = b'"stream":true' in exchange.seen.body
        if stream:
            await exchange.head()
            await exchange.write(CHUNK % 1)
        gone, opened = asyncio.create_task(exchange.left()), asyncio.create_task(self.open.wait())
        await asyncio.wait((gone, opened), return_when=asyncio.FIRST_COMPLETED)
        opened.cancel()
        if gone.done():
            self.left.set()
            return
        gone.cancel()
        if stream:
            await exchange.pieces([CHUNK % 2, END % (3, b"stop"), DONE], started=True)
        else:
            await exchange.whole(WHOLE % (1, b'"stop"'))


@asynccontextmanager
async def gated(folder: Path, **sections: Any) -> AsyncIterator[tuple[Running, Recorder, Gate]]:
    gate = Gate()
    async with recording(gate) as engine, before(engine.url, folder, **sections) as up:
        yield up, engine, gate


def calls(up: Running, count: int) -> Callable[[], bool]:
    return lambda: up.gateway.runtime.dispatcher.calls == count


def sent(**more: Any) -> bytes:
    return request(exact(stream=True, **more), *(f"{name}: {value}" for name, value in KEEN.items()))


FULL = b"".join([CHUNK % 1, CHUNK % 2, END % (3, b"stop"), DONE])


@pytest.mark.parametrize("stream", [False, True])
async def test_thirty_two_who_ask_at_once_have_it_computed_once(tmp_path: Path, stream: bool) -> None:
    async with gated(tmp_path) as (up, engine, gate):
        asking = [asyncio.create_task(up.http.post(CHAT, json=exact(stream=stream))) for _ in range(32)]
        await until(calls(up, 32), "all of them")
        gate.open.set()
        replies = await asyncio.gather(*asking)
        assert Counter(map(cache, replies)) == {"miss": 1, "joined": 31}
        assert len({said(reply) for reply in replies}) == 1
        assert sum("x-workflow-engine" in reply.headers for reply in replies) == 1
        assert cache(await up.http.post(CHAT, json=exact(stream=stream))) == "hit"
        assert len(engine.seen) == 1
        for found, count in {"miss": 1, "joined": 31, "hit": 1}.items():
            assert metric(up.gateway, "cortex_completion_lookups_total", pool="default", cache=found) == count
        saved = metric(up.gateway, "cortex_completion_saved_seconds_total", pool="default")
        took = replies[0].elapsed.total_seconds()
        assert 0 < saved <= 32 * took


async def test_whoever_joins_reads_what_has_come_at_once_and_the_rest_as_it_comes(tmp_path: Path) -> None:
    async with (
        gated(tmp_path) as (up, engine, gate),
        up.http.stream("POST", CHAT, json=exact(stream=True)) as first,
        up.http.stream("POST", CHAT, json=exact(stream=True)) as second,
    ):
        reading = [reply.aiter_raw() for reply in (first, second)]
        assert [await anext(one) for one in reading] == [CHUNK % 1] * 2
        assert [cache(reply) for reply in (first, second)] == ["miss", "joined"]
        gate.open.set()
        for one in reading:
            assert CHUNK % 1 + b"".join([piece async for piece in one]) == FULL
        assert len(engine.seen) == 1


async def test_those_who_joined_get_all_of_it_when_the_first_one_leaves(tmp_path: Path) -> None:
    async with gated(tmp_path) as (up, engine, gate):
        async with connected(up.url) as first:
            await first.send(sent())
            await first.reader.readuntil(b"Hi")
            joined = asyncio.create_task(up.http.post(CHAT, json=exact(stream=True)))
            await until(calls(up, 2), "both")
            first.leave()
            await until(lambda: up.gateway.door.inside == 1, "that it has left")
            gate.open.set()
            reply = await joined
        assert (cache(reply), reply.content) == ("joined", FULL)
        again = await up.http.post(CHAT, json=exact(stream=True))
        assert (cache(again), again.content) == ("hit", FULL)
        assert len(engine.seen) == 1


@pytest.mark.parametrize("joined", [0, 2])
async def test_the_engine_stops_when_the_last_of_them_leaves(tmp_path: Path, joined: int) -> None:
    async with gated(tmp_path) as (up, engine, gate):
        async with connected(up.url) as first, connected(up.url) as second, connected(up.url) as third:
            readers = [first, second, third][: 1 + joined]
            for reader in readers:
                await reader.send(sent())
                await reader.reader.readuntil(b"Hi")
            for reader in readers[:-1]:
                reader.leave()
            await until(calls(up, len(readers) - len(readers[:-1]) + bool(joined)), "that they have left")
            assert not gate.left.is_set()
            readers[-1].leave()
            await until(gate.left.is_set, "the engine's hearing of it", within=AT_ONCE)
        await settled(up.gateway)
        gate.open.set()
        again = await up.http.post(CHAT, json=exact(stream=True))
        assert (cache(again), again.content, len(engine.seen)) == ("miss", FULL, 2)


async def test_whoever_leaves_before_it_has_begun_takes_nobody_down(tmp_path: Path) -> None:
    async with gated(tmp_path) as (up, engine, gate):
        async with connected(up.url) as first:
            await first.send(request(exact(), *(f"{name}: {value}" for name, value in KEEN.items())))
            await until(calls(up, 1), "the first")
            joined = asyncio.create_task(up.http.post(CHAT, json=exact()))
            await until(calls(up, 2), "both")
            first.leave()
            await until(lambda: up.gateway.door.inside == 1, "that it has left")
            gate.open.set()
            assert cache(await joined) == "joined"
        assert len(engine.seen) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_refusal_is_the_first_ones_own_and_each_of_the_others_goes_on_by_itself(
    tmp_path: Path, stream: bool
) -> None:
    all_there, gate, events = asyncio.Event(), Gate(), Counter[str]()
    gate.open.set()

    async def overloaded_once(exchange: Exchange) -> None:
        if len(engine.seen) == 1:
            await all_there.wait()
            await exchange.whole(b"{}", status=503)
        else:
            await gate(exchange)

    async with (
        recording(overloaded_once) as engine,
        before(engine.url, tmp_path, limits={"attempts": 1}) as up,
    ):
        handle = up.gateway.runtime.handle

        def counted(event: Event) -> None:
            events[type(event).__name__] += 1
            handle(event)

        up.gateway.runtime.handle = counted  # type: ignore[method-assign]
        asking = [asyncio.create_task(up.http.post(CHAT, json=exact(stream=stream))) for _ in range(6)]
        await until(calls(up, 6), "all of them")
        all_there.set()
        replies = await asyncio.gather(*asking)
        assert Counter(reply.status_code for reply in replies) == {503: 1, 200: 5}
        served = [reply for reply in replies if reply.status_code == 200]
        assert Counter(map(cache, served)) == {"miss": 5}
        assert len({said(reply) for reply in served}) == 1
        assert len(engine.seen) == 6
        assert events["Joined"] == 5, "nobody joins a second time, or many refusals would cost the square of them"


async def test_an_engines_refusal_of_one_body_is_not_given_to_another_one(tmp_path: Path) -> None:
    both = asyncio.Event()

    async def strict(exchange: Exchange) -> None:
        await both.wait()
        if isinstance(exchange.seen.document.get("user"), int):
            await exchange.whole(b'{"error":{"message":"user: not a string"}}', status=400)
        else:
            await exchange.whole(WHOLE % (1, b'"stop"'))

    async with recording(strict) as engine, before(engine.url, tmp_path) as up:
        first = asyncio.create_task(up.http.post(CHAT, json=exact(user=5)))
        await until(calls(up, 1), "the first")
        second = asyncio.create_task(up.http.post(CHAT, json=exact(user="five")))
        await until(calls(up, 2), "both")
        both.set()
        replies = [await first, await second]
        assert [(reply.status_code, cache(reply)) for reply in replies] == [(400, "miss"), (200, "miss")]
        assert len(engine.seen) == 2


async def test_a_failure_is_everybodys(tmp_path: Path) -> None:
    both = asyncio.Event()

    async def fails(exchange: Exchange) -> None:
        await both.wait()
        await exchange.whole(b"{}", status=500)

    async with recording(fails) as engine, before(engine.url, tmp_path) as up:
        asking = [asyncio.create_task(up.http.post(CHAT, json=exact())) for _ in range(3)]
        await until(calls(up, 3), "all of them")
        both.set()
        assert {reply.status_code for reply in await asyncio.gather(*asking)} == {500}
        assert len(engine.seen) == 1


async def test_whoever_comes_too_late_for_the_beginning_of_a_long_answer_begins_anew(tmp_path: Path) -> None:
    more = asyncio.Event()

    async def long(exchange: Exchange) -> None:
        await exchange.head()
        for _ in range(300):
            await exchange.write(CHUNK % 1)
        await more.wait()
        await exchange.pieces([END % (1, b"stop"), DONE], started=True)

    async with recording(long) as engine, before(engine.url, tmp_path, state={"value": "20kB"}) as up:
        async with up.http.stream("POST", CHAT, json=exact(stream=True)) as first:
            reading, read = first.aiter_raw(), b""
            while read.count(b"Hi") < 300:
                read += await anext(reading)
            second = asyncio.create_task(up.http.post(CHAT, json=exact(stream=True)))
            await until(lambda: len(engine.seen) == 2, "an attempt of its own")
            more.set()
            read += b"".join([piece async for piece in reading])
        reply = await second
        assert (cache(first), cache(reply)) == ("miss", "miss")
        assert read == reply.content == CHUNK % 1 * 300 + END % (1, b"stop") + DONE


async def test_who_begins_anew_is_joined_by_others_while_the_earlier_answer_goes_on(tmp_path: Path) -> None:
    again, more = asyncio.Event(), asyncio.Event()

    async def long(exchange: Exchange) -> None:
        first = len(engine.seen) == 1
        await exchange.head()
        for _ in range(300 if first else 1):
            await exchange.write(CHUNK % 1)
        if first:
            await again.wait()
            await exchange.write(CHUNK % 2)
        await more.wait()
        await exchange.pieces([END % (1, b"stop"), DONE], started=True)

    async with recording(long) as engine, before(engine.url, tmp_path, state={"value": "20kB"}) as up:
        async with up.http.stream("POST", CHAT, json=exact(stream=True)) as first:
            reading, read = first.aiter_raw(), b""
            while read.count(b"Hi") < 300:
                read += await anext(reading)
            others = [asyncio.create_task(up.http.post(CHAT, json=exact(stream=True)))]
            await until(lambda: len(engine.seen) == 2, "an attempt of its own")
            again.set()
            while read.count(b"Hi") < 301:
                read += await anext(reading)
            others.append(asyncio.create_task(up.http.post(CHAT, json=exact(stream=True))))
            await until(calls(up, 3), "the third")
            more.set()
            await anext(reading)
        assert [cache(await other) for other in others] == ["miss", "joined"]
        assert len(engine.seen) == 2


async def test_who_stands_still_in_a_long_answer_is_cut_off_for_those_who_wait(tmp_path: Path) -> None:
    more = asyncio.Event()

    async def long(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.write(CHUNK % 1)
        await more.wait()
        await exchange.pieces([*[b": %b\n\n" % (b"x" * 100_000)] * 150, END % (1, b"stop"), DONE], started=True)

    sections = {"state": {"value": "20kB"}, "timeouts": {"idle": "1s"}}
    async with (
        recording(long) as engine,
        before(engine.url, tmp_path, **sections) as up,
        connected(up.url) as first,
    ):
        await first.send(sent())
        await first.reader.readuntil(b"Hi")
        joined = asyncio.create_task(up.http.post(CHAT, json=exact(stream=True)))
        await until(calls(up, 2), "both")
        more.set()
        reply = await joined
        assert (cache(reply), len(engine.seen)) == ("joined", 1)
        assert (len(reply.content) > 15_000_000, reply.content.endswith(DONE)) == (True, True)
        tail = b""
        while b"stream_interrupted" not in tail:
            piece = await first.reader.read(100_000)
            assert piece, "the stream ended without a word"
            tail = (tail + piece)[-200_000:]
        assert b"read too slowly" in tail


# --- who else asks models, and who hears of it ----------------------------------------------------------------


async def test_each_stage_of_a_walk_is_recalled(tmp_path: Path) -> None:
    async with shop(tmp_path, recall="1h") as site:
        body = {"model": "workflow/shop", "messages": [{"role": "user", "content": REPAIRED}]}
        first = (await site.up.http.post(CHAT, json=body)).json()
        read = site.read()
        again = (await site.up.http.post(CHAT, json=body)).json()
        assert again["choices"] == first["choices"]
        assert again["usage"]["total_tokens"] == first["usage"]["total_tokens"]
        assert again["workflow"]["path"] == first["workflow"]["path"]
        after = site.read()
        assert (after["generate"], after["fix"]) == (read["generate"], read["fix"])
        assert after["verify"] > read["verify"], "its prompt is sent without a temperature"


@pytest.mark.parametrize("stream", [False, True])
async def test_each_turn_of_an_intercepted_call_is_recalled(tmp_path: Path, stream: bool) -> None:
    async with shop(tmp_path, tools="intercept", recall="1h") as site:
        headers = {"X-Workflow-Type": "shop", "X-Workflow-Stage": "generate"}
        question = [{"role": "user", "content": f"TASK generate\nQuestion: {RIGHT}"}]
        body = {"model": MODEL, "messages": question, "tools": TOOLS, "temperature": 0, "stream": stream}
        first = await site.up.http.post(CHAT, json=body, headers=headers)
        assert first.status_code == 200, first.text
        read = site.read()
        again = await site.up.http.post(CHAT, json=body, headers=headers)
        told = re.compile(rb': cortex [^\n]*\n\n|"cortex":\{[^]]*\]\},')  # its SQL ran once and was found once
        assert told.search(first.content)
        assert told.sub(b"", again.content) == told.sub(b"", first.content)
        assert site.read() == read


async def test_a_run_moves_on_by_calls_that_are_recalled_or_joined(tmp_path: Path) -> None:
    async with gated(tmp_path) as (up, engine, gate):
        named = [{"X-Workflow-Id": name} for name in ("first", "joined", "late")]
        asking = [asyncio.create_task(up.http.post(CHAT, json=exact(), headers=one)) for one in named[:2]]
        await until(calls(up, 2), "both")
        gate.open.set()
        await asyncio.gather(*asking)
        await up.http.post(CHAT, json=exact(), headers=named[2])
        runs = {run.key[2]: run for run in up.gateway.runtime.dispatcher.runs}
        for name in ("first", "joined", "late"):
            assert (runs[name].position, list(runs[name].history)) == ("keen", [("keen", "ok")])
        assert len(engine.seen) == 1
        assert metric(up.gateway, "cortex_calls_total", outcome="ok", source="cache") == 1
        assert metric(up.gateway, "cortex_calls_total", outcome="ok", source="joined") == 1


async def test_a_record_of_recalled_calls_replays_to_the_same_decisions(tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    options = EmulatedOptions(decode_step=0.002)
    async with (
        serve(options, model=MODEL) as server,
        before(server.url, tmp_path, server={"port": 0, "journal": str(journal)}) as up,
    ):

        async def one(number: int) -> None:
            headers = {"X-Workflow-Id": f"run-{number % 7}", "X-Workflow-Final": str(number % 3 == 0).lower()}
            body = exact(f"q{number % 5}", stream=number % 2 == 0, max_tokens=20)
            if number % 6:
                reply = await up.http.post(CHAT, json=body, headers=headers)
                assert reply.status_code == 200
                return
            async with up.http.stream("POST", CHAT, json=body, headers=headers) as reply:
                await anext(reply.aiter_raw())

        for _ in range(2):
            await asyncio.gather(*(one(number) for number in range(40)))
        await settled(up.gateway, server)
    events = Counter(orjson.loads(raw)["event"][0] for _, raw in steps(journal))
    assert {"Joined", "Finished"} <= events.keys()
    dispatcher = blueprint_of(journal).dispatcher()
    assert replay(journal, dispatcher) is None
    assert dispatcher.calls == 0


def test_the_members_of_a_body_are_told_apart_as_they_are_written() -> None:
    body = b' { "a" : 1.50 , "\\u0062": [1, {"c": "}"}] , "a": "x,y", "d":12345678901234567890123 } '
    assert values(body) == {"a": '"x,y"', "b": '[1, {"c": "}"}]', "d": "12345678901234567890123"}
    assert values(b"{}") == {}
