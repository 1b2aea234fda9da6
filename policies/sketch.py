"""A bounded summary of many numbers that answers for their quantiles: buckets whose bounds grow by one factor.

The buckets of DDSketch (Masson, Rim and Lee, VLDB 2019, arXiv 1908.10693): a quantile is off by ERROR of itself at
most, whatever the distribution.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import accumulate

from policies.snapshot import ProfileError, Record

ERROR = 0.05
LEAST, MOST = 1e-6, 1e9
"""Numbers up to the first count as nought, those beyond the second as that."""
_LOG = math.log((1 + ERROR) / (1 - ERROR))
_FIRST, _LAST = math.ceil(math.log(LEAST) / _LOG), math.ceil(math.log(MOST) / _LOG)
BUCKETS = _LAST - _FIRST + 1
VALUES = (0.0, *(math.exp(_LOG * index) * (1 - ERROR) for index in range(_FIRST + 1, _LAST + 1)))
"""For each bucket the number that is off by no more than ERROR from all in it."""


class Sketch:
    """Numbers by bucket. `total` is how many, less what has faded; `sum` is theirs, exactly."""

    __slots__ = ("buckets", "sum", "total")

    def __init__(self, buckets: Mapping[int, float] | None = None, total: float = 0.0, sum: float = 0.0) -> None:
        self.buckets: dict[int, float] = dict(buckets or {})
        self.total = total
        self.sum = sum

    def add(self, number: float) -> None:
        index = 0 if number <= LEAST else math.ceil(math.log(min(number, MOST)) / _LOG) - _FIRST
        self.buckets[index] = self.buckets.get(index, 0.0) + 1.0
        self.total += 1.0
        self.sum += number

    @property
    def mean(self) -> float:
        return self.sum / self.total if self.total else 0.0

    def merged(self, other: Sketch, keep: float = 1.0) -> Sketch:
        """Both in one, of this one only the share `keep`."""
        buckets = {index: keep * weight for index, weight in self.buckets.items() if keep * weight > 1e-3}
        for index, weight in other.buckets.items():
            buckets[index] = buckets.get(index, 0.0) + weight
        return Sketch(buckets, sum(buckets.values()), keep * self.sum + other.sum)

    def shares(self) -> list[tuple[float, float]]:
        """The numbers in rising order, each with the share of all that is not above it."""
        order = sorted(self.buckets)
        risen = accumulate(self.buckets[index] for index in order)
        return [(VALUES[index], weight / self.total) for index, weight in zip(order, risen, strict=True)]

    def quantile(self, share: float) -> float:
        """The number that this share of all does not exceed; 0 of an empty sketch."""
        found = 0.0
        for found, risen in self.shares():  # noqa: B007 - the last one stands for what rounding leaves
            if risen >= share - 1e-9:
                break
        return found

    def largest(self, draws: float) -> tuple[float, float]:
        """Mean and mean square of the largest of so many draws (1 at least, not necessarily whole)."""
        return largest(self.shares(), draws)

    def dump(self) -> dict[str, object]:
        return {"sum": self.sum, "buckets": [[index, self.buckets[index]] for index in sorted(self.buckets)]}

    @classmethod
    def load(cls, record: Record) -> Sketch:
        """Raises ProfileError."""
        buckets = record.numbers("buckets", BUCKETS)
        if not all(0 <= index < BUCKETS for index in buckets):
            raise ProfileError(f"{record.place}buckets: has a bucket that does not exist")
        return cls(buckets, math.fsum(buckets.values()), record.number("sum"))


def largest(shares: Iterable[tuple[float, float]], draws: float) -> tuple[float, float]:
    """Mean and mean square of the largest of so many draws from a distribution in rising steps."""
    mean = square = before = 0.0
    for number, risen in shares:
        power = risen**draws
        mean += (power - before) * number
        square += (power - before) * number * number
        before = power
    return mean, square
