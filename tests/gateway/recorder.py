"""An engine of a test's own: a real HTTP server that keeps what it was sent and answers what the test says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.types import Receive, Scope, Send

Headers = Sequence[tuple[str, str]]
SSE: Headers = (("content-type", "text/event-stream; charset=utf-8"),)
JSON: Headers = (("content-type", "application/json"),)
CHUNKS = (
    b'data: {"id":"c1","choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n',
    b'data: {"id":"c1","choices":[{"index":0,"delta":{"content":"Hi"}}]}\n\n',
    b'data: {"id":"c1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n',
    b"data: [DONE]\n\n",
)
WHOLE = b'{"id":"c1", "choices": [{"index":0,"message":{"role":"assistant","content":"Hi"}}], "x_own": [1.50]}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One request as the engine got it."""

    path: str
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.body)
        return document

    def header(self, name: str) -> str | None:
        """A header's value; fails where it came twice."""
        values = [value for key, value in self.headers if key == name.lower()]
        assert len(values) < 2, f"{name} came {len(values)} times"
        return values[0] if values else None


class Exchange:
    """One request, and the means to answer it."""

    def __init__(self, seen: Seen, receive: Receive, send: Send) -> None:
        self.seen = seen
        self._receive = receive
        self._send = send

    async def whole(self, body: bytes, *, status: int = 200, headers: Headers = JSON) -> None:
        await self.pieces([body], status=status, headers=headers)

    async def pieces(
        self, pieces: Sequence[bytes], *, status: int = 200, headers: Headers = SSE, started: bool = False
    ) -> None:
        """Send a body in pieces, each as one chunk, and its end; the head goes before, unless it has `started`."""
        if not started:
            await self.head(status, headers)
        for piece in pieces:
            await self.write(piece)
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def head(self, status: int = 200, headers: Headers = SSE) -> None:
        raw = [(name.encode(), value.encode()) for name, value in headers]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def write(self, piece: bytes) -> None:
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def left(self) -> None:
        """Wait until whoever asks has left."""
        while (await self._receive())["type"] != "http.disconnect":
            pass


Answer = Callable[[Exchange], Awaitable[None]]


async def politely(exchange: Exchange) -> None:
    """A short answer, as a stream or whole, as it was asked for."""
    if b'"stream"' in exchange.seen.body and exchange.seen.document["stream"]:
        await exchange.pieces(CHUNKS)
    else:
        await exchange.whole(WHOLE)


async def nothing(exchange: Exchange) -> None:
    """No page of this name."""
    await exchange.whole(b'{"detail":"Not Found"}', status=404)


@dataclass(slots=True)
class Recorder:
    """The engine: `seen` are the requests so far and `ports` where they came from, `answer` says what it does.

    What it is asked about itself (GET) are `questions`, and `tell` answers them.
    """

    answer: Answer = politely
    tell: Answer = nothing
    url: str = ""
    seen: list[Seen] = field(default_factory=list)
    questions: list[Seen] = field(default_factory=list)
    metrics: bytes | None = None
    healthy: bool = True
    ports: set[int] = field(default_factory=set)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in ("/health", "/metrics"):
            fine = self.healthy if scope["path"] == "/health" else self.metrics is not None
            await Exchange(_nothing(scope), receive, send).whole(self.metrics or b"", status=200 if fine else 503)
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        headers = [(name.decode("latin-1"), value.decode()) for name, value in scope["headers"]]
        seen = Seen(path=scope["path"], headers=headers, body=body)
        if scope["method"] == "GET":
            self.questions.append(seen)
            await self.tell(Exchange(seen, receive, send))
            return
        self.seen.append(seen)
        self.ports.add(scope["client"][1])
        await self.answer(Exchange(seen, receive, send))

    @property
    def last(self) -> Seen:
        return self.seen[-1]


def _nothing(scope: Scope) -> Seen:
    return Seen(path=scope["path"], headers=[], body=b"")


class _Quiet(uvicorn.Server):
    """uvicorn without signals and without pauses; when it stops it waits for nobody."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.stop = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        await self.stop.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await asyncio.gather(*self.server_state.tasks, return_exceptions=True)


@asynccontextmanager
async def recording(answer: Answer = politely) -> AsyncIterator[Recorder]:
    """A recorder that listens while the block runs; what hangs in it is cut off at the end."""
    recorder = Recorder(answer)
    server = _Quiet(
        uvicorn.Config(
            recorder, port=0, http="httptools", lifespan="off", log_config=None, timeout_keep_alive=75, loop="none"
        )
    )
    task = asyncio.create_task(server.serve())
    while not server.started:
        assert not task.done()
        await asyncio.sleep(0.005)
    recorder.url = "http://{}:{}".format(*server.servers[0].sockets[0].getsockname()[:2])
    try:
        yield recorder
    finally:
        server.stop.set()
        await task
