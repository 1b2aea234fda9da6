"""Answers on the wire as their tokens come, over connections that may end at any time and faults that end them.

The answers are ASGI applications and no Starlette responses, because while they wait they also watch the client:
one that leaves takes its sequence off the engine at once.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

from starlette.types import Receive, Scope, Send

from backends.emulated.answers import Answer
from backends.emulated.driver import Driver, Line
from backends.emulated.faults import Fault
from backends.emulated.wire import Counts, Wire

Headers = list[tuple[bytes, bytes]]

GARBAGE = b'data: {"choices": [{"delta": garb\n\n'


class Connection:
    """One exchange with one client: what to send, and the knowledge that it has left."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._transport = scope["extensions"]["emulated"]["transport"]
        self._receive = receive
        self._send = send

    async def head(self, headers: Headers, status: int = 200) -> None:
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def body(self, body: bytes, *, more: bool = True) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    async def left(self) -> None:
        """Wait until the client has left, or the connection was cut."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def cut(self) -> None:
        """Close the connection, with all that was sent and nothing more."""
        self._transport.close()


class Silence:
    """No answer at all: the connection is closed without a byte, or held open until the client gives up."""

    def __init__(self, fault: Fault) -> None:
        self._fault = fault

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = Connection(scope, receive, send)
        if self._fault.kind == "die_before":
            connection.cut()
        await connection.left()


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """All that it takes to send one answer. One that is `held` goes on without a client."""

    driver: Driver
    line: Line
    answer: Answer
    wire: Wire
    headers: Headers
    fault: Fault | None = None
    held: bool = False

    def said(self) -> Answer:
        """The answer in the end: as far as it came, where the engine has aborted it."""
        if not self.line.aborted:
            return self.answer
        return replace(self.answer, pieces=self.answer.pieces[: self.line.produced], finish="abort")

    def counts(self) -> Counts:
        return Counts(self.line.sequence.prompt, len(self.said().pieces), self.line.cached)


class Exchange(ABC):
    """One answer until its last byte. However that ends, what the engine computes for it is given back."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = Connection(scope, receive, send)
        watch = asyncio.create_task(self._watch(connection))
        try:
            if not await self.send(connection):
                await watch
        finally:
            watch.cancel()
            self.leave()

    @abstractmethod
    async def send(self, connection: Connection) -> bool:
        """Send the answer as it comes; False when it broke off, and only the client's leaving is left to wait for."""

    @abstractmethod
    def leave(self) -> None:
        """The client has what it wants, or is gone. Idempotent."""

    async def _watch(self, connection: Connection) -> None:
        await connection.left()
        self.leave()


class Batch(Exchange):
    """One body for several sequences, which have one token each and whose tokens nobody sees."""

    def __init__(self, driver: Driver, lines: Sequence[Line], body: bytes, headers: Headers) -> None:
        self._driver = driver
        self._lines = lines
        self._body = body
        self._headers = headers

    async def send(self, connection: Connection) -> bool:
        for line in self._lines:
            if not await line.reach(1) and not line.aborted:
                return False
        await _send_json(connection, self._headers, self._body)
        return True

    def leave(self) -> None:
        for line in self._lines:
            self._driver.leave(line)


class Generation(Exchange):
    """The answer of one sequence."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def leave(self) -> None:
        if not self.job.held:
            self.job.driver.leave(self.job.line)


class Whole(Generation):
    """The answer as one body. Faults that come after so many events come in the middle of it."""

    async def send(self, connection: Connection) -> bool:
        job = self.job
        if not await job.line.reach(len(job.answer.pieces)) and not job.line.aborted:
            return False
        body = job.wire.whole(job.said(), job.counts())
        if job.fault is None:
            await _send_json(connection, job.headers, body)
            return True
        await connection.head([*job.headers, *_json_headers(body)])
        await connection.body(body[: len(body) // 2])
        if job.fault.kind != "garbage_after":
            return _break(connection, job.fault)
        await connection.body(b"\0" * (len(body) - len(body) // 2), more=False)
        return True


class Stream(Generation):
    """The answer as server-sent events, one for each token that shows something; the first `skip` are not sent."""

    def __init__(self, job: Job, skip: int = 0) -> None:
        super().__init__(job)
        self._skip = skip
        self._events = 0

    async def send(self, connection: Connection) -> bool:
        job, sent = self.job, 0
        await connection.head([*job.headers, (b"content-type", b"text/event-stream; charset=utf-8")])
        if not await self._pass_on(connection, job.wire.greeting()):
            return False
        while sent < len(job.answer.pieces):
            if not await job.line.reach(sent + 1):
                if job.line.aborted:
                    break
                return await self._cancelled(connection)
            events = [] if sent else job.wire.opening()
            # More than one is new only if this client was slower than the engine's steps.
            for piece in job.answer.pieces[sent : job.line.produced]:
                sent += 1
                if piece:
                    events += job.wire.piece(piece, sent)
            if not await self._pass_on(connection, events):
                return False
        opened = [] if sent else job.wire.opening()
        if not await self._pass_on(connection, opened + job.wire.closing(job.said(), job.counts())):
            return False
        await connection.body(b"", more=False)
        return True

    async def _cancelled(self, connection: Connection) -> bool:
        """For one that was called off there is no last event; else it is the client who has left."""
        if self.job.held:
            await connection.body(b"", more=False)
        return self.job.held

    async def _pass_on(self, connection: Connection, events: list[bytes]) -> bool:
        fault = self.job.fault
        if self._skip:
            skipped = min(self._skip, len(events))
            self._skip -= skipped
            events = events[skipped:]
        if fault is None:
            if body := b"".join(events):
                await connection.body(body)
            return True
        for event in events:
            if self._events == fault.number and fault.kind != "garbage_after":
                return _break(connection, fault)
            await connection.body(GARBAGE + event if self._events == fault.number else event)
            self._events += 1
        return True


async def _send_json(connection: Connection, headers: Headers, body: bytes) -> None:
    await connection.head([*headers, *_json_headers(body)])
    await connection.body(body, more=False)


def _json_headers(body: bytes) -> Headers:
    return [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]


def _break(connection: Connection, fault: Fault) -> bool:
    if fault.kind == "die_after":
        connection.cut()
    return False
