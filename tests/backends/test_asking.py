"""What a server can do is found by asking it, whatever it answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

import aiohttp
import orjson
import pytest

from backends.capabilities import SURFACES, Capabilities, KvSource, Ordering
from backends.emulated.options import EmulatedOptions
from backends.emulated.server import serve
from backends.vllm import HttpEngine, connections
from tests.gateway.recorder import Exchange, recording

FAST = EmulatedOptions(time_scale=1000.0, num_gpu_blocks=100, block_size=32, max_model_len=1000)
COMPLETIONS = "/v1/completions"
CACHE = b'vllm:cache_config_info{block_size="16",enable_prefix_caching="True",num_gpu_blocks="None"} 1.0\n'


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with connections(0.5) as session:
        yield session


class Pages:
    """A server's pages by path, and how it answers completions: with a status, and with the details or without."""

    def __init__(self, pages: Mapping[str, object], *, refuses: int | None = None, details: bool = True) -> None:
        self.pages = pages
        self.refuses = refuses
        self.details = details

    async def __call__(self, exchange: Exchange) -> None:
        seen = exchange.seen
        if seen.path == COMPLETIONS:
            refused = self.refuses is not None and "priority" in seen.document
            usage = {"prompt_tokens_details": {"cached_tokens": 0} if self.details else None}
            status = self.refuses if refused and self.refuses is not None else 200
            await exchange.whole(orjson.dumps({"usage": usage}), status=status)
        elif seen.path in self.pages:
            page = self.pages[seen.path]
            await exchange.whole(page if isinstance(page, bytes) else orjson.dumps(page))
        else:
            await exchange.whole(b'{"detail":"Not Found"}', status=404)


def vllm(version: str = "0.32.0") -> dict[str, object]:
    """The pages of a vLLM server with one model."""
    return {"/version": {"version": version}, "/v1/models": {"data": [{"id": "m", "max_model_len": 500}]}}


async def found(session: aiohttp.ClientSession, pages: Pages, metrics: bytes | None = CACHE) -> Capabilities:
    async with recording(pages) as server:
        server.tell, server.metrics = pages, metrics
        return await HttpEngine(server.url, session).capabilities()


async def test_an_emulated_engine_tells_what_a_real_one_tells(session: aiohttp.ClientSession) -> None:
    async with serve(FAST, model="m") as server:
        can = await HttpEngine(server.url, session).capabilities()
    assert can == Capabilities(
        version="0.32.0+emulated",
        models=("m",),
        longest=1000,
        block_size=32,
        kv_blocks=100,
        prefix_caching=True,
        token_details=True,
        surfaces=frozenset(SURFACES),
    )
    assert (can.kv_tokens, can.ordering) == (3200, "header")


@pytest.mark.parametrize(
    ("pages", "surfaces"),
    [
        ({"/openapi.json": (200, b'{"paths": {"/v1/chat/completions": {}, "/v1/other": {}}}')}, {"chat"}),
        ({"/openapi.json": (200, b"[]"), "/v1/messages": (405, b"")}, {"messages"}),
        ({"/v1/embeddings": (405, b""), "/v1/score": (404, b"")}, {"embeddings"}),
        ({}, None),
    ],
)
async def test_what_a_server_can_be_spoken_to_by_is_listed_or_shows_in_what_a_get_is_answered(
    session: aiohttp.ClientSession, pages: dict[str, tuple[int, bytes]], surfaces: set[str] | None
) -> None:
    async def tell(exchange: Exchange) -> None:
        status, page = pages.get(exchange.seen.path, (404, b""))
        await exchange.whole(page, status=status)

    async with recording() as server:
        server.tell = tell
        can = await HttpEngine(server.url, session).capabilities()
    assert can.surfaces == surfaces


async def test_a_server_for_development_shows_its_policy_and_can_sleep(session: aiohttp.ClientSession) -> None:
    async with serve(EmulatedOptions(time_scale=1000.0, dev_mode=True)) as server:
        can = await HttpEngine(server.url, session).capabilities()
    assert (can.priority, can.sleeps) == (True, True)


async def test_a_server_that_sleeps_is_not_tried(session: aiohttp.ClientSession) -> None:
    async with serve(EmulatedOptions(time_scale=1000.0, dev_mode=True)) as server:
        async with session.post(server.url + "/sleep") as reply:
            assert reply.status == 200
        can = await HttpEngine(server.url, session).capabilities()
        assert (can.version, can.priority, can.token_details) == ("0.32.0+emulated", True, None)
        assert server.engine.waiting == 0


async def test_a_server_that_answers_nothing_of_it_works_on_with_defaults(session: aiohttp.ClientSession) -> None:
    async with recording() as server:
        assert await HttpEngine(server.url, session).capabilities() == Capabilities()
        assert server.questions
        assert not server.seen
    assert await HttpEngine(server.url, session).capabilities() == Capabilities(silent=True)
    assert Capabilities().ordering == "header"
    assert Capabilities().kv_tokens is None


async def test_a_server_without_a_version_is_asked_for_its_pages_only(session: aiohttp.ClientSession) -> None:
    async with recording() as server:
        server.tell = Pages({"/v1/models": {"data": [{"id": "gguf", "meta": {}}, {"id": "b"}]}})
        can = await HttpEngine(server.url, session).capabilities()
        assert can == Capabilities(models=("gguf", "b"))
        assert not server.seen


@pytest.mark.parametrize("status", [400, 422, 500])
async def test_a_server_that_refuses_priorities_is_told_none(session: aiohttp.ClientSession, status: int) -> None:
    can = await found(session, Pages(vllm("0.10.2"), refuses=status, details=False))
    assert (can.priority, can.ordering, can.token_details) == (False, "none", False)


async def test_a_server_that_is_busy_has_refused_nothing(session: aiohttp.ClientSession) -> None:
    can = await found(session, Pages(vllm(), refuses=503))
    assert (can.priority, can.ordering, can.token_details) == (None, "header", None)


async def test_a_server_that_runs_first_come_first_served_is_told_none(session: aiohttp.ClientSession) -> None:
    info = {"vllm_config": {"scheduler_config": {"policy": "fcfs"}}}
    pages = vllm() | {"/is_sleeping": {"is_sleeping": False}, "/server_info": info}
    assert (await found(session, Pages(pages))).ordering == "none"
    odd = pages | {"/server_info": {"vllm_config": "VllmConfig(...)"}}
    assert (await found(session, Pages(odd))).priority is None


@pytest.mark.parametrize(
    ("version", "ordering"),
    [("0.31.9", "body"), ("0.9.2.dev1+g1", "body"), ("0.32.0", "header"), ("1.0", "header"), ("dev", "header")],
)
def test_the_header_is_relied_upon_from_the_version_on_that_reads_it(version: str, ordering: Ordering) -> None:
    assert Capabilities(version=version).ordering == ordering


async def test_where_kv_events_are_published_is_told_by_rank(session: aiohttp.ClientSession) -> None:
    one = {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": "tcp://*:5557", "topic": "kv"}
    ranks = {
        "1": one | {"endpoint": "tcp://*:5558", "replay_endpoint": "tcp://*:5559"},
        "0": one | {"replay_endpoint": None},
        "2": one | {"enable_kv_cache_events": False},
        "3": one | {"publisher": "null"},
        "4": one | {"endpoint": None},
        "5": "nonsense",
    }
    can = await found(session, Pages(vllm() | {"/kv_event_sources": ranks}))
    assert can.kv_events == (
        KvSource(endpoint="tcp://*:5557", topic="kv"),
        KvSource(endpoint="tcp://*:5558", replay="tcp://*:5559", topic="kv"),
    )


@pytest.mark.parametrize("page", [b"", b"nonsense", b"[]", b"7", b'{"version": 7, "data": 7, "is_sleeping": 7}'])
async def test_nonsense_is_no_answer(session: aiohttp.ClientSession, page: bytes) -> None:
    paths = ("/version", "/v1/models", "/kv_event_sources", "/is_sleeping", "/server_info")
    assert await found(session, Pages(dict.fromkeys(paths, page)), metrics=page) == Capabilities()


@pytest.mark.parametrize("cards", [["x", 7], [{"id": 7}], [{"id": "m", "max_model_len": "long"}]])
async def test_a_model_that_says_nothing_of_its_length_has_none(
    session: aiohttp.ClientSession, cards: list[object]
) -> None:
    can = await found(session, Pages(vllm() | {"/v1/models": {"data": cards}}))
    assert can.longest is None


async def test_the_pools_key_opens_the_pages(session: aiohttp.ClientSession) -> None:
    pages = Pages(vllm())
    async with recording(pages) as server:
        server.tell = pages
        await HttpEngine(server.url, session, api_key="k").capabilities()
        asked = [*server.questions, *server.seen]
        assert asked[-1].path == COMPLETIONS
        assert {seen.header("authorization") for seen in asked} == {"Bearer k"}
