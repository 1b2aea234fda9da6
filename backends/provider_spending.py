"""Stands in for the part of LiteLLM's proxy that accounts for streams of Messages: the library sends them through it.

Otherwise the library imports the proxy, and with it 40 packages that it can do without itself. Nothing is lost: what
an answer costs is counted by the gateway.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from types import ModuleType
from typing import Final, Protocol

_PACKAGE: Final = "litellm.proxy.pass_through_endpoints"


class PassThroughEndpointLogging:
    """Is made once, and only handed on."""


class Streamed(Protocol):
    """A provider's answer as it comes."""

    def aiter_bytes(self) -> AsyncIterator[bytes]: ...

    async def aclose(self) -> None: ...


class PassThroughStreamingHandler:
    """Passes streams on, and is told how they ended."""

    @staticmethod
    async def chunk_processor(response: Streamed, **_: object) -> AsyncIterator[bytes]:
        """The bytes of a stream as they come."""
        try:
            async for piece in response.aiter_bytes():
                yield piece
        finally:
            await response.aclose()

    @staticmethod
    async def route_streaming_logging_to_handler(**_: object) -> None:
        """A stream has come to its end, or was left."""

    @staticmethod
    async def schedule_stream_failure_logging(**_: object) -> None:
        """A stream broke off."""


def stand_in() -> None:
    """To be called before LiteLLM's first stream."""
    for name, member in (
        ("success_handler", PassThroughEndpointLogging),
        ("streaming_handler", PassThroughStreamingHandler),
    ):
        module = ModuleType(f"{_PACKAGE}.{name}")
        setattr(module, member.__name__, member)
        sys.modules[module.__name__] = module
