"""Reading a request and writing a reply on bare ASGI, with an eye on whether the client is still there.

Starlette and uvicorn do not tell an endpoint that waits that its client has left; here the wait for
`http.disconnect` runs beside the endpoint and cancels it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from functools import lru_cache

import orjson
from starlette.types import Message, Receive, Scope, Send

from backends.patience import Patience
from gateway.openai.errors import ApiError, timeout, too_large
from gateway.surfaces.wording import OPENAI, Wording

BODY_TIMEOUT = 30.0
"""Seconds that a client may take between two pieces of its body."""
WATCHED_AFTER = 0.005
"""Seconds for which nobody looks whether the client is still there: most short requests need no watch at all."""
JSON = ("content-type", "application/json")
EVENT_STREAM = ("content-type", "text/event-stream; charset=utf-8")

Pairs = Iterable[tuple[str, str]]


class ClientLeft(Exception):
    """The client closed its connection before its answer was whole. Nobody is to blame, nothing is to be sent."""


async def read_body(scope: Scope, receive: Receive, *, most: int) -> bytes:
    """The whole body. Raises ApiError (413, 408) and ClientLeft. A declared length only serves to refuse early."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > most:
            raise too_large(most)
    pieces: list[bytes] = []
    size = 0
    try:
        with Patience(BODY_TIMEOUT) as patience:
            while (message := await receive())["type"] != "http.disconnect":
                piece = message.get("body", b"")
                size += len(piece)
                if size > most:
                    raise too_large(most)
                pieces.append(piece)
                if not message.get("more_body", False):
                    return b"".join(pieces) if len(pieces) > 1 else piece
                patience.renew()
    except TimeoutError:
        raise timeout("the body did not arrive in time", code="request_timeout") from None
    raise ClientLeft


class while_present:  # noqa: N801 - it reads as what it does
    """Run a block while the client is there: its leaving cancels the block and comes out as ClientLeft.

    For use after the body was read, and to be left before the last byte of the reply is sent: from then on the
    server says `http.disconnect` for its own reasons. A block that is over within `WATCHED_AFTER` is not watched.
    """

    def __init__(self, receive: Receive) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._receive = receive
        self._left = False
        self._watcher: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        self._beginning = self._task.get_loop().call_later(WATCHED_AFTER, self._begin)

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._beginning.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
        if self._left and not self._task.uncancel() and kind is asyncio.CancelledError:
            raise ClientLeft from None

    def _begin(self) -> None:
        self._watcher = asyncio.create_task(self._watch(), name="client watch")

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._left = True
        self._task.cancel()


@lru_cache(maxsize=1024)
def _raw(name: str) -> bytes:
    """The name of a header as ASGI has it."""
    return name.lower().encode("latin-1")


class Out:
    """One reply. `started` once its status is fixed: what goes wrong from then on travels inside the stream.

    `reason` is the code of an error that was sent as an answer; `said` are the headers that an error reply gets
    too, as soon as it is known whose call it is. Errors are put as `wording` has them; `last_words`, where they are
    set, are how the stream that has begun puts one. `events` is how many events were sent before, `moved` when
    something was last sent, by the monotonic clock, and `sized` says that the head has told the size of the body.
    """

    def __init__(self, send: Send, wording: Wording = OPENAI) -> None:
        self._send = send
        self._wording = wording
        self.started = False
        self.status = 0
        self.reason = ""
        self.events = 0
        self.moved = 0.0
        self.sized = False
        self.said: Callable[[], Pairs] = tuple
        self.last_words: Callable[[ApiError], bytes] | None = None

    async def whole(self, status: int, headers: Pairs, body: bytes) -> None:
        """Send a reply whose body is known."""
        await self.begin(status, [*headers, ("content-length", str(len(body)))])
        await self.end(body)

    async def begin(self, status: int, headers: Pairs) -> None:
        """Send the head."""
        self.started = True
        self.status = status
        raw = [(_raw(name), value.encode("utf-8")) for name, value in headers]
        self.sized = any(name == b"content-length" for name, _ in raw)
        await self._put({"type": "http.response.start", "status": status, "headers": raw})

    async def write(self, piece: bytes) -> None:
        """Send a piece of the body; waits while the client is slow to read."""
        await self._put({"type": "http.response.body", "body": piece, "more_body": True})

    async def end(self, piece: bytes = b"") -> None:
        """Send the last piece."""
        await self._send({"type": "http.response.body", "body": piece, "more_body": False})

    async def _put(self, message: Message) -> None:
        self.moved = time.monotonic()
        await self._send(message)

    async def fail(self, error: ApiError, headers: Pairs = ()) -> None:
        """Send an error: as the reply, or as the last event of a stream that has begun."""
        if not self.started:
            body = self._wording.body(error)
            await self.whole(error.status, [JSON, *self.said(), *headers, *error.headers], body)
        elif self.last_words is not None:
            await self.end(self.last_words(error))
        else:
            await self.end(self._wording.event(error, self.events))

    async def json(self, document: object, *, status: int = 200, headers: Pairs = ()) -> None:
        """Send a JSON document."""
        await self.whole(status, [JSON, *headers], orjson.dumps(document))
