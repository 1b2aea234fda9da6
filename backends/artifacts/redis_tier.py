"""The tier in a Redis server, spoken to through aiocache: what one gateway keeps, all of them find.

A tag stands for a random text in Redis, its *mark*. An artifact carries the marks that its tags had before it was
computed, and is void once one of them is another, or gone: so to delete a mark voids any number of artifacts, also
those that are only being computed, on whatever gateway; and a server that evicts keys may let one go like any other.

What stands at our keys and cannot be read is taken for nothing, and goes.
"""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import orjson
from aiocache import RedisCache
from aiocache.serializers import NullSerializer
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as NoConnection
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as NoAnswer

from backends.artifacts.tier import Mark, ScopeFull, TierError
from backends.artifacts.wire import digest, head_document, head_of, packed, unpacked
from policies.artifacts import Artifact, Head, Name, Worth

NAMESPACE: Final = "cortex"
CHANNEL: Final = f"{NAMESPACE}:news"
_DAY: Final = 24 * 3600.0
_HOUR: Final = 3600
_ABSENT: Final = ""
_CONNECTIONS: Final = 64

_log = logging.getLogger("cortex.artifacts")


class _OtherKind(TierError):
    """A key of ours holds what is of another kind: a list where a text belongs."""


class RedisTier:
    """Artifacts in a Redis server. `url` as in `redis://:password@host:6379/0`, or `rediss://` for TLS.

    `connect_timeout` in seconds; how long an answer may take is for the caller to say. No artifact lives for more
    than `longest` seconds, on any gateway: what it depends on is remembered for as long, and an hour.
    """

    def __init__(
        self,
        url: str,
        *,
        clock: Callable[[], float],
        worth: Worth | None = None,
        connect_timeout: float = 0.1,
        scope_most: int = 1000,
        longest: float = _DAY,
    ) -> None:
        self._now = clock
        self._life = math.ceil(longest) + _HOUR
        self._worth = worth or Worth(fetch=1e-3, byte=5e-9)
        self._scope_most = scope_most
        self._cache = _cache(url, connect_timeout)

    @property
    def address(self) -> str:
        """Where the server is, without the password."""
        return f"{self._cache.endpoint}:{self._cache.port}"

    @property
    def client(self) -> Redis:
        """aiocache's own client, for the subscription, of which aiocache knows nothing."""
        client: Redis = self._cache.client
        return client

    async def get(self, name: Name) -> Artifact | None:
        at = _at(name)
        try:
            data = await self._do(self._cache.get(at))
            found = None if data is None else unpacked(data)
        except (ValueError, _OtherKind):
            await self._do(self._cache.delete(at))
            found = None
        if found is None:
            return None
        artifact, mark = found
        head = artifact.head
        if head.name != name or head.expires <= self._now():
            return None
        return artifact if await self._marks(name.tenant, head.tags) == mark else None

    async def mark(self, tenant: str, tags: Collection[str]) -> Mark:
        if not tags:
            return ()
        at = [f"{NAMESPACE}:{_mark_at(tenant, tag)}" for tag in tags]
        with _told():
            async with self.client.pipeline(transaction=False) as questions:
                for key in at:
                    questions.set(key, secrets.token_hex(8), nx=True, ex=self._life)
                    questions.expire(key, self._life)
                questions.mget(at)
                *_, found = await questions.execute()
        marks = _marks_of(found)
        strange = [key for key, mark in zip(at, marks, strict=True) if mark == _ABSENT]
        if not strange:
            return marks
        await self._raw("unlink", *strange)
        return await self.mark(tenant, tags)

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
        await self._row("hdel", _list_at(name.tenant, name.scope), name.key)
        return gone

    async def drop_by_tag(self, tenant: str, tags: Collection[str]) -> None:
        if tags:
            await self._raw("unlink", *(f"{NAMESPACE}:{_mark_at(tenant, tag)}" for tag in tags))

    async def drop_all(self, tenant: str) -> None:
        # aiocache would ask for all KEYS at once, which holds up every other client of the server.
        pattern, cursor = f"{NAMESPACE}:[al]:{_of(tenant)}:*", 0
        with _told():
            while True:
                cursor, keys = await self.client.scan(cursor, match=pattern, count=1000)
                if keys:
                    await self.client.unlink(*keys)
                if not cursor:
                    return

    async def listed(self, tenant: str, scope: tuple[str, ...]) -> list[Head]:
        at = _list_at(tenant, scope)
        found: dict[bytes, bytes] = await self._row("hgetall", at)
        rows = [row for key, data in found.items() if (row := _row_of(data, key, tenant, scope))]
        tags = sorted({tag for head, _ in rows for tag in head.tags})
        marks = dict(zip(tags, await self._marks(tenant, tags), strict=True))
        now = self._now()
        live = [head for head, mark in rows if head.expires > now and mark == tuple(marks[tag] for tag in head.tags)]
        over = found.keys() - {head.name.key.encode() for head in live}
        if over:
            await self._row("hdel", at, *over)
        return live

    async def publish(self, message: bytes) -> None:
        """Send a message to every gateway that listens, this one among them."""
        await self._raw("publish", CHANNEL, message)

    async def close(self) -> None:
        await self.client.aclose()

    async def _marks(self, tenant: str, tags: Collection[str]) -> Mark:
        if not tags:
            return ()
        return _marks_of(await self._do(self._cache.multi_get([_mark_at(tenant, tag) for tag in tags])))

    async def _check_scope(self, name: Name) -> None:
        at = _list_at(name.tenant, name.scope)
        if await self._row("hlen", at) < self._scope_most or await self._row("hexists", at, name.key):
            return
        if len(await self.listed(name.tenant, name.scope)) >= self._scope_most:
            raise ScopeFull

    async def _list(self, head: Head, mark: Mark) -> None:
        at = _list_at(head.name.tenant, head.name.scope)
        await self._row("hset", at, head.name.key, orjson.dumps({**head_document(head), "mark": mark}))
        await self._raw("expire", at, self._life)

    async def _row(self, command: str, at: str, *args: object) -> Any:
        """Do something with a list. What stands in its place and is none goes first."""
        try:
            return await self._raw(command, at, *args)
        except _OtherKind:
            await self._raw("unlink", at)
            return await self._raw(command, at, *args)

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
    except (TimeoutError, NoAnswer):
        raise TierError("Redis did not answer in time", reason="timeout") from None
    except (NoConnection, OSError) as error:
        raise TierError(f"{type(error).__name__}: {error}", reason="connection") from None
    except RedisError as error:
        said = f"{type(error).__name__}: {error}"
        if isinstance(error, ResponseError) and str(error).startswith("WRONGTYPE"):
            _log.warning("a key of Cortex in Redis held what is of another kind: it is deleted")
            raise _OtherKind(said, reason="broken") from None
        raise TierError(said, reason="broken") from None


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
        # The server may have closed a connection that was idle: that is found out by asking, and asked once more.
        connection_pool_kwargs={**parts, "retry": Retry(NoBackoff(), 1, (NoConnection,)), "driver_info": None},
    )


def _of(tenant: str) -> str:
    """What is in all keys of a tenant's artifacts and lists, so that they can be found."""
    return digest(tenant)[:16]


def _at(name: Name) -> str:
    return f"a:{_of(name.tenant)}:{digest(name.tenant, name.scope, name.key)}"


def _mark_at(tenant: str, tag: str) -> str:
    return f"m:{digest(tenant, tag)}"


def _list_at(tenant: str, scope: tuple[str, ...]) -> str:
    """The whole key: aiocache's raw commands know no namespace."""
    return f"{NAMESPACE}:l:{_of(tenant)}:{digest(tenant, scope)}"


def _marks_of(found: Iterable[bytes | None]) -> Mark:
    """Any bytes are a mark, as all that is asked of one is whether it is still the same."""
    return tuple(_ABSENT if mark is None else mark.decode("latin-1") for mark in found)


def _row_of(row: bytes, key: bytes, tenant: str, scope: tuple[str, ...]) -> tuple[Head, Mark] | None:
    """The head that stands under a key in the list of a scope, and its marks; None for what was not written so."""
    try:
        document = orjson.loads(row)
        head, mark = head_of(document), tuple(map(str, document["mark"]))
    except (ValueError, KeyError, TypeError):
        return None
    own = head.name == Name(tenant, scope, head.name.key) and head.name.key.encode() == key
    return (head, mark) if own else None
