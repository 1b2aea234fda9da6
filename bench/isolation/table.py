"""The measurements in words: a table for each cell, and the verdict below."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from types import MappingProxyType

from bench.isolation.cells import CALLS, CLIENTS, CONTENDERS
from bench.isolation.rows import Row, cells, of
from bench.isolation.verdict import bars
from bench.policies.table import Section

Figure = Callable[[Row], float]
COLUMNS: Mapping[str, tuple[Figure, str]] = MappingProxyType(
    {
        "hit rate": (lambda row: 100 * row.hits, "{:.1f}"),
        "prefill tokens": (lambda row: row.prefill, "{:,.0f}"),
        "KV in use": (lambda row: row.kv_mean, "{:.0f}"),
        "at most": (lambda row: row.kv_peak, "{:.0f}"),
        "cached": (lambda row: row.cached or 0, "{:.0f}"),
        "preempted": (lambda row: row.preemptions, "{:.0f}"),
        "busier engine": (lambda row: 100 * row.busier, "{:.0f}"),
        "calls/s": (lambda row: row.rate, "{:.2f}"),
        "call p50": (lambda row: row.call(0.5), "{:.2f}"),
        "call p95": (lambda row: row.call(0.95), "{:.2f}"),
        "run p50": (lambda row: row.run(0.5), "{:.2f}"),
        "run p95": (lambda row: row.run(0.95), "{:.2f}"),
    }
)
LEGEND = (
    f"At least {CALLS} calls a trial, {CLIENTS} workflows at once, prefix caches cold at its beginning, all through "
    "a gateway whose configuration is what differs.",
    "The median of the repetitions; in brackets the least and the most, where they differ.",
    "Hit rate: % of the prompt tokens that a cache had. Prefill tokens: those computed. KV memory in blocks of both "
    "engines: in use by calls (mean over time, and at most), and cached at most (from KV events).",
    "Busier engine: its share, in %, of the tokens computed and written. Times in seconds.",
)


def sections(rows: Sequence[Row], about: str) -> list[Section]:
    """All that is to be said; `about` is where, when and how it was measured."""
    made = [Section(title="Stage isolation and its rivals", says=[about, *LEGEND])]
    for cell in cells(rows):
        found = [(one.name, of(rows, cell, one.name)) for one in CONTENDERS]
        shown = [
            name for name in COLUMNS if name != "cached" or any(row.cached for _, several in found for row in several)
        ]
        grid = [["contender", *shown, "calls by engine"]]
        grid += [
            [name, *(_shown(several, *COLUMNS[column]) for column in shown), _calls(several)]
            for name, several in found
            if several
        ]
        made.append(Section(title=cell.name, grid=grid))
    says = [
        line for bar in bars(rows) for line in (f"{bar.word}: {bar.asks}", *(f"    {line}" for line in bar.found))
    ]
    return [*made, Section(title="Verdict", says=says)]


def _shown(several: Sequence[Row], figure: Figure, form: str) -> str:
    values = [figure(row) for row in several]
    said, least, most = (form.format(value) for value in (median(values), min(values), max(values)))
    return said if least == most else f"{said} ({least}–{most})"


def _calls(several: Sequence[Row]) -> str:
    return ", ".join(dict.fromkeys("/".join(map(str, row.calls_of)) for row in several))
