"""What happened to published state, as events that clients read: a bounded log for each tenant, resumed by number."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Final, Literal

import orjson

from backends.artifacts.news import Dropped, Invalidated, News, Published, Reset
from policies.artifacts import Head

EVENTS_MOST: Final = 1000
BYTES_MOST: Final = 4_000_000
KEEP_ALIVE: Final = 15.0
_TICK: Final = 0.5
_AT_ONCE: Final = 16

Kind = Literal["published", "deleted", "invalidated", "reset"]
Topic = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened to a topic, or to all of a tenant's where `topic` is None."""

    number: int
    topic: Topic | None
    kind: Kind
    data: bytes


class Log:
    """The last events of one tenant. A reader holds a number and the few events that it is being sent, so that a slow
    one costs little memory: when the log has moved on without it, it is told so."""

    def __init__(self) -> None:
        self.last = 0
        self._events: deque[Event] = deque()
        self._bytes = 0
        self._forgotten = 0
        self._more = asyncio.Event()

    def append(self, topic: Topic | None, kind: Kind, data: bytes) -> None:
        """Something happened."""
        self.last += 1
        self._events.append(Event(self.last, topic, kind, data))
        self._bytes += len(data)
        while len(self._events) > EVENTS_MOST or self._bytes > BYTES_MOST:
            gone = self._events.popleft()
            self._bytes -= len(gone.data)
            self._forgotten = gone.number
        self._more.set()
        self._more = asyncio.Event()

    def after(self, number: int, topic: Topic) -> tuple[list[Event], int] | None:
        """The next few things that happened to a topic after an event, and the number to go on from; None where they
        are not known any more."""
        if not self._forgotten <= number <= self.last:
            return None
        start = len(self._events) - (self.last - number)
        own = (event for event in islice(self._events, start, None) if event.topic in (topic, None))
        events = list(islice(own, _AT_ONCE))
        return events, events[-1].number if len(events) == _AT_ONCE else self.last

    async def more(self, within: float) -> None:
        """Wait for another event, or for so many seconds."""
        event = self._more
        try:
            async with asyncio.timeout(within):
                await event.wait()
        except TimeoutError:
            return


class TooManyReaders(Exception):
    """A tenant reads as many streams of events as it may."""


class Events:
    """The logs of all tenants, of whom there may be others each time; `readers_most` for each of them."""

    def __init__(self, tenants: Callable[[], Collection[str]], *, readers_most: int) -> None:
        self._tenants = tenants
        self._logs = defaultdict[str, Log](Log)
        self._readers = Counter[str]()
        self._readers_most = readers_most
        # Numbers are this process's own: an id from another one, or from before a restart, resumes nothing.
        self._own = secrets.token_hex(4)

    @property
    def readers(self) -> int:
        """Streams that are being read."""
        return sum(self._readers.values())

    def heard(self, news: News) -> None:
        """Log what happened to artifacts, here or at another gateway."""
        match news:
            case Published(head, value):
                if head.listed:
                    self._append(head.name.tenant, head.name.scope, "published", _published(head, value))
            case Dropped(name):
                self._append(name.tenant, name.scope, "deleted", orjson.dumps({"key": name.key}))
            case Invalidated(tenant, tags):
                self._append(tenant, None, "invalidated", orjson.dumps({"tags": tags}))
            case Reset(tenant):
                for one in self._tenants() if tenant is None else (tenant,):
                    self._append(one, None, "reset", b"{}")

    @contextmanager
    def reading(self, tenant: str) -> Iterator[None]:
        """Count a reader. Raises TooManyReaders."""
        if self._readers[tenant] >= self._readers_most:
            raise TooManyReaders
        self._readers[tenant] += 1
        try:
            yield
        finally:
            self._readers[tenant] -= 1

    async def read(self, tenant: str, topic: Topic, last_id: str | None) -> AsyncIterator[bytes]:
        """A topic's events as server-sent events, without end: `b""` now and then, while nothing happens.

        The first says where the reading begins. `last_id` is the id of the last one that the reader knows. What it
        can not be told any more comes as one `reset`: the reader is to list the topic anew.
        """
        log = self._logs[tenant]
        position = log.last if last_id is None else self._number(last_id)
        yield self._sse(log.last if position is None else position, "open", b"{}")
        while True:
            known = None if position is None else log.after(position, topic)
            if known is None:
                position = log.last
                yield self._sse(position, "reset", b"{}")
                continue
            events, position = known
            for event in events:
                yield self._sse(event.number, event.kind, event.data)
            if position == log.last:
                yield b""
                await log.more(_TICK)

    def _append(self, tenant: str, topic: Topic | None, kind: Kind, data: bytes) -> None:
        if tenant in self._tenants():  # another gateway may have some that this one has not
            self._logs[tenant].append(topic, kind, data)

    def _number(self, event_id: str) -> int | None:
        own, _, number = event_id.partition(".")
        return int(number) if own == self._own and number.isdecimal() and len(number) < 16 else None

    def _sse(self, number: int, kind: str, data: bytes) -> bytes:
        return b"id: %s.%d\nevent: %s\ndata: %s\n\n" % (self._own.encode(), number, kind.encode(), data)


def _published(head: Head, value: bytes | None) -> bytes:
    document = shown(head)
    if value is not None:
        # A line's end would end the event's. In JSON it stands between tokens only, where a space means the same.
        document["value"] = orjson.Fragment(value.replace(b"\n", b" ").replace(b"\r", b" "))
    return orjson.dumps(document)


def shown(head: Head) -> dict[str, object]:
    """What a client sees of an artifact beside its value; `ttl` and `age` in seconds."""
    now = time.time()
    return {
        "key": head.name.key,
        "type": head.type,
        "producer": head.producer,
        "bytes": head.size,
        "cost": round(head.cost, 6),
        "tags": head.tags,
        "age": round(max(0.0, now - head.made), 3),
        "ttl": round(max(0.0, head.expires - now), 3),
    }
