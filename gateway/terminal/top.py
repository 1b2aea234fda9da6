"""`cortex top`: what a gateway does, drawn anew after each look, each key and each change of the terminal's size."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.terminal_theme import MONOKAI
from rich.text import Text

from gateway.output import say
from gateway.terminal.client import WRONG, AdminClient, Trouble
from gateway.terminal.frame import View, frame
from gateway.terminal.screen import Screen, console, drawn, keys, on_terminal, picture
from gateway.terminal.watch import COUNTED_EVERY, Watch

TICK = 1.0
"""Seconds after which a frame is drawn in any case: it may say for how long the gateway has been lost."""
LEAVING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LINES_ALONE = 40
"""Lines of a frame that no terminal shows."""
_FONTS = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)
"""What a picture of rich's fetches from elsewhere."""


async def live(client: AdminClient, every: float) -> int:
    """Show the gateway until whoever looks leaves. Raises Trouble where it cannot begin to."""
    if not (sys.stdin is not None and sys.stdin.isatty() and on_terminal()):
        raise Trouble("cortex top needs a terminal; `cortex top --once` prints one frame without", WRONG)
    watch = Watch(client, View())
    await watch.look()
    with Session(watch).shown() as session:
        following = asyncio.create_task(watch.follow(every, session.changed), name="watch")
        try:
            await session.drawn(following)
        finally:
            following.cancel()
            await asyncio.wait([following])
    return 0


class Session:
    """One sitting in front of the screen."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._screen = Screen(console(), sys.stdin.fileno())
        self._changed = asyncio.Event()
        self._left = False
        self.changed = self._changed.set

    @contextmanager
    def shown(self) -> Iterator[Session]:
        """Have screen, keys and signals for the block."""
        loop = asyncio.get_running_loop()
        with self._screen.taken():
            loop.add_reader(sys.stdin.fileno(), self._pressed)
            loop.add_signal_handler(signal.SIGWINCH, self.changed)
            for number in LEAVING:
                loop.add_signal_handler(number, self._leave)
            try:
                yield self
            finally:
                loop.remove_reader(sys.stdin.fileno())
                for number in (signal.SIGWINCH, *LEAVING):
                    loop.remove_signal_handler(number)

    async def drawn(self, following: asyncio.Task[None]) -> None:
        """Draw until whoever looks leaves. Raises what `following` raised, who looks at the gateway meanwhile."""
        while not self._left and not following.done():
            self._changed.clear()
            self._screen.draw(frame(self._watch.seen(), self._watch.view, *self._screen.size))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK):
                    await self._changed.wait()
        if following.done():
            following.result()

    def _pressed(self) -> None:
        try:
            data = os.read(sys.stdin.fileno(), 1024)
        except OSError:  # the terminal is gone
            data = b""
        pressed = keys(data)
        if not data or "q" in pressed:
            self._leave()
        view = self._watch.view
        before = (view.order, view.paused, view.runs_wanted)
        for key in pressed:
            view.press(key)
        if (view.order, view.paused, view.runs_wanted) != before:
            self._watch.hurry()
        self.changed()

    def _leave(self) -> None:
        self._left = True
        self.changed()


async def once(client: AdminClient, svg: Path | None) -> int:
    """Print one frame: as wide as the terminal, and without one as COLUMNS and LINES say. Raises Trouble.

    It takes as long as it must look to know how fast things happen.
    """
    watch = Watch(client, View())
    await watch.look()
    await asyncio.sleep(COUNTED_EVERY)
    await watch.look()
    out = console()
    told = os.environ.get("LINES", "")
    rows = (int(told) if told.isdecimal() else 0) or (out.height if on_terminal() else LINES_ALONE)
    lines = frame(watch.seen(), watch.view, out.width, rows)[:-1]
    while lines and not lines[-1]:
        lines.pop()
    for line in () if out.is_terminal else lines[1:]:
        line.rstrip()
    say(drawn(out, lines))
    if svg is not None:
        _save(lines, out.width, svg)
    return 0


def _save(lines: Sequence[Text], width: int, svg: Path) -> None:
    made = _FONTS.sub("", picture(lines, width, "cortex top", MONOKAI))
    try:
        # Not every viewer keeps the spaces that numbers are aligned by without being told to.
        svg.write_text(made.replace("<svg ", '<svg xml:space="preserve" ', 1), encoding="utf-8")
    except OSError as error:
        raise Trouble(f"--svg: {svg}: {error.strerror}", WRONG) from None
