"""Telling the client of a stream that it is waited for: comments, while its call is queued or its prompt is computed.

Whatever stands between a client and the gateway may close a connection on which nothing moves. A comment moves, and
means nothing. The first one fixes the status and the headers: what goes wrong from then on is told in the stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from gateway.asgi import EVENT_STREAM, Out
from gateway.computing import Completion
from gateway.intake import Asked
from gateway.openai.errors import EngineSaid

COMMENT = b": keep-alive\n\n"


@asynccontextmanager
async def kept_alive(
    opened: AbstractAsyncContextManager[Completion], asked: Asked, out: Out, every: float
) -> AsyncIterator[Completion]:
    """The answer, once it has begun; a comment for each `every` seconds until then."""
    entering = asyncio.ensure_future(opened.__aenter__())
    try:
        while not entering.done():
            await asyncio.wait([entering], timeout=every)
            if not entering.done():
                if not out.started:
                    await out.begin(200, [EVENT_STREAM, ("cache-control", "no-cache"), *asked.reply_headers()])
                await out.write(COMMENT)
    except BaseException:
        await _given_up(entering, opened)
        raise
    found = entering.result()
    try:
        if out.started and found.events is None:
            raise EngineSaid("the engine did not answer with a stream", found.status, (), found.body)
        yield found
    except BaseException as error:
        if not await opened.__aexit__(type(error), error, error.__traceback__):
            raise
    else:
        await opened.__aexit__(None, None, None)


async def _given_up(entering: asyncio.Future[Completion], opened: AbstractAsyncContextManager[Completion]) -> None:
    """Nobody waits any more: what was begun is ended."""
    entering.cancel()
    [outcome] = await asyncio.gather(entering, return_exceptions=True)
    if isinstance(outcome, Completion):
        await opened.__aexit__(None, None, None)
