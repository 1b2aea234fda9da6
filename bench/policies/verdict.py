"""What the measurements come to: the bars that the default has to pass, each computed from the rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from bench.policies.field import MIXED, NL2SQL
from bench.policies.rows import OURS, TARGET, Measured, Row
from simulator.lineup import PUBLISHED
from simulator.report import share

BASELINES = tuple(one.name for one in PUBLISHED if not one.oracle)
LAYOUTS = ("cortex-isolated", "cortex-shared")
SUSTAINS, STRETCH = 1.1, 1.3
"""Times the load of the best baseline, on NL2SQL."""
BEHIND = 0.03
WITHIN = 0.05


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: what it asks, whether it is passed, and what was found."""

    asks: str
    passed: bool
    found: tuple[str, ...]


def bars(measured: Measured) -> list[Bar]:
    """Those that can be judged by what was measured."""
    found = [_sustains(measured)] if NL2SQL in measured.sustained else []
    found += [_nowhere_behind(measured), _as_good_as_either_layout(measured)]
    return found + ([_ahead_where_mixed(measured)] if any(name == MIXED for name, _ in measured.places) else [])


def best_published(rows: Sequence[Row]) -> Row:
    """The baseline with the highest attainment at a load, oracles aside; of equals the first of the lineup."""
    return max((row for row in rows if row.contender in BASELINES), key=lambda row: row.attainment)


def _sustains(measured: Measured) -> Bar:
    found = measured.sustained[NL2SQL]
    ours = found[OURS]
    best = max(BASELINES, key=lambda name: found[name].kept)
    kept = found[best].kept
    ratio = ours.kept / kept if kept else math.inf if ours.kept else math.nan
    least = "at least " if math.isinf(ours.lost) else ""
    said = f"{least}{ratio:.2f} times" if kept else "no baseline sustains the lowest load"
    return Bar(
        f"on NL2SQL the default sustains at {TARGET:.0%} at least {SUSTAINS} times the load of the best baseline as "
        f"published (stretch: {STRETCH})",
        ratio >= SUSTAINS,
        (f"{said}: cortex {ours.kept:g} runs/s, {best} {kept:g} runs/s",),
    )


def _nowhere_behind(measured: Measured) -> Bar:
    places = [(place, best_published(list(measured.at(*place).values()))) for place in measured.places]
    places.sort(key=lambda found: -found[1].ahead)
    behind = [found for found in places if found[1].ahead > BEHIND]
    return Bar(
        f"the default is nowhere more than {100 * BEHIND:g} points behind the best baseline as published",
        not behind,
        tuple(
            f"{_place(*place)}: {best.contender} {points(best.ahead, best.ahead_margin)} points to cortex"
            for place, best in behind or places[:1]
        ),
    )


def _as_good_as_either_layout(measured: Measured) -> Bar:
    """A share of 0.9 of the better one's attainment is as bad as 1.1 times its prefill: the worst come first."""
    shortfalls = []
    for place in measured.places:
        rows = measured.at(*place)
        ours, others = rows[OURS], [rows[name] for name in LAYOUTS]
        attained = _ratio(ours.attainment, max(other.attainment for other in others))
        spent = _ratio(ours.prefill, min(other.prefill for other in others))
        said = f"{_place(*place)}: {attained:.3f} times the attainment, {spent:.3f} times the prefill tokens"
        shortfalls.append((max(1.0 - attained, spent - 1.0), said))
    shortfalls.sort(key=lambda found: -found[0])
    failing = [said for short, said in shortfalls if short > WITHIN]
    return Bar(
        f"`adaptive` (the default) is within {WITHIN:.0%} of the better of `isolated` and `shared` everywhere",
        not failing,
        tuple(failing or [said for _, said in shortfalls[:1]]),
    )


def _ahead_where_mixed(measured: Measured) -> Bar:
    """Over all loads together: at a load that all can take there is nothing to be ahead in."""
    loads = [measured.at(*place) for place in measured.places if place[0] == MIXED]
    attained = {name: fmean(rows[name].attainment for rows in loads) for name in (OURS, *LAYOUTS)}
    spent = {name: fmean(rows[name].prefill for rows in loads) for name in (OURS, *LAYOUTS)}
    said = [
        f"{name}: {share(attained[name], math.nan)} in time, {spent[name]:,.0f} prefill tokens" for name in attained
    ]
    return Bar(
        "`adaptive` is ahead of both in the mixed ones, in attainment and in prefill tokens (means over the loads)",
        all(attained[OURS] > attained[name] and spent[OURS] < spent[name] for name in LAYOUTS),
        tuple(said),
    )


def points(value: float, margin: float) -> str:
    """A difference of attainments in points, with its margin where there is one."""
    return f"{round(100 * value, 1) + 0.0:+.1f}" + ("" if math.isnan(margin) else f" ± {100 * margin:.1f}")


def _place(workload: str, load: float) -> str:
    return f"{workload} at {load:g} runs/s"


def _ratio(one: float, other: float) -> float:
    """Nothing to nothing is even."""
    return one / other if other else 1.0 if one == other else math.inf
