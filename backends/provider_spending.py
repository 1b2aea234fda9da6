"""Stands in for the accounting of LiteLLM's proxy, to which the library's streams of Messages report.

Without it they import the proxy, and with it 40 packages that the library itself can do without. Nothing is lost:
what an answer costs is counted by the gateway.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Final

_PACKAGE: Final = "litellm.proxy.pass_through_endpoints"


class PassThroughEndpointLogging:
    """Is made once, and only handed on."""


class PassThroughStreamingHandler:
    """Is told how streams ended."""

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
