"""An emulated engine that listens: the surface on uvicorn, for a process of its own or within a test."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Generator
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from backends.emulated.model import Engine
from backends.emulated.options import EmulatedOptions
from backends.emulated.script import Script, load_script
from backends.emulated.surface import Surface


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulatedServer:
    """A listening engine. Setting `stop` ends it; it is set too when the engine ends by itself, which is a defect."""

    url: str
    model: str
    engine: Engine
    stop: asyncio.Event


@contextlib.asynccontextmanager
async def serve(
    options: EmulatedOptions | None = None,
    *,
    model: str = "cortex-emulated",
    script: Script | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    on_exit: Callable[[], object] | None = None,
) -> AsyncIterator[EmulatedServer]:
    """An engine that listens until the block is left, which cuts the answers that are under way.

    `script` stands in for the file that the options name. Raises ScriptError for a file that is no script, and
    OSError for an address that cannot be had.
    """
    options = options or EmulatedOptions()
    if script is None:
        script = load_script(Path(options.script)) if options.script else Script()
    async with contextlib.AsyncExitStack() as stack:
        surface = Surface(model, options, script, on_exit)
        if options.kv_events:
            from backends.emulated.events import publishing  # noqa: PLC0415 - ZeroMQ takes a while to import

            events = await stack.enter_async_context(publishing(options.block_size, host))
            surface.engine.blocks.watcher, surface.kv_sources = events, events.sources
        yield await stack.enter_async_context(_served(surface, _listen(host, port)))


@contextlib.asynccontextmanager
async def _served(surface: Surface, listener: socket.socket) -> AsyncIterator[EmulatedServer]:
    stop = asyncio.Event()
    http = _Http(surface, stop)
    driving = asyncio.create_task(surface.driver.run())
    driving.add_done_callback(lambda _: stop.set())
    serving = asyncio.create_task(http.serve(sockets=[listener]))
    try:
        await http.ready.wait()
        if not http.started:
            await serving
        address, bound = listener.getsockname()[:2]
        yield EmulatedServer(url=f"http://{address}:{bound}", model=surface.model, engine=surface.engine, stop=stop)
    finally:
        stop.set()
        await serving
        driving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await driving


class _Protocol(HttpToolsProtocol):
    """uvicorn's protocol, which lets an application close its connection: a fault must be able to."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {"emulated": {"transport": self.transport}}


class _Http(uvicorn.Server):
    """uvicorn without its signals and its polling; when it stops it waits for no client, as vLLM does not."""

    def __init__(self, surface: Surface, stop: asyncio.Event) -> None:
        super().__init__(
            uvicorn.Config(
                surface.app(),
                http=_Protocol,
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                date_header=False,
                timeout_keep_alive=75,
                backlog=4096,
            )
        )
        self.ready = asyncio.Event()
        self._stop = stop

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        finally:
            self.ready.set()

    async def main_loop(self) -> None:
        await self._stop.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await asyncio.gather(*self.server_state.tasks, return_exceptions=True)
        for listener in sockets or ():
            listener.close()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # By its protocol asyncio knows TCP, and only there does it turn off the delay of small writes.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener
