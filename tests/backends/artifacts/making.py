"""Artifacts, gateways' tiers and counts for tests of them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from backends.artifacts.memory import MemoryTier
from backends.artifacts.news import News
from backends.artifacts.redis_tier import RedisTier
from backends.artifacts.shared import Shared
from backends.artifacts.tiers import Artifacts
from policies.artifacts import Artifact, Head, Name, Shelf, Worth

SCOPE = ("tenant", "schemas")
PATIENCE = 15.0


@dataclass(slots=True)
class Counted:
    """What the tiers told the metrics."""

    lookups: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    evicted: int = 0

    def artifact_looked_up(self, tier: str, result: str) -> None:
        self.lookups[tier, result] += 1

    def artifact_evicted(self, count: int) -> None:
        self.evicted += count

    def redis_failed(self, reason: str) -> None:
        self.failures[reason] += 1


@dataclass(slots=True)
class Site:
    """The tiers of one gateway, and what was heard and counted there."""

    artifacts: Artifacts
    counted: Counted
    news: list[News]

    @property
    def shared(self) -> Shared:
        assert self.artifacts.shared is not None
        return self.artifacts.shared


def name(key: str = "k", *, tenant: str = "t", scope: tuple[str, ...] = SCOPE) -> Name:
    return Name(tenant, scope, key)


def published(key: str = "k", value: bytes = b"1", *, tags: Collection[str] = (), tenant: str = "t") -> Artifact:
    """An artifact as a client publishes it now."""
    now = time.time()
    head = Head(
        name=name(key, tenant=tenant),
        size=len(value),
        cost=10.0,
        made=now,
        expires=now + 600,
        tags=tuple(tags),
        listed=True,
    )
    return Artifact(head, value)


def computed(key: str = "k", value: bytes = b"1") -> Artifact:
    """An artifact as the gateway makes one itself: in no list, depending on nothing."""
    artifact = published(key, value)
    return replace(artifact, head=replace(artifact.head, listed=False))


@asynccontextmanager
async def sites(url: str, *, timeout: float = 0.1) -> AsyncIterator[tuple[Site, Site]]:
    """The tiers of two gateways that hear each other; `timeout` in seconds, for Redis."""
    async with site(url, timeout=timeout) as one, site(url, timeout=timeout) as other:
        await until(lambda: one.shared.listening and other.shared.listening, "listening to each other")
        one.news.clear()
        other.news.clear()
        yield one, other


@asynccontextmanager
async def site(url: str | None = None, *, timeout: float = 0.1, max_bytes: int = 10_000_000) -> AsyncIterator[Site]:
    """The tiers of one gateway; `timeout` in seconds, for Redis."""
    counted, news = Counted(), list[News]()
    shelf = Shelf(max_bytes, Worth(fetch=0, byte=0))
    memory = MemoryTier(shelf, clock=time.time, evicted=counted.artifact_evicted)
    shared = None
    if url is not None:
        tier = RedisTier(url, clock=time.time, worth=Worth(fetch=0, byte=0), connect_timeout=timeout)
        shared = Shared(tier, counts=counted, timeout=timeout)
    artifacts = Artifacts(memory, shared=shared, counts=counted, clock=time.time)
    artifacts.watch(news.append)
    await artifacts.start()
    try:
        yield Site(artifacts, counted, news)
    finally:
        await artifacts.aclose()


async def until(holds: Callable[[], bool], what: str) -> None:
    """Wait until a condition holds; fails when it does not in time."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < PATIENCE, f"{what} did not come about within {PATIENCE:g} s"
        await asyncio.sleep(0.002)
