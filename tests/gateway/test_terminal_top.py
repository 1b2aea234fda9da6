"""`cortex top` in a real terminal: what stands on it, what its keys do, and how it leaves the terminal behind."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import re
import signal
import socket
import struct
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from backends.emulated.server import serve
from tests.gateway.shop import FAST
from tests.gateway.support import CHAT, Running, attached, chat, running, settled, until, written

pytestmark = pytest.mark.traced

TOKEN = "secret"
HOME, SCREEN, LEAVE, SHOWN = b"\x1b[H", b"\x1b[?1049h", b"\x1b[?1049l", b"\x1b[?25h"
START = 60.0
"""Seconds that the command may take to come up, to draw or to end on a machine that is busy with other things."""
_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Between:
    """A line to a gateway that passes everything on, until it is `silent`: then nothing but new connections."""

    def __init__(self, url: str) -> None:
        self._to = int(url.rpartition(":")[2])
        self.silent = False

    async def __aenter__(self) -> Between:
        self._server = await asyncio.start_server(self._pass, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, asks = await asyncio.open_connection("127.0.0.1", self._to)
        back = asyncio.create_task(self._copy(answers, writer))
        await self._copy(reader, asks)
        await back

    async def _copy(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while piece := await source.read(65536):
                if not self.silent:
                    sink.write(piece)
        sink.close()


class Terminal:
    """A terminal in which a command runs."""

    def __init__(self, ours: int, theirs: int, process: asyncio.subprocess.Process) -> None:
        self._ours = ours
        self.theirs = theirs
        self.process = process
        self.drawn = bytearray()
        self.modes = termios.tcgetattr(theirs)

    def read(self) -> None:
        with contextlib.suppress(OSError):
            self.drawn += os.read(self._ours, 65536)

    def press(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def resize(self, columns: int, lines: int) -> None:
        resized(self._ours, columns, lines)

    @property
    def frame(self) -> list[str]:
        """The lines of the last frame that was drawn whole."""
        frames = bytes(self.drawn).split(HOME)
        return _CODES.sub("", frames[-2].decode()).replace("\r", "").split("\n") if len(frames) > 2 else []

    async def shows(self, words: str) -> None:
        """Wait until it shows words: a regular expression."""
        there = re.compile(words)
        await until(lambda: any(map(there.search, self.frame)), f"{words!r} on the screen", within=START)

    async def ended(self) -> int:
        async with asyncio.timeout(START):
            return await self.process.wait()

    async def left(self) -> int:
        """Its exit status, when it has ended and given back keys, screen and cursor."""
        status = await self.ended()
        await until(lambda: self.as_it_was, "the terminal as it was")
        return status

    @property
    def as_it_was(self) -> bool:
        given_back = min(self.drawn.rfind(after) for after in (LEAVE, SHOWN))
        return termios.tcgetattr(self.theirs) == self.modes and given_back > self.drawn.rfind(SCREEN) >= 0


def resized(fd: int, columns: int, lines: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))


@asynccontextmanager
async def top(url: str, *words: str, columns: int = 120, lines: int = 40, **environ: str) -> AsyncIterator[Terminal]:
    ours, theirs = pty.openpty()
    resized(theirs, columns, lines)
    surroundings = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    told = {"CORTEX_ADMIN_TOKEN": TOKEN, "TERM": "xterm-256color", **environ}

    def has_it() -> None:  # signals of the terminal, such as that of a new size, go to whose it is
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "top", "--url", url, *words),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=surroundings | told,
        start_new_session=True,
        preexec_fn=has_it,
    )
    terminal = Terminal(ours, theirs, process)
    asyncio.get_running_loop().add_reader(ours, terminal.read)
    try:
        yield terminal
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        asyncio.get_running_loop().remove_reader(ours)
        os.close(theirs)
        os.close(ours)


@asynccontextmanager
async def site(folder: Path, port: int = 0, **more: Any) -> AsyncIterator[Running]:
    async with serve(FAST) as server:
        pools = {"coder": attached(server.url), "fixer": attached(server.url)}
        text = written(pools, server={"port": port}, admin={"token": TOKEN}, **more)
        async with running(folder, text) as up:
            yield up
            await settled(up.gateway, server)


async def runs(up: Running, count: int) -> None:
    for number in range(count):
        headers = {"X-Workflow-Id": f"run-{number:02}", "X-Workflow-Stage": "s", "X-Workflow-Deadline-Ms": "900000"}
        body = {**chat(max_tokens=1), "model": "coder"}
        assert (await up.http.post(CHAT, json=body, headers=headers)).status_code == 200


async def test_it_draws_what_is_obeys_its_keys_and_leaves_the_terminal_as_it_was(tmp_path: Path) -> None:
    async with site(tmp_path) as up, top(up.url, "--every", "0.1") as terminal:
        await runs(up, 3)
        await terminal.shows("runs 3, least slack first")
        assert len(terminal.frame) == 40
        assert max(map(len, terminal.frame)) == 120
        for words in (" live ", "coder/0", "fixer/0", "run-00", "run-02", "q leave"):
            await terminal.shows(words)
        await terminal.shows("calls ")
        terminal.press(b"s")
        await terminal.shows("runs 3, oldest first")
        terminal.press(b"\t\x1b[B")
        await terminal.shows("tab part .pools.")
        terminal.press(b"p")
        await terminal.shows(" paused ")
        await runs(up, 5)
        terminal.press(b"s")
        await terminal.shows("runs 5, latest first")
        assert any(" paused " in line for line in terminal.frame), "what is asked for is looked up all the same"
        terminal.press(b"p")
        await terminal.shows(" live ")
        assert not terminal.as_it_was
        terminal.press(b"q")
        assert await terminal.left() == 0


async def test_it_takes_the_size_that_the_terminal_gets(tmp_path: Path) -> None:
    async with site(tmp_path) as up, top(up.url, columns=80, lines=24) as terminal:
        await runs(up, 30)
        await terminal.shows("of 30, least")
        assert (len(terminal.frame), max(map(len, terminal.frame))) == (24, 80)
        terminal.press(b"jjj")
        await terminal.shows("runs 4–")
        for columns, lines in ((140, 50), (40, 10)):
            terminal.resize(columns, lines)
            await until(lambda lines=lines: len(terminal.frame) == lines, "a frame of the new size", within=START)  # type: ignore[misc]
            assert max(map(len, terminal.frame)) == columns
        terminal.press(b"q")
        assert await terminal.left() == 0


@pytest.mark.parametrize("leave", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_it_leaves_the_terminal_as_it_was_when_it_is_told_to_go(tmp_path: Path, leave: signal.Signals) -> None:
    async with site(tmp_path) as up, top(up.url) as terminal:
        await terminal.shows(" live ")
        if leave == signal.SIGINT:
            terminal.press(b"\x1a\x03")  # Ctrl-Z is nothing, Ctrl-C leaves
        else:
            terminal.process.send_signal(leave)
        assert await terminal.left() == 0


async def test_a_gateway_that_goes_is_told_as_lost_and_found_again_when_it_is_back(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    async with top_beside(tmp_path, port, url) as terminal:
        await terminal.shows("lost since ")
        await terminal.shows(f"no gateway answers at {url}")
        assert any("coder/0" in line for line in terminal.frame), "what was known last stays"
        before = terminal.drawn.count(HOME)
        await until(lambda: terminal.drawn.count(HOME) > before + 3, "more frames", within=START)
        await terminal.shows(r"lost since [1-9]\d* s")
        async with site(tmp_path, port):
            await terminal.shows(" live ")
            terminal.press(b"q")
            assert await terminal.left() == 0


@asynccontextmanager
async def top_beside(folder: Path, port: int, url: str) -> AsyncIterator[Terminal]:
    """The command in front of a gateway that has gone by the time the block begins."""
    async with contextlib.AsyncExitStack() as stack:
        async with site(folder, port):
            terminal = await stack.enter_async_context(top(url, "--every", "0.2"))
            await terminal.shows(" live ")
        yield terminal


async def test_a_gateway_that_only_holds_the_line_is_lost_too(tmp_path: Path) -> None:
    async with site(tmp_path) as up, Between(up.url) as line, top(line.url, "--every", "0.1") as terminal:
        await terminal.shows(" live ")
        line.silent = True
        await terminal.shows("it takes long to answer")
        terminal.press(b"q")
        assert await terminal.left() == 0


async def test_it_does_not_take_the_screen_where_it_cannot_begin(tmp_path: Path) -> None:
    async with top("http://127.0.0.1:1") as terminal:
        assert await terminal.ended() == 3
        await until(lambda: b"no gateway answers" in terminal.drawn, "the reason")
        assert SCREEN not in terminal.drawn
        assert termios.tcgetattr(terminal.theirs) == terminal.modes


async def test_without_colours_it_draws_the_same(tmp_path: Path) -> None:
    async with site(tmp_path) as up, top(up.url, NO_COLOR="1") as terminal:
        await terminal.shows(" live ")
        terminal.press(b"q")
        assert await terminal.left() == 0
        assert not re.search(rb"\x1b\[[0-9;]*(?:3|4)[0-9]", terminal.drawn), "no colour, of letters or behind them"
