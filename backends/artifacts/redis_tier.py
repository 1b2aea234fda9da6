"""The tier in a Redis server, spoken to through aiocache: what one gateway keeps, all of them find.

A tag stands for a random text in Redis, its *mark*, written anew each time that something is made void by it. An
artifact carries the marks that its tags had before it was computed, and is void once one of them is another, or gone:
so one write voids any number of artifacts, also those that are only being computed, on whatever gateway; and a server
that evicts keys may let a mark go like any other.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, Final

import orjson
from aiocache import RedisCache
from aiocache.serializers import NullSerializer
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from backends.artifacts.tier import Mark, ScopeFull, TierError
from backends.artifacts.wire import digest, head_document, head_of, packed, unpacked
from policies.artifacts import Artifact, Head, Name, Worth

NAMESPACE: Final = "cortex"
CHANNEL: Final = f"{NAMESPACE}:news"
MARK_LIFE: Final = 7 * 24 * 3600
"""Seconds that a mark is kept: much longer than any artifact lives, as what depends on it ends with it."""
_ABSENT: Final = ""
_CONNECTIONS: Final = 64


class RedisTier:
    """Artifacts in a Redis server. `url` as in `redis://:password@host:6379/0`, or `rediss://` for TLS.

    `connect_timeout` in seconds; how long an answer may take is for the caller to say.
    """

    def __init__(
        self,
        url: str,
        *,
        clock: Callable[[], float],
        worth: Worth | None = None,
        connect_timeout: float = 0.1,
        scope_most: int = 1000,
    ) -> None:
        self._now = clock
        self._worth = worth or Worth(fetch=1e-3, byte=5e-9)
        self._scope_most = scope_most
        self._cache = _cache(url, connect_timeout)

    @property
    def client(self) -> Redis:
        """aiocache's own client, for the subscription, of which aiocache knows nothing."""
        client: Redis = self._cache.client
        return client

    async def get(self, name: Name) -> Artifact | None:
        at = _at(name)
        data = await self._do(self._cache.get(at))
        if data is None:
            return None
        try:
            artifact, mark = unpacked(data)
        except ValueError:
            await self._do(self._cache.delete(at))
            return None
        head = artifact.head
        if head.name != name or head.expires <= self._now():
            return None
        return artifact if await self._marks(name.tenant, head.tags) == mark else None

    async def mark(self, tenant: str, tags: Collection[str]) -> Mark:
        marks = await self._marks(tenant, tags)
        if _ABSENT not in marks:
            return marks
        for tag, mark in zip(tags, marks, strict=True):
            if mark == _ABSENT:
                at = f"{NAMESPACE}:{_mark_at(tenant, tag)}"
                await self._do(self._cache.raw("set", at, _new_mark(), nx=True, ex=MARK_LIFE))
        return await self._marks(tenant, tags)

    async def put(self, artifact: Artifact, mark: Mark | None = None) -> bool:
        head = artifact.head
        life = head.expires - self._now()
        if life < 1e-3 or not self._worth.keeps(head):
            return False
        if head.listed:
            await self._check_scope(head.name)
        if mark is None:
            mark = await self.mark(head.name.tenant, head.tags)
        await self._do(self._cache.set(_at(head.name), packed(artifact, mark), ttl=float(life)))
        if head.listed:
            await self._list(head, mark)
        return True

    async def drop(self, name: Name) -> bool:
        gone = bool(await self._do(self._cache.delete(_at(name))))
        await self._raw("hdel", _list_at(name.tenant, name.scope), name.key)
        return gone

    async def drop_by_tag(self, tenant: str, tags: Collection[str]) -> None:
        marks = [(_mark_at(tenant, tag), _new_mark()) for tag in tags]
        if marks:
            await self._do(self._cache.multi_set(marks, ttl=MARK_LIFE))

    async def drop_all(self) -> None:
        # aiocache would ask for all KEYS at once, which holds up every other client of the server.
        with _told():
            async for key in self.client.scan_iter(match=f"{NAMESPACE}:a:*", count=1000):
                await self.client.unlink(key)
            async for key in self.client.scan_iter(match=f"{NAMESPACE}:l:*", count=1000):
                await self.client.unlink(key)

    async def listed(self, tenant: str, scope: tuple[str, ...]) -> list[Head]:
        found: dict[bytes, bytes] = await self._raw("hgetall", _list_at(tenant, scope))
        rows = [(key, *_row(row)) for key, row in found.items()]
        tags = sorted({tag for _, head, _ in rows for tag in head.tags})
        marks = dict(zip(tags, await self._marks(tenant, tags), strict=True))
        now = self._now()
        live = [
            head for _, head, mark in rows if head.expires > now and mark == tuple(marks[tag] for tag in head.tags)
        ]
        over = {key for key, *_ in rows} - {head.name.key.encode() for head in live}
        if over:
            await self._raw("hdel", _list_at(tenant, scope), *over)
        return live

    async def publish(self, message: bytes) -> None:
        """Send a message to every gateway that listens, this one among them."""
        await self._raw("publish", CHANNEL, message)

    async def close(self) -> None:
        await self.client.aclose()

    async def _marks(self, tenant: str, tags: Collection[str]) -> Mark:
        if not tags:
            return ()
        marks = await self._do(self._cache.multi_get([_mark_at(tenant, tag) for tag in tags]))
        return tuple(_ABSENT if mark is None else mark.decode() for mark in marks)

    async def _check_scope(self, name: Name) -> None:
        at = _list_at(name.tenant, name.scope)
        if await self._raw("hlen", at) < self._scope_most or await self._raw("hexists", at, name.key):
            return
        if len(await self.listed(name.tenant, name.scope)) >= self._scope_most:
            raise ScopeFull

    async def _list(self, head: Head, mark: Mark) -> None:
        at = _list_at(head.name.tenant, head.name.scope)
        await self._raw("hset", at, head.name.key, orjson.dumps({**head_document(head), "mark": mark}))
        await self._raw("expire", at, MARK_LIFE)

    async def _raw(self, command: str, *args: object) -> Any:
        return await self._do(self._cache.raw(command, *args))

    async def _do(self, command: Awaitable[Any]) -> Any:
        with _told():
            return await command


@contextmanager
def _told() -> Iterator[None]:
    """What goes wrong between here and the server comes out as TierError."""
    try:
        yield
    except TimeoutError:
        raise TierError("Redis did not answer in time", reason="timeout") from None
    except (RedisError, OSError) as error:
        lost = isinstance(error, (OSError, ConnectionError)) or "onnection" in type(error).__name__
        raise TierError(f"{type(error).__name__}: {error}", reason="connection" if lost else "broken") from None


def _cache(url: str, connect_timeout: float) -> RedisCache:
    """aiocache's Redis cache for an address; it takes apart none itself that has a user, or TLS."""
    parts: dict[str, Any] = dict(parse_url(url))
    own = {key: parts.pop(key, default) for key, default in [("host", "127.0.0.1"), ("port", 6379), ("db", 0)]}
    password = parts.pop("password", None)
    return RedisCache(
        endpoint=own["host"],
        port=own["port"],
        db=own["db"],
        password=password,
        namespace=NAMESPACE,
        timeout=None,  # one timeout stands around all that a request asks of this tier
        serializer=NullSerializer(encoding=None),
        create_connection_timeout=connect_timeout,
        pool_max_size=_CONNECTIONS,
        connection_pool_class=BlockingConnectionPool,
        connection_pool_kwargs={**parts, "retry": Retry(NoBackoff(), 0), "driver_info": None},
    )


def _new_mark() -> bytes:
    return secrets.token_hex(8).encode()


def _at(name: Name) -> str:
    return f"a:{digest(name.tenant, name.scope, name.key)}"


def _mark_at(tenant: str, tag: str) -> str:
    return f"m:{digest(tenant, tag)}"


def _list_at(tenant: str, scope: tuple[str, ...]) -> str:
    """The whole key: aiocache's raw commands know no namespace."""
    return f"{NAMESPACE}:l:{digest(tenant, scope)}"


def _row(row: bytes) -> tuple[Head, Mark]:
    document = orjson.loads(row)
    return head_of(document), tuple(document["mark"])
