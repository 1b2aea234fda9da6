"""A cluster of emulated engines: each is a child process that ends with its parent."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import orjson

from backends.base import BackendError, Engine
from backends.emulated.options import EmulatedOptions

START_LIMIT = 30.0  # seconds; it takes one on an idle machine
GRACE = 3.0  # seconds between asking a child to end and making it
LAST_LINES = 20

log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class _Child:
    """An engine's process. `errors` keeps the last lines of its standard error until that ends."""

    process: Process
    lines: deque[str]
    errors: asyncio.Task[None]
    url: str = ""
    engine: Engine | None = None


class EmulatedCluster:
    """Engines that all have the same model and options; `connect` makes the Engine that speaks to a URL."""

    def __init__(self, *, model: str, options: EmulatedOptions, connect: Callable[[str], Engine]) -> None:
        self._model = model
        self._options = options
        self._connect = connect
        self._names: set[str] = set()
        self._children: dict[str, _Child] = {}

    def urls(self) -> Mapping[str, str]:
        """Where each engine listens, by its name: for whoever reads their metrics directly."""
        return {name: child.url for name, child in self._children.items() if child.engine}

    async def start(self, name: str) -> Engine:
        """Spawn an engine and wait until it listens. Raises BackendError when it does not, or the name is taken."""
        if name in self._names:
            raise BackendError(f"the engine {name} is there already", trouble="refused", retryable=False)
        self._names.add(name)
        try:
            child = self._children[name] = await self._spawn()
            child.url = await _ready(child, name)
            child.engine = self._connect(child.url)
        except BaseException:
            # Shielded, for a cancelled start must not leave a process behind.
            await asyncio.shield(self.stop(name))
            raise
        return child.engine

    async def ended(self, name: str) -> None:
        """Return when the child has ended, or at once for a name that is not there."""
        child = self._children.get(name)
        if child is not None:
            await child.process.wait()

    async def stop(self, name: str) -> None:
        """End the engine of this name: SIGTERM, and SIGKILL when that does not help. Unknown names are ignored."""
        child = self._children.pop(name, None)
        try:
            if child and child.engine:
                await child.engine.aclose()
        finally:
            if child:
                await _end(child)
            self._names.discard(name)

    async def aclose(self) -> None:
        """Stop every engine. Idempotent."""
        await asyncio.gather(*(self.stop(name) for name in list(self._children)))

    async def _spawn(self) -> _Child:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "backends.emulated", "--with-parent", f"--model={self._model}"),
            *self._options.flags(),
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            # A Ctrl-C in the terminal is for the gateway, which still has streams to finish on its engines.
            start_new_session=True,
        )
        lines: deque[str] = deque(maxlen=LAST_LINES)
        return _Child(process=process, lines=lines, errors=asyncio.create_task(_read_errors(process, lines)))


async def _ready(child: _Child, name: str) -> str:
    """The URL that the child prints when it listens. Its last words go to the log, not into the error."""
    assert child.process.stdout is not None
    try:
        async with asyncio.timeout(START_LIMIT):
            line = await child.process.stdout.readline()
    except TimeoutError:
        raise BackendError(f"the engine {name} did not start in time", trouble="timeout", retryable=False) from None
    if not line:
        await child.errors
        log.error("the emulated engine %s did not start:\n%s", name, "\n".join(child.lines))
        raise BackendError(f"the engine {name} did not start", trouble="broken", retryable=False)
    url: str = orjson.loads(line)["url"]
    return url


async def _read_errors(process: Process, lines: deque[str]) -> None:
    assert process.stderr is not None
    async for line in process.stderr:
        lines.append(line.decode(errors="replace").rstrip())
        log.debug("emulated engine %d: %s", process.pid, lines[-1])


async def _end(child: _Child) -> None:
    process = child.process
    _signal(process, signal.SIGTERM)
    try:
        async with asyncio.timeout(GRACE):
            await process.wait()
    except TimeoutError:
        _signal(process, signal.SIGKILL)
        await process.wait()
    if process.returncode not in (0, -signal.SIGTERM):
        log.warning(
            "an emulated engine ended with status %s%s",
            process.returncode,
            "".join(f"\n{line}" for line in child.lines),
        )
    await child.errors


def _signal(process: Process, number: signal.Signals) -> None:
    # Not `process.terminate()`: it reaps a child that has just died before asyncio does, and the status is lost.
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)
