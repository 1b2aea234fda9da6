"""How many failed attempts a pool may make up for: a share of its traffic, so that a bad hour makes no storm."""

from __future__ import annotations

from collections.abc import Iterable

SHARE, FIRST, MOST = 0.2, 10.0, 100.0
"""A pool earns this share of a retry with every call, starts with so many and saves up at most so many."""


class Retries:
    """What each pool has saved up."""

    def __init__(self, pools: Iterable[str]) -> None:
        self._saved = dict.fromkeys(pools, FIRST)

    def earn(self, pool: str) -> None:
        self._saved[pool] = min(MOST, self._saved[pool] + SHARE)

    def spend(self, pool: str) -> bool:
        """Take one if there is one."""
        if self._saved[pool] < 1.0:
            return False
        self._saved[pool] -= 1.0
        return True
