"""What a campaign says in pictures: attainment, latency, KV memory and waits, as SVG and PNG.

Colours are those of Okabe and Ito, which colour-blind readers tell apart; each line has a marker of its own besides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from simulator.campaign import Finding
from simulator.report import STAGE_TIMES, Row, rows, stages

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
DASHES = ("-", "--", ":", "-.")
TARGET = 0.95
"""The share of runs in time that a fleet is usually sized for."""
GREY = "#777777"
SETTINGS: Mapping[str, object] = MappingProxyType(
    {
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.titlelocation": "left",
        "axes.titlesize": 11,
        "grid.color": "#e4e4e4",
        "axes.axisbelow": True,
        "legend.frameon": False,
        "svg.hashsalt": "cortex",
        "svg.fonttype": "none",
    }
)
DOTS_PER_INCH = 150
MINUTES_FROM = 300.0
"""Seconds from which a time axis is in minutes."""
NOTHING = 0.01
"""Seconds that are as good as none."""
CURVES_MOST = len(COLOURS)
"""Curves over time cross too often for more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What tells a line from another: no two are alike among the first 196."""

    colour: str
    marker: str
    dash: str


@dataclass(frozen=True, slots=True)
class Chart:
    """All that the pictures are drawn from."""

    title: str
    findings: Sequence[Finding]
    rows: Sequence[Row]

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(row.entrant for row in self.rows))

    @property
    def rates(self) -> list[float]:
        return sorted({row.rate for row in self.rows})

    @property
    def busiest(self) -> float:
        return self.rates[-1]

    @property
    def certain(self) -> bool:
        """Whether there are enough seeds for an interval that says something."""
        return not any(math.isnan(row.margin) for row in self.rows)

    def of(self, name: str) -> list[Row]:
        """An entrant's rows by rising load."""
        return sorted((row for row in self.rows if row.entrant == name), key=lambda row: row.rate)

    def look(self, name: str) -> Look:
        """How an entrant's line is drawn."""
        number = self.names.index(name)
        turn = number // len(COLOURS)
        return Look(
            colour=COLOURS[number % len(COLOURS)],
            marker=MARKERS[(number + turn) % len(MARKERS)],
            dash=DASHES[turn % len(DASHES)],
        )


def draw(folder: Path, title: str, findings: Sequence[Finding]) -> list[Path]:
    """Write every picture into a folder; returns the files. Raises OSError."""
    chart = Chart(title, findings, rows(findings))
    written = []
    with matplotlib.rc_context(dict(SETTINGS)):  # type: ignore[arg-type]  # its stubs list every key by name
        for name, picture in PICTURES.items():
            figure = picture(chart)
            if figure is None:
                continue
            for kind, about in (("svg", {"Date": None}), ("png", {"Software": None})):
                path = folder / f"{name}.{kind}"
                figure.savefig(path, dpi=DOTS_PER_INCH, bbox_inches="tight", metadata=about)
                written.append(path)
    return written


def attainment(chart: Chart) -> Figure:
    """The share of runs in time against the load, with its confidence interval."""
    figure = _figure(chart, 7.0)
    axes = figure.subplots()
    percent = PercentFormatter(1.0, decimals=0, symbol=" %")
    if len(chart.rates) == 1:
        _beside(chart, axes, lambda row: [row.attainment], margins=chart.certain)
        axes.axvline(TARGET, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
        axes.xaxis.set_major_formatter(percent)
        axes.set_xlabel("runs that met their deadline")
    else:
        for name in chart.names:
            _plot(chart, axes, name, [(row.rate, row.attainment) for row in chart.of(name)])
            if chart.certain:
                _margins(chart, axes, name)
        axes.axhline(TARGET, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
        axes.yaxis.set_major_formatter(percent)
        lowest = min(row.attainment for row in chart.rows)
        axes.set_ylim(max(0.0, min(lowest - 0.1, 0.8)), 1.02)
        axes.set_ylabel("runs that met their deadline")
        _against_load(chart, axes)
        _legend(figure, axes)
    sure = "; bars: 95 % confidence over the seeds" if chart.certain else ""
    axes.set_title(f"{chart.title}: SLO attainment{_at(chart)}\n(dashed: {100 * TARGET:.0f} %{sure})")
    return figure


def latency(chart: Chart) -> Figure:
    """The quantiles of the seconds that runs take."""
    if len(chart.rates) == 1:
        figure = _figure(chart, 7.0)
        axes = figure.subplots()
        _beside(chart, axes, lambda row: [row.p50, row.p95, row.p99])
        axes.set_xlim(left=0)
        axes.set_xlabel("seconds that a run takes (filled: p50, hollow: p95, then p99)")
        axes.set_title(f"{chart.title}: run latency{_at(chart)}")
        return figure
    figure = _figure(chart, 10.0)
    panels = figure.subplots(1, 2)
    shown: list[tuple[str, Callable[[Row], float]]] = [("p50", lambda row: row.p50), ("p95", lambda row: row.p95)]
    for axes, (what, of) in zip(panels, shown, strict=True):
        for name in chart.names:
            _plot(chart, axes, name, [(row.rate, of(row)) for row in chart.of(name) if math.isfinite(of(row))])
        axes.set_ylim(bottom=0)
        axes.set_ylabel("seconds that a run takes")
        axes.set_title(what)
        _against_load(chart, axes)
    _heading(figure, f"{chart.title}: run latency (no point where so many runs did not end)")
    _legend(figure, panels[0])
    return figure


def kv_use(chart: Chart) -> Figure | None:
    """The share of KV memory that calls hold in each pool, over the time of the first seed's busiest simulation."""
    names, seed = chart.names[:CURVES_MOST], chart.findings[0].seed
    busiest = [one for one in chart.findings if (one.rate, one.seed) == (chart.busiest, seed)]
    shown = [one for one in busiest if one.entrant in names]
    pools = list(dict.fromkeys(pool for one in shown for pool, curve in one.kv_use.items() if curve))
    if not pools:
        return None
    across = min(3, len(pools))
    down = math.ceil(len(pools) / across)
    figure = Figure(figsize=(3.6 * across + 2.2, 2.5 * down + 0.8), layout="constrained")
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    in_minutes = max(one.kv_use[pool][-1][0] for one in shown for pool in pools) > MINUTES_FROM
    for axes, pool in zip(panels.flat, pools, strict=False):
        for one in shown:
            times = [at / 60 if in_minutes else at for at, _ in one.kv_use[pool]]
            look = chart.look(one.entrant)
            uses = [use for _, use in one.kv_use[pool]]
            axes.plot(times, uses, label=one.entrant, color=look.colour, linestyle=look.dash, linewidth=1.3)
        axes.set_title(pool)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    for axes in list(panels.flat)[len(pools) :]:
        axes.set_visible(False)
    figure.supxlabel("minutes" if in_minutes else "seconds", fontsize=10)
    figure.supylabel("KV memory held by calls", fontsize=10)
    some = f", the first {CURVES_MOST} contenders" if len(chart.names) > CURVES_MOST else ""
    _heading(figure, f"{chart.title}: KV memory by pool, at {chart.busiest:g} runs/s, seed {seed}{some}")
    _legend(figure, panels[0][0])
    return figure


def waits(chart: Chart) -> Figure | None:
    """Mean seconds of the stages' calls in the queue and in the engine, at the highest load."""
    found = [row for row in chart.rows if row.rate == chart.busiest]
    names = stages(found)
    if not names:
        return None
    size = (0.75 * len(names) + 3.0, 2 * (0.3 * len(found) + 1.2))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(STAGE_TIMES), 1, sharex=True)
    for axes, (where, of) in zip(panels, STAGE_TIMES.items(), strict=True):
        _grid(
            axes, [[of(row.stages[stage]) if stage in row.stages else math.nan for stage in names] for row in found]
        )
        axes.set_yticks(range(len(found)), [row.entrant for row in found])
        axes.set_title(f"{chart.title}: mean seconds of a call {where}, at {chart.busiest:g} runs/s")
    panels[-1].set_xticks(range(len(names)), names, rotation=30, ha="right", rotation_mode="anchor")
    return figure


def _grid(axes: Axes, values: Sequence[Sequence[float]]) -> None:
    """Seconds in cells, the darker the longer, on a logarithmic scale."""
    most = max(0.1, *(value for line in values for value in line if not math.isnan(value)))
    shades = [[value if math.isnan(value) else max(value, NOTHING) for value in line] for line in values]
    axes.imshow(shades, cmap="Blues", norm=LogNorm(NOTHING, most), aspect="auto")
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            dark = value > NOTHING * (most / NOTHING) ** 0.6
            colour = "white" if dark else "#999999" if value < NOTHING else "black"
            axes.text(x, y, _short(value), ha="center", va="center", fontsize=9, color=colour)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)


PICTURES: Mapping[str, Callable[[Chart], Figure | None]] = MappingProxyType(
    {"attainment": attainment, "latency": latency, "kv_use": kv_use, "waits": waits}
)


def _figure(chart: Chart, width: float) -> Figure:
    """Tall enough for the names beside it."""
    return Figure(figsize=(width, max(3.4, 0.24 * len(chart.names) + 1.6)), layout="constrained")


def _plot(chart: Chart, axes: Axes, name: str, points: Sequence[tuple[float, float]]) -> None:
    """An entrant's line through its points."""
    look = chart.look(name)
    axes.plot(
        [x for x, _ in points],
        [y for _, y in points],
        label=name,
        color=look.colour,
        marker=look.marker,
        linestyle=look.dash,
        markersize=5,
        linewidth=1.6,
    )


def _margins(chart: Chart, axes: Axes, name: str) -> None:
    """Confidence intervals, beside each other where a load's would hide each other."""
    names, span = chart.names, chart.rates[-1] - chart.rates[0]
    aside = (names.index(name) - (len(names) - 1) / 2) * span * 0.06 / len(names)
    for row in chart.of(name):
        low, high = (max(0.0, min(1.0, row.attainment + sign * row.margin)) for sign in (-1, 1))
        axes.vlines(row.rate + aside, low, high, color=chart.look(name).colour, linewidth=1, alpha=0.6)


def _beside(chart: Chart, axes: Axes, values: Callable[[Row], list[float]], *, margins: bool = False) -> None:
    """One line of dots for each entrant: the first filled, the others hollow."""
    found = [chart.of(name)[0] for name in chart.names]
    for y, row in enumerate(found):
        colour = chart.look(row.entrant).colour
        dots = [value for value in values(row) if math.isfinite(value)]
        if margins:
            axes.errorbar(dots[0], y, xerr=row.margin, color=colour, capsize=3)
        axes.plot(dots, [y] * len(dots), color=colour, linewidth=1.2)
        axes.plot(dots[:1], [y] * len(dots[:1]), "o", color=colour)
        axes.plot(dots[1:], [y] * len(dots[1:]), "o", color=colour, markerfacecolor="white")
    axes.set_yticks(range(len(found)), [row.entrant for row in found])
    axes.set_ylim(len(found) - 0.5, -0.5)


def _against_load(chart: Chart, axes: Axes) -> None:
    axes.set_xlabel("load, runs/s")
    axes.set_xticks(chart.rates)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))


def _legend(figure: Figure, axes: Axes) -> None:
    """To the right of everything."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper")


def _heading(figure: Figure, text: str) -> None:
    figure.suptitle(text, x=0.01, ha="left", fontsize=11)


def _at(chart: Chart) -> str:
    return f" at {chart.busiest:g} runs/s" if len(chart.rates) == 1 else ""


def _short(value: float) -> str:
    if math.isnan(value):
        return ""
    return (
        "0" if value < NOTHING else f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 100 else f"{value:.0f}"
    )
