"""Artifacts: what one is, which of them are worth their bytes, and which have been made void by a change."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Collection, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, TypeVar

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


@dataclass(slots=True)
class _Record:
    head: Head
    uses: int
    value: float


class Shelf:
    """Which artifacts are kept in so many bytes: those that save the most time for their size.

    GreedyDual-Size with frequency (Cherkasova 1998): an artifact is worth `age + uses x cost / bytes`, the one worth
    the least goes first, and `age` becomes what that one was worth: so that what was precious once, and is not asked
    for any more, goes in the end. A newcomer that is worth less than everything it would displace is not taken in.
    """

    def __init__(self, max_bytes: int, worth: Worth | None = None) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._worth = worth or Worth()
        self._age = 0.0
        self._count = 0
        self._records: dict[Name, _Record] = {}
        self._least: list[tuple[float, int, Name]] = []  # lower bounds of what records are worth, one each or more
        self._ends: list[tuple[float, int, Name]] = []
        self._tagged: dict[tuple[str, str], set[Name]] = {}
        self._listed: dict[tuple[str, tuple[str, ...]], set[Name]] = {}

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, name: Name) -> bool:
        return name in self._records

    def __iter__(self) -> Iterator[Name]:
        return iter(self._records)

    def use(self, name: Name) -> Head | None:
        """The head of an artifact that is asked for. It may have expired: see `expired`."""
        record = self._records.get(name)
        if record is None:
            return None
        record.uses += 1
        record.value = self._value(record)
        return record.head

    def put(self, head: Head) -> list[Name] | None:
        """Take an artifact in, in the place of one of its name; returns those that have to go for it.

        None: it is not worth its place, and one of its name that was there is gone too.
        """
        old = self._records.get(head.name)
        self.drop(head.name)
        if not self._worth.keeps(head) or (room := self._room(head)) is None:
            return None
        record = _Record(head, uses=1 + (old.uses if old else 0), value=0.0)
        record.value = self._value(record)
        victims = self._victims(-room, record.value)
        if victims is None:
            self._age = max(self._age, record.value)
            return None
        for name in victims:
            self._age = max(self._age, self._records[name].value)
            self.drop(name)
        self._add(record)
        return victims

    def drop(self, name: Name) -> bool:
        """Forget one artifact; whether it was there."""
        record = self._records.pop(name, None)
        if record is None:
            return False
        head = record.head
        self.bytes -= _bytes(head)
        for tag in head.tags:
            _take(self._tagged, (name.tenant, tag), name)
        if head.listed:
            _take(self._listed, (name.tenant, name.scope), name)
        self._tidy()
        return True

    def clear(self) -> None:
        """Forget all of them."""
        self._records.clear()
        self._least.clear()
        self._ends.clear()
        self._tagged.clear()
        self._listed.clear()
        self.bytes = 0

    def expired(self, now: float) -> list[Name]:
        """Forget the artifacts whose time is over; returns their names."""
        gone = []
        while self._ends and self._ends[0][0] <= now:
            ends, _, name = heapq.heappop(self._ends)
            record = self._records.get(name)
            if record is not None and record.head.expires == ends and self.drop(name):
                gone.append(name)
        return gone

    def tagged(self, tenant: str, tags: Iterable[str]) -> list[Name]:
        """The artifacts of a tenant that depend on any of these."""
        return list({name for tag in tags for name in self._tagged.get((tenant, tag), ())})

    def listed(self, tenant: str, scope: tuple[str, ...]) -> list[Head]:
        """The artifacts that stand in the list of a scope."""
        return [self._records[name].head for name in self._listed.get((tenant, scope), ())]

    def _value(self, record: _Record) -> float:
        return self._age + record.uses * record.head.cost / _bytes(record.head)

    def _room(self, head: Head) -> int | None:
        """Bytes that are left once it is there; None where it would not fit into the empty shelf."""
        size = _bytes(head)
        return None if size > self.max_bytes else self.max_bytes - self.bytes - size

    def _victims(self, needed: int, value: float) -> list[Name] | None:
        """Those worth the least, until so many bytes come free; None as soon as one is worth more than `value`."""
        victims: list[Name] = []
        popped: list[tuple[float, int, Name]] = []
        seen: set[Name] = set()
        while needed > 0:
            bound, _, name = entry = heapq.heappop(self._least)
            record = self._records.get(name)
            if record is None or name in seen:
                continue
            if record.value > bound:
                self._push(record)
                continue
            popped.append(entry)
            if record.value > value:
                break
            seen.add(name)
            victims.append(name)
            needed -= _bytes(record.head)
        for entry in popped:
            heapq.heappush(self._least, entry)
        return victims if needed <= 0 else None

    def _add(self, record: _Record) -> None:
        head = record.head
        name = head.name
        self._records[name] = record
        self.bytes += _bytes(head)
        self._push(record)
        self._count += 1
        heapq.heappush(self._ends, (head.expires, self._count, name))
        for tag in head.tags:
            self._tagged.setdefault((name.tenant, tag), set()).add(name)
        if head.listed:
            self._listed.setdefault((name.tenant, name.scope), set()).add(name)

    def _push(self, record: _Record) -> None:
        self._count += 1
        heapq.heappush(self._least, (record.value, self._count, record.head.name))

    def _tidy(self) -> None:
        """Rebuild the heaps when most of what they hold is gone."""
        most = 2 * len(self._records) + 64
        if len(self._least) > most or len(self._ends) > most:
            records = list(self._records.values())
            self._least = [(record.value, at, record.head.name) for at, record in enumerate(records)]
            self._ends = [(record.head.expires, at, record.head.name) for at, record in enumerate(records)]
            heapq.heapify(self._least)
            heapq.heapify(self._ends)
            self._count = max(self._count, len(records))


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


def _bytes(head: Head) -> int:
    return head.size + ENTRY_COST


def _take(index: dict[K, set[Name]], at: K, name: Name) -> None:
    """Take a name out of an index, and its set with the last one."""
    names = index[at]
    names.discard(name)
    if not names:
        del index[at]
