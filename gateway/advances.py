"""What was run before anybody asked: how much at once, who makes it give way, and whether it was used in the end.

An advance is one statement that runs ahead of its call. It begins in a worker that nobody needs, and it ends when a
call would have to wait for that worker. It has been used as soon as a call looks for its result, by the key that
results are kept under: that call gets the result, or waits for it as for any answer that is under way.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from gateway.tools import Results, Warehouse
from policies.events import Action, Arrived, Event, Refused, Start

USED_WITHIN = 60.0
"""Seconds after its end within which an advance is used, or has been for nothing."""
UNUSED_MOST = 1024
"""Advances that may still be used; the oldest is given up for a newer one."""

Fate = Literal["started", "hit", "joined", "wasted", "skipped"]


class Counts(Protocol):
    """Where it is counted what became of advances."""

    def sql_ahead(self, fate: Fate) -> None: ...

    def sql_saved(self, seconds: float) -> None: ...


@dataclass(slots=True, eq=False)
class Advance:
    """One statement ahead of its call. `key` is that of its result, once it has been looked for."""

    pool: str
    task: asyncio.Task[None] | None = None
    key: Hashable | None = None
    began: float = 0.0
    ended: float | None = None


_MINE: ContextVar[Advance | None] = ContextVar("advance", default=None)
"""The advance that a task runs: how its own look at what is kept is told from a call's."""


class Advances:
    """All advances of a gateway: those that run, and those that nobody has used yet, oldest first."""

    def __init__(self, *, counts: Counts, clock: Callable[[], float]) -> None:
        self._counts = counts
        self._now = clock
        self._running: list[Advance] = []
        self._unused: OrderedDict[tuple[str, Hashable], Advance] = OrderedDict()

    def running(self, pool: str) -> int:
        """How many run in a pool, those among them that are used by now."""
        return sum(advance.pool == pool for advance in self._running)

    def begin(self, advance: Advance) -> None:
        """The current task runs this advance from now on."""
        _MINE.set(advance)
        advance.task = asyncio.current_task()
        self._running.append(advance)

    def end(self, advance: Advance, *, kept: bool) -> None:
        """It has ended; `kept` says whether its result is there for others."""
        self._running.remove(advance)
        advance.ended = self._now()
        if not kept:
            self._waste(advance)
        self.sweep()

    def skip(self) -> None:
        """Note that a statement could have run ahead and does not."""
        self._counts.sql_ahead("skipped")

    def sweep(self) -> None:
        """Give up those that were not used in time."""
        due = self._now() - USED_WITHIN
        while self._unused:
            oldest = next(iter(self._unused.values()))
            if len(self._unused) <= UNUSED_MOST and (oldest.ended is None or oldest.ended > due):
                return
            self._waste(oldest)

    def looked_for(self, pool: str, key: Hashable, *, found: bool) -> None:
        """Somebody wants the result of this key, and has found it or not."""
        mine = _MINE.get()
        if mine is None and not self._unused:
            return
        place = pool, key
        if mine is not None:
            if not found and place not in self._unused and mine.key is None:
                mine.key, mine.began = key, self._now()
                self._unused[place] = mine
                self._counts.sql_ahead("started")
            return
        advance = self._unused.get(place)
        if advance is None:
            return
        if not found and advance.ended is not None:  # it is no longer kept
            self._waste(advance)
            return
        del self._unused[place]
        self._counts.sql_ahead("hit" if found else "joined")
        self._counts.sql_saved((advance.ended or self._now()) - advance.began)

    def watch(self, event: Event, actions: list[Action]) -> None:
        """Where a call arrives that must wait, the latest advance in its pool gives way; be it that call's own.

        One that is used by now does not: somebody waits for it, too.
        """
        if not isinstance(event, Arrived) or event.call.kind != "sql":
            return
        if any(isinstance(action, Start | Refused) and action.call == event.call.id for action in actions):
            return
        for advance in reversed(self._running):
            if advance.pool == event.call.pool and self._is_unused(advance) and advance.task is not None:
                self._waste(advance)
                advance.task.cancel()
                return

    def watching(self, houses: Mapping[str, Warehouse]) -> dict[str, Warehouse]:
        """The same pools, and it is noticed here who looks for which result."""
        return {name: replace(house, kept=_Watched(name, house.kept, self)) for name, house in houses.items()}

    def _is_unused(self, advance: Advance) -> bool:
        return advance.key is not None and self._unused.get((advance.pool, advance.key)) is advance

    def _waste(self, advance: Advance) -> None:
        if self._is_unused(advance):
            del self._unused[advance.pool, advance.key]
            self._counts.sql_ahead("wasted")


class _Watched:
    """Results as they are kept, with an eye on who looks for them."""

    def __init__(self, pool: str, kept: Results, advances: Advances) -> None:
        self._pool = pool
        self._kept = kept
        self._advances = advances

    def get(self, key: Hashable) -> bytes | None:
        found = self._kept.get(key)
        self._advances.looked_for(self._pool, key, found=found is not None)
        return found

    def put(self, key: Hashable, result: bytes, *, seconds: float) -> None:
        self._kept.put(key, result, seconds=seconds)
