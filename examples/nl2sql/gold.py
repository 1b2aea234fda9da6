"""Tells whether rows answer a question: compared with those of its gold SQL, run by DuckDB itself.

Rows come as a JSON reply has them: DECIMAL and large integers as text, dates as ISO 8601. Both sides are read the
same way, and compared as multisets.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path

import duckdb

from examples.nl2sql.questions import Question

Cell = Decimal | float | str | None
Row = tuple[Cell, ...]

_NUMBER = re.compile(r"-?\d+(\.\d+)?")


def answers(database: Path, questions: Iterable[Question]) -> dict[str, list[Row]]:
    """The rows of each question's gold SQL, by the question's text, over a read-only connection of their own."""
    with duckdb.connect(str(database), read_only=True) as connection:
        return {
            question.text: [_row(row) for row in connection.execute(question.gold).fetchall()]
            for question in questions
        }


def same(rows: Iterable[Sequence[object]], gold: Iterable[Sequence[object]]) -> bool:
    """Whether both hold the same rows, each as often, in any order. Floats may differ by 1e-9 of their size."""
    left, right = (sorted((_row(row) for row in side), key=_order) for side in (rows, gold))
    return len(left) == len(right) and all(map(_same_row, left, right))


def _row(row: Sequence[object]) -> Row:
    return tuple(_cell(value) for value in row)


def _cell(value: object) -> Cell:
    """A cell in the form that is compared. A text that spells a number counts as that number."""
    if value is None or isinstance(value, float | Decimal):
        return value
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    text = str(value)
    return Decimal(text) if _NUMBER.fullmatch(text) else text


def _order(row: Row) -> tuple[object, ...]:
    """Exact cells first, so that a difference in the last bit of a float cannot pair the wrong rows."""
    exact = tuple((type(cell).__name__, "" if cell is None else cell) for cell in row if not isinstance(cell, float))
    return len(row), exact, tuple(cell for cell in row if isinstance(cell, float))


def _same_row(left: Row, right: Row) -> bool:
    return len(left) == len(right) and all(map(_same_cell, left, right))


def _same_cell(left: Cell, right: Cell) -> bool:
    if isinstance(left, float) and isinstance(right, float):
        return math.isclose(left, right, rel_tol=1e-9, abs_tol=1e-9)
    return left == right
