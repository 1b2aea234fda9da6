"""The contract of engines, for a real vLLM server."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest

from backends.vllm import HttpEngine
from tests.backends.contract import *  # noqa: F403 - the tests
from tests.backends.contract import Case, asks
from tests.vllm.conftest import MODEL, Pair, Relay


@pytest.fixture
async def case(pair: Pair, session: aiohttp.ClientSession) -> AsyncIterator[Case]:
    messages = [{"role": "user", "content": "hello"}]
    async with Relay(pair.urls[0]) as relay:
        yield Case(
            engine=HttpEngine(relay.url, session),
            quick=asks("/v1/chat/completions", model=MODEL, messages=messages, max_tokens=2),
            long=asks("/v1/chat/completions", model=MODEL, messages=messages, max_tokens=2000, ignore_eos=True),
            end=relay.aclose,
        )
