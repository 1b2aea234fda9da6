"""The tier in the memory of this process: aiocache holds the values, a shelf says which of them stay."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable

from aiocache import SimpleMemoryCache

from backends.artifacts.tier import Mark, ScopeFull
from policies.artifacts import Artifact, Changes, Head, Name, Shelf


class MemoryTier:
    """Artifacts in so many bytes. `aiocache` bounds nothing, so the shelf decides; its calls never wait here.

    `evicted` is told how many artifacts had to go for others.
    """

    def __init__(
        self,
        shelf: Shelf,
        *,
        clock: Callable[[], float],
        evicted: Callable[[int], None] = lambda count: None,
        scope_most: int = 1000,
    ) -> None:
        self.shelf = shelf
        self._now = clock
        self._evicted = evicted
        self._scope_most = scope_most
        self._changes = Changes()
        # No timeout: it would make a task of every look-up, which costs five times the look-up itself.
        self._values = SimpleMemoryCache(timeout=None)

    async def get(self, name: Name) -> Artifact | None:
        await self._expire()
        head = self.shelf.use(name)
        return None if head is None else Artifact(head, await self._values.get(name))

    async def mark(self, tenant: str, tags: Collection[str]) -> Mark:
        return (str(self._changes.mark),)

    async def put(self, artifact: Artifact, mark: Mark | None = None, *, newest: bool = False) -> bool:
        """As every tier does. `newest`: it takes the place of whatever its name was given after the mark."""
        await self._expire()
        head = artifact.head
        name = head.name
        if head.expires <= self._now() or self._void(head, mark, newest):
            return False
        if head.listed and name not in self.shelf:
            self._check_scope(name)
        there = name in self.shelf
        if head.listed:  # it may take another value's place, which somebody may be about to fetch from elsewhere
            self._changes.note((name,))
        victims = self.shelf.put(head)
        if victims is None:
            if there:
                await self._values.delete(name)
            return False
        await self._values.set(name, artifact.value)
        for victim in victims:
            await self._values.delete(victim)
        if victims:
            self._evicted(len(victims))
        return True

    async def drop(self, name: Name) -> bool:
        await self._expire()
        self._changes.note((name,))
        await self._values.delete(name)
        return self.shelf.drop(name)

    async def drop_by_tag(self, tenant: str, tags: Collection[str]) -> None:
        self._changes.note([(tenant, tag) for tag in tags])
        for name in self.shelf.tagged(tenant, tags):
            self.shelf.drop(name)
            await self._values.delete(name)

    async def drop_all(self, tenant: str) -> None:
        await self.keep_only((), tenant)

    async def keep_only(self, names: Collection[Name], tenant: str | None = None) -> None:
        """Make void every artifact but these; None: of all tenants."""
        self._changes.note_all()
        for name in [name for name in self.shelf if tenant in (None, name.tenant) and name not in names]:
            self.shelf.drop(name)
            await self._values.delete(name)

    async def listed(self, tenant: str, scope: tuple[str, ...]) -> list[Head]:
        await self._expire()
        return self.shelf.listed(tenant, scope)

    async def close(self) -> None:
        self.shelf.clear()
        await self._values.clear()

    def _void(self, head: Head, mark: Mark | None, newest: bool) -> bool:
        things: list[Hashable] = [(head.name.tenant, tag) for tag in head.tags]
        if not newest:
            things.append(head.name)
        return mark is not None and bool(things) and self._changes.since(int(mark[0]), things)

    def _check_scope(self, name: Name) -> None:
        if len(self.shelf.listed(name.tenant, name.scope)) >= self._scope_most:
            raise ScopeFull

    async def _expire(self) -> None:
        for name in self.shelf.expired(self._now()):
            await self._values.delete(name)
