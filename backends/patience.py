"""A bound on how long a block may wait, for waits that are many and mostly short.

`asyncio.timeout` does the same at twice the cost.
"""

from __future__ import annotations

import asyncio
from typing import Self


class Patience:
    """`with Patience(seconds):` cancels what the block waits for when the time is over, and raises TimeoutError."""

    def __init__(self, seconds: float) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._seconds = seconds
        self._late = False

    def __enter__(self) -> Self:
        self._timer = self._task.get_loop().call_later(self._seconds, self._end)
        return self

    def renew(self) -> None:
        """Give all of the time again."""
        self._timer.cancel()
        self._timer = self._task.get_loop().call_later(self._seconds, self._end)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._timer.cancel()
        if self._late and not self._task.uncancel() and kind is asyncio.CancelledError:
            raise TimeoutError from None

    def _end(self) -> None:
        self._late = True
        self._task.cancel()
