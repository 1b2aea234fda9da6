"""Stops asking a server that does not answer, and finds out by itself when it is back."""

from __future__ import annotations

from collections.abc import Callable


class Breaker:
    """Open after `tries` failures in a row: nothing is asked, but for one trial after every pause.

    Pauses in seconds: the first is `rest`, each after a failed trial is twice as long, `most` at most.
    """

    def __init__(self, *, clock: Callable[[], float], tries: int = 3, rest: float = 0.25, most: float = 4.0) -> None:
        self._now = clock
        self._tries = tries
        self._rest = rest
        self._most = most
        self._failures = 0
        self._pause = rest
        self._again = 0.0

    @property
    def open(self) -> bool:
        return self._failures >= self._tries

    def allows(self) -> bool:
        """Whether to ask now. Of several that ask while it is open one is let through, for each pause."""
        if not self.open:
            return True
        if self._now() < self._again:
            return False
        self._again = self._now() + self._pause
        return True

    def worked(self) -> None:
        """The server answered."""
        self._failures = 0
        self._pause = self._rest

    def failed(self) -> None:
        """The server did not answer."""
        self._failures += 1
        if self.open:
            if self._failures > self._tries:
                self._pause = min(self._most, 2 * self._pause)
            self._again = self._now() + self._pause
