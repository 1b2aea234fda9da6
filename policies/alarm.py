"""When the dispatcher wants to be woken: at the next turn of an engine that is left out, or at the next review."""

from __future__ import annotations

import math

from policies.events import Wake
from policies.fleet import Fleet
from policies.reviews import Reviews


class Alarm:
    """The one time that is set. `busy` is whether any call is known: without one nothing is reviewed."""

    def __init__(self, fleet: Fleet, reviews: Reviews) -> None:
        self._fleet = fleet
        self._reviews = reviews
        self._at = math.inf

    def rang(self) -> None:
        """It is not set any more."""
        self._at = math.inf

    def plan(self, now: float, *, busy: bool) -> list[Wake]:
        """Set it anew. Failures, the fleet's own events and reviews change when it is to be."""
        turn = self._fleet.next_turn(now)
        at = min(self._review(now, busy=busy), math.inf if turn is None else turn)
        before, self._at = self._at, at
        return [Wake(at=at)] if at not in (before, math.inf) else []

    def hasten(self, now: float, *, busy: bool) -> list[Wake]:
        """Set it anew where a review is due before it."""
        return self.plan(now, busy=busy) if self._review(now, busy=busy) < self._at else []

    def _review(self, now: float, *, busy: bool) -> float:
        return self._reviews.next_at(now) if busy and self._reviews.needed else math.inf
