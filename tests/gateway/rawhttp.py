"""A client that sends the bytes it is told to, as no decent client would."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import orjson


@dataclass(frozen=True, slots=True)
class Said:
    """One reply as it came."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Raw:
    """One connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> Said:
        """The head of the next reply, with no body yet."""
        async with asyncio.timeout(10):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
        return Said(int(first.split()[1]), headers, b"")

    async def reply(self, *, body: bool = True) -> Said:
        """The next reply, whose length must be declared."""
        said = await self.head()
        size = int(said.headers["content-length"]) if body else 0
        async with asyncio.timeout(10):
            return Said(said.status, said.headers, await self.reader.readexactly(size))

    def leave(self) -> None:
        """Go without a word."""
        self.writer.transport.abort()


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Raw]:
    """A connection to a server."""
    parts = urlsplit(url)
    raw = Raw(*await asyncio.open_connection(parts.hostname, parts.port))
    try:
        yield raw
    finally:
        raw.leave()


def request(
    body: object, *more: str, path: str = "/v1/chat/completions", method: str = "POST", host: str = "Host: localhost"
) -> bytes:
    """A whole request; `more` are further header lines."""
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    lines = [
        f"{method} {path} HTTP/1.1",
        host,
        "Content-Type: application/json",
        f"Content-Length: {len(data)}",
        *more,
    ]
    return "\r\n".join([*filter(None, lines), "", ""]).encode("latin-1") + data
