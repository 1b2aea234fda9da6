"""Tells a caller how far its statement is, without letting the caller hold the statement up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

OnProgress = Callable[[float], Awaitable[None]]
"""Is given 0 to 100."""


@asynccontextmanager
async def telling(on_progress: OnProgress) -> AsyncIterator[Callable[[float], None]]:
    """A function that takes news at once; `on_progress` is given the latest of them whenever it is ready.

    It runs in a task of its own. At the end of the block what it is at is finished, and nothing is begun any more. If
    it raises, nothing more is told, and the block goes on: whoever cannot be told need not be.
    """
    news = asyncio.Event()
    latest: float | None = None

    def say(percent: float) -> None:
        nonlocal latest
        latest = percent
        news.set()

    async def tell() -> None:
        nonlocal latest
        while await news.wait() and (percent := latest) is not None:
            news.clear()
            await on_progress(percent)

    teller = asyncio.create_task(tell(), name="progress")
    try:
        yield say
        latest = None
        news.set()
        await asyncio.wait([teller])
    finally:
        teller.cancel()
        await asyncio.gather(teller, return_exceptions=True)
