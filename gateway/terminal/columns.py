"""Rows and columns as lines of text that fit a width: where it is narrow, the columns that matter least are left out.

These lines are drawn twice a second. A table of rich's, which asks every cell how wide it may be, costs several times
as much.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from rich.cells import cell_len, set_cell_size
from rich.text import Text

GAP = 2
_BLOCKS = " ▏▎▍▌▋▊▉"

Row = TypeVar("Row")


class Cell(NamedTuple):
    """What stands in one column of one row, in a style of rich's."""

    text: str
    style: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column(Generic[Row]):
    """One column. `width` of 0 is as wide as what stands in it. `matters`: the least goes first where it is narrow.

    Of a `last` column the rest of the line is used, and it goes where that is less than `width`.
    """

    title: str
    cell: Callable[[Row], Cell]
    width: int = 0
    right: bool = False
    matters: int = 9
    last: bool = False


def lines(
    columns: Sequence[Column[Row]], rows: Sequence[Row], width: int, *, all_rows: Sequence[Row] = ()
) -> list[Text]:
    """The titles and a line for each row. `all_rows`, those that are scrolled away too, say how wide columns are."""
    cells = [[column.cell(row) for column in columns] for row in rows]
    widths = [_width(column, all_rows or rows) for column in columns]
    shown = _fitting(columns, widths, width)
    made = [_line([Cell(column.title, "bold") for column in columns], columns, widths, shown, width)]
    return made + [_line(row, columns, widths, shown, width) for row in cells]


def _width(column: Column[Row], rows: Sequence[Row]) -> int:
    if column.width:
        return column.width
    return max([len(column.title), *(cell_len(column.cell(row).text) for row in rows)])


def _fitting(columns: Sequence[Column[Row]], widths: Sequence[int], width: int) -> list[int]:
    """The numbers of the columns that there is room for."""
    shown = list(range(len(columns)))
    while len(shown) > 1 and sum(widths[i] for i in shown) + GAP * (len(shown) - 1) > width:
        shown.remove(min(shown, key=lambda i: (columns[i].matters, -i)))
    return shown


def _line(
    cells: Sequence[Cell], columns: Sequence[Column[Row]], widths: Sequence[int], shown: Sequence[int], width: int
) -> Text:
    line = Text(no_wrap=True, overflow="crop", end="")
    left = width
    for number in shown:
        column, cell = columns[number], cells[number]
        room = max(0, left) if column.last else min(widths[number], left)
        line.append(fitted(cell.text, room, right=column.right), cell.style)
        left -= room + GAP
        if number != shown[-1]:
            line.append(" " * GAP)
    return line


def fitted(text: str, width: int, *, right: bool = False) -> str:
    """A text in exactly so many cells, cut where it is longer, and without what would move the cursor."""
    if not text.isprintable():
        text = "".join(char if char.isprintable() else "?" for char in text)
    size = cell_len(text)
    if size > width:
        return set_cell_size(text, width - 1) + "…" if width else ""
    return " " * (width - size) + text if right else text + " " * (width - size)


def bar(share: float, width: int = 6) -> Cell:
    """A share of 0 to 1 as a bar and a percentage; more than 1 is a full bar."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    full, rest = divmod(eighths, 8)
    drawn = ("█" * full + (_BLOCKS[rest] if rest else "")).ljust(width, "·")
    style = "red" if share >= 0.9 else "yellow" if share >= 0.7 else "green"
    return Cell(f"{drawn}{share:5.0%}"[: width + 5], style)
