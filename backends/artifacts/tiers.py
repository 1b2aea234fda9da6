"""Both tiers as one: memory first, then Redis."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass
from typing import Any, Final, Literal

from backends.artifacts.memory import MemoryTier
from backends.artifacts.news import INLINE_MOST, Dropped, Invalidated, News, Published, Reset
from backends.artifacts.shared import Counts, Shared
from backends.artifacts.tier import Mark, ScopeFull
from policies.artifacts import Artifact, Head, Name

Source = Literal["memory", "redis"]
_BEHIND_MOST: Final = 256
"""Artifacts on their way to Redis after their callers were answered; more than that are not sent."""


@dataclass(frozen=True, slots=True)
class Got:
    """An artifact, and where it came from."""

    artifact: Artifact
    source: Source


class Artifacts:
    """The artifacts of this gateway and, through `shared`, of all gateways. Nothing here fails because of Redis.

    `clock` is the time of day, as lifetimes hold for all gateways.
    """

    def __init__(
        self, memory: MemoryTier, *, shared: Shared | None, counts: Counts, clock: Callable[[], float]
    ) -> None:
        self.memory = memory
        self.shared = shared
        self.now = clock
        self._counts = counts
        self._behind: set[asyncio.Task[None]] = set()
        self._watchers: list[Callable[[News], None]] = []
        if shared is not None:
            shared.current, shared.heard = memory.get, self._heard

    async def start(self) -> None:
        """Begin to listen to other gateways, if there is a way to."""
        if self.shared is not None:
            self.shared.start()

    async def aclose(self) -> None:
        """End everything that was begun here."""
        tasks = list(self._behind)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.shared is not None:
            await self.shared.aclose()
        await self.memory.close()

    def watch(self, watcher: Callable[[News], None]) -> None:
        """Call this for all that happens to artifacts."""
        self._watchers.append(watcher)

    async def get(self, name: Name) -> Got | None:
        """The artifact of this name."""
        artifact = await self._remembered(name)
        if artifact is not None:
            return Got(artifact, "memory")
        if self.shared is None:
            return None
        mark = await self.memory.mark(name.tenant, ())
        found = await self.shared.find(name)
        if found is None:
            return None
        await self._remember(found, mark)
        return Got(found, "redis")

    async def keep(self, artifact: Artifact) -> None:
        """Keep what was computed here, where it is worth it. For what no change makes void: nobody is told of it,
        and nobody waits until Redis has it."""
        await self._remember(artifact)
        if self.shared is not None and len(self._behind) < _BEHIND_MOST:
            self._run_behind(self.shared.keep(artifact))

    async def publish(self, artifact: Artifact) -> tuple[bool, bool]:
        """Give a name a new value everywhere: whether it was worth keeping anywhere, and whether the other gateways
        know (if not, they will hear of it later). Raises ScopeFull.

        Nothing happens where so much waits to be told to Redis already that this could not be promised.
        """
        head = artifact.head
        if self.shared is not None and not self.shared.untold.has_room(head.name):
            return False, False
        mark = await self.memory.mark(head.name.tenant, head.tags)
        kept, everywhere = (False, True) if self.shared is None else await self.shared.publish(artifact)
        if kept:
            stays = await self._remember(artifact, mark)  # Redis has said that there is room for it
        else:
            stays = kept = await self.memory.put(artifact, mark, newest=True)
        if not stays:  # which of several new values at once is the last one only Redis knows
            await self.memory.drop(head.name)
        self._tell(Published(head, artifact.value if head.size <= INLINE_MOST else None))
        return kept, everywhere

    async def drop(self, name: Name) -> tuple[bool, bool]:
        """Take an artifact away: whether it was there, and whether all gateways know."""
        there, everywhere = await self.memory.drop(name), True
        if self.shared is not None:
            in_redis, everywhere = await self.shared.drop(name, self.now())
            # It may have been fetched while Redis was asked.
            there = await self.memory.drop(name) or there or in_redis
        self._tell(Dropped(name))
        return there, everywhere

    async def invalidate(self, tenant: str, tags: Collection[str]) -> bool:
        """Make void what depends on any of these; False where other gateways will hear of it later."""
        everywhere = True
        await self.memory.drop_by_tag(tenant, tags)
        if self.shared is not None:
            everywhere = await self.shared.invalidate(tenant, tags)
            await self.memory.drop_by_tag(tenant, tags)  # it may have been fetched while Redis was asked
        self._tell(Invalidated(tenant, tuple(tags)))
        return everywhere

    async def listed(self, tenant: str, scope: tuple[str, ...]) -> tuple[list[Head], bool]:
        """What stands in the list of a scope, by key, and whether that is all of it as far as anybody knows."""
        found = {head.name: head for head in await self.memory.listed(tenant, scope)}
        shared = await self.shared.listed(tenant, scope) if self.shared is not None else []
        for head in shared or ():
            found.setdefault(head.name, head)
        return sorted(found.values(), key=lambda head: head.name.key), shared is not None

    async def _remembered(self, name: Name) -> Artifact | None:
        artifact = await self.memory.get(name)
        self._counts.artifact_looked_up("memory", "hit" if artifact else "miss")
        return artifact

    async def _remember(self, artifact: Artifact, mark: Mark | None = None) -> bool:
        with contextlib.suppress(ScopeFull):
            return await self.memory.put(artifact, mark)
        return False

    def _run_behind(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="artifact to Redis")
        self._behind.add(task)
        task.add_done_callback(self._behind.discard)

    async def _heard(self, news: News) -> None:
        """What another gateway did, or nobody knows what."""
        match news:
            case Published(head, _):
                await self.memory.drop(head.name)
            case Dropped(name):
                await self.memory.drop(name)
            case Invalidated(tenant, tags):
                await self.memory.drop_by_tag(tenant, tags)
            case Reset(tenant):
                # What Redis was not told of is known here alone: it is newer than anything that was missed.
                assert self.shared is not None
                await self.memory.keep_only(self.shared.untold.names(), tenant)
        self._tell(news)

    def _tell(self, news: News) -> None:
        for watcher in self._watchers:
            watcher(news)
