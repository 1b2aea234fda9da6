"""What gateways tell each other about artifacts: the messages, and the ear that hears when some were missed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError

from backends.artifacts.wire import head_document, head_of, name_of
from policies.artifacts import Head, Name

INLINE_MOST: Final = 16_000
"""Bytes of a value that travel with the news of it; a larger one is fetched by whoever wants it."""
_TICK: Final = 1.0
_SILENT_TICKS: Final = 3
_PAUSES: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0)

_log = logging.getLogger("cortex.artifacts")


@dataclass(frozen=True, slots=True)
class Published:
    """An artifact has a new value, which is here where it is small."""

    head: Head
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Dropped:
    """An artifact was taken away."""

    name: Name


@dataclass(frozen=True, slots=True)
class Invalidated:
    """All that depends on these is void."""

    tenant: str
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reset:
    """Anything may have changed, of one tenant or of all: news were missed, or everything was made void."""

    tenant: str | None = None


News = Published | Dropped | Invalidated | Reset


def encoded(news: News, origin: str) -> bytes:
    """A message to all gateways. `origin` is the sender's own word, by which it knows its messages again."""
    match news:
        case Published():
            value = None if news.value is None else news.value.decode("latin-1")
            what: dict[str, object] = {"put": head_document(news.head), "value": value}
        case Dropped(name):
            what = {"drop": {"tenant": name.tenant, "scope": name.scope, "key": name.key}}
        case Invalidated(tenant, tags):
            what = {"tags": tags, "tenant": tenant}
        case Reset(tenant):
            what = {"reset": tenant}
    return orjson.dumps({"from": origin, **what})


def decoded(message: bytes) -> tuple[News, str]:
    """The news in a message, and who sent it. What cannot be read may have meant anything: a Reset."""
    try:
        document: dict[str, Any] = orjson.loads(message)
        return _news(document), str(document["from"])
    except (ValueError, KeyError, TypeError, AttributeError):
        _log.warning("news of artifacts cannot be read: everything is asked for anew")
        return Reset(), ""


def _news(document: dict[str, Any]) -> News:
    if "put" in document:
        value = document["value"]
        return Published(head_of(document["put"]), None if value is None else value.encode("latin-1"))
    if "drop" in document:
        return Dropped(name_of(document["drop"]))
    if "tags" in document:
        return Invalidated(str(document["tenant"]), tuple(map(str, document["tags"])))
    tenant = document["reset"]
    return Reset(tenant if isinstance(tenant, str) else None)


class Ear:
    """Listens to a channel for as long as it runs, over lost connections and dead servers.

    `connected` is called each time that listening begins, because what was said before was not heard; then `told`
    for each message. `patience` in seconds bounds each step of connecting. `address` is for the log.
    """

    def __init__(
        self,
        client: Redis,
        channel: str,
        *,
        address: str,
        connected: Callable[[], Awaitable[None]],
        told: Callable[[bytes], Awaitable[None]],
        patience: float = 2.0,
    ) -> None:
        self._client = client
        self._channel = channel
        self._address = address
        self._on_connected = connected
        self._on_told = told
        self._patience = patience
        self._fails = 0
        self._heard = False
        self.listening = False

    async def run(self) -> None:
        """Listen until cancelled."""
        while True:
            try:
                await self._listen()
            except (RedisError, OSError, TimeoutError) as error:
                if not self._fails:
                    what = "is not heard any more" if self._heard else "cannot be reached yet"
                    _log.warning("Redis at %s %s: %s", self._address, what, type(error).__name__)
            except Exception:  # noqa: BLE001 - the root of the task: who stops listening serves what is void
                _log.exception("news of artifacts could not be taken in")
            self.listening = False
            await asyncio.sleep(_PAUSES[min(self._fails, len(_PAUSES) - 1)])
            self._fails += 1

    async def _listen(self) -> None:
        """Listen over one connection. Raises when it is lost, or silent although it was asked to say something."""
        async with self._client.pubsub() as pubsub:
            async with asyncio.timeout(self._patience):
                await pubsub.subscribe(self._channel)
            silent = 0
            while silent < _SILENT_TICKS:
                message = await pubsub.get_message(timeout=_TICK)
                silent = silent + 1 if message is None else 0
                if message is None:
                    async with asyncio.timeout(self._patience):
                        await pubsub.ping()
                elif message["type"] == "subscribe":  # also after the client has connected again by itself
                    await self._subscribed()
                elif message["type"] == "message":
                    await self._on_told(message["data"])
            raise TimeoutError

    async def _subscribed(self) -> None:
        _log.info("Redis at %s is heard%s", self._address, " again" if self._heard else "")
        self.listening, self._heard, self._fails = True, True, 0
        await self._on_connected()
