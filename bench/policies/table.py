"""The table and the verdict, as text for a terminal, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from bench.policies.field import Plan, Trial
from bench.policies.rows import OURS, TARGET, Measured, Row, kind
from bench.policies.verdict import Bar, bars, best_published, points
from simulator.compare import Sustained
from simulator.report import seconds, share

COLUMNS: Mapping[str, Callable[[Row], str]] = MappingProxyType(
    {
        "contender": lambda row: row.contender,
        "in time": lambda row: share(row.attainment, row.margin),
        "to cortex": lambda row: "" if row.contender == OURS else points(row.ahead, row.ahead_margin),
        "goodput/s": lambda row: f"{row.goodput:.3f}",
        "p50": lambda row: seconds(row.p50),
        "p95": lambda row: seconds(row.p95),
        "prefill tokens": lambda row: f"{row.prefill:,.0f}",
        "prefix hits": lambda row: f"{row.hits:.1%}",
        "refused": lambda row: f"{row.refused:.1f}",
    }
)
"""What is shown of a row; its kind comes last, where it is known which baseline is the best."""
LEGEND = (
    "In time: the share of runs that met their deadline, in the mean over the seeds, ± half of its 95 % confidence "
    "interval.",
    "To cortex: that share less the default's on the same runs, in points (above 0: better than the default).",
    "Published: a baseline with the routing and admission of its source. On ours: its order of calls alone, over "
    "Cortex' layout, routing and admission.",
    "An oracle knows what nobody can. Goodput: runs in time per second. p50, p95: seconds of runs.",
    "Prefill tokens: those computed in a simulation, not found in a cache. Refused: runs of a simulation, at their "
    "entry.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A heading, lines of text, and a table whose first row is its header and whose first column holds names."""

    title: str
    says: Sequence[str] = ()
    grid: Sequence[Sequence[str]] = ()


def sections(plan: Plan, measured: Measured, about: Sequence[str]) -> list[Section]:
    """All that is to be said; `about` is where, when and how it was measured."""
    made = [Section(title="Policies against each other", says=[*about, *scope(plan), *LEGEND])]
    for trial in plan.trials:
        made += _blocks(trial, plan, measured)
    if measured.sustained:
        made.append(_highest(plan, measured))
    return [*made, Section(title="Verdict", says=[line for bar in bars(measured) for line in _judged(bar)])]


def scope(plan: Plan) -> Iterator[str]:
    """What was left out, in words."""
    loads = "three loads" if plan.all_loads else "the highest of three loads"
    yield f"Seeds {plan.seeds[0]} to {plan.seeds[-1]}, {loads}, paired: all contenders meet the same runs."
    yield (
        "Baselines on our routing meet the middle load only."
        if plan.all_loads
        else "A quick form, with fewer seeds and runs: it shows tendencies, no more."
    )
    for trial in plan.trials:
        if trial.name in plan.searched:
            seeds = plan.seeds_of_search(trial)
            yield (
                f"Highest load on {trial.name}: {len(seeds)} seeds, {plan.search_steps} steps of bisection between "
                f"the loads where {TARGET:.0%} is kept and lost."
            )


def text(made: Sequence[Section]) -> str:
    return "\n\n".join("\n".join(_text(section)) for section in made) + "\n"


def markdown(made: Sequence[Section]) -> str:
    """Headings of the third rank, to stand in a page under one of the second."""
    return "\n".join(line for section in made for line in _markdown(section))


def comma_separated(measured: Measured) -> str:
    """The rows for programs: shares from 0 to 1, seconds, `inf` and `nan` where they are; rates that are not known
    stay empty."""
    fields = list(Row.__dataclass_fields__)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*fields, "sustained", "not_sustained"])
    for row in measured.rows:
        found = measured.sustained.get(row.workload, {}).get(row.contender)
        ends = ("", "") if found is None else (found.kept, found.lost)
        writer.writerow([*(getattr(row, name) for name in fields), *ends])
    return out.getvalue()


def _blocks(trial: Trial, plan: Plan, measured: Measured) -> Iterator[Section]:
    for load in plan.loads(trial):
        rows = list(measured.at(trial.name, load).values())
        best = best_published(rows)
        yield Section(
            title=f"{trial.name} at {load:g} runs/s",
            says=[f"{trial.told}; {trial.runs} runs a simulation."],
            grid=[
                [*COLUMNS, "kind"],
                *(
                    [*(show(row) for show in COLUMNS.values()), row.kind + (", the best" if row is best else "")]
                    for row in rows
                ),
            ],
        )


def _highest(plan: Plan, measured: Measured) -> Section:
    trials = [trial for trial in plan.trials if trial.name in measured.sustained]
    names = list(dict.fromkeys(name for found in measured.sustained.values() for name in found))
    return Section(
        title=f"Highest load at {TARGET:.0%} in time, runs/s",
        says=["The highest one at which the target was seen to be kept; the next one tried, in brackets, lost it."],
        grid=[
            ["contender", *(trial.name for trial in trials), "kind"],
            *(
                [name, *(_rate(measured.sustained[trial.name][name]) for trial in trials), kind(name)]
                for name in names
            ),
        ],
    )


def _rate(found: Sustained) -> str:
    if found.kept == 0.0:
        return f"below {found.lost:g}"
    return f"{found.kept:.3g} ({found.lost:.3g})" if math.isfinite(found.lost) else f"above {found.kept:g}"


def _judged(bar: Bar) -> Iterator[str]:
    yield f"{'passed' if bar.passed else 'FAILED'}: {bar.asks}"
    for line in bar.found:
        yield f"    {line}"


def _text(section: Section) -> Iterator[str]:
    yield section.title
    yield "─" * len(section.title)
    yield from section.says
    widths = [max(map(len, column)) for column in zip(*section.grid, strict=True)]
    for cells in section.grid:
        yield "  ".join(
            _padded(cell, width, n, len(widths)) for n, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()


def _padded(cell: str, width: int, column: int, columns: int) -> str:
    """Names at both ends to the left, figures between them to the right."""
    return cell.ljust(width) if column in (0, columns - 1) else cell.rjust(width)


def _markdown(section: Section) -> Iterator[str]:
    yield f"### {section.title}\n"
    for line in section.says:
        yield f"  - {line.strip()}" if line.startswith("    ") else f"- {line}"
    if section.says:
        yield ""
    for number, cells in enumerate(section.grid):
        yield f"| {' | '.join(cells)} |"
        if number == 0:
            yield f"|{'---|' + '---:|' * (len(cells) - 2) + '---|'}"
    if section.grid:
        yield ""
