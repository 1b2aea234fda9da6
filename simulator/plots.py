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
SEEDS_FEWEST = 3
"""With two, a confidence interval is as wide as the chart."""
NOTHING = 0.01
"""Seconds that are as good as none."""
CURVES_MOST = len(COLOURS)
"""Curves over time cross too often for more."""


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
        return all(row.seeds >= SEEDS_FEWEST for row in self.rows)

    def of(self, name: str) -> list[Row]:
        """An entrant's rows by rising load."""
        return sorted((row for row in self.rows if row.entrant == name), key=lambda row: row.rate)

    def look(self, name: str) -> dict[str, object]:
        """How an entrant's line is drawn: no two alike among the first 28."""
        number = self.names.index(name)
        round_ = number // len(COLOURS)
        return {
            "color": COLOURS[number % len(COLOURS)],
            "marker": MARKERS[(number + round_) % len(MARKERS)],
            "linestyle": DASHES[round_ % len(DASHES)],
        }


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
    if len(chart.rates) == 1:
        _beside(chart, axes, lambda row: [row.attainment], (lambda row: row.margin) if chart.certain else None)
        axes.axvline(TARGET, color="#777777", linewidth=1, linestyle=(0, (4, 3)))
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
        axes.set_xlabel("runs that met their deadline")
    else:
        for name in chart.names:
            found = chart.of(name)
            rates, values = [row.rate for row in found], [row.attainment for row in found]
            look = chart.look(name)
            axes.plot(rates, values, label=name, **_line(look))
            if chart.certain:
                low, high = ([_bounded(row.attainment + sign * row.margin) for row in found] for sign in (-1, 1))
                axes.fill_between(rates, low, high, color=str(look["color"]), alpha=0.12, linewidth=0)
        axes.axhline(TARGET, color="#777777", linewidth=1, linestyle=(0, (4, 3)))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
        lowest = min(row.attainment for row in chart.rows)
        axes.set_ylim(max(0.0, min(lowest - 0.1, 0.8)), 1.02)
        axes.set_ylabel("runs that met their deadline")
        _against_load(chart, axes)
        _legend(figure, axes)
    sure = (
        f"; {'bars' if len(chart.rates) == 1 else 'bands'}: 95 % confidence over the seeds" if chart.certain else ""
    )
    axes.set_title(f"{chart.title}: SLO attainment{_at(chart)}\n(dashed: {100 * TARGET:.0f} %{sure})")
    return figure


def latency(chart: Chart) -> Figure:
    """The median and the 95th percentile of the seconds that runs take."""
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
    for axes, what in zip(panels, ("p50", "p95"), strict=True):
        for name in chart.names:
            found = [row for row in chart.of(name) if math.isfinite(getattr(row, what))]
            axes.plot(
                [row.rate for row in found],
                [getattr(row, what) for row in found],
                label=name,
                **_line(chart.look(name)),
            )
        axes.set_ylim(bottom=0)
        axes.set_ylabel("seconds that a run takes")
        axes.set_title(f"{what}")
        _against_load(chart, axes)
    figure.suptitle(
        f"{chart.title}: run latency (no point where so many runs did not end)", x=0.01, ha="left", fontsize=11
    )
    _legend(figure, panels[1])
    return figure


def kv_use(chart: Chart) -> Figure | None:
    """The share of KV memory that calls hold in each pool, over the time of the first seed's busiest simulation."""
    names, seed = chart.names[:CURVES_MOST], chart.findings[0].seed
    of_seed = [one for one in chart.findings if one.rate == chart.busiest and one.seed == seed]
    shown = [one for one in of_seed if one.entrant in names]
    pools = list(dict.fromkeys(pool for one in shown for pool, curve in one.kv_use.items() if curve))
    if not pools:
        return None
    unit, length = (
        ("minutes", 60) if max(c[-1][0] for one in shown for c in one.kv_use.values() if c) > 300 else ("seconds", 1)
    )
    across = min(3, len(pools))
    down = math.ceil(len(pools) / across)
    figure = Figure(figsize=(3.6 * across + 2.2, 2.5 * down + 0.8), layout="constrained")
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for axes, pool in zip(panels.flat, pools, strict=False):
        for one in shown:
            look = chart.look(one.entrant)
            times, uses = [at / length for at, _ in one.kv_use[pool]], [use for _, use in one.kv_use[pool]]
            axes.plot(
                times,
                uses,
                label=one.entrant,
                color=str(look["color"]),
                linestyle=str(look["linestyle"]),
                linewidth=1.3,
            )
        axes.set_title(pool)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    for axes in list(panels.flat)[len(pools) :]:
        axes.set_visible(False)
    figure.supxlabel(unit, fontsize=10)
    figure.supylabel("KV memory held by calls", fontsize=10)
    some = f", the first {CURVES_MOST} contenders" if len(chart.names) > CURVES_MOST else ""
    figure.suptitle(
        f"{chart.title}: KV memory by pool, at {chart.busiest:g} runs/s, seed {seed}{some}",
        x=0.01,
        ha="left",
        fontsize=11,
    )
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


def _line(look: Mapping[str, object]) -> dict[str, object]:
    return {**look, "markersize": 5, "linewidth": 1.6}


def _beside(
    chart: Chart, axes: Axes, values: Callable[[Row], list[float]], margin: Callable[[Row], float] | None = None
) -> None:
    """One line of dots for each entrant: the first filled, the others hollow."""
    found = [chart.of(name)[0] for name in chart.names]
    for y, row in enumerate(found):
        colour = str(chart.look(row.entrant)["color"])
        dots = [value for value in values(row) if math.isfinite(value)]
        if margin is not None:
            axes.errorbar(dots[0], y, xerr=margin(row), color=colour, capsize=3)
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
    """To the right of everything, in the order in which the lines end."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper")


def _at(chart: Chart) -> str:
    return f" at {chart.busiest:g} runs/s" if len(chart.rates) == 1 else ""


def _bounded(value: float) -> float:
    return min(1.0, max(0.0, value)) if not math.isnan(value) else math.nan


def _short(value: float) -> str:
    if math.isnan(value):
        return ""
    return (
        "0" if value < NOTHING else f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 100 else f"{value:.0f}"
    )
