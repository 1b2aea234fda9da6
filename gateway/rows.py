"""The rows of a statement as they come: from its queue to the last line, with the reader's pace kept to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from backends.base import Request
from gateway.answers import cut_short
from gateway.attempts import Attempt, begun
from gateway.openai.errors import timeout
from gateway.runtime import Runtime
from gateway.verdicts import Answer, last, whole
from policies.calls import Call
from policies.events import Start


class Rows:
    """Lines of NDJSON in pieces: the columns, then the rows. `end` is what there is to say behind them.

    Between two pieces nothing is fetched: the worker waits as soon as the pipe to it is full.
    """

    def __init__(self, attempt: Attempt, pieces: AsyncIterator[list[bytes]]) -> None:
        self.start: Start = attempt.start
        self._attempt = attempt
        self._pieces = pieces
        self._end: Answer | None = None

    @property
    def end(self) -> Answer:
        assert self._end is not None
        return self._end

    async def pieces(self) -> AsyncIterator[bytes]:
        """Raises ApiError where the worker breaks off."""
        async for pieces in self._pieces:
            for piece in pieces:
                if piece.startswith(b"rows\n"):
                    yield piece[5:]
                else:
                    self._end = last(self._attempt, piece)


@asynccontextmanager
async def streamed(
    runtime: Runtime, call: Call, request: Callable[[Start], Request], *, total: float, longest: float
) -> AsyncIterator[Answer | Rows]:
    """The rows, or the answer where the statement failed before its first. Leaving the block stops the statement.

    `total` bounds the wait for the first rows, `longest` the time from then on, both in seconds. Raises ApiError,
    also out of the block.
    """
    try:
        async with (
            asyncio.timeout(total) as limit,
            runtime.ticket(call) as ticket,
            begun(runtime, ticket, request, stream=False) as attempt,
        ):
            limit.reschedule(asyncio.get_running_loop().time() + longest)
            with cut_short(attempt):
                yield whole(attempt) if attempt.rest is None else Rows(attempt, attempt.rest)
    except TimeoutError:
        raise timeout("the statement and its rows took too long", code="deadline_exceeded") from None
