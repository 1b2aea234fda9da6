"""Who has had how much: engine time attributed to each tenant, and who is ahead of whom.

As in a virtual token counter (Sheng et al., OSDI 2024, arXiv 2401.00588), counted in seconds: each ended call adds
its share of the engine's time to its tenant's account; a tenant that comes back after a pause is lifted to the least
of those at work, so that nobody saves up a claim while idle.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict

LIMIT = 10_000
"""Accounts kept of tenants that have no open call; the least recently used goes first."""


class Tenants:
    """The accounts. A tenant is at work while it has an open call."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._open: dict[str, int] = {}
        self._had: OrderedDict[str, float] = OrderedDict()
        self._least: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._had)

    def had(self, tenant: str) -> float:
        """Seconds of engine time on a tenant's account; what it was lifted by counts too."""
        return self._had.get(tenant, 0.0)

    def came(self, tenant: str) -> None:
        """One of its calls has arrived."""
        if tenant in self._open:
            self._open[tenant] += 1
            return
        floor = self._floor()
        self._open[tenant] = 1
        self._had[tenant] = max(self._had.get(tenant, 0.0), floor or 0.0)
        self._had.move_to_end(tenant)
        heapq.heappush(self._least, (self._had[tenant], tenant))
        while len(self._had) - len(self._open) > self._limit:
            oldest = next(name for name in self._had if name not in self._open)
            del self._had[oldest]

    def went(self, tenant: str, seconds: float = 0.0) -> None:
        """One of its calls has ended, after so much engine time."""
        self._had[tenant] += seconds
        self._open[tenant] -= 1
        if not self._open[tenant]:
            del self._open[tenant]

    def lead(self, tenant: str) -> float:
        """Seconds by which a tenant is ahead of the one at work that has had the least; 0 for that one."""
        if len(self._open) < 2:
            return 0.0
        floor = self._floor()
        return 0.0 if floor is None else max(0.0, self.had(tenant) - floor)

    def _floor(self) -> float | None:
        """The least account of a tenant at work. Each of these has a place in the heap that is not above its
        account: places that have fallen behind are brought up to date as they surface."""
        while self._least:
            value, tenant = self._least[0]
            had = self._had.get(tenant)
            if tenant not in self._open or had is None:
                heapq.heappop(self._least)
            elif value < had:
                heapq.heapreplace(self._least, (had, tenant))
            else:
                return value
        return None
