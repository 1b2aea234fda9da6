"""Whose turn it is at something that serves one at a time: one of each tenant, round and round."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque

from backends.base import BackendError


class Turns:
    """The lines of all tenants. At most `most` wait; beyond that only tenants with less than an equal share may."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lines: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._waiting = 0
        self._taken = False

    async def take(self, tenant: str) -> None:
        """Wait for a turn, which `give` ends. Whoever is cancelled is out of the line. Raises BackendError
        `overloaded`."""
        if not self._taken:
            self._taken = True
            return
        line = self._lines.setdefault(tenant, deque())
        if self._waiting >= self._most and (len(line) + 1) * len(self._lines) > self._waiting:
            if not line:
                del self._lines[tenant]
            raise BackendError(
                "too many statements wait to be read", trouble="overloaded", retryable=True, retry_after=1.0
            )
        mine = asyncio.get_running_loop().create_future()
        line.append(mine)
        self._waiting += 1
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():
                self.give()  # it was granted in this very step
            else:
                self._leave(tenant, mine)
            raise

    def give(self) -> None:
        """The turn is over: the next tenant's first has it."""
        while self._lines:
            tenant, line = self._lines.popitem(last=False)
            mine = line.popleft()
            self._waiting -= 1
            if line:
                self._lines[tenant] = line
            if not mine.done():
                mine.set_result(None)
                return
        self._taken = False

    def _leave(self, tenant: str, mine: asyncio.Future[None]) -> None:
        line = self._lines.get(tenant)
        if line is not None and mine in line:
            line.remove(mine)
            self._waiting -= 1
            if not line:
                del self._lines[tenant]
