"""A new engine knows what its pool's prompts have in common before it takes the first of them."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from backends.base import Request
from backends.emulated.options import EmulatedOptions
from backends.emulated.server import serve
from backends.vllm import HttpEngine, connections
from gateway.journal import blueprint_of, replay
from gateway.warming import KEPT_BYTES, KEPT_MOST, SENT_MOST, Warming
from policies.calls import Call
from tests.gateway.recorder import Exchange, Recorder, Seen, politely, recording
from tests.gateway.support import CHAT, Running, attached, chat, running, settled, until, written

ADMIN = {"Authorization": "Bearer admin"}
STAGES = {stage: f"You {stage} queries for this shop. {stage} with care: " * 60 for stage in ("write", "mend")}
ENGINES = {"min": 1, "start": 1, "max": 2}


async def ask(up: Running, stage: str, number: int, **headers: str) -> dict[str, Any]:
    """A run's call at a stage; what differs comes last."""
    messages = [{"role": "system", "content": STAGES[stage]}, {"role": "user", "content": f"{number}: how many?"}]
    body = {**chat(max_tokens=4), "messages": messages, "n": 1, "stream": False}
    sent = {"X-Workflow-Stage": stage, **{name.replace("_", "-"): value for name, value in headers.items()}}
    reply = await up.http.post(CHAT, json=body, headers=sent)
    assert reply.status_code == 200, reply.text
    document: dict[str, Any] = reply.json()
    return {"engine": reply.headers["x-workflow-engine"], **document.get("usage", {})}


async def grow(up: Running) -> None:
    """Have a second engine, and wait until it may take calls."""
    reply = await up.http.post("/admin/pools/default/scale", json={"engines": 2}, headers=ADMIN)
    assert reply.status_code == 200
    await until(lambda: status(up) == "ready", "the second engine")


def status(up: Running) -> str:
    engine = up.gateway.runtime.dispatcher.fleet.get("default/1")
    return "" if engine is None else engine.status


async def test_the_first_calls_of_a_new_engine_find_their_beginnings_cached(tmp_path: Path) -> None:
    options, journal = EmulatedOptions(time_scale=100.0), tmp_path / "journal"
    server = {"port": 0, "journal": str(journal)}
    async with serve(options) as one, serve(options) as two:
        pools = {"default": attached(one.url, two.url, engines=ENGINES)}
        async with running(tmp_path, written(pools, admin={"token": "admin"}, server=server)) as up:
            for number, stage in itertools.product(range(4), STAGES):
                assert (await ask(up, stage, number))["engine"] == "default/0"
            await grow(up)
            held = up.gateway.runtime.dispatcher.prefixes.resident("default/1")
            assert held > sum(map(len, STAGES.values())) / 4 * 0.8  # at 4 bytes for a token
            assert (await up.http.post("/admin/engines/default/0/drain", headers=ADMIN)).status_code == 200
            for stage in STAGES:
                found = await ask(up, stage, 99)
                assert found["engine"] == "default/1"
                assert found["prompt_tokens_details"]["cached_tokens"] > 0.8 * found["prompt_tokens"]
            await settled(up.gateway, one, two)
    assert replay(journal, blueprint_of(journal).dispatcher()) is None


@asynccontextmanager
async def growing(folder: Path, second: Recorder, **sections: object) -> AsyncIterator[Running]:
    """A gateway with one engine, whose second one is a recorder."""
    async with serve(EmulatedOptions(time_scale=1000.0)) as one:
        pools = {"default": attached(one.url, second.url, engines=ENGINES)}
        async with running(folder, written(pools, admin={"token": "admin"}, **sections)) as up:
            yield up
            await settled(up.gateway, one)


def warmed(engine: Recorder) -> list[Seen]:
    """The chats that an engine was sent with a stage's prompt."""
    return [seen for seen in engine.seen if b"with care" in seen.body]


async def test_each_beginning_is_sent_once_for_one_token_with_its_tenants_salt(tmp_path: Path) -> None:
    keys = [{"key": name, "tenant": name} for name in ("ada", "bob")]
    async with recording() as engine, growing(tmp_path, engine, auth={"keys": keys, "salt": "s"}) as up:
        for number in range(3):
            for tenant, stage in (("ada", "write"), ("ada", "mend"), ("bob", "write")):
                await ask(up, stage, 10 ** (3 - number), authorization=f"Bearer {tenant}")
        await grow(up)
        documents = [seen.document for seen in warmed(engine)]
        assert all(one["max_tokens"] == 1 and one["stream"] is False and "n" not in one for one in documents)
        prompts = [(one["cache_salt"], one["messages"][0]["content"]) for one in documents]
        assert sorted(prompt for _, prompt in prompts) == sorted([STAGES["mend"], STAGES["write"], STAGES["write"]])
        assert len(set(prompts)) == 3
        assert len({salt for salt, _ in prompts}) == 2
        # Of the requests that had it, the shortest: what differs is no use to anybody.
        assert {one["messages"][1]["content"] for one in documents} == {"10: how many?"}
        assert not any(seen.header("authorization") or seen.header("x-workflow-stage") for seen in warmed(engine))


async def refuse(exchange: Exchange) -> None:
    await exchange.whole(b'{"error": {"message": "no"}}', status=400)


async def overloaded(exchange: Exchange) -> None:
    await exchange.whole(b"", status=503)


async def hang(exchange: Exchange) -> None:
    await exchange.left()


async def break_off(exchange: Exchange) -> None:
    await exchange.head(200, [("content-length", "100")])
    raise ConnectionError


@pytest.mark.parametrize(("answer", "tried"), [(refuse, 2), (overloaded, 2), (hang, 1), (break_off, 1)])
async def test_an_engine_that_cannot_be_warmed_is_an_engine_all_the_same(
    tmp_path: Path, answer: Any, tried: int
) -> None:
    async with recording(answer) as engine, growing(tmp_path, engine, timeouts={"warm": "200ms"}) as up:
        for number, stage in itertools.product(range(3), STAGES):
            await ask(up, stage, number)
        await grow(up)
        assert len(warmed(engine)) == tried
        assert up.gateway.runtime.dispatcher.prefixes.resident("default/1") == 0
        engine.answer = politely
        assert (await up.http.post("/admin/engines/default/0/drain", headers=ADMIN)).status_code == 200
        assert (await ask(up, "write", 9))["engine"] == "default/1"


async def test_an_engine_that_is_not_wanted_any_more_while_it_is_warmed_goes(tmp_path: Path) -> None:
    async with recording(hang) as engine, growing(tmp_path, engine, timeouts={"warm": "500ms"}) as up:
        for number in range(2):
            await ask(up, "write", number)
        await up.http.post("/admin/pools/default/scale", json={"engines": 2}, headers=ADMIN)
        await until(lambda: bool(warmed(engine)), "the first prompt")
        assert status(up) == "starting"
        await up.http.post("/admin/pools/default/scale", json={"engines": 1}, headers=ADMIN)
        await until(lambda: list(up.gateway.runtime.engines) == ["default/0"], "the engine's end")
        assert (await ask(up, "write", 9))["engine"] == "default/0"


async def test_nothing_is_sent_where_it_is_switched_off(tmp_path: Path) -> None:
    async with recording() as engine, growing(tmp_path, engine, timeouts={"warm": "0"}) as up:
        for number in range(3):
            await ask(up, "write", number)
        await grow(up)
        assert not warmed(engine)


# --- what is remembered -----------------------------------------------------------------------------------------


def request(prefix: tuple[int, ...], body: bytes = b"{}", *, pool: str = "p") -> Request:
    call = Call(id="c", pool=pool, run="r", arrived=0.0, prefix=prefix)
    return Request(call=call, path=CHAT, body=body)


class Shelf:
    """A memory of beginnings, and an engine that keeps what it is sent."""

    def __init__(self) -> None:
        self.now = 0.0
        self.warming = Warming(clock=lambda: self.now, limit=5.0)

    async def sent(self, pool: str = "p") -> list[tuple[int, ...]]:
        async with recording() as engine, connections(2.0) as session:
            return list(await self.warming.warm(pool, "p/0", HttpEngine(engine.url, session)))


async def test_what_recurs_most_and_spares_most_comes_first() -> None:
    shelf = Shelf()
    often, seldom, long = (1,), (2,), tuple(range(100, 112))
    for start, times in ((often, 6), (seldom, 2), (long, 3)):
        for number in range(times):
            shelf.warming.see(request((*start, 1000 * start[0] + number)), 1)
    assert [prefix[0] for prefix in await shelf.sent()] == [100, 1, 2]
    shelf.now = 6000.0  # what was often seen long ago counts less than what is seen now
    for number in range(20, 22):
        shelf.warming.see(request((*seldom, 2000 + number)), 1)
    assert [prefix[0] for prefix in await shelf.sent()] == [2, 100, 1]
    assert await shelf.sent("another pool") == []


async def test_a_beginning_within_another_one_is_not_sent_again() -> None:
    shelf = Shelf()
    for number in range(3):
        for schema in (10, 20):
            shelf.warming.see(request((1, schema, schema + 1, 100 * schema + number)), 1)
    prefixes = await shelf.sent()
    assert sorted(prefix[:3] for prefix in prefixes) == [(1, 10, 11), (1, 20, 21)]


async def test_what_a_run_shares_with_itself_is_no_beginning() -> None:
    shelf = Shelf()
    for visit in range(1, 5):
        shelf.warming.see(request(tuple(range(10 * visit))), visit)
    shelf.warming.see(request(()), 1)
    assert await shelf.sent() == []


async def test_the_memory_is_bounded_in_number_and_in_bytes() -> None:
    shelf = Shelf()
    for number in range(3 * KEPT_MOST):
        for end in range(2):
            shelf.warming.see(request((number, 1000 + 2 * number + end)), 1)
    assert len(await shelf.sent()) == SENT_MOST
    body = b'{"text": "%b"}' % (b"x" * (KEPT_BYTES // SENT_MOST - 20))
    for number in range(2 * SENT_MOST):
        for end in range(2):
            shelf.warming.see(request((number, 5000 + 2 * number + end), body, pool="large"), 1)
    large = await shelf.sent("large")
    assert sorted(prefix[0] for prefix in large) == list(range(SENT_MOST, 2 * SENT_MOST))
    too_large = body + b" " * 100
    for end in range(2):
        shelf.warming.see(request((1, 7000 + end), too_large, pool="too large"), 1)
    assert await shelf.sent("too large") == []


async def test_a_request_that_can_be_sent_no_more_is_no_harm() -> None:
    shelf = Shelf()
    members = b"{" + b",".join(b'"n%d":1,"\\u006e":2' % number for number in range(600)) + b"}"
    for end in range(2):
        shelf.warming.see(request((1, 2 + end), members), 1)
    assert await shelf.sent() == []
