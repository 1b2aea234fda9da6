"""Both tiers as one: memory first, then Redis, and what neither has is computed once for all who ask."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine
from dataclasses import dataclass
from typing import Any, Final, Literal

from backends.artifacts.memory import MemoryTier
from backends.artifacts.news import INLINE_MOST, Dropped, Invalidated, News, Published, Reset
from backends.artifacts.shared import Counts, Shared
from backends.artifacts.tier import Mark, ScopeFull
from backends.flights import Flights
from policies.artifacts import Artifact, Head, Name

Source = Literal["memory", "redis", "joined", "computed"]
_BEHIND_MOST: Final = 256
"""Artifacts on their way to Redis after their callers were answered; more than that are not sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What an artifact will be, known before it is computed; `lifetime` in seconds."""

    name: Name
    lifetime: float
    type: str = "application/json"
    producer: str = ""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Got:
    """An artifact, and where it came from."""

    artifact: Artifact
    source: Source


@dataclass(slots=True, eq=False)
class _Basis:
    """What a computation goes by, and whether that changed meanwhile."""

    tenant: str
    tags: frozenset[str]
    void: bool = False


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
        self._flights = Flights[Name, Got, _Basis]()
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
        tasks = [*self._behind, *(flight.task for _, flight in self._flights)]
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
        found, _ = await self.shared.find(name)
        if found is None:
            return None
        await self._remember(found, mark)
        return Got(found, "redis")

    async def get_or_compute(self, recipe: Recipe, compute: Callable[[], Awaitable[bytes]]) -> Got:
        """The artifact of a name, computed at most once for all who ask here at the same time.

        What `compute` raises comes out for all of them. Its result is kept as long as nothing that it depends on
        changed meanwhile. A computation goes on as long as one of those who asked waits for it.
        """
        artifact = await self._remembered(recipe.name)
        if artifact is not None:
            return Got(artifact, "memory")
        flight = self._flights.get(recipe.name)
        joined = flight is not None
        if flight is None:
            basis = _Basis(recipe.name.tenant, frozenset(recipe.tags))
            flight = self._flights.begin(recipe.name, basis, self._fly(recipe, compute, basis))
        got = await self._flights.wait(recipe.name, flight)
        return Got(got.artifact, "joined") if joined else got

    async def publish(self, artifact: Artifact) -> tuple[bool, bool]:
        """Give a name a new value everywhere: whether it was worth keeping anywhere, and whether the other gateways
        know (if not, they will hear of it later). Raises ScopeFull."""
        head = artifact.head
        self._ground(head.name)
        mark = await self.memory.mark(head.name.tenant, head.tags)
        kept, everywhere = (False, True) if self.shared is None else await self.shared.publish(artifact)
        if kept:
            await self._remember(artifact, mark)  # Redis has said that there is room for it
        else:
            kept = await self.memory.put(artifact, mark)
        self._tell(Published(head, artifact.value if head.size <= INLINE_MOST else None))
        return kept, everywhere

    async def drop(self, name: Name) -> tuple[bool, bool]:
        """Take an artifact away: whether it was there, and whether all gateways know."""
        there, everywhere = await self._forget(name), True
        if self.shared is not None:
            in_redis, everywhere = await self.shared.drop(name, self.now())
            there = await self._forget(name) or there or in_redis  # it may have been fetched while Redis was asked
        self._tell(Dropped(name))
        return there, everywhere

    async def invalidate(self, tenant: str, tags: Collection[str]) -> bool:
        """Make void what depends on any of these; False where other gateways will hear of it later."""
        everywhere = True
        await self._void(tenant, tags)
        if self.shared is not None:
            everywhere = await self.shared.invalidate(tenant, tags)
            await self._void(tenant, tags)  # it may have been fetched while Redis was asked
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

    async def _remember(self, artifact: Artifact, mark: Mark) -> None:
        with contextlib.suppress(ScopeFull):
            await self.memory.put(artifact, mark)

    async def _fly(self, recipe: Recipe, compute: Callable[[], Awaitable[bytes]], basis: _Basis) -> Got:
        name = recipe.name
        remember = await self.memory.mark(name.tenant, recipe.tags)
        found, mark = await self.shared.find(name, recipe.tags) if self.shared is not None else (None, None)
        if found is not None:
            await self._remember(found, remember)
            return Got(found, "redis")
        began = time.monotonic()
        value = await compute()
        artifact = self._made(recipe, value, time.monotonic() - began)
        if not basis.void:
            await self._remember(artifact, remember)
            if self.shared is not None and len(self._behind) < _BEHIND_MOST:
                self._run_behind(self.shared.keep(artifact, mark))
        return Got(artifact, "computed")

    def _made(self, recipe: Recipe, value: bytes, cost: float) -> Artifact:
        now = self.now()
        head = Head(
            name=recipe.name,
            size=len(value),
            type=recipe.type,
            producer=recipe.producer,
            cost=cost,
            made=now,
            expires=now + recipe.lifetime,
            tags=recipe.tags,
        )
        return Artifact(head, value)

    def _run_behind(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="artifact to Redis")
        self._behind.add(task)
        task.add_done_callback(self._behind.discard)

    def _ground(self, *names: Name) -> None:
        """Nobody joins these computations any more, and nobody keeps what they give."""
        for name in names:
            flight = self._flights.part(name)
            if flight is not None:
                flight.about.void = True

    async def _forget(self, name: Name) -> bool:
        self._ground(name)
        return await self.memory.drop(name)

    async def _void(self, tenant: str, tags: Collection[str]) -> None:
        bases = [(name, flight.about) for name, flight in self._flights]
        self._ground(*[name for name, basis in bases if basis.tenant == tenant and basis.tags & set(tags)])
        await self.memory.drop_by_tag(tenant, tags)

    async def _heard(self, news: News) -> None:
        """What another gateway did, or nobody knows what."""
        match news:
            case Published(head, _):
                await self._forget(head.name)
            case Dropped(name):
                await self._forget(name)
            case Invalidated(tenant, tags):
                await self._void(tenant, tags)
            case Reset():
                self._ground(*[name for name, _ in self._flights])
                # What Redis was not told of is known here alone: it is newer than anything that was missed.
                assert self.shared is not None
                await self.memory.keep_only(self.shared.untold.names)
        self._tell(news)

    def _tell(self, news: News) -> None:
        for watcher in self._watchers:
            watcher(news)
