"""The contract of engines, for LiteLLM's own process."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from backends.emulated.server import serve
from backends.provider import ProviderCluster
from backends.vllm import connections
from tests.backends.contract import *  # noqa: F403 - the tests
from tests.backends.contract import Case, asks
from tests.providers.conftest import PYTHON, account


@pytest.fixture
async def case() -> AsyncIterator[Case]:
    async with serve() as server, connections(2.0) as session:
        cluster = ProviderCluster([account(server, "hosted_vllm")], session, python=PYTHON)
        try:
            yield Case(
                engine=await cluster.start("p/0"),
                quick=asks("/v1/completions", prompt="hello", max_tokens=2),
                long=asks("/v1/completions", prompt="hello", max_tokens=5000),
                end=cluster.aclose,
            )
        finally:
            await cluster.aclose()
