"""A relay before the gateway, which passes everything on as it comes and keeps what was asked and answered."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx
import uvicorn
from starlette.types import Receive, Scope, Send

HOP_BY_HOP = {"host", "connection", "transfer-encoding", "keep-alive"}


@dataclass(slots=True, kw_only=True)
class Exchange:
    """One request as the client sent it, and the reply that it got; `chunks` are its pieces as they came.

    It `began` and `ended` at these seconds of the event loop's clock.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    began: float
    ended: float = 0.0
    status: int = 0
    reply: Mapping[str, str] = field(default_factory=dict)
    chunks: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class Relay:
    """The ASGI application; `seen` are the exchanges in the order in which they were asked for."""

    http: httpx.AsyncClient
    url: str = ""
    seen: list[Exchange] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        path = scope["path"] + ("?" + scope["query_string"].decode() if scope["query_string"] else "")
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        now = asyncio.get_running_loop().time
        exchange = Exchange(method=scope["method"], path=path, headers=headers, body=body, began=now())
        self.seen.append(exchange)
        onward = {name: value for name, value in headers.items() if name not in HOP_BY_HOP}
        async with self.http.stream(exchange.method, path, headers=onward, content=body) as reply:
            exchange.status, exchange.reply = reply.status_code, dict(reply.headers)
            raw = [(name, value) for name, value in reply.headers.raw if name.lower().decode() not in HOP_BY_HOP]
            await send({"type": "http.response.start", "status": reply.status_code, "headers": raw})
            async for chunk in reply.aiter_raw():
                exchange.chunks.append(chunk)
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            exchange.ended = now()
            await send({"type": "http.response.body", "body": b"", "more_body": False})


@asynccontextmanager
async def relaying(upstream: str) -> AsyncIterator[Relay]:
    """A relay that listens while the block runs."""
    async with httpx.AsyncClient(base_url=upstream, timeout=60, trust_env=False) as http:
        relay = Relay(http)
        listener = socket.create_server(("127.0.0.1", 0))
        relay.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = uvicorn.Server(
            uvicorn.Config(relay, lifespan="off", log_config=None, access_log=False, timeout_graceful_shutdown=1)
        )
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield relay
        finally:
            server.should_exit = True
            await serving
