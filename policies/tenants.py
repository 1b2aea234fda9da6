"""Who has had how much: engine time attributed to each tenant, and who is ahead of whom.

As in a virtual token counter (Sheng et al., OSDI 2024, arXiv 2401.00588), counted in seconds: each ended call adds
its share of the engine's time to its tenant's account; a tenant that comes back after a pause is lifted to the least
of those at work, or to the last that was where none is, so that nobody saves up a claim while idle.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict

LIMIT = 10_000
"""Accounts kept of tenants that have no open call; the one whose last call ended the longest ago goes first."""


class Tenants:
    """The accounts. A tenant is at work while it has an open call."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._open: dict[str, int] = {}
        self._working: dict[str, float] = {}
        self._idle: OrderedDict[str, float] = OrderedDict()
        self._least: list[tuple[float, str]] = []
        self._lift = 0.0

    def __len__(self) -> int:
        return len(self._working) + len(self._idle)

    @property
    def places(self) -> int:
        """How many places it keeps in memory to find the least account, those among them that are void."""
        return len(self._least)

    def had(self, tenant: str) -> float:
        """Seconds of engine time on a tenant's account; what it was lifted by counts too."""
        return self._working.get(tenant, self._idle.get(tenant, 0.0))

    def came(self, tenant: str) -> None:
        """One of its calls has arrived."""
        if tenant in self._open:
            self._open[tenant] += 1
            return
        lift = self._floor() if self._open else self._lift
        self._open[tenant] = 1
        self._working[tenant] = max(self._idle.pop(tenant, 0.0), lift)
        heapq.heappush(self._least, (self._working[tenant], tenant))
        if len(self._least) > 2 * len(self._working) + 64:
            self._least = [(had, name) for name, had in self._working.items()]
            heapq.heapify(self._least)

    def went(self, tenant: str, seconds: float = 0.0) -> None:
        """One of its calls has ended, after so much engine time."""
        self._working[tenant] += seconds
        self._open[tenant] -= 1
        if self._open[tenant]:
            return
        del self._open[tenant]
        self._lift = self._idle[tenant] = self._working.pop(tenant)
        if len(self._idle) > self._limit:
            self._idle.popitem(last=False)

    def lead(self, tenant: str) -> float:
        """Seconds by which a tenant is ahead of the one at work that has had the least; 0 for that one."""
        return max(0.0, self.had(tenant) - self._floor()) if len(self._open) > 1 else 0.0

    def _floor(self) -> float:
        """The least account of those at work; there must be one. Each of them has a place in the heap that is not
        above its account: places that have fallen behind are brought up to date as they surface."""
        while True:
            value, tenant = self._least[0]
            had = self._working.get(tenant)
            if had is None:
                heapq.heappop(self._least)
            elif value < had:
                heapq.heapreplace(self._least, (had, tenant))
            else:
                return value
