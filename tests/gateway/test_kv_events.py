"""A gateway places calls by what its engines' KV events say. The engines are emulated; the events come as vLLM's."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from aiohttp import ClientSession

from backends.capabilities import Capabilities, KvSource
from backends.emulated.options import EmulatedOptions
from backends.emulated.server import serve
from backends.vllm import HttpEngine
from gateway.journal import blueprint_of, recorded, replay
from policies.events import Drained, EngineGone, Start
from policies.routing.residency import Retold
from tests.backends.publisher import Publisher, publishing, source, stored
from tests.gateway.support import CHAT, MODEL, Running, chat, metric, running, until, written

BLOCK = 16
ROUTING = {"layout": "isolated"}
LONG = "a question that goes on and on " * 40


@dataclass
class Speaking:
    """An engine, and what publishes for it."""

    url: str
    events: Publisher
    words: count[int] = field(default_factory=count)

    async def holds(self, tokens: list[int]) -> None:
        """Say so of a prompt's whole blocks."""
        blocks = len(tokens) // BLOCK
        names = [f"{next(self.words)}".encode() for _ in range(blocks)]
        await self.events.publish(stored(names, tokens[: blocks * BLOCK]))


@asynccontextmanager
async def speaking(folder: Path, monkeypatch: pytest.MonkeyPatch, *, many: int = 1) -> AsyncIterator[list[Speaking]]:
    """Emulated engines, each with a publisher that stands where the engine says."""
    sources: dict[str, tuple[KvSource, ...]] = {}
    asked = HttpEngine.capabilities

    async def told(engine: HttpEngine) -> Capabilities:
        return replace(await asked(engine), kv_events=sources.get(engine.url, ()))

    monkeypatch.setattr(HttpEngine, "capabilities", told)
    async with AsyncExitStack() as stack:
        engines = []
        for number in range(many):
            at = source(Path(tempfile.mkdtemp(dir=folder)))
            options = EmulatedOptions(block_size=BLOCK, faults=True, seed=number)
            server = await stack.enter_async_context(serve(options))
            events = await stack.enter_async_context(publishing(at))
            sources[server.url] = (at,)
            engines.append(Speaking(server.url, events))
        yield engines


def a_pool(*urls: str) -> dict[str, object]:
    backend = {"name": "vllm", "attach": list(urls), "kv_events": True, "tokenize": "5s", "salt": False}
    return {"model": MODEL, "backend": backend, "engines": {"min": 1, "start": len(urls), "max": len(urls)}}


@asynccontextmanager
async def listening_to(folder: Path, *engines: Speaking) -> AsyncIterator[Running]:
    """A gateway that has heard all engines once."""
    sections = {"server": {"port": 0, "journal": str(folder / "journal")}, "policies": ROUTING}
    text = written({"p": a_pool(*(engine.url for engine in engines))}, **sections)
    async with running(folder, text) as up:
        await until(lambda: len(resident(up)) == len(engines), "the engines' first word")
        yield up


def resident(up: Running) -> Mapping[str, int]:
    assert up.gateway.residence is not None
    return up.gateway.residence.resident()


def more_resident(up: Running, before: int) -> bool:
    return sum(resident(up).values()) > before


async def tokens_of(engine: Speaking, body: dict[str, Any]) -> list[int]:
    async with ClientSession() as session, session.post(f"{engine.url}/tokenize", json=body) as reply:
        tokens: list[int] = orjson.loads(await reply.read())["tokens"]
    return tokens


def starts(folder: Path) -> list[Start]:
    return [action for step in recorded(folder / "journal") for action in step.actions if isinstance(action, Start)]


async def test_a_call_goes_to_the_engine_that_says_that_it_holds_the_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with speaking(tmp_path, monkeypatch, many=2) as (one, two):
        async with listening_to(tmp_path, one, two) as up:
            body = chat(LONG, max_tokens=2)
            tokens = await tokens_of(two, body)
            await two.holds(tokens)
            await until(lambda: resident(up).get("p/1") == len(tokens) // BLOCK)
            assert metric(up.gateway, "cortex_engine_resident_blocks", engine="p/1") == len(tokens) // BLOCK
            reply = await up.http.post(CHAT, json=body)
            assert reply.status_code == 200
            assert reply.headers["X-Workflow-Engine"] == "p/1"
            assert metric(up.gateway, "cortex_prefix_error_blocks_count", index="exact") == 1
        [start] = starts(tmp_path)
        assert start.expected_cached == (len(tokens) - 1) // BLOCK * BLOCK


async def test_decisions_that_rest_on_what_engines_said_come_out_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with speaking(tmp_path, monkeypatch, many=2) as (one, two), listening_to(tmp_path, one, two) as up:
        for number in range(6):
            body = chat(f"{number} {LONG}", max_tokens=2)
            tokens = await tokens_of(one, body)
            before = sum(resident(up).values())
            await (one, two)[number % 2].holds(tokens)
            await until(partial(more_resident, up, before))
            assert (await up.http.post(CHAT, json=body)).status_code == 200
    journal, plan = tmp_path / "journal", blueprint_of(tmp_path / "journal")
    assert [start.engine for start in starts(tmp_path)] == ["p/0", "p/1"] * 3
    held = Retold()
    assert replay(journal, plan.dispatcher(held), held) is None
    assert replay(journal, plan.dispatcher()) is not None


async def test_what_was_sent_a_moment_ago_counts_before_any_event_has_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with speaking(tmp_path, monkeypatch, many=2) as (one, two):
        async with listening_to(tmp_path, one, two) as up:
            body = chat(LONG, max_tokens=200)
            replies = await asyncio.gather(*(up.http.post(CHAT, json=body) for _ in range(4)))
            assert len({reply.headers["X-Workflow-Engine"] for reply in replies}) == 1
        first, *others = starts(tmp_path)
        assert first.expected_cached == 0
        assert all(start.expected_cached > 0 for start in others)


async def test_an_engine_that_is_often_wrong_is_believed_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with speaking(tmp_path, monkeypatch) as (one,), listening_to(tmp_path, one) as up:
        for number in range(4):
            body = chat(f"{number} {LONG}", max_tokens=2)
            tokens = await tokens_of(one, body)
            before = sum(resident(up).values())
            await one.holds(tokens)
            await until(partial(more_resident, up, before))
            assert (await up.http.post(CHAT, json=body)).status_code == 200
        assert resident(up) == {}
        assert "KV events are wrong engine=p/0" in caplog.text
        body = chat("short", max_tokens=2)
        for _ in range(5):
            assert (await up.http.post(CHAT, json=body)).status_code == 200
        assert "KV events are believed again engine=p/0" in caplog.text


async def test_what_is_expected_of_emulated_engines_is_what_they_find(tmp_path: Path) -> None:
    backend = {"name": "emulated", "num_gpu_blocks": 200, "time_scale": 50, "kv_events": True, "tokenize": "5s"}
    pool = {"model": MODEL, "backend": backend, "engines": {"min": 2, "start": 2, "max": 2}}
    sections = {"server": {"port": 0, "journal": str(tmp_path / "journal")}, "policies": ROUTING}
    async with running(tmp_path, written({"p": pool}, **sections)) as up:
        await until(lambda: len(resident(up)) == 2, "the engines' first word")
        for number in range(40):
            body = chat(f"{number * number % 7} {LONG} {number}", max_tokens=4)
            assert (await up.http.post(CHAT, json=body)).status_code == 200
        found = metric(up.gateway, "cortex_prefix_cached_tokens_total", index="exact")
        assert found > 0
        assert metric(up.gateway, "cortex_prefix_predicted_tokens_total", index="exact") == found


async def test_an_engine_that_says_nothing_of_its_cache_is_not_listened_to(tmp_path: Path) -> None:
    async with serve(EmulatedOptions()) as server, running(tmp_path, written({"p": a_pool(server.url)})) as up:
        for _ in range(2):
            assert (await up.http.post(CHAT, json=chat(LONG, max_tokens=2))).status_code == 200
        assert resident(up) == {}
        assert metric(up.gateway, "cortex_prefix_error_blocks_count", index="exact") == 0


async def test_calls_that_fail_or_are_left_leave_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with speaking(tmp_path, monkeypatch) as (one,), listening_to(tmp_path, one) as up:
        body = chat(LONG, max_tokens=2)
        for fault in ("status=500", "refuse", "die_before"):
            await up.http.post(CHAT, json=body, headers={"X-Emulated-Fault": fault})
        with pytest.raises(httpx.ReadTimeout):
            await up.http.post(CHAT, json=chat(LONG, max_tokens=20_000), timeout=httpx.Timeout(30, read=0.3))
        assert up.gateway.residence is not None
        await until(lambda: up.gateway.residence is not None and up.gateway.residence.open == 0)


async def test_an_engine_that_is_gone_is_listened_to_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with speaking(tmp_path, monkeypatch, many=2) as (one, two), listening_to(tmp_path, one, two) as up:
        up.gateway.runtime.handle(Drained(engine="p/0"))
        await until(lambda: "p/0" not in resident(up))
        up.gateway.runtime.handle(EngineGone(engine="p/1"))
        await until(lambda: "p/1" not in resident(up))


async def test_a_call_that_every_engine_refuses_is_expected_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with speaking(tmp_path, monkeypatch, many=2) as (one, two):
        async with listening_to(tmp_path, one, two) as up:
            body = chat(LONG, max_tokens=2)
            assert (
                await up.http.post(CHAT, json=body, headers={"X-Emulated-Fault": "status=503"})
            ).status_code == 503
            await until(lambda: up.gateway.residence is not None and up.gateway.residence.open == 0)
            assert (await up.http.post(CHAT, json=body)).status_code == 200
        *_, last = starts(tmp_path)
        assert last.expected_cached == 0
