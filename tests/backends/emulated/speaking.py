"""A client of an emulated engine for tests: JSON and bytes over real connections."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from backends.emulated.options import EmulatedOptions
from backends.emulated.script import Script, read_script
from backends.emulated.server import EmulatedServer, serve

FAST = EmulatedOptions(time_scale=1000.0)


class Client:
    """A server, and a session that speaks to it."""

    def __init__(self, server: EmulatedServer, session: aiohttp.ClientSession) -> None:
        self.server = server
        self.session = session

    async def send(
        self, path: str, body: object = None, method: str = "POST", headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        url = self.server.url + path
        async with self.session.request(method, url, json=body, headers=headers) as response:
            return response.status, await response.read()

    async def json(
        self,
        path: str,
        body: object = None,
        method: str = "POST",
        status: int = 200,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        found, read = await self.send(path, body, method, headers)
        assert found == status, read
        return json.loads(read)


@asynccontextmanager
async def speaking(options: EmulatedOptions = FAST, script: Mapping[str, Any] | None = None) -> AsyncIterator[Client]:
    rules = read_script(script) if script else Script()
    async with serve(options, script=rules) as server, aiohttp.ClientSession() as session:
        yield Client(server, session)
