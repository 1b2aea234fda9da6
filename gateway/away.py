"""How long a request waits for others: in queues, and for engines. What is left of its time is the gateway's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Away:
    """The time of one request during which a call of its is queued or runs; of several at once it counts once."""

    __slots__ = ("_now", "_open", "_seconds", "_since")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._now = clock
        self._open = 0
        self._since = self._seconds = 0.0

    def goes(self) -> None:
        """A call begins."""
        if not self._open:
            self._since = self._now()
        self._open += 1

    def comes(self) -> None:
        """A call has ended."""
        self._open -= 1
        if not self._open:
            self._seconds += self._now() - self._since

    @property
    def seconds(self) -> float:
        """So far."""
        return self._seconds + (self._now() - self._since if self._open else 0.0)


_CURRENT: ContextVar[Away | None] = ContextVar("away", default=None)
"""The request that a task works for: calls are made far below the door that it came in by."""


def begin(clock: Callable[[], float]) -> Away:
    """A request comes in; this task, and those that it starts, work for it."""
    away = Away(clock)
    _CURRENT.set(away)
    return away


def current() -> Away | None:
    """That of the request that this task works for."""
    return _CURRENT.get()


@contextmanager
def waiting() -> Iterator[None]:
    """In the block the request that this task works for waits for something to happen."""
    away = current()
    assert away is not None
    away.goes()
    try:
        yield
    finally:
        away.comes()
