"""The tier that gateways share, as far as it can be had: slow or gone, it costs little and fails nobody.

What could not be told to it is remembered (`Untold`) and made up for as soon as it answers; until then nothing that
it may say about these things is believed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, TypeVar

from backends.artifacts.breaker import Breaker
from backends.artifacts.news import INLINE_MOST, Dropped, Ear, Invalidated, News, Published, Reset, decoded, encoded
from backends.artifacts.redis_tier import CHANNEL, RedisTier
from backends.artifacts.tier import Mark, ScopeFull, TierError
from backends.artifacts.untold import Owed, Untold
from policies.artifacts import Artifact, Head, Name

_TICK = 0.5
_REFUSED = 0.05
"""Seconds between what Redis refuses and what it is told next: it may refuse everything, as a replica does."""
_DROP_ALL = 60.0
_CLOSING = 1.0

_log = logging.getLogger("cortex.artifacts")

T = TypeVar("T")


async def _nothing(_: Name) -> Artifact | None:
    return None


async def _ignored(_: News) -> None:
    return None


class Counts(Protocol):
    """What the tiers tell the metrics."""

    def artifact_looked_up(self, tier: str, result: str) -> None: ...

    def artifact_evicted(self, count: int) -> None: ...

    def redis_failed(self, reason: str) -> None: ...


class Shared:
    """The Redis tier with a time limit and a breaker. No method raises TierError.

    `current` gives this gateway's own newest artifact of a name, for what Redis was not told; `heard` gets the news
    of other gateways, and a Reset each time that some may have been missed. `timeout` in seconds, for all that one
    look-up or one change asks of Redis.
    """

    def __init__(self, tier: RedisTier, *, counts: Counts, timeout: float = 0.1) -> None:
        self._tier = tier
        self._counts = counts
        self._timeout = timeout
        self._breaker = Breaker(clock=time.monotonic)
        self._origin = secrets.token_hex(8)
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._asked: set[asyncio.Task[Any]] = set()
        self._ear = Ear(tier.client, CHANNEL, address=tier.address, connected=self._connected, told=self._told)
        self.untold = Untold()
        self.current: Callable[[Name], Awaitable[Artifact | None]] = _nothing
        self.heard: Callable[[News], Awaitable[None]] = _ignored

    @property
    def listening(self) -> bool:
        """Whether news of other gateways arrive."""
        return self._ear.listening

    @property
    def asleep(self) -> bool:
        """Whether Redis is not asked for the time being."""
        return self._breaker.open

    def start(self) -> None:
        """Begin to listen."""
        self._tasks = [
            asyncio.create_task(self._ear.run(), name="news of artifacts"),
            asyncio.create_task(self._make_up(), name="untold artifacts"),
        ]

    async def aclose(self) -> None:
        tasks = (*self._tasks, *self._asked)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_CLOSING)
        with contextlib.suppress(TierError, TimeoutError):
            async with asyncio.timeout(_CLOSING):
                await self._tier.close()

    async def find(self, name: Name) -> Artifact | None:
        """The artifact that Redis has."""
        try:
            found = await self._ask(lambda: self._tier.get(name))
        except TierError:
            return None
        if found is not None and self.untold.outdates(found.head):
            found = None
        self._counts.artifact_looked_up("redis", "hit" if found else "miss")
        return found

    async def keep(self, artifact: Artifact) -> None:
        """Put what was computed here; nobody misses it when that fails."""
        if not self.untold.outdates(artifact.head):
            with contextlib.suppress(TierError):
                await self._ask(lambda: self._tier.put(artifact))

    async def publish(self, artifact: Artifact) -> tuple[bool, bool]:
        """Put a new value and tell all gateways: if Redis keeps it, and if it was told. Raises ScopeFull.

        To be called only where there is room to remember it (`untold.has_room`).
        """
        name, made, kept = artifact.head.name, artifact.head.made, False
        with self._owing(lambda: self.untold.value(name, made)) as told:
            kept = await self._ask(lambda: self._put(artifact))
            told.set()
            self.untold.renew(name, made)
        return kept, told.is_set()

    async def drop(self, name: Name, now: float) -> tuple[bool, bool]:
        """Take an artifact away from all gateways: whether it was there, and whether they all know."""
        there = False

        async def drop() -> bool:
            found = await self._tier.drop(name)
            await self._say(Dropped(name))
            return found

        with self._owing(lambda: self.untold.drop(name, now)) as told:
            there = await self._ask(drop)
            told.set()
            self.untold.renew(name, now)
        return there, told.is_set()

    async def invalidate(self, tenant: str, tags: Collection[str]) -> bool:
        """Make void what depends on these for all gateways; False where that has to wait."""
        with self._owing(lambda: self.untold.void(tenant, tags)) as told:
            await self._ask(lambda: self._void(tenant, tags))
            told.set()
        return told.is_set()

    async def listed(self, tenant: str, scope: tuple[str, ...]) -> list[Head] | None:
        """The list of a scope; None where Redis does not say."""
        try:
            heads = await self._ask(lambda: self._tier.listed(tenant, scope))
        except TierError:
            return None
        return [head for head in heads if not self.untold.outdates(head)]

    @contextmanager
    def _owing(self, note: Callable[[], None]) -> Iterator[asyncio.Event]:
        """A change that Redis is to be told in the block, which sets the event once it is. What it was not told,
        because it did not answer or the client left meanwhile, is noted as owed to it."""
        told = asyncio.Event()
        try:
            yield told
        except ScopeFull:
            told.set()
            raise
        except TierError:
            pass
        finally:
            if not told.is_set():
                note()

    async def _ask(self, question: Callable[[], Coroutine[Any, Any, T]], limit: float | None = None) -> T:
        """Ask Redis within the time limit. Raises TierError, at once where it has not answered of late. A question
        that it refuses (`broken`) is answered: others may be asked."""
        if not self._breaker.allows():
            self._counts.redis_failed("skipped")
            raise TierError("Redis has not answered of late", reason="skipped")
        task = asyncio.create_task(_answer(question), name="question to Redis")
        self._asked.add(task)
        task.add_done_callback(self._answered)
        try:
            await asyncio.wait((task,), timeout=limit or self._timeout)
        finally:
            task.cancel()
        try:
            if not task.done():  # it is not waited for: with a full socket it takes seconds to let go
                raise TierError("Redis did not answer in time", reason="timeout")
            answer = task.result()
        except TierError as error:
            self._counts.redis_failed(error.reason)
            if error.reason == "broken":
                self._breaker.worked()
            else:
                self._breaker.failed()
            raise
        self._breaker.worked()
        return answer

    def _answered(self, task: asyncio.Task[Any]) -> None:
        self._asked.discard(task)
        if not task.cancelled():
            task.exception()  # whoever asked may have left

    async def _put(self, artifact: Artifact, mark: Mark | None = None) -> bool:
        kept = await self._tier.put(artifact, mark)
        if not kept:  # what its name stood for before is over all the same
            await self._tier.drop(artifact.head.name)
        await self._say_published(artifact)
        return kept

    async def _void(self, tenant: str, tags: Collection[str]) -> None:
        await self._tier.drop_by_tag(tenant, tags)
        await self._say(Invalidated(tenant, tuple(tags)))

    async def _say_published(self, artifact: Artifact) -> None:
        await self._say(Published(artifact.head, artifact.value if artifact.head.size <= INLINE_MOST else None))

    async def _say(self, news: News) -> None:
        await self._tier.publish(encoded(news, self._origin))

    async def _connected(self) -> None:
        self._breaker.worked()
        await self.heard(Reset())
        self._wake.set()

    async def _told(self, message: bytes) -> None:
        news, origin = decoded(message)
        if origin != self._origin:
            await self.heard(news)

    async def _make_up(self) -> None:
        """Tell Redis what it does not know yet, whenever it can be told."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK):
                    await self._wake.wait()
            self._wake.clear()
            if self.untold and self.listening:
                try:
                    await self._tell_all()
                except TierError:
                    pass  # it is gone again
                except Exception:  # noqa: BLE001 - the root of the task: what it cannot tell now it tells later
                    _log.exception("Redis could not be told what it does not know yet")

    async def _tell_all(self) -> None:
        """In this order: what is void goes before new values come. Raises TierError when Redis is gone."""
        for tenant, owed in self.untold:
            await self._void_all(tenant, owed)
        for tenant, owed in self.untold:
            for tag, change in list(owed.tags.items()):
                if await self._told_of(partial(self._void, tenant, (tag,))) and owed.tags.get(tag) == change:
                    del owed.tags[tag]
        for _, owed in self.untold:
            for name in list(owed.names):
                if owed.everything:  # since this round began: what is told now would go with all the rest
                    break
                when = owed.names[name]  # only here they are forgotten
                told = await self._told_of(partial(self._settle, name, when))
                if told and owed.names[name] == when and not owed.everything:
                    del owed.names[name]

    async def _void_all(self, tenant: str, owed: Owed) -> None:
        """Make void all that a tenant has in Redis, where more changed than could be remembered."""
        change = owed.everything
        if not change or not await self._told_of(partial(self._tier.drop_all, tenant), _DROP_ALL):
            return
        if await self._told_of(partial(self._say, Reset(tenant))) and owed.everything == change:
            owed.everything = 0

    async def _told_of(self, question: Callable[[], Coroutine[Any, Any, object]], limit: float | None = None) -> bool:
        """Whether Redis took something. What it refuses holds up nothing else. Raises TierError when it is gone."""
        try:
            await self._ask(question, limit)
        except TierError as error:
            if error.reason != "broken":
                raise
            await asyncio.sleep(_REFUSED)
            return False
        return True

    async def _settle(self, name: Name, when: float) -> None:
        """Bring one name up to date: what another gateway has put there since is the newer one."""
        there = await self._tier.get(name)
        if there is not None and there.head.made > when:
            await self.heard(Dropped(name))
            return
        own = await self.current(name)
        # It may be made void here while Redis is asked for the marks: then it is gone when asked for again.
        mark = None if own is None else await self._tier.mark(name.tenant, own.head.tags)
        if own is not None and await self.current(name) is not None:
            with contextlib.suppress(ScopeFull):
                await self._put(own, mark)
        elif there is not None and there.head.made == when:  # it got there, but perhaps not the news of it
            await self._say_published(there)
        else:
            await self._tier.drop(name)
            await self._say(Dropped(name))


async def _answer(question: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """The answer to a question. What nobody foresaw is none, and the next one may do better."""
    try:
        return await question()
    except (TierError, ScopeFull):
        raise
    except Exception as error:
        _log.exception("an answer of Redis could not be used")
        raise TierError(f"{type(error).__name__}: {error}", reason="broken") from error
