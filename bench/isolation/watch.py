"""What engines show while clients call them: KV blocks in use, preemptions, and how many blocks their caches hold."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Self

import aiohttp
import zmq.asyncio

from backends.base import BackendError
from backends.kvevents import Feed
from backends.kvindex import BlockIndex
from backends.vllm import HttpEngine
from bench.isolation.cells import BLOCK
from bench.isolation.engines import Pair

EVERY = 0.25
"""Seconds between two looks: a call takes seconds."""
COOL_MOST = 30.0


@dataclass(slots=True)
class Seen:
    """What was seen of all engines together: blocks in use and, where they tell, different blocks
    cached, look by look."""

    in_use: list[float] = field(default_factory=list)
    cached: list[int] = field(default_factory=list)
    preemptions: int = 0


@dataclass(frozen=True, slots=True)
class Watch:
    """Engines with so many KV blocks each. The session belongs to whoever made it."""

    urls: Sequence[str]
    blocks: int
    session: aiohttp.ClientSession
    indexes: Sequence[BlockIndex] = ()

    @classmethod
    @asynccontextmanager
    async def over(cls, pair: Pair, blocks: int, session: aiohttp.ClientSession) -> AsyncIterator[Self]:
        """One that hears what the engines tell of their caches, until the block is left."""
        indexes = [BlockIndex(size=BLOCK, most=blocks) for _ in pair.sources]
        context = zmq.asyncio.Context()
        feeds = [Feed(source, index, context) for source, index in zip(pair.sources, indexes, strict=True)]
        hearing = [asyncio.create_task(feed.run()) for feed in feeds]
        try:
            yield cls(pair.urls, blocks, session, indexes)
        finally:
            for task in hearing:
                task.cancel()
            await asyncio.gather(*hearing, return_exceptions=True)
            context.destroy(linger=0)

    async def cool(self) -> None:
        """Empty the engines' prefix caches. vLLM does not while a call's blocks are still held, and publishes that it
        did with its next step only."""
        for url in self.urls:
            async with asyncio.timeout(COOL_MOST):
                while not await self._emptied(url):  # noqa: ASYNC110 - the server tells nobody
                    await asyncio.sleep(EVERY)
        for index in self.indexes:
            index.begin(whole=True)

    async def _emptied(self, url: str) -> bool:
        async with self.session.post(f"{url}/reset_prefix_cache") as response:
            response.raise_for_status()
            return b'"success":false' not in (await response.read()).replace(b" ", b"")

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[Seen]:
        """Look until the block is left; what was seen is complete then."""
        seen, engines = Seen(), [HttpEngine(url, self.session) for url in self.urls]
        before = await self._look(engines, Seen())
        looking = asyncio.create_task(self._keep_looking(engines, seen))
        try:
            yield seen
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
        seen.preemptions = await self._look(engines, Seen()) - before

    async def _keep_looking(self, engines: Sequence[HttpEngine], seen: Seen) -> None:
        while True:
            with contextlib.suppress(BackendError):  # one that is late; the next look may be in time
                await self._look(engines, seen)
            await asyncio.sleep(EVERY)

    async def _look(self, engines: Sequence[HttpEngine], seen: Seen) -> int:
        """Look once; returns the preemptions of the engines' whole lives."""
        reports = await asyncio.gather(*(engine.report() for engine in engines))
        seen.in_use.append(sum(report.kv_use for report in reports) * self.blocks)
        if self.indexes:
            seen.cached.append(sum(map(len, self.indexes)))
        return sum(int((report.counters or {}).get("preemptions", 0)) for report in reports)
