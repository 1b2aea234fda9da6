"""An answer while it comes, for several readers: each reads from its first event on, at its own pace.

Only so many bytes are held. Beyond them the writer waits for the fastest reader; what that one has read is dropped,
and whoever has not read it by then is cut off.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Generic, TypeVar

from gateway.openai.errors import ApiError, interrupted

H = TypeVar("H")


@dataclass(slots=True, eq=False)
class _Place:
    """How many events one reader has read."""

    read: int = 0


class Tape(Generic[H]):
    """A head, and the events behind it; `most` bytes of these are held."""

    def __init__(self, most: int) -> None:
        self._most = most
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

    def fits(self, events: list[bytes]) -> bool:
        """Whether these can be added without dropping others."""
        return self.whole and self._size + _bytes(events) <= self._most

    async def add(self, events: list[bytes]) -> None:
        """Add events; waits while there is no room and nobody has read the oldest."""
        self._events += events
        self._size += _bytes(events)
        self._tell()
        while self._size > self._most:
            read = max((place.read for place in self._places), default=0) - self._dropped
            if read > 0:
                self._drop(read)
            else:
                self._room.clear()
                await self._room.wait()

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

    async def read(self) -> AsyncGenerator[list[bytes], None]:
        """The events, as many at once as there are. Raises what they ended with, for those who are too slow too."""
        place = _Place()
        self._places.add(place)
        try:
            while True:
                if place.read < self._dropped:
                    raise interrupted("this answer was read too slowly")
                if events := self._events[place.read - self._dropped :]:
                    yield events
                    place.read += len(events)
                    self._room.set()
                elif self._error is not None:
                    raise self._error
                elif self._over:
                    return
                else:
                    await self._news.wait()
        finally:
            self._places.discard(place)

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


def _bytes(events: list[bytes]) -> int:
    return sum(map(len, events))
