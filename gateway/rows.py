"""The rows of a statement as they come: from its queue to the last line, with the reader's pace kept to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from backends.base import Request
from gateway.answers import cut_short
from gateway.attempts import Attempt, begun
from gateway.openai.errors import interrupted, timeout
from gateway.runtime import Runtime
from gateway.verdicts import Answer, last, whole
from policies.calls import Call
from policies.events import Start

LOOK_EVERY = 0.25
"""Seconds between two looks at whether somebody waits for the worker of a reader that takes nothing."""

Write = Callable[[bytes], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How long, in seconds: `total` until the first rows, `longest` from then on, and `stall` for a reader to take
    nothing while others wait for a worker."""

    total: float
    longest: float
    stall: float


class Rows:
    """Lines of NDJSON in pieces: the columns, then the rows. `end` is what there is to say behind them.

    Between two pieces nothing is fetched: the worker waits as soon as the pipe to it is full.
    """

    def __init__(
        self,
        attempt: Attempt,
        pieces: AsyncIterator[list[bytes]],
        reader: _Reader,
        told: Callable[[Answer], Answer],
    ) -> None:
        self.start: Start = attempt.start
        self._attempt = attempt
        self._pieces = pieces
        self._reader = reader
        self._told = told
        self._end: Answer | None = None

    @property
    def end(self) -> Answer:
        assert self._end is not None
        return self._end

    async def write(self, write: Write) -> None:
        """Write all the pieces. Raises ApiError where the worker breaks off."""
        async for pieces in self._pieces:
            for piece in pieces:
                if piece.startswith(b"rows\n"):
                    await self._reader.take(write, piece[5:])
                else:
                    self._end = self._told(last(self._attempt, piece))


class _Reader:
    """The time of the one who reads: it ends where nothing is taken while others wait for the worker."""

    def __init__(self, limit: asyncio.Timeout, stall: float, waited_for: Callable[[], bool]) -> None:
        self.stalled = False
        self._limit = limit
        self._stall = stall
        self._waited_for = waited_for
        self._loop = asyncio.get_running_loop()

    async def take(self, write: Write, piece: bytes) -> None:
        self._timer = self._loop.call_later(self._stall, self._look)
        try:
            await write(piece)
        finally:
            self._timer.cancel()

    def _look(self) -> None:
        if self._waited_for():
            self.stalled = True
            self._limit.reschedule(self._loop.time())
        else:
            self._timer = self._loop.call_later(LOOK_EVERY, self._look)


@asynccontextmanager
async def streamed(
    runtime: Runtime,
    call: Call,
    request: Callable[[Start], Request],
    bounds: Bounds,
    told: Callable[[Answer], Answer],
) -> AsyncIterator[Answer | Rows]:
    """The rows, or the answer where the statement failed before its first. Leaving the block stops the statement.

    `told` puts an answer into words. Raises ApiError, also out of the block.
    """
    reader: _Reader | None = None
    try:
        async with (
            asyncio.timeout(bounds.total) as limit,
            runtime.ticket(call) as ticket,
            begun(runtime, ticket, request, stream=False) as attempt,
        ):
            limit.reschedule(asyncio.get_running_loop().time() + bounds.longest)
            reader = _Reader(limit, bounds.stall, lambda: _waiting(runtime, call.pool))
            with cut_short(attempt):
                yield told(whole(attempt)) if attempt.rest is None else Rows(attempt, attempt.rest, reader, told)
    except TimeoutError:
        setting = f"pools.{call.pool}.backend.stream_"
        if reader is None:
            raise timeout(f"the statement took longer than {bounds.total:g} s", code="deadline_exceeded") from None
        if reader.stalled:
            why = f"nothing was read for {bounds.stall:g} s while others waited ({setting}stall)"
            raise interrupted(f"{why}: read faster, or ask for fewer rows") from None
        why = f"the statement and its rows took longer than {bounds.longest:g} s ({setting}timeout)"
        raise timeout(f"{why}: read faster, or ask for fewer rows", code="deadline_exceeded") from None


def _waiting(runtime: Runtime, pool: str) -> bool:
    return runtime.dispatcher.pool_view(pool, runtime.now()).waiting > 0
