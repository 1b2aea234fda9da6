"""Interrupts a statement at its deadline."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Interruptible(Protocol):
    def interrupt(self) -> None: ...


class Stopper:
    """One thread that interrupts what runs too long.

    It does so again and again until the statement ends: an interrupt that comes before the engine has begun is
    lost without a trace.
    """

    def __init__(self, *, every: float = 0.02) -> None:
        self._every = every
        self._changed = threading.Condition()
        self._running: Interruptible | None = None
        self._stop_at = math.inf
        self._looks_at = math.inf
        threading.Thread(target=self._watch, daemon=True).start()

    @contextmanager
    def limit(self, statement: Interruptible, seconds: float) -> Iterator[None]:
        """Let the statement run for so many seconds."""
        with self._changed:
            # It may have been stopped before it has begun.
            self._running, self._stop_at = statement, min(self._stop_at, time.monotonic() + seconds)
            self._hurry()
        try:
            yield
        finally:
            with self._changed:
                self._running, self._stop_at = None, math.inf

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let the time in the block not count, which is for others to spend. What is to be stopped stays so."""
        with self._changed:
            left = self._stop_at - time.monotonic()
            if left > 0:
                self._stop_at = math.inf
        try:
            yield
        finally:
            with self._changed:
                if self._stop_at == math.inf:
                    self._stop_at = time.monotonic() + left
                    self._hurry()

    def begin(self) -> None:
        """Forget what was to be stopped before."""
        with self._changed:
            self._stop_at = math.inf

    def stop(self) -> None:
        """Interrupt what runs now, or what comes next."""
        with self._changed:
            self._stop_at = -math.inf
            self._hurry()

    def _hurry(self) -> None:
        """Wake the thread where it would look too late: to wake it for each statement would cost as much as a short
        one does."""
        if self._stop_at < self._looks_at:
            self._changed.notify()

    def _watch(self) -> None:
        with self._changed:
            while True:
                now = time.monotonic()
                if self._running is None:
                    self._looks_at = math.inf
                elif self._stop_at > now:
                    self._looks_at = self._stop_at
                else:
                    self._running.interrupt()
                    self._looks_at = now + self._every
                self._changed.wait(min(self._looks_at - now, threading.TIMEOUT_MAX))
