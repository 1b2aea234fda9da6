"""Hosted models, with what stands in for LiteLLM: as engines, as a cluster's processes, and what keeps them away."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from unittest import mock

import aiohttp
import orjson
import pytest
from aiohttp import web

from backends.base import BackendError, Engine
from backends.emulated.server import EmulatedServer, serve
from backends.provider import INSTALL, ProviderCluster, ProviderEngine, lack_of
from backends.provider_child import Child, mode_of
from backends.provider_members import surfaces_of
from backends.vllm import connections
from tests.backends.contract import *  # noqa: F403 - the tests
from tests.backends.contract import Case, ask, asks
from tests.backends.hosted import *  # noqa: F403 - the tests
from tests.backends.hosted import ASKED, CHAT, OPTIONS, SCRIPT, Hosted, said

STAND_IN = Path(__file__).parent / "standin"
PACKAGE = ".proxy.pass_through_endpoints"
TOKEN = "t"


def arguments(server: EmulatedServer, **more: object) -> dict[str, object]:
    """An account at a server, as a cluster gives it to its process."""
    base = {"model": f"openai/{server.model}", "api_base": f"{server.url}/v1", "api_key": "k"}
    return {**base, "num_retries": 0, "max_retries": 0, **more}


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let LiteLLM be what stands in for it, here and in processes, and leave no trace of it."""
    monkeypatch.syspath_prepend(STAND_IN)
    with mock.patch.dict(os.environ, {"PYTHONPATH": str(STAND_IN)}):
        yield
    for place in ("", f"{PACKAGE}.success_handler", f"{PACKAGE}.streaming_handler"):
        sys.modules.pop(f"litellm{place}", None)


@asynccontextmanager
async def listening(child: Child) -> AsyncIterator[str]:
    """The URL of a child that runs in this process."""
    runner = web.AppRunner(child.app(), handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    library = child.begin()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
        await library
        await sys.modules["litellm"].close()


@asynccontextmanager
async def at(server: EmulatedServer) -> AsyncIterator[Callable[[dict[str, object]], Awaitable[Engine]]]:
    """Makes engines, each an account at the server."""
    async with connections(1.0) as session, AsyncExitStack() as children:

        async def another(more: dict[str, object]) -> Engine:
            child = Child(token=TOKEN, arguments=arguments(server, **more))
            return ProviderEngine(await children.enter_async_context(listening(child)), session, token=TOKEN)

        yield another


@pytest.fixture
async def hosted() -> AsyncIterator[Hosted]:
    async with serve(OPTIONS, script=SCRIPT) as server, at(server) as another:
        yield Hosted(engine=await another({}), server=server, another=another)


@pytest.fixture
async def case() -> AsyncIterator[Case]:
    async with serve(OPTIONS) as server, connections(1.0) as session, AsyncExitStack() as behind:
        url = await behind.enter_async_context(listening(Child(token=TOKEN, arguments=arguments(server))))
        yield Case(
            engine=ProviderEngine(url, session, token=TOKEN),
            quick=asks("/v1/completions", prompt="hello", max_tokens=2),
            long=asks("/v1/completions", prompt="hello", max_tokens=5000),
            end=behind.aclose,
        )


async def test_embeddings_and_rankings_are_answered(hosted: Hosted) -> None:
    model = hosted.server.model
    embedded = await said(hosted.engine, "/v1/embeddings", input=["a", "b"], model=model)
    assert [one["index"] for one in embedded["data"]] == [0, 1]
    ranked = await said(hosted.engine, "/v1/rerank", query="a", documents=["a", "b"], model=model)
    assert len(ranked["results"]) == 2


async def test_only_a_few_headers_reach_the_provider(hosted: Hosted) -> None:
    request = asks(CHAT, **ASKED[CHAT])
    fault = ("x-emulated-fault", "status=418")
    chosen = type(request)(
        **{name: getattr(request, name) for name in ("call", "path", "body")},
        headers=(*request.headers, fault, ("Authorization", "Bearer mine"), ("traceparent", "00-a-b-01")),
    )
    assert (await ask(hosted.engine, chosen))[0] == 200


async def test_a_process_answers_nobody_without_its_token(hosted: Hosted) -> None:
    assert isinstance(hosted.engine, ProviderEngine)
    async with aiohttp.ClientSession() as session, session.post(hosted.engine.url + CHAT, json=ASKED[CHAT]) as reply:
        assert reply.status == 401


async def test_a_body_that_is_no_object_is_said_to_be_none(hosted: Hosted) -> None:
    for body in (b"[1]", b"{"):
        request = asks(CHAT)
        broken = type(request)(call=request.call, path=CHAT, body=body, headers=request.headers)
        status, _, answer = await ask(hosted.engine, broken)
        assert (status, orjson.loads(answer)["error"]["type"]) == (400, "invalid_request_error")


async def test_what_a_model_is_for_says_which_surfaces_it_has(hosted: Hosted) -> None:
    every = (await hosted.engine.capabilities()).surfaces
    embedder = await (await hosted.another({"model": "openai/embedder"})).capabilities()
    writer = await (await hosted.another({"model": "openai/writer"})).capabilities()
    assert embedder.surfaces == frozenset(("embeddings",))
    assert writer.surfaces == frozenset(("chat", "completions", "responses", "messages"))
    assert every == embedder.surfaces | writer.surfaces | {"rerank"} == frozenset(surfaces_of(None))
    assert (writer.version, writer.ordering) == ("litellm-1.106.2", "none")


def test_a_list_that_cannot_be_read_says_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "litellm.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert mode_of("openai/embedder") is None


async def test_each_account_is_a_process_that_ends_with_its_engine() -> None:
    async with connections(2.0) as session:
        cluster = ProviderCluster([{"model": "openai/embedder"}, {"model": "openai/writer"}], session)
        try:
            one, other = await asyncio.gather(cluster.start("p/0"), cluster.start("p/1"))
            with pytest.raises(BackendError, match="there already"):
                await cluster.start("p/0")
            assert (await one.report()).counters == {"requests": 0}
            can = [(await engine.capabilities()).surfaces for engine in (one, other)]
            assert frozenset(("embeddings",)) in can
            watch = asyncio.create_task(cluster.ended("p/0"))
            await cluster.stop("p/0")
            await watch
            with pytest.raises(BackendError):
                await one.report()
            assert (await one.capabilities()).silent
            again = await cluster.start("p/2")
            assert (await again.capabilities()).surfaces == can[0], "the account that was given back is taken"
            await cluster.stop("nobody")
            await cluster.ended("nobody")
        finally:
            await cluster.aclose()


async def test_a_process_that_does_not_come_up_leaves_its_account_free(tmp_path: Path) -> None:
    async with connections(1.0) as session:
        cluster = ProviderCluster([{"model": "openai/x"}], session, python=str(tmp_path / "none"))
        for _ in range(2):
            with pytest.raises(BackendError, match="ended with status 127"):
                await cluster.start("p/0")
        await cluster.aclose()


def test_an_environment_without_litellm_is_told_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert lack_of(None) == ""
    monkeypatch.setenv("PYTHONPATH", "")
    assert lack_of(None).endswith(INSTALL)
    assert "cannot be asked" in lack_of(str(tmp_path / "none"))


def test_releases_that_were_not_its_authors_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "litellm-1.82.8.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: litellm\nVersion: 1.82.8\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "1.82.8 was not released by its authors" in lack_of(None)
