"""Artifacts: what one is, which of them are worth their bytes, and which have been made void by a change."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Collection, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, TypeVar

from policies.greedydual import GreedyDual

ENTRY_COST: Final = 1000
"""Bytes that an artifact costs beside its value: names, tags, places in the indexes. Measured roughly, upward."""


K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class Name:
    """What an artifact is found by. `scope` says whose it is within the tenant: its parts, from the outside in."""

    tenant: str
    scope: tuple[str, ...]
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """All that is known of an artifact but its value.

    `cost` is what a hit saves, in seconds: the time that its computation took. `made` and `expires` are on a clock
    that all gateways share. `tags` name what it depends on, tables and documents: `table:sales.orders`. `listed`:
    whether it stands in the list of its scope.
    """

    name: Name
    size: int
    type: str = "application/json"
    producer: str = ""
    cost: float = 0.0
    made: float
    expires: float
    tags: tuple[str, ...] = ()
    listed: bool = False


@dataclass(frozen=True, slots=True)
class Artifact:
    """A result that is kept for reuse."""

    head: Head
    value: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Worth:
    """What it costs to keep an artifact and to fetch it again: `fetch` seconds, and `byte` for each of its bytes.

    What is computed faster than that is not kept.
    """

    fetch: float = 50e-6
    byte: float = 1e-9

    def keeps(self, head: Head) -> bool:
        """Whether an artifact saves more than it costs."""
        return head.cost > self.fetch + self.byte * head.size


class Shelf:
    """Which artifacts are kept in so many bytes: those that save the most time for their size (`GreedyDual`), as long
    as they last."""

    def __init__(self, max_bytes: int, worth: Worth | None = None) -> None:
        self._worth = worth or Worth()
        self._kept = GreedyDual[Name](max_bytes)
        self._heads: dict[Name, Head] = {}
        self._ends: list[tuple[float, int, Name]] = []
        self._count = 0
        self._tagged: dict[tuple[str, str], set[Name]] = {}
        self._listed: dict[tuple[str, tuple[str, ...]], set[Name]] = {}

    def __len__(self) -> int:
        return len(self._heads)

    def __contains__(self, name: Name) -> bool:
        return name in self._heads

    def __iter__(self) -> Iterator[Name]:
        return iter(self._heads)

    @property
    def max_bytes(self) -> int:
        return self._kept.max_bytes

    @property
    def bytes(self) -> int:
        return self._kept.bytes

    @property
    def places(self) -> int:
        """How many places it keeps in memory, those among them that are void."""
        return self._kept.places + len(self._ends)

    def use(self, name: Name) -> Head | None:
        """The head of an artifact that is asked for. It may have expired: see `expired`."""
        head = self._heads.get(name)
        if head is not None:
            self._kept.use(name)
        return head

    def put(self, head: Head) -> list[Name] | None:
        """Take an artifact in, in the place of one of its name; returns those that have to go for it.

        None: it is not worth its place, and one of its name that was there is gone too.
        """
        name = head.name
        if not self._worth.keeps(head):
            self.drop(name)
            return None
        self._strike(name)
        gone = self._kept.put(name, head.size + ENTRY_COST, head.cost)
        if gone is None:
            return None
        for other in gone:
            self._strike(other)
        self._enter(head)
        return gone

    def drop(self, name: Name) -> bool:
        """Forget one artifact; whether it was there."""
        self._strike(name)
        return self._kept.drop(name)

    def clear(self) -> None:
        """Forget all of them."""
        self._kept.clear()
        self._heads.clear()
        self._ends.clear()
        self._tagged.clear()
        self._listed.clear()

    def expired(self, now: float) -> list[Name]:
        """Forget the artifacts whose time is over; returns their names."""
        gone = []
        while self._ends and self._ends[0][0] <= now:
            ends, _, name = heapq.heappop(self._ends)
            head = self._heads.get(name)
            if head is not None and head.expires == ends and self.drop(name):
                gone.append(name)
        return gone

    def tagged(self, tenant: str, tags: Iterable[str]) -> list[Name]:
        """The artifacts of a tenant that depend on any of these."""
        return list({name for tag in tags for name in self._tagged.get((tenant, tag), ())})

    def listed(self, tenant: str, scope: tuple[str, ...]) -> list[Head]:
        """The artifacts that stand in the list of a scope."""
        return [self._heads[name] for name in self._listed.get((tenant, scope), ())]

    def _enter(self, head: Head) -> None:
        """Put an artifact into the indexes."""
        name = head.name
        self._heads[name] = head
        self._count += 1
        heapq.heappush(self._ends, (head.expires, self._count, name))
        for tag in head.tags:
            self._tagged.setdefault((name.tenant, tag), set()).add(name)
        if head.listed:
            self._listed.setdefault((name.tenant, name.scope), set()).add(name)

    def _strike(self, name: Name) -> None:
        """Take an artifact out of the indexes, if it is there."""
        head = self._heads.pop(name, None)
        if head is None:
            return
        for tag in head.tags:
            _take(self._tagged, (name.tenant, tag), name)
        if head.listed:
            _take(self._listed, (name.tenant, name.scope), name)
        if len(self._ends) > 2 * len(self._heads) + 64:
            self._ends = [(one.expires, at, one.name) for at, one in enumerate(self._heads.values())]
            heapq.heapify(self._ends)
            self._count = max(self._count, len(self._ends))


@dataclass(slots=True)
class Changes:
    """What changed of late, so that what was begun before a change is not taken for what came after it.

    Whoever computes takes `mark` first and asks `since` at the end. Of changes older than the last `most` nothing is
    remembered but that there were some: what was begun before them counts as changed.
    """

    most: int = 10_000
    mark: int = 0
    _floor: int = 0
    _last: OrderedDict[Hashable, int] = field(default_factory=OrderedDict)

    def note(self, things: Collection[Hashable]) -> None:
        """These change now."""
        self.mark += 1
        for thing in things:
            self._last[thing] = self.mark
            self._last.move_to_end(thing)
            if len(self._last) > self.most:
                self._floor = self._last.popitem(last=False)[1]

    def note_all(self) -> None:
        """Everything changes now."""
        self.mark += 1
        self._floor = self.mark
        self._last.clear()

    def since(self, mark: int, things: Iterable[Hashable]) -> bool:
        """Whether any of these may have changed after the mark was taken."""
        return mark < self._floor or any(self._last.get(thing, 0) > mark for thing in things)


def _take(index: dict[K, set[Name]], at: K, name: Name) -> None:
    """Take a name out of an index, and its set with the last one."""
    names = index[at]
    names.discard(name)
    if not names:
        del index[at]
