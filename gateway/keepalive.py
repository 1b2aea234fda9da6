"""Telling the client of a stream that it is waited for: comments, whenever nothing else is written for a while.

That is while its call is queued or its prompt is computed, and while the gateway walks a workflow or runs the tools
of a conversation. Whatever stands between a client and the gateway may close a connection on which nothing moves; a
comment moves, and means nothing. One that comes first fixes the status and the headers: what goes wrong from then on
is told in the stream.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.asgi import EVENT_STREAM, Out
from gateway.computing import Completion
from gateway.openai.errors import EngineSaid

COMMENT = b": keep-alive\n\n"


@asynccontextmanager
async def kept_alive(out: Out, every: float) -> AsyncIterator[None]:
    """A comment after each `every` seconds of silence in the block, which writes whole events only, or an answer of
    a size that its head tells: that one gets none."""
    commenting = asyncio.create_task(_comment(out, every), name="keep-alive")
    try:
        yield
    finally:
        commenting.cancel()
        await asyncio.gather(commenting, return_exceptions=True)


def check_begun(out: Out, found: Completion) -> None:
    """Raises EngineSaid for a whole answer where a stream has begun, in which it cannot be passed on."""
    if out.started:
        raise EngineSaid("the engine did not answer with a stream", found.status, (), found.body)


async def _comment(out: Out, every: float) -> None:
    moved = time.monotonic()
    while not out.sized:
        await asyncio.sleep(moved + every - time.monotonic())
        moved = max(moved, out.moved)
        if out.sized or time.monotonic() < moved + every:
            continue
        if not out.started:
            await out.begin(200, [EVENT_STREAM, ("cache-control", "no-cache"), *out.said()])
        await out.write(COMMENT)
        moved = time.monotonic()
