"""Servers that run elsewhere, as the engines of a pool."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import aiohttp

from backends.base import BackendError, Engine
from backends.vllm import HttpEngine


@dataclass(slots=True)
class AttachedServers:
    """A cluster of servers that run elsewhere: starting an engine takes the next free URL that answers."""

    urls: Sequence[str]
    session: aiohttp.ClientSession
    api_key: str = ""
    _taken: dict[str, str] = field(default_factory=dict)

    async def start(self, name: str) -> Engine:
        last: BackendError | None = None
        for url in self.urls:
            if url in self._taken.values():  # looked at anew each time: others start beside this one
                continue
            engine = HttpEngine(url, self.session, api_key=self.api_key)
            self._taken[name] = url
            try:
                await engine.check()
            except BackendError as error:
                del self._taken[name]
                last = error
            except asyncio.CancelledError:
                del self._taken[name]
                raise
            else:
                return engine
        raise last or BackendError("every server of the pool is in use", trouble="refused", retryable=False)

    async def ended(self, name: str) -> None:
        await asyncio.Event().wait()  # a server that runs elsewhere is seen through its reports alone

    async def stop(self, name: str) -> None:
        self._taken.pop(name, None)

    async def aclose(self) -> None:
        self._taken.clear()
