"""What Prometheus answers to the query of a panel, over a span of time."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import httpx

from dashboards.board import Query


@dataclass(frozen=True, slots=True)
class Series:
    """Values by their time, which are seconds since the epoch. Those that are no number are left out."""

    labels: Mapping[str, str]
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """From when to when, a value every `step` seconds; `window` is what `$__rate_interval` stands for."""

    start: float
    end: float
    step: float = 1.0
    window: str = "15s"

    def fill(self, expr: str) -> str:
        """An expression with all values of each variable chosen."""
        known = {"$__rate_interval": self.window, "$__range": f"{max(1, round(self.end - self.start))}s"}
        return re.sub(r"\$\w+", lambda found: known.get(found[0], ".*"), expr)


async def series_of(http: httpx.AsyncClient, query: Query, span: Span) -> list[Series]:
    """The series of a query that have a value. Raises httpx.HTTPStatusError for what Prometheus does not take."""
    form = {"query": span.fill(query.expr), "start": span.start, "end": span.end, "step": span.step}
    reply = (await http.post("/api/v1/query_range", data=form)).raise_for_status().json()
    found = []
    for one in reply["data"]["result"]:
        values = ((float(at), float(value)) for at, value in one["values"])
        if points := tuple((at, value) for at, value in values if math.isfinite(value)):
            found.append(Series(one["metric"], points))
    return found


def called(query: Query, series: Series) -> str:
    """What a series is called in the legend."""
    return re.sub(r"{{(\w+)}}", lambda found: series.labels.get(found[1], ""), query.legend)
