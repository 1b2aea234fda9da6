"""What one kind of call has taken: running means, quantile sketches, and whether they still hold."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from policies.drift import drifted
from policies.sketch import Sketch
from policies.snapshot import Record

MEMORY = 50
"""A mean weighs its last observations about like this many: old ones fade as 1 / MEMORY."""
TRUSTED = 3
"""Observations after which a profile is used instead of a more general one, and again after a change."""
FIRST, WINDOW = 8, 256
"""The newer half is compared with the older one each time that the observations have doubled from the first number;
from the second on, each time that so many are new, so that a change late in life is noticed as well."""
KEPT = 1024
"""A sketch weighs no more observations than this; older ones fade."""


@dataclass(slots=True)
class Measure:
    """One quantity: what was observed until the last comparison, and since."""

    older: Sketch = field(default_factory=Sketch)
    newer: Sketch = field(default_factory=Sketch)

    def all(self) -> Sketch:
        return self.older.merged(self.newer)

    def fold(self) -> None:
        """Count the newer observations among the older ones."""
        room = max(0.0, KEPT - self.newer.total)
        keep = min(1.0, room / self.older.total) if self.older.total else 1.0
        self.older, self.newer = self.older.merged(self.newer, keep), Sketch()

    def forget(self) -> None:
        """Drop the older observations."""
        self.older, self.newer = self.newer, Sketch()


@dataclass(slots=True)
class Profile:
    """One kind of call: seconds of service, tokens written, prompt tokens that no cache had, share that ended `ok`.

    `wary` counts down the observations that are wanted since they have changed.
    """

    service: float = 0.0
    output: float = 0.0
    success: float = 1.0
    count: int = 0
    wary: int = 0
    due: int = FIRST
    seconds: Measure = field(default_factory=Measure)
    written: Measure = field(default_factory=Measure)
    prefill: Measure = field(default_factory=Measure)

    @property
    def known(self) -> bool:
        """Whether enough has been seen, since it last changed, to order calls by it."""
        return self.count >= TRUSTED and not self.wary

    def observe(self, service: float, output: int, uncached: int | None, *, ok: bool) -> None:
        """Learn from one call. `uncached` is None where the engine does not say how much of the prompt it had."""
        self.count += 1
        self.wary = max(0, self.wary - 1)
        weight = 1.0 / min(self.count, MEMORY)
        self.service += weight * (service - self.service)
        self.output += weight * (output - self.output)
        self.success += weight * (ok - self.success)
        self.seconds.newer.add(service)
        self.written.newer.add(output)
        if uncached is not None:
            self.prefill.newer.add(uncached)
        if self.count >= self.due:
            self._compare()

    def spread(self, width: float) -> tuple[float, float]:
        """Mean and mean square of the seconds that the slowest of `width` calls takes."""
        seen = self.seconds.all()
        mean, square = seen.largest(width)
        alone = seen.largest(1.0)[0]
        scale = self.service / alone if alone else 0.0
        return mean * scale, square * scale * scale

    def dump(self) -> dict[str, object]:
        """The profile as plain data."""
        sketches = {
            f"{name}_{half}": getattr(measure, half).dump()
            for name, measure in self._measures().items()
            for half in ("older", "newer")
        }
        numbers = {name: getattr(self, name) for name in ("service", "output", "success", "count", "wary", "due")}
        return numbers | sketches

    @classmethod
    def load(cls, record: Record) -> Profile:
        """Raises ProfileError."""
        profile = cls(
            service=record.number("service"),
            output=record.number("output"),
            success=record.number("success", 1),
            count=record.whole("count"),
            wary=record.whole("wary", TRUSTED),
            due=record.whole("due"),
        )
        for name, measure in profile._measures().items():
            measure.older = Sketch.load(record.record(f"{name}_older"))
            measure.newer = Sketch.load(record.record(f"{name}_newer"))
        return profile

    def _measures(self) -> dict[str, Measure]:
        return {"seconds": self.seconds, "written": self.written, "prefill": self.prefill}

    def _compare(self) -> None:
        measures = self._measures().values()
        if any(drifted(measure.older, measure.newer) for measure in measures):
            self.service, self.output = self.seconds.newer.mean, self.written.newer.mean
            self.count, self.wary = math.ceil(self.seconds.newer.total), TRUSTED
            for measure in measures:
                measure.forget()
        else:
            for measure in measures:
                measure.fold()
        self.due = self.count + min(self.count, WINDOW)


def unseen(mean: float, width: float) -> tuple[float, float]:
    """As `Profile.spread`, where only a mean is believed: as if the times were exponential, about."""
    slowest = mean * (1.0 + math.log(max(1.0, width)))
    return slowest, slowest * slowest + mean * mean
