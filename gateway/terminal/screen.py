"""The terminal: its keys one by one and its whole screen for a block, and afterwards as it was."""

from __future__ import annotations

import io
import os
import re
import sys
import termios
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.segment import Segment
from rich.terminal_theme import TerminalTheme
from rich.text import Text

_KEYS = re.compile(rb"\x1b[\[O][0-9;]*[A-Za-z~]|[^\x1b]")
_NAMES = {
    **{b"\x1b[A": "up", b"\x1bOA": "up", b"k": "up", b"\x1b[B": "down", b"\x1bOB": "down", b"j": "down"},
    **{b"\x1b[5~": "page up", b"\x1b[6~": "page down", b" ": "page down", b"\t": "tab"},
    **{b"\x1b[H": "home", b"\x1bOH": "home", b"\x1b[1~": "home", b"g": "home"},
}
_OFF = b"\0"


PIPED = 160
"""Columns of what no terminal shows, where COLUMNS does not say otherwise."""


def console() -> Console:
    """Where lines are printed, in colours where a terminal shows them and NO_COLOR does not forbid it."""
    piped = not on_terminal() and "COLUMNS" not in os.environ
    return Console(highlight=False, width=PIPED if piped else None)


def on_terminal() -> bool:
    """Whether what is printed is seen at once. A standard output that was closed is None."""
    return sys.stdout is not None and sys.stdout.isatty()


def drawn(out: Console, lines: Sequence[Text]) -> str:
    """Lines as `out` would print them, in one piece: rich has words of its own for what goes wrong when it does."""
    out.file = page = io.StringIO()
    out.print(Picture(lines), end="")
    return page.getvalue()


def picture(lines: Sequence[Text], width: int, title: str, theme: TerminalTheme) -> str:
    """Lines as an SVG drawing."""
    out = Console(file=io.StringIO(), record=True, highlight=False, width=width)
    out.print(Picture(lines), end="")
    return out.export_svg(title=title, theme=theme, unique_id=title.replace(" ", "-"))


class Picture:
    """Lines as they are, for rich to draw: none is wrapped."""

    def __init__(self, lines: Sequence[Text]) -> None:
        self._lines = lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in self._lines:
            # A line by itself draws its pieces' styles; its own it leaves to the wrapping that is not wanted here.
            yield from Segment.apply_style(line.render(console), console.get_style(line.style))
            yield Segment.line()


class Screen:
    """The terminal that `console` writes to and `fd` reads from."""

    def __init__(self, console: Console, fd: int) -> None:
        self._console = console
        self._fd = fd
        self._live = Live(
            console=console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Have the screen and the keys for the block."""
        with keys_at_once(self._fd), self._live:
            yield

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines now."""
        columns, rows = os.get_terminal_size(self._console.file.fileno())
        self._console.size = (columns, rows)
        return columns, rows

    def draw(self, lines: Sequence[Text]) -> None:
        self._live.update(Picture(lines), refresh=True)


@contextmanager
def keys_at_once(fd: int) -> Iterator[None]:
    """Have each key as it is pressed, unseen. Ctrl-Z is no key: it would leave the screen to the shell as it is."""
    before = termios.tcgetattr(fd)
    tty.setcbreak(fd)
    now = termios.tcgetattr(fd)
    now[6][termios.VSUSP] = _OFF
    termios.tcsetattr(fd, termios.TCSANOW, now)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSAFLUSH, before)


def keys(data: bytes) -> list[str]:
    """The keys in what a terminal sent: by name, or as the character that they are."""
    return [_NAMES.get(key, key.decode("ascii", "replace").lower()) for key in _KEYS.findall(data)]
