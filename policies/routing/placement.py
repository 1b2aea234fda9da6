"""Where a waiting call can go now: among the engines with room for its work, the one that the pool's policy picks."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from random import Random

from policies.borrowing import Borrowing
from policies.pool import EngineState, EngineView
from policies.protocols import Demand
from policies.queue import LOST, Waiting
from policies.routing.pipeline import Pipeline
from policies.routing.prefix import PrefixIndex
from policies.slack import urgency

DECODE_WEIGHT = 4.0
"""A token to be written costs an engine about as much as this many prompt tokens (tail-aware release, 2609.10964)."""


def work(entry: Waiting, matched: int) -> tuple[float, float]:
    """The committed work of a call on an engine that holds `matched` tokens of its prompt: prefill and decode."""
    prefill = max(0, entry.call.prompt_tokens - matched)
    return float(prefill), DECODE_WEIGHT * entry.estimate.output_tokens[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """What all placements have in common: what engines hold, chance, and whether calls of a pool wait."""

    prefixes: PrefixIndex
    rng: Random
    waits: Callable[[str], bool]

    def place(
        self,
        entry: Waiting,
        engines: Sequence[EngineState],
        *,
        kept: Container[str],
        routing: Pipeline,
        borrowing: Borrowing,
        now: float,
    ) -> tuple[EngineView | None, Sequence[str]]:
        """The engine that takes the call, None where none can; and the engines that it could use, had they room.

        `kept` are the engines that better calls wait for. An engine of another pool counts only while it is lent.
        """
        call = entry.call
        free = [one for one in engines if one.name not in kept and one.has_room(0) and one.usable(now)]
        if not free:
            return None, [one.name for one in engines if one.pool == call.pool or not borrowing.gated]
        matched = self.prefixes.matches(call.prefix, [engine.name for engine in free])
        views, asked = [], []
        for engine in free:
            view = engine.view(
                now,
                matched=matched[engine.name],
                tried=engine.name in entry.tried,
                hot=self.prefixes.hot(engine.name),
            )
            if engine.pool != call.pool and not borrowing.lends(call, entry.estimate, view, self.waits(engine.pool)):
                continue
            asked.append(engine.name)
            if engine.has_room(sum(work(entry, view.matched))):
                views.append(view)
        demand = Demand(
            call=call,
            output=entry.estimate.output_tokens[0],
            urgency=urgency(entry.deadline, entry.estimate, now),
            lost=entry.rank == LOST,
        )
        choice = routing.choose(demand, views, self.rng)
        if choice is None:
            asked = [one.name for one in engines if one.pool == call.pool or not borrowing.gated] + asked
        return choice, asked
