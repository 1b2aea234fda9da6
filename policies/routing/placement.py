"""Which waiting call starts where: the most urgent heads of the queues, each on the engine that its pool's policy
picks.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from random import Random

from policies.calls import Call
from policies.catalog import Policies
from policies.fleet import Fleet
from policies.lines import Lines
from policies.pool import DECODE_WEIGHT, EngineState, EngineView
from policies.protocols import Demand
from policies.queue import LOST, StageQueue, Waiting
from policies.routing.prefix import PrefixIndex
from policies.routing.residency import Residency
from policies.slack import urgency


def work(entry: Waiting, matched: int) -> tuple[float, float]:
    """The committed work of a call on an engine that holds `matched` tokens of its prompt: prefill and decode."""
    return float(entry.call.missing(matched)), DECODE_WEIGHT * entry.estimate.output_tokens[0]


class Floor:
    """Brings calls and engines together. Takes no decision of its own but the order of the steps."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        lines: Lines,
        prefixes: PrefixIndex,
        residency: Residency | None = None,
        policies: Mapping[str, Policies],
        rng: Random,
    ) -> None:
        self._fleet = fleet
        self._lines = lines
        self._prefixes = prefixes
        self._residency = residency
        self._policies = policies
        self._rng = rng

    def starts(
        self, group: tuple[str, ...], now: float, passed: list[Waiting]
    ) -> Iterator[tuple[Waiting, EngineView]]:
        """The calls of pools that share engines that can start, each with its engine, until no more can be placed.

        Whoever iterates starts each at once. A call that finds no room keeps the engines that it could use: no call
        behind it gets them, or a large one would wait for ever. One that has failed elsewhere, or can go to one
        engine alone, keeps fewer, so those behind it may pass; it is taken out of its queue and put into `passed`. A
        guest whom an engine was not lent is asked again when a call has started since: perhaps nobody waits for that
        engine any more.
        """
        again = any(pool in self._lines for pool in group)
        while again:
            again = False
            guest_waits = False
            for entry, choice, shut_out in self._pass(group, now, passed):
                if choice is None:
                    guest_waits = guest_waits or shut_out
                else:
                    again = again or guest_waits
                    yield entry, choice

    def sent(self, call: Call, engine: str) -> None:
        """A call goes to this engine: the next one is placed by what it will hold."""
        self._prefixes.sent(call.prefix, engine)
        if self._residency is not None:
            self._residency.sent(call, engine)

    def _matches(self, call: Call, engines: Sequence[str]) -> Mapping[str, int]:
        """How many leading tokens of its prompt each engine holds: by its own word where there is one."""
        believed = self._prefixes.matches(call.prefix, engines)
        if self._residency is None:
            return believed
        return {**believed, **self._residency.held(call, engines)}

    def _pass(
        self, group: tuple[str, ...], now: float, passed: list[Waiting]
    ) -> Iterator[tuple[Waiting, EngineView | None, bool]]:
        free = self._fleet.roomy(group, now)
        heads = [] if not free else [(head.spot, queue) for queue in self._queues(group) if (head := queue.head(now))]
        heapq.heapify(heads)
        while heads and free:
            queue = heapq.heappop(heads)[1]
            head = queue.head(now)
            assert head is not None
            choice, asked = self._place(head, free, now)
            yield head, choice, len(asked) < len(free)
            if choice is None:
                free = [engine for engine in free if engine.name not in asked or engine.name in head.tried]
                if head.tried or head.call.only:
                    self._lines.take(head)
                    passed.append(head)
            else:
                free = [engine for engine in free if engine.has_room(0)]
            following = queue.head(now)
            if following is not None and following is not head:
                heapq.heappush(heads, (following.spot, queue))

    def _queues(self, group: tuple[str, ...]) -> Iterator[StageQueue]:
        for pool in group:
            yield from self._lines.of(pool)

    def _place(
        self, entry: Waiting, free: Sequence[EngineState], now: float
    ) -> tuple[EngineView | None, Sequence[str]]:
        """The engine that takes the call, None where none can; and which of the free ones it may ask at all."""
        views, asked = self._offers(entry, free, now)
        if not views:
            return None, asked
        demand = Demand(
            call=entry.call,
            output=entry.estimate.output_tokens[0],
            urgency=urgency(entry.deadline, entry.estimate, now),
            lost=entry.rank == LOST,
            bounded=entry.deadline is not None,
        )
        return self._policies[entry.call.pool].routing.choose(demand, views, self._rng), asked

    def _offers(
        self, entry: Waiting, free: Sequence[EngineState], now: float
    ) -> tuple[Sequence[EngineView], Sequence[str]]:
        """The free engines with room for a call; and which of the free ones it may ask at all: those of its own pool,
        and those of other pools that are lent to it.
        """
        call, borrowing = entry.call, self._policies[entry.call.pool].borrowing
        near = [
            engine
            for engine in free
            if call.pool in self._fleet.borrowers[engine.pool] and call.only in ("", engine.name)
        ]
        # A pool without an engine of its own lives on what others lend.
        gated = borrowing.gated and not call.only and any(engine.usable(now) for engine in self._fleet.of(call.pool))
        asked = [engine.name for engine in near if not gated or engine.pool == call.pool]
        # Even were all of the prompt there, the answer must fit.
        fitting = [engine for engine in near if engine.has_room(DECODE_WEIGHT * entry.estimate.output_tokens[0])]
        matches = self._matches(call, [engine.name for engine in fitting])
        views = []
        for engine in fitting:
            name = engine.name
            matched, guest = matches[name], gated and engine.pool != call.pool
            room = engine.has_room(sum(work(entry, matched)))
            if not room and not guest:
                continue
            hot = self._prefixes.hot(name)
            view = engine.view(now, matched=matched, tried=name in entry.tried, hot=hot, guest=guest)
            if guest:
                if not borrowing.lends(call, entry.estimate, view, engine.pool in self._lines):
                    continue
                asked.append(name)
            if room:
                views.append(view)
        return views, asked
