"""LiteLLM itself, in the processes that a cluster starts, and an emulated server as the provider."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from backends.base import BackendError, Engine
from backends.emulated.server import EmulatedServer, serve
from backends.provider import ProviderCluster, lack_of
from backends.vllm import connections
from tests.backends.contract import ask, asks
from tests.backends.hosted import OPTIONS, SCRIPT, Hosted

ROOT = Path(__file__).parents[2]
PYTHON = str(Path(os.environ.get("CORTEX_LITELLM", ROOT / ".litellm")) / "bin" / "python")


def account(server: EmulatedServer, provider: str) -> dict[str, object]:
    """What LiteLLM is told of an account at the server, which speaks as that provider does."""
    base = server.url if provider == "anthropic" else f"{server.url}/v1"
    return {"model": f"{provider}/{server.model}", "api_base": base, "api_key": "k"}


@pytest.fixture(scope="session", autouse=True)
def installed() -> None:
    assert not lack_of(PYTHON), f"{lack_of(PYTHON)}: run `make test-providers`"


@pytest.fixture(params=["openai", "hosted_vllm", "anthropic"], scope="module")
def provider(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hosted(provider: str) -> AsyncIterator[Hosted]:
    """A process for each account that is asked for, all of them ended with the module."""
    async with serve(OPTIONS, script=SCRIPT) as server, connections(2.0) as session, AsyncExitStack() as stack:
        known: dict[str, Engine] = {}

        async def another(more: dict[str, object]) -> Engine:
            if repr(more) not in known:
                cluster = ProviderCluster([account(server, provider) | more], session, python=PYTHON)
                stack.push_async_callback(cluster.aclose)
                engine = known[repr(more)] = await cluster.start("p/0")
                with contextlib.suppress(BackendError):  # what it is to do may be to fail
                    await ask(
                        engine, replace(asks("/v1/completions", prompt="hello", max_tokens=1), head_timeout=100)
                    )
            return known[repr(more)]

        yield Hosted(engine=await another({}), server=server, another=another)
