"""How much committed work an engine is given at once: ready is not released."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Congestion:
    """How long calls of one pool have waited inside its engines of late, in seconds from being sent to the first
    token, and how many wait in an engine now, in the mean."""

    waits: Sequence[float]
    waiting: float


class Budget(Protocol):
    """The committed work, in tokens, that each engine of a pool may hold. `period` in seconds between reviews."""

    @property
    def period(self) -> float | None: ...

    def resized(self, work: float, congestion: Congestion) -> float:
        """The new budget at a review; `work` is infinite at the first."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """The configured `concurrency.work` of the pool, and nothing besides."""

    period: None = field(default=None, init=False)

    def resized(self, work: float, congestion: Congestion) -> float:
        return math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Adaptive:
    """A budget that shrinks while an engine is congested and grows else (readiness and release, arXiv 2609.10964).

    Published: it starts at `start` tokens and stays between `least` and `most`; congested is a mean wait in the
    engine above `mean`, a 95th percentile above `p95`, or more than `waiting` calls that wait there. Assumed: the
    review every `period`, the factors `cut` and `grow`, and that the wait is the time to the first token, which
    holds the prefill.
    """

    period: float = field(default=5.0, metadata={"unit": "s", "above": 0.0})
    start: float = field(default=120_000.0, metadata={"above": 0.0})
    least: float = field(default=30_000.0, metadata={"above": 0.0})
    most: float = field(default=300_000.0, metadata={"above": 0.0})
    mean: float = field(default=1.0, metadata={"unit": "s"})
    p95: float = field(default=5.0, metadata={"unit": "s"})
    waiting: float = 2.0
    cut: float = field(default=0.8, metadata={"above": 0.0, "most": 1.0})
    grow: float = field(default=1.1, metadata={"least": 1.0})

    def __post_init__(self) -> None:
        if self.least > self.most:
            raise ValueError(f"'least' ({self.least:g}) must not be above 'most' ({self.most:g})")

    def resized(self, work: float, congestion: Congestion) -> float:
        if math.isinf(work):
            return min(self.most, max(self.least, self.start))
        factor = self.cut if self._congested(congestion) else self.grow
        return min(self.most, max(self.least, work * factor))

    def _congested(self, congestion: Congestion) -> bool:
        if congestion.waiting > self.waiting:
            return True
        waits = sorted(congestion.waits)
        if not waits:
            return False
        return sum(waits) / len(waits) > self.mean or waits[math.ceil(0.95 * len(waits)) - 1] > self.p95
