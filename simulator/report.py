"""What a campaign says in figures: one row for each entrant at each load, as text, Markdown and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from types import MappingProxyType

from simulator.campaign import Finding, StageTimes
from simulator.compare import interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """An entrant at a load: means over the seeds.

    `margin` is the half width of the attainment's 95 % confidence interval, not a number for a single seed. A mean of
    seconds is infinite where a single seed's is.
    """

    rate: float
    entrant: str
    seeds: int
    attainment: float
    margin: float
    goodput: float
    p50: float
    p95: float
    p99: float
    wait: float
    prefill: float
    hits: float
    refused: float
    stages: Mapping[str, StageTimes]


def rows(findings: Iterable[Finding]) -> list[Row]:
    """One for each rate and entrant, in the order in which they first came."""
    groups: dict[tuple[float, str], list[Finding]] = {}
    for one in findings:
        groups.setdefault((one.rate, one.entrant), []).append(one)
    return [_row(rate, entrant, found) for (rate, entrant), found in groups.items()]


def _row(rate: float, entrant: str, found: Sequence[Finding]) -> Row:
    attainment, margin = interval([one.attainment for one in found])
    names = dict.fromkeys(stage for one in found for stage in one.stages)
    return Row(
        rate=rate,
        entrant=entrant,
        seeds=len(found),
        attainment=attainment,
        margin=margin,
        goodput=fmean(one.goodput for one in found),
        p50=fmean(one.p50 for one in found),
        p95=fmean(one.p95 for one in found),
        p99=fmean(one.p99 for one in found),
        wait=fmean(one.wait for one in found),
        prefill=fmean(one.prefill for one in found),
        hits=fmean(one.hits for one in found),
        refused=fmean(one.refused for one in found),
        stages={name: _times([one.stages[name] for one in found if name in one.stages]) for name in names},
    )


def _times(found: Sequence[StageTimes]) -> StageTimes:
    return StageTimes(wait=fmean(one.wait for one in found), service=fmean(one.service for one in found))


COLUMNS: Mapping[str, Callable[[Row], str]] = MappingProxyType(
    {
        "runs/s": lambda row: f"{row.rate:g}",
        "contender": lambda row: row.entrant,
        "in time": lambda row: share(row.attainment, row.margin),
        "goodput/s": lambda row: f"{row.goodput:.3f}" if math.isfinite(row.goodput) else "–",
        "p50": lambda row: seconds(row.p50),
        "p95": lambda row: seconds(row.p95),
        "p99": lambda row: seconds(row.p99),
        "queue wait": lambda row: seconds(row.wait),
        "prefill tokens": lambda row: f"{row.prefill:,.0f}",
        "prefix hits": lambda row: f"{row.hits:.1%}",
        "refused": lambda row: f"{row.refused:g}",
    }
)
"""What the tables show of a row."""

STAGE_TIMES: Mapping[str, Callable[[StageTimes], float]] = MappingProxyType(
    {"in the queue": lambda times: times.wait, "in the engine": lambda times: times.service}
)
"""Where a call spends its time."""


def share(value: float, margin: float) -> str:
    """A share of runs, with its margin where there is one."""
    return f"{100 * value:.1f} %" + ("" if math.isnan(margin) else f" ± {100 * margin:.1f}")


def seconds(value: float) -> str:
    """Seconds with three figures; `none` where no call was answered, and `–` where so many runs did not end."""
    if math.isnan(value):
        return "none"
    if math.isinf(value):
        return "–"
    return f"{value:.0f} s" if value >= 100 else f"{value:.1f} s" if value >= 10 else f"{value:.2f} s"


def text(found: Sequence[Row]) -> str:
    """A table for a terminal: a blank line between loads."""
    cells = [[show(row) for show in COLUMNS.values()] for row in found]
    widths = [max(map(len, column)) for column in zip(COLUMNS, *cells, strict=True)]
    lines = [_aligned(list(COLUMNS), widths), "  ".join("─" * width for width in widths)]
    for number, row in enumerate(found):
        if number and row.rate != found[number - 1].rate:
            lines.append("")
        lines.append(_aligned(cells[number], widths))
    return "\n".join(lines)


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Names to the left, figures to the right."""
    pairs = enumerate(zip(cells, widths, strict=True))
    return "  ".join(cell.ljust(width) if n == 1 else cell.rjust(width) for n, (cell, width) in pairs).rstrip()


def markdown(title: str, found: Sequence[Row]) -> str:
    """The table, and one each for the seconds of the stages in the queue and in the engine."""
    parts = [
        f"# {title}",
        _markdown_table(list(COLUMNS), [[show(row) for show in COLUMNS.values()] for row in found]),
    ]
    for where, of in STAGE_TIMES.items():
        cells = [
            [
                f"{row.rate:g}",
                row.entrant,
                *(seconds(of(row.stages[s])) if s in row.stages else "" for s in stages(found)),
            ]
            for row in found
        ]
        parts += [
            f"Mean time of a call {where}, by stage:",
            _markdown_table(["runs/s", "contender", *stages(found)], cells),
        ]
    return "\n\n".join(parts) + "\n"


def stages(found: Iterable[Row]) -> list[str]:
    """Every stage that a row knows, in the order in which they came."""
    return list(dict.fromkeys(stage for row in found for stage in row.stages))


def _markdown_table(header: Sequence[str], cells: Iterable[Sequence[str]]) -> str:
    rule = ["---:" if n != 1 else "---" for n in range(len(header))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *cells))


def comma_separated(found: Sequence[Row]) -> str:
    """The same for programs: plain numbers, shares from 0 to 1, seconds; `inf` and `nan` where they are."""
    fields = [name for name in Row.__dataclass_fields__ if name != "stages"]
    times = [(stage, what) for stage in stages(found) for what in StageTimes.__dataclass_fields__]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*fields, *(f"{what}_{stage}" for stage, what in times)])
    for row in found:
        of_stages = (getattr(row.stages.get(stage), what, math.nan) for stage, what in times)
        writer.writerow([*(getattr(row, name) for name in fields), *of_stages])
    return out.getvalue()
