"""What is to happen and when: virtual time that jumps from one event to the next."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable


class Agenda:
    """Acts in the order of their times; those of one time in the order in which they were noted. `now` in seconds."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now
        self._order = 0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []

    def at(self, when: float, act: Callable[..., None], *arguments: object) -> None:
        """Note an act. What should have happened already happens now."""
        self._order += 1
        heapq.heappush(self._heap, (max(when, self.now), self._order, act, arguments))

    def run(self, until: float = math.inf) -> None:
        """Act until nothing is left, or nothing before `until`."""
        heap = self._heap
        while heap and heap[0][0] <= until:
            self.now, _, act, arguments = heapq.heappop(heap)
            act(*arguments)

    def clear(self) -> None:
        """Nothing more shall happen."""
        self._heap.clear()
