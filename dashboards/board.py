"""What a board is: rows of panels, each with its queries, before it takes the form that Grafana reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["lines", "stack", "figure", "heat", "states"]
"""Lines over time; the same stacked; the last value as a figure; a histogram over time; which state when."""
Unit = Literal["s", "percentunit", "short", "ops", "reqps", "bytes", "none"]
"""Grafana's names: seconds, a share of 1, a number, per second, requests per second, bytes, as it comes."""

SLO = 0.95
"""The share of runs that shall meet their deadline. The alerts have it, too."""


@dataclass(frozen=True, slots=True)
class Query:
    """PromQL, and what its series are called: text with `{{label}}`."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One question about the gateway, and the queries that answer it.

    `limits` are values with the colour that holds from there on; `words` are values with what to show for them.
    `bounds` are the lowest and the highest value of the axis. `width` is out of 24.
    """

    title: str
    description: str
    queries: tuple[Query, ...]
    kind: Kind = "lines"
    unit: Unit = "short"
    width: int = 8
    limits: tuple[tuple[float, str], ...] = ()
    words: tuple[tuple[int, str, str], ...] = ()
    bounds: tuple[float | None, float | None] = (0, None)


@dataclass(frozen=True, slots=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Variable:
    """A choice above the board: values of a label, any number of them or all.

    `everything` is what all of them are: an expression that fits more than they do, or none, for they themselves.
    """

    name: str
    label: str
    metric: str
    meaning: str
    everything: str | None = ".*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """`name` is that of its file, and with `cortex-` before it its address in Grafana."""

    name: str
    title: str
    description: str
    variables: tuple[Variable, ...]
    rows: tuple[Row, ...]

    def panels(self) -> Iterator[Panel]:
        for row in self.rows:
            yield from row.panels


WORKFLOW = Variable("workflow", "workflow", "cortex_stage_queue_seconds_count", "Which workflows.")
POOL = Variable("pool", "pool", "cortex_engines", "Which pools, and the engines in them.")
INSTANCE = Variable("instance", "instance", "cortex_build_info", "Which gateways.", everything=None)


def rate(metric: str, *, by: str = "", where: str = "") -> str:
    """What a counter grows by in a second, added up."""
    return f"sum{_by(by)} (rate({metric}{_braces(where)}[$__rate_interval]))"


def total(metric: str, *, by: str = "", where: str = "") -> str:
    """A gauge, added up."""
    return f"sum{_by(by)} ({metric}{_braces(where)})"


def quantile(share: float, metric: str, *, by: str = "", where: str = "") -> str:
    """The value under which this share of a histogram's observations lie."""
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({share:g}, {rate(f'{metric}_bucket', by=labels, where=where)})"


def mean(metric: str, *, by: str = "", where: str = "") -> str:
    return f"{rate(f'{metric}_sum', by=by, where=where)} / {rate(f'{metric}_count', by=by, where=where)}"


def buckets(metric: str, *, where: str = "") -> tuple[Query, ...]:
    """The query of a heatmap: observations a second, by bucket."""
    return (Query(rate(f"{metric}_bucket", by="le", where=where), "{{le}}"),)


def _by(labels: str) -> str:
    return f" by ({labels})" if labels else ""


def _braces(where: str) -> str:
    return f"{{{where}}}" if where else ""
