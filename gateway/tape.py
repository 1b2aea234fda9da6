"""An answer while it comes, for several readers: each reads from its first event on, at its own pace.

Only so many bytes are held. Beyond them the writer waits for the slowest reader, and what all have read is dropped.
A reader that stands still while others wait for it is cut off.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from gateway.openai.errors import ApiError, interrupted

AT_ONCE: Final = 64 * 1024
"""Bytes that a reader gets at once, one event at least: one that reads at all is seen to go on."""

H = TypeVar("H")


@dataclass(slots=True, eq=False)
class _Place:
    """How many events one reader has read, and whether it was cut off."""

    read: int = 0
    late: bool = False


class Tape(Generic[H]):
    """A head, and the events behind it; `most` bytes of these are held. `patience` is for how long one reader may
    keep others waiting that have read what it has not, in seconds."""

    def __init__(self, most: int, patience: float) -> None:
        self._most = most
        self._patience = patience
        self._head: H | None = None
        self._events: list[bytes] = []
        self._size = 0
        self._dropped = 0
        self._over = False
        self._error: ApiError | None = None
        self._places: set[_Place] = set()
        self._news = asyncio.Event()
        self._room = asyncio.Event()

    @property
    def whole(self) -> bool:
        """Whether all events are still there."""
        return not self._dropped

    @property
    def events(self) -> list[bytes]:
        """The events that are there."""
        return self._events

    # --- the writer -------------------------------------------------------------------------------------------

    def begin(self, head: H) -> None:
        """Say how the answer begins."""
        self._head = head
        self._tell()

    async def add(self, events: list[bytes]) -> None:
        """Add events; waits while there is no room and somebody has not read the oldest."""
        self._events += events
        self._size += sum(map(len, events))
        self._tell()
        while self._size > self._most:
            read = min((place.read for place in self._places), default=self._dropped) - self._dropped
            if read > 0:
                self._drop(read)
            else:
                await self._make_room()

    def end(self, error: ApiError | None = None) -> None:
        """Say that nothing more comes, and whether it broke off. Only the first word on that counts."""
        if not self._over:
            self._over, self._error = True, error
            self._tell()

    # --- the readers ------------------------------------------------------------------------------------------

    async def head(self) -> H:
        """Wait for the beginning. Raises what it ended with before that."""
        while self._head is None:
            if self._error is not None:
                raise self._error
            await self._news.wait()
        return self._head

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncGenerator[list[bytes], None]]:
        """The events as they come, none of which is dropped unread in the block. They raise what they ended with, and
        for whoever is cut off."""
        place = _Place()
        self._places.add(place)
        try:
            async with aclosing(self._read(place)) as events:
                yield events
        finally:
            self._places.discard(place)
            self._room.set()

    async def _read(self, place: _Place) -> AsyncGenerator[list[bytes], None]:
        while True:
            if place.late:
                raise interrupted("this answer was read too slowly")
            if events := self._next(place.read - self._dropped):
                yield events
                place.read += len(events)
                self._room.set()
            elif self._error is not None:
                raise self._error
            elif self._over:
                return
            else:
                await self._news.wait()

    def _next(self, first: int) -> list[bytes]:
        """The events from this one on, as many as may go at once."""
        size = 0
        for end in range(first, len(self._events)):
            size += len(self._events[end])
            if size > AT_ONCE:
                return self._events[first : max(end, first + 1)]
        return self._events[first:]

    async def _make_room(self) -> None:
        """Wait for whoever has not read the oldest event; cut him off where others have waited for it long enough."""
        try:
            async with asyncio.timeout(self._patience):
                while not self._places or self._behind():
                    self._room.clear()
                    await self._room.wait()
        except TimeoutError:
            behind = self._behind()
            if behind != self._places:
                for place in behind:
                    place.late = True
                self._places -= behind

    def _behind(self) -> set[_Place]:
        return {place for place in self._places if place.read == self._dropped}

    def _drop(self, most: int) -> None:
        """Drop the oldest events, as many as must go, of so many at most."""
        count = 0
        while self._size > self._most and count < most:
            self._size -= len(self._events[count])
            count += 1
        del self._events[:count]
        self._dropped += count

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
