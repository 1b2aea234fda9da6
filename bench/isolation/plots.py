"""The measurements in pictures, as SVG and PNG: prompt tokens computed, KV memory, and times, cell by cell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.isolation.cells import CONTENDERS
from bench.isolation.rows import Row, cells, of
from simulator.plots import COLOURS, DOTS_PER_INCH, GREY, SETTINGS

ACROSS = 3
DARK, LIGHT = 1.0, 0.35

Drawn = Callable[[Axes, int, Sequence[Row]], None]


def draw(folder: Path, rows: Sequence[Row]) -> list[Path]:
    """Write the pictures into a folder; returns the files. Raises OSError."""
    pictures: list[tuple[str, str, Drawn]] = [
        ("prefill", "prompt tokens computed, in thousands (bar: median, line: least to most)", _prefill),
        ("kv", "KV blocks of both engines: in use in the mean (dark), at most (light), cached at most (line)", _kv),
        (
            "times",
            "seconds of a run: median (dark) and 95th percentile (light); line: the median's least to most",
            _times,
        ),
    ]
    written = []
    with matplotlib.rc_context(dict(SETTINGS)):  # type: ignore[arg-type]  # its stubs list every key by name
        for name, title, drawn in pictures:
            figure = _figure(rows, title, drawn)
            for kind, about in (("svg", {"Date": None}), ("png", {"Software": None})):
                path = folder / f"{name}.{kind}"
                figure.savefig(path, dpi=DOTS_PER_INCH, bbox_inches="tight", metadata=about)
                written.append(path)
    return written


def _figure(rows: Sequence[Row], title: str, drawn: Drawn) -> Figure:
    """A panel for each cell, with a bar for each contender."""
    measured = cells(rows)
    across = min(ACROSS, len(measured))
    down = -(-len(measured) // across)
    figure = Figure(figsize=(1.6 + 3.1 * across, 0.5 + 2.3 * down), layout="constrained")
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    panels = figure.subplots(down, across, sharey=True, squeeze=False)
    names = [one.name for one in CONTENDERS]
    for axes, cell in zip(panels.flat, measured, strict=False):
        for place, name in enumerate(names):
            if several := of(rows, cell, name):
                drawn(axes, place, several)
        axes.set_title(cell.name, fontsize=9)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlim(left=0)
        axes.grid(axis="y", visible=False)
    for axes in list(panels.flat)[len(measured) :]:
        axes.set_visible(False)
    return figure


def _prefill(axes: Axes, place: int, several: Sequence[Row]) -> None:
    values = [row.prefill / 1000 for row in several]
    _bar(axes, place, median(values), DARK)
    _line(axes, place, values)


def _kv(axes: Axes, place: int, several: Sequence[Row]) -> None:
    _bar(axes, place, median(row.kv_peak for row in several), LIGHT)
    _bar(axes, place, median(row.kv_mean for row in several), DARK)
    cached = [row.cached for row in several if row.cached]
    if cached:
        axes.plot([median(cached)] * 2, [place - 0.4, place + 0.4], color="black", linewidth=1.5)


def _times(axes: Axes, place: int, several: Sequence[Row]) -> None:
    _bar(axes, place, median(row.run(0.95) for row in several), LIGHT)
    values = [row.run(0.5) for row in several]
    _bar(axes, place, median(values), DARK)
    _line(axes, place, values)


def _bar(axes: Axes, place: int, value: float, strength: float) -> None:
    axes.barh(place, value, height=0.7, color=COLOURS[place], alpha=strength, linewidth=0)


def _line(axes: Axes, place: int, values: Sequence[float]) -> None:
    if max(values) > min(values):
        axes.plot([min(values), max(values)], [place, place], color=GREY, linewidth=2)
