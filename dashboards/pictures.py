"""Draws the boards from a running Prometheus, for pages that cannot show Grafana.

`python -m dashboards.pictures --prometheus http://127.0.0.1:9090 --minutes 15 --out docs/dashboards`
"""

from __future__ import annotations

import argparse
import asyncio
import io
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

from dashboards.board import Board, Kind, Panel, Unit
from dashboards.boards import BOARDS
from dashboards.series import Series, Span, called, series_of

Drawn = Sequence[tuple[str, Series]]
"""The series of a panel, each with its name."""

GROUND, PAPER, INK, FAINT = "#111217", "#181b1f", "#ccccdc", "#34373e"
PALETTE = (
    *("#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#5794f2", "#b877d9", "#37872d"),
    *("#fade2a", "#96d98d", "#ffb357", "#a352cc", "#ff9830", "#1f60c4", "#ff7383", "#c8f2c2"),
)
COLORS: Mapping[str, str] = {
    **{"green": "#73bf69", "orange": "#ff9830", "red": "#f2495c"},
    **{"blue": "#5794f2", "yellow": "#fade2a", "purple": "#b877d9"},
}
COLUMN, TALL, SHORT, TITLE, MARGIN = 0.6, 2.4, 1.2, 0.36, 0.05
"""Inches: a 24th of the width, the height of panels and of mere figures, of a row's title, and around a panel."""
LETTER, MARK = 0.052, 0.36
"""Inches that a letter of a legend takes, and what stands before each name."""


@dataclass(frozen=True, slots=True)
class Box:
    """A place on the picture, in inches from its upper left corner."""

    left: float
    top: float
    width: float
    height: float

    def axes(self, figure: Figure, left: float = 0.0, top: float = 0.0, right: float = 0.0, low: float = 0.0) -> Axes:
        """Axes inside of it, with so much room on each side."""
        wide, high = figure.get_size_inches()
        return figure.add_axes(
            (
                (self.left + left) / wide,
                1 - (self.top + self.height - low) / high,
                (self.width - left - right) / wide,
                (self.height - top - low) / high,
            )
        )


async def draw(http: httpx.AsyncClient, span: Span, out: Path, boards: Sequence[Board] = BOARDS) -> None:
    """Write a PNG of each board into a folder that exists."""
    for board in boards:
        found = {panel.title: await _found(http, panel, span) for panel in board.panels()}
        page = io.BytesIO()
        picture(board, found, span).savefig(page, dpi=72, facecolor=GROUND)
        Image.open(page).convert("RGB").quantize(160).save(out / f"{board.name}.png", optimize=True)


async def _found(http: httpx.AsyncClient, panel: Panel, span: Span) -> Drawn:
    return [(called(query, one), one) for query in panel.queries for one in await series_of(http, query, span)]


def picture(board: Board, found: Mapping[str, Drawn], span: Span) -> Figure:
    """A board with the series of each panel, by its title."""
    titles, panels, height = _placed(board)
    figure = Figure(figsize=(24 * COLUMN, height))
    for text, top, size in titles:
        figure.text(0.006, 1 - top / height, text, color=INK, size=size, va="center")
    for panel, box in panels:
        ground = box.axes(figure)
        ground.set(facecolor=PAPER, xticks=[], yticks=[])
        ground.spines[:].set_color(FAINT)
        figure.text(
            (box.left + 0.1) / (24 * COLUMN),
            1 - (box.top + 0.17) / height,
            panel.title,
            color=INK,
            size=9.5,
            weight="bold",
            va="center",
        )
        if found[panel.title]:
            _DRAWERS[panel.kind](figure, box, panel, found[panel.title], span)
        else:
            center = (box.left + box.width / 2) / (24 * COLUMN), 1 - (box.top + box.height / 2) / height
            figure.text(*center, "No data", color=INK, ha="center")
    return figure


def _placed(board: Board) -> tuple[list[tuple[str, float, float]], list[tuple[Panel, Box]], float]:
    """Titles with their place and size, the panels with theirs, and the height of all."""
    titles, panels, top = [(board.title, 0.3, 15.0)], [], 0.55
    for row in board.rows:
        titles.append((row.title, top + TITLE / 2, 11.0))
        top += TITLE
        left, tall = 0, SHORT if all(panel.kind == "figure" for panel in row.panels) else TALL
        for panel in row.panels:
            wide = panel.width * COLUMN - 2 * MARGIN
            panels.append((panel, Box(left * COLUMN + MARGIN, top + MARGIN, wide, tall - 2 * MARGIN)))
            left += panel.width
            if left == 24:
                left, top = 0, top + tall
    return titles, panels, top + MARGIN


def _over_time(figure: Figure, box: Box, panel: Panel, span: Span, *, left: float = 0.62, low: float = 0.52) -> Axes:
    axes = box.axes(figure, left=left, top=0.36, right=0.14, low=low)
    axes.set(facecolor=PAPER, xlim=(0, span.end - span.start))
    axes.tick_params(colors=INK, labelsize=7, length=0)
    axes.spines[:].set_visible(False)
    axes.grid(color=FAINT, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 1.5, 2, 3, 6, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds // 60:.0f}:{seconds % 60:02.0f}"))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: said(value, panel.unit)))
    return axes


def _legend(axes: Axes, box: Box) -> None:
    """Two lines of names."""
    handles, names = axes.get_legend_handles_labels()
    beside = max(1, int(box.width / (MARK + LETTER * max(map(len, names), default=1))))
    if any(names):
        axes.legend(
            handles[: 2 * beside],
            names[: 2 * beside],
            loc="upper left",
            bbox_to_anchor=(-0.55 / (box.width - 0.76), -0.1),
            ncol=beside,
            fontsize=6.5,
            frameon=False,
            labelcolor=INK,
            handlelength=1.0,
            columnspacing=1.0,
            labelspacing=0.2,
        )


def _lines(figure: Figure, box: Box, panel: Panel, drawn: Drawn, span: Span) -> None:
    axes = _over_time(figure, box, panel, span)
    for number, (name, series) in enumerate(drawn):
        times = [at - span.start for at, _ in series.points]
        color = PALETTE[number % len(PALETTE)]
        axes.plot(times, [value for _, value in series.points], color=color, linewidth=1.1, label=name)
    _fit(axes, panel, max(value for _, series in drawn for _, value in series.points))
    for at, color in panel.limits[1:]:
        if axes.get_ylim()[0] <= at <= axes.get_ylim()[1]:
            axes.axhline(at, color=COLORS[color], linewidth=0.8, linestyle=(0, (6, 4)))
    _legend(axes, box)


def _stack(figure: Figure, box: Box, panel: Panel, drawn: Drawn, span: Span) -> None:
    axes = _over_time(figure, box, panel, span)
    times = sorted({at for _, series in drawn for at, _ in series.points})
    below = [0.0] * len(times)
    for number, (name, series) in enumerate(drawn):
        values = dict(series.points)
        above = [low + values.get(at, 0.0) for at, low in zip(times, below, strict=True)]
        color, seconds = PALETTE[number % len(PALETTE)], [at - span.start for at in times]
        axes.fill_between(seconds, below, above, color=color, alpha=0.45, linewidth=0, label=name)
        axes.plot(seconds, above, color=color, linewidth=0.8)
        below = above
    _fit(axes, panel, max(below))
    _legend(axes, box)


def _fit(axes: Axes, panel: Panel, most: float) -> None:
    """From the lowest to the highest value that the panel names, or that there is."""
    low, high = panel.bounds
    axes.set_ylim(bottom=low, top=high if high is not None else most * 1.1 or 1.0)


def _heat(figure: Figure, box: Box, panel: Panel, drawn: Drawn, span: Span) -> None:
    """A row for each bucket. What Prometheus counts is everything up to its bound."""
    axes = _over_time(figure, box, panel, span, low=0.3)
    buckets = sorted(drawn, key=lambda one: float(one[0]))
    times = sorted({at for _, series in buckets for at, _ in series.points})
    upto = [[dict(series.points).get(at, 0.0) for at in times] for _, series in buckets]
    below = [[0.0] * len(times), *upto[:-1]]
    only = [[more - less for more, less in zip(*pair, strict=True)] for pair in zip(upto, below, strict=True)]
    edges = [at - span.start for at in [*times, times[-1] + span.step]]
    cells = [[math.sqrt(max(0.0, value)) or math.nan for value in row] for row in only]
    axes.pcolormesh(edges, range(len(cells) + 1), cells, cmap="turbo", rasterized=True)
    axes.set_yticks(range(1, len(buckets)), [said(float(name), panel.unit) for name, _ in buckets[:-1]])
    axes.set_ylim(0, len(buckets))


def _figure(figure: Figure, box: Box, panel: Panel, drawn: Drawn, span: Span) -> None:
    """The last values, in the colour of the limit that they have reached."""
    wide, high = figure.get_size_inches()
    last = [(name, series.points[-1][1]) for name, series in drawn]
    words = "   ".join(f"{name} {said(value, panel.unit)}".strip() for name, value in last)
    reached = [color for at, color in panel.limits if last[0][1] >= at]
    center = (box.left + box.width / 2) / wide, 1 - (box.top + box.height * 0.6) / high
    color = COLORS[reached[-1]] if reached else INK
    figure.text(*center, words, color=color, size=19, ha="center", va="center")


def _states(figure: Figure, box: Box, panel: Panel, drawn: Drawn, span: Span) -> None:
    axes = _over_time(figure, box, panel, span, left=1.1)
    words = {at: (word, COLORS[color]) for at, word, color in panel.words}
    named: set[str] = set()
    names = sorted({name for name, _ in drawn}, reverse=True)
    for name, series in drawn:
        for at, value in series.points:
            word, color = words[round(value)]
            label = "" if word in named else word
            named.add(word)
            axes.barh(names.index(name), span.step, 0.7, at - span.start, color=color, linewidth=0, label=label)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", labelsize=6.5, pad=-2)
    _legend(axes, box)


_DRAWERS: Mapping[Kind, Callable[[Figure, Box, Panel, Drawn, Span], None]] = {
    "lines": _lines,
    "stack": _stack,
    "figure": _figure,
    "heat": _heat,
    "states": _states,
}


def said(value: float, unit: Unit) -> str:
    """A value with its unit, short."""
    match unit:
        case "percentunit":
            return f"{100 * value:.3g} %"
        case "s" if value and abs(value) < 1:
            return f"{1000 * value:.3g} ms" if abs(value) >= 0.001 else f"{1e6 * value:.3g} µs"
        case "s":
            return f"{value:.3g} s"
    sizes = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
    size, letter = next(((size, letter) for size, letter in sizes if abs(value) >= size), (1.0, ""))
    after = {"ops": "/s", "reqps": "/s", "bytes": "B"}.get(unit, "")
    return f"{value / size:.3g} {letter}{after}".replace(" /s", "/s").strip()


async def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m dashboards.pictures", description=__doc__)
    parser.add_argument("--prometheus", required=True, metavar="URL")
    parser.add_argument("--minutes", type=float, default=15.0, help="how far back (15)")
    parser.add_argument("--board", choices=[board.name for board in BOARDS], help="only this one")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="which exists")
    options = parser.parse_args(arguments)
    now, length = time.time(), 60 * options.minutes
    span = Span(start=now - length, end=now, step=max(1.0, length / 300), window=f"{max(15, round(length / 30))}s")
    async with httpx.AsyncClient(base_url=options.prometheus, timeout=30, trust_env=False) as http:
        await draw(http, span, options.out, [board for board in BOARDS if options.board in (None, board.name)])


if __name__ == "__main__":
    asyncio.run(main())
