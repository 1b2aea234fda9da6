"""How fast things happen: what the gateway's and its engines' counters have gained over the last seconds."""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gateway.terminal.facts import EngineFacts

WINDOW = 10.0
"""Seconds over which a rate is taken, as soon as they have been watched."""
_SERIES = re.compile(rb"^(cortex_[a-z_]+_total)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_SUMMED = {
    b"cortex_calls_total": b"outcome",
    b"cortex_refusals_total": b"",
    b"cortex_runs_ended_total": b"outcome",
    b"cortex_sql_answers_total": b"cache",
    b"cortex_completion_lookups_total": b"cache",
}
"""The counters that are shown, each with the label whose values are kept apart; the others are summed up."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Counters at one time, by `name` or `name value-of-its-label`."""

    at: float
    counts: Mapping[str, float]


def counted(page: bytes, engines: Iterable[EngineFacts], at: float) -> Counts:
    """The counters of a page of metrics, and those of the engines: `engine NAME COUNTER`."""
    found: defaultdict[str, float] = defaultdict(float)
    for name, labels, value in _SERIES.findall(page):
        by = _SUMMED.get(name)
        if by is not None:
            kept = re.search(rb'(?:^|,)%s="([^"]*)"' % by, labels) if by else None
            found[f"{name.decode()} {kept[1].decode() if kept else ''}".strip()] += float(value)
    for engine in engines:
        for name, value in engine.counters.items():
            found[f"engine {engine.name} {name}"] = value
    return Counts(at, found)


class Rates:
    """Counters over the last seconds. A counter that went back says that what counts began anew: so does this."""

    def __init__(self) -> None:
        self._seen: deque[Counts] = deque()
        self._gained: dict[str, float] = {}

    def add(self, counts: Counts) -> None:
        if self._seen and any(counts.counts.get(name, was) < was for name, was in self._seen[-1].counts.items()):
            self._seen.clear()
        self._seen.append(counts)
        while len(self._seen) > 2 and self._seen[1].at <= counts.at - WINDOW:
            self._seen.popleft()
        first = self._seen[0]
        seconds = counts.at - first.at
        self._gained = {
            name: (value - first.counts.get(name, 0.0)) / seconds for name, value in counts.counts.items() if seconds
        }

    @property
    def known(self) -> bool:
        return len(self._seen) > 1

    def of(self, name: str, *values: str) -> float:
        """Gained a second by a counter: by the series of these values of its label, or by all where none is named."""
        if values:
            return sum(self._gained.get(f"{name} {value}", 0.0) for value in values)
        return sum(rate for series, rate in self._gained.items() if series.partition(" ")[0] == name)

    def share(self, name: str, *values: str, among: tuple[str, ...] = ()) -> float | None:
        """The share of these values of a label `among` others, or all; None where nothing was counted."""
        whole = self.of(name, *among)
        return self.of(name, *values) / whole if whole > 0 else None

    def engine(self, engine: str, counter: str) -> float:
        """Gained a second by a counter of one engine."""
        return self._gained.get(f"engine {engine} {counter}", 0.0)
