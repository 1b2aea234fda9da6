"""Answers on the wire as their tokens come, over connections that may end at any time and faults that end them.

The answers are ASGI applications and no Starlette responses, because while they wait they also watch the client:
one that leaves takes its sequence off the engine at once.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any

from starlette.types import Receive, Scope, Send

from backends.emulated.answers import Answer
from backends.emulated.driver import Driver, Line
from backends.emulated.faults import Fault
from backends.emulated.wire import DONE, Wire, usage

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
    """All that it takes to send one answer."""

    driver: Driver
    line: Line
    answer: Answer
    wire: Wire
    headers: Headers
    include_usage: bool = False
    fault: Fault | None = None

    def said(self) -> Answer:
        """The answer in the end: as far as it came, where the engine has aborted it."""
        if not self.line.aborted:
            return self.answer
        return replace(self.answer, pieces=self.answer.pieces[: self.line.produced], finish="abort")

    def counts(self) -> dict[str, Any]:
        return usage(self.line.sequence.prompt, len(self.said().pieces), self.line.cached)


class Generation(ABC):
    """One answer until its last byte. However that ends, the sequence is given back."""

    def __init__(self, job: Job) -> None:
        self.job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = Connection(scope, receive, send)
        watch = asyncio.create_task(self._watch(connection))
        try:
            if not await self.send(connection):
                await watch
        finally:
            watch.cancel()
            self.job.driver.leave(self.job.line)

    @abstractmethod
    async def send(self, connection: Connection) -> bool:
        """Send the answer as it comes; False when it broke off, and only the client's leaving is left to wait for."""

    async def _watch(self, connection: Connection) -> None:
        await connection.left()
        self.job.driver.leave(self.job.line)


class Whole(Generation):
    """The answer as one body. Faults that come after so many events come in the middle of it."""

    async def send(self, connection: Connection) -> bool:
        job = self.job
        if not await job.line.reach(len(job.answer.pieces)) and not job.line.aborted:
            return False
        body = job.wire.whole(job.said(), job.counts())
        size = (b"content-length", str(len(body)).encode())
        await connection.head([*job.headers, (b"content-type", b"application/json"), size])
        if job.fault is None:
            await connection.body(body, more=False)
            return True
        await connection.body(body[: len(body) // 2])
        if job.fault.kind != "garbage_after":
            return _break(connection, job.fault)
        await connection.body(b"\0" * (len(body) - len(body) // 2), more=False)
        return True


class Stream(Generation):
    """The answer as server-sent events, one for each token that shows something."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._events = 0

    async def send(self, connection: Connection) -> bool:
        job, sent = self.job, 0
        await connection.head([*job.headers, (b"content-type", b"text/event-stream; charset=utf-8")])
        while sent < len(job.answer.pieces):
            if not await job.line.reach(sent + 1):
                if job.line.aborted:
                    break
                return False
            events = [] if sent else [job.wire.opening()]
            # More than one is new only if this client was slower than the engine's steps.
            events += [job.wire.piece(piece) for piece in job.answer.pieces[sent : job.line.produced] if piece]
            sent = job.line.produced
            if not await self._pass_on(connection, events):
                return False
        if not await self._pass_on(connection, self._end()):
            return False
        await connection.body(b"", more=False)
        return True

    def _end(self) -> list[bytes]:
        job = self.job
        events = [job.wire.closing(job.said().finish)]
        if job.include_usage:
            events.append(job.wire.usage(job.counts()))
        return [*events, DONE]

    async def _pass_on(self, connection: Connection, events: list[bytes]) -> bool:
        fault = self.job.fault
        if fault is None:
            if body := b"".join(events):
                await connection.body(body)
            return True
        for event in filter(None, events):
            if self._events == fault.number and fault.kind != "garbage_after":
                return _break(connection, fault)
            await connection.body(GARBAGE + event if self._events == fault.number else event)
            self._events += 1
        return True


def _break(connection: Connection, fault: Fault) -> bool:
    if fault.kind == "die_after":
        connection.cut()
    return False
