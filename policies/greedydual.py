"""What to keep in so many bytes: what saves the most seconds for its size and use.

GreedyDual-Size-Frequency (L. Cherkasova, HP Labs report HPL-98-69R1, 1998): a thing is worth `age + uses × cost ÷
bytes`. What is worth least goes first, and `age` becomes what that was worth, so that what was once wanted often does
not stay for ever. A newcomer for which something worth more would have to go is not taken in.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


@dataclass(slots=True, eq=False)
class _Item(Generic[K]):
    key: K
    size: int
    cost: float
    uses: int
    worth: float = 0.0


class GreedyDual(Generic[K]):
    """The keys of what is kept, with sizes in bytes and costs in seconds; `bytes` is the sum of the sizes.

    `max_bytes` may be set anew, not below `bytes`.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._age = 0.0
        self._orders = 0
        self._items: dict[K, _Item[K]] = {}
        # By a worth that each item had once: it only grows, so the least here is never above the least there is.
        self._heap: list[tuple[float, int, _Item[K]]] = []

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, key: K) -> bool:
        return key in self._items

    def __iter__(self) -> Iterator[K]:
        return iter(self._items)

    @property
    def places(self) -> int:
        """How many places it keeps in memory, those among them that are void."""
        return len(self._heap)

    def use(self, key: K) -> None:
        """Something that is kept was wanted."""
        item = self._items[key]
        item.uses += 1
        item.worth = self._worth(item)

    def put(self, key: K, size: int, cost: float) -> list[K] | None:
        """Take something in, in the place of what has its key; returns those that went for it.

        None: it is not worth its place, or larger than all of it; what had its key is gone too. Raises ValueError for
        a size of nothing.
        """
        if size <= 0:
            raise ValueError(f"size: {size} is not above 0")
        old = self._remove(key)
        item = _Item(key, size, cost, 1 if old is None else old.uses + 1)
        item.worth = self._worth(item)
        if size > self.max_bytes:
            return None
        victims = self._victims(item)
        if victims is None:
            self._age = item.worth
            return None
        for victim in victims:
            self._age = victim.worth
            self._remove(victim.key)
        self._items[key] = item
        self.bytes += size
        self._push(item)
        return [victim.key for victim in victims]

    def shed(self) -> K:
        """Let what is worth the least go. Raises IndexError where nothing is kept."""
        least = self._pop()
        self._age = least.worth
        self._remove(least.key)
        return least.key

    def drop(self, key: K) -> bool:
        """Let one go; whether it was there."""
        return self._remove(key) is not None

    def clear(self) -> None:
        self._items.clear()
        self._heap.clear()
        self.bytes = 0

    def _worth(self, item: _Item[K]) -> float:
        return self._age + item.uses * item.cost / item.size

    def _victims(self, newcomer: _Item[K]) -> list[_Item[K]] | None:
        """Those worth the least, until it fits; None where one of them is worth more than it is."""
        going: list[_Item[K]] = []
        room = self.max_bytes - self.bytes
        while room < newcomer.size:
            least = self._pop()
            going.append(least)
            room += least.size
            if least.worth > newcomer.worth:
                for item in going:
                    self._push(item)
                return None
        return going

    def _pop(self) -> _Item[K]:
        """Take the item of the least worth out of the heap."""
        while True:
            worth, _, item = heapq.heappop(self._heap)
            if self._items.get(item.key) is not item:
                continue
            if worth == item.worth:
                return item
            self._push(item)  # it was wanted since

    def _push(self, item: _Item[K]) -> None:
        self._orders += 1
        heapq.heappush(self._heap, (item.worth, self._orders, item))

    def _remove(self, key: K) -> _Item[K] | None:
        item = self._items.pop(key, None)
        if item is not None:
            self.bytes -= item.size
            if len(self._heap) > 2 * len(self._items) + 64:
                self._heap = [place for place in self._heap if self._items.get(place[2].key) is place[2]]
                heapq.heapify(self._heap)
        return item
