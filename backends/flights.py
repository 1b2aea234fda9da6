"""What is being found out right now, and who waits for it.

A flight belongs to nobody: it goes on as long as one of those who asked waits for it, whoever began it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
A = TypeVar("A")


@dataclass(slots=True, eq=False)
class Flight(Generic[T, A]):
    """One computation; `about` is what its beginner says of it."""

    about: A
    task: asyncio.Task[T]
    waiting: int = 0


class Flights(Generic[K, T, A]):
    """The flights by key, of each the last that has begun; whoever comes when it has landed begins another."""

    def __init__(self) -> None:
        self._by_key: dict[K, Flight[T, A]] = {}

    def get(self, key: K) -> Flight[T, A] | None:
        """The one that whoever comes now may join."""
        flight = self._by_key.get(key)
        return None if flight is None or flight.task.done() else flight

    def begin(self, key: K, about: A, work: Coroutine[Any, Any, T]) -> Flight[T, A]:
        """Compute for all who ask for this key from now on; those who wait for an earlier flight go on."""
        flight = Flight(about, asyncio.create_task(work, name="flight"))
        self._by_key[key] = flight
        flight.task.add_done_callback(lambda _task: self._land(key, flight))
        return flight

    async def wait(self, key: K, flight: Flight[T, A]) -> T:
        """What it has found out, once it has landed."""
        with self.aboard(key, flight):
            return await asyncio.shield(flight.task)

    @contextmanager
    def aboard(self, key: K, flight: Flight[T, A]) -> Iterator[None]:
        """Wait in the block, without owning: the last one to go takes the flight down with it."""
        flight.waiting += 1
        try:
            yield
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.task.done():
                self._land(key, flight)  # at once: whoever comes now must not join what is being cancelled
                flight.task.cancel()

    def _land(self, key: K, flight: Flight[T, A]) -> None:
        if self._by_key.get(key) is flight:
            del self._by_key[key]
