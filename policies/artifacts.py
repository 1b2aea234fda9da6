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
COUNTED_MOST: Final = 300.0
"""Seconds of an artifact's cost that count for its place: whoever publishes one may say what he likes."""

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
    as they last.

    A tenant may use what no other does. Where there is no room, the one that has the most gives: a newcomer competes
    with those of its own tenant, once that one would have the most, and with nobody until then.
    """

    def __init__(self, max_bytes: int, worth: Worth | None = None) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._worth = worth or Worth()
        self._kept: dict[str, GreedyDual[Name]] = {}
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
    def places(self) -> int:
        """How many places it keeps in memory, those among them that are void."""
        return sum(kept.places for kept in self._kept.values()) + len(self._ends)

    def use(self, name: Name) -> Head | None:
        """The head of an artifact that is asked for. It may have expired: see `expired`."""
        head = self._heads.get(name)
        if head is not None:
            self._kept[name.tenant].use(name)
        return head

    def put(self, head: Head) -> list[Name] | None:
        """Take an artifact in, in the place of one of its name; returns those that have to go for it.

        None: it is not worth its place, and one of its name that was there is gone too.
        """
        name = head.name
        if not self._worth.keeps(head):
            self.drop(name)
            return None
        size = head.size + ENTRY_COST
        own = self._kept.setdefault(name.tenant, GreedyDual(0))
        given = self._given(name, size)
        before = own.bytes
        own.max_bytes = self.max_bytes - (self.bytes - before)
        gone = own.put(name, size, min(head.cost, COUNTED_MOST))
        self.bytes += own.bytes - before
        self._strike(name)
        if gone is None:
            return None
        for other in gone:
            self._strike(other)
        self._enter(head)
        return given + gone

    def drop(self, name: Name) -> bool:
        """Forget one artifact; whether it was there."""
        head = self._heads.get(name)
        if head is None:
            return False
        self._strike(name)
        self.bytes -= head.size + ENTRY_COST
        return self._kept[name.tenant].drop(name)

    def clear(self) -> None:
        """Forget all of them."""
        self.bytes = 0
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

    def _given(self, name: Name, size: int) -> list[Name]:
        """The artifacts of other tenants that go for a newcomer, which fits then. None go where its own tenant would
        have the most with it."""
        old = self._heads.get(name)
        more = size - (0 if old is None else old.size + ENTRY_COST)
        gone: list[Name] = []
        if self.bytes + more <= self.max_bytes:
            return gone
        others = [kept for tenant, kept in self._kept.items() if tenant != name.tenant]
        if self._kept[name.tenant].bytes + more >= max((kept.bytes for kept in others), default=0):
            return gone
        while self.bytes + more > self.max_bytes:
            most = max(others, key=lambda kept: kept.bytes)
            gone.append(self._shed(most))
        return gone

    def _shed(self, kept: GreedyDual[Name]) -> Name:
        """Let go what saves a tenant the least."""
        before = kept.bytes
        name = kept.shed()
        self.bytes -= before - kept.bytes
        self._strike(name)
        return name

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
