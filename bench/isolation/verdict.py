"""What the measurements come to: the bars, each computed from the rows of the cells that were measured.

Counts repeat from run to run and are what the bars stand on; the bar in times allows for the times' own spread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from bench.isolation.cells import ADAPTIVE, BORROWING, CONTENDERS, FULL, ISOLATED, ROUND_ROBIN, UNBALANCED, Cell
from bench.isolation.rows import Row, cells, of

PREFILL, KV = 0.55, 0.80
"""Isolation's share of round-robin's prefill tokens, and of its KV blocks in use."""
NEAR = 1.05
KEPT, BUSIER = 0.90, 0.60


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: what it asks, whether it holds (None: it cannot be judged from these rows), and what was found."""

    asks: str
    holds: bool | None
    found: tuple[str, ...]

    @property
    def word(self) -> str:
        return "not judged" if self.holds is None else "holds" if self.holds else "MISSED"


def bars(rows: Sequence[Row]) -> list[Bar]:
    """All bars whose cells and contenders were measured; a cell that was cut short is left out."""
    names = {row.contender for row in rows}
    rows = [row for row in rows if {one.contender for one in rows if one.cell == row.cell} == names]
    measured, names = cells(rows), {row.contender for row in rows}
    made: list[Bar] = []
    if FULL in measured and {ISOLATED, ROUND_ROBIN} <= names:
        made += _isolation(rows)
    if ADAPTIVE in names:
        made += [_near_the_best(rows)]
    if {BORROWING, ISOLATED} <= names:
        made += [_keeps(rows)] + ([_evens_out(rows)] if UNBALANCED in measured else [])
    return made + ([_as_quick(rows)] if ADAPTIVE in names else [])


def _isolation(rows: Sequence[Row]) -> Iterator[Bar]:
    prefill = [_middle(rows, FULL, name, lambda row: row.prefill) for name in (ISOLATED, ROUND_ROBIN)]
    yield Bar(
        f"isolated computes at most {PREFILL:.2f} times the prefill tokens of {ROUND_ROBIN} ({FULL.name})",
        prefill[0] <= PREFILL * prefill[1],
        (f"{prefill[0] / prefill[1]:.3f} times: {prefill[0]:,.0f} and {prefill[1]:,.0f}",),
    )
    kv = [_middle(rows, FULL, name, lambda row: row.kv_mean) for name in (ISOLATED, ROUND_ROBIN)]
    yield Bar(
        f"isolated holds at most {KV:.2f} times its KV blocks in use ({FULL.name})",
        kv[0] <= KV * kv[1],
        (f"{kv[0] / kv[1]:.3f} times: {kv[0]:.0f} and {kv[1]:.0f} blocks in the mean",),
    )


def _near_the_best(rows: Sequence[Row]) -> Bar:
    found, holds = [], True
    for cell in cells(rows):
        spent = {name: _middle(rows, cell, name, lambda row: row.prefill) for name in _present(rows, cell)}
        best = min(spent, key=lambda name: spent[name])
        ratio = spent[ADAPTIVE] / spent[best]
        holds = holds and ratio <= NEAR
        found.append(f"{cell.name}: {ratio:.3f} times {best}, {spent[ADAPTIVE]:,.0f} and {spent[best]:,.0f}")
    return Bar(
        f"adaptive computes at most {NEAR:.2f} times the prefill tokens of the best, in every cell",
        holds,
        tuple(found),
    )


def _keeps(rows: Sequence[Row]) -> Bar:
    found, holds = [], True
    for cell in cells(rows):
        one, other = (_middle(rows, cell, name, lambda row: row.hits) for name in (BORROWING, ISOLATED))
        holds = holds and one >= KEPT * other
        found.append(f"{cell.name}: {one / other:.3f} times, {one:.1%} and {other:.1%}")
    return Bar(
        f"with borrowing, isolation keeps at least {KEPT:.0%} of its hit rate, in every cell", holds, tuple(found)
    )


def _evens_out(rows: Sequence[Row]) -> Bar:
    shares = {name: _middle(rows, UNBALANCED, name, lambda row: row.busier) for name in (BORROWING, ISOLATED)}
    return Bar(
        f"with borrowing, the busier engine has at most {BUSIER:.0%} of the tokens ({UNBALANCED.name})",
        shares[BORROWING] <= BUSIER,
        (f"{shares[BORROWING]:.1%}, without borrowing {shares[ISOLATED]:.1%}",),
    )


def _as_quick(rows: Sequence[Row]) -> Bar:
    found, holds = [], True
    for cell in cells(rows):
        times = {name: [row.run(0.5) for row in of(rows, cell, name)] for name in _present(rows, cell)}
        best = min(times, key=lambda name: median(times[name]))
        spread = max(times[best]) - min(times[best])
        behind = median(times[ADAPTIVE]) - median(times[best])
        holds = holds and behind <= spread
        found.append(
            f"{cell.name}: {median(times[ADAPTIVE]):.2f} s, {behind:+.2f} s to {best}, whose spread is {spread:.2f} s"
        )
    once = all(len(of(rows, cell, ADAPTIVE)) < 2 for cell in cells(rows))
    return Bar(
        "adaptive's median time of a run is not above the best one's by more than that one's own spread, in any cell",
        None if once else holds,
        tuple(found),
    )


def _present(rows: Sequence[Row], cell: Cell) -> list[str]:
    return [one.name for one in CONTENDERS if of(rows, cell, one.name)]


def _middle(rows: Sequence[Row], cell: Cell, name: str, figure: Callable[[Row], float]) -> float:
    return median(figure(row) for row in of(rows, cell, name))
