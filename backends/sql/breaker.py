"""Slows the restarts of a process that keeps failing."""

from __future__ import annotations

from collections import deque


class Breaker:
    """After `limit` failures within `window` seconds, a pause; twice as long each time, until something works."""

    def __init__(self, *, limit: int = 5, window: float = 10.0, first: float = 0.5, longest: float = 30.0) -> None:
        self._limit = limit
        self._window = window
        self._first = first
        self._longest = longest
        self._failures: deque[float] = deque(maxlen=limit)
        self._pause = 0.0
        self._until = 0.0

    def failed(self, now: float) -> None:
        self._failures.append(now)
        if len(self._failures) == self._limit and now - self._failures[0] <= self._window:
            self._failures.clear()
            self._pause = min(self._longest, max(self._first, 2 * self._pause))
            self._until = now + self._pause

    def worked(self) -> None:
        """The next pause is short again."""
        self._pause = 0.0

    def left(self, now: float) -> float:
        """Seconds of the pause that are still to come."""
        return max(0.0, self._until - now)
