"""The HTTP server of a gateway: as the command runs it, and as a block inside another program."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import math
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from types import FrameType

import uvicorn

from gateway.app import create_app
from gateway.gateway import Gateway
from gateway.settings import Server

SIGNALS = (signal.SIGINT, signal.SIGTERM)
KEEP_ALIVE = 75
"""Seconds that a client's idle connection is kept: longer than its own pool does, so that it closes first."""
BACKLOG = 2048
"""Connections that wait to be taken up; the kernel may allow fewer."""
_log = logging.getLogger("cortex")


def bound(settings: Server) -> socket.socket:
    """The socket that a configuration asks for, listening already. Raises OSError where it cannot be had."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    return socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)


def server(gateway: Gateway, *, signals: bool = True) -> uvicorn.Server:
    """The HTTP server of a gateway, by its configuration; with `signals` it stops on SIGTERM and SIGINT."""
    settings = gateway.config.server
    return _Server(
        uvicorn.Config(
            create_app(gateway),
            host=settings.host,
            port=settings.port,
            http="httptools",
            ws="none",
            loop="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # nothing here asks who the last hop was
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=math.ceil(settings.graceful_shutdown),
        ),
        gateway,
        signals=signals,
    )


class _Server(uvicorn.Server):
    """Says that it is not ready as soon as it is told to stop, and where to point a client when it has started."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway, *, signals: bool) -> None:
        super().__init__(config)
        self._signals = signals
        self._gateway = gateway

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            if self._signals:  # the process is ours
                _settle_memory()
            _log.info("listening on %s", address(self))
            _log.info("point your OpenAI client at  base_url=%s/v1", address(self))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        _log.info("stopping, %d calls open", self._gateway.door.inside)
        await super().shutdown(sockets)
        _log.info("stopped")

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on the usual signals. Unlike uvicorn's own it does not raise them again when all has ended well:
        whoever is told to stop and does so exits with 0."""
        before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS} if self._signals else {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._gateway.draining = True
        super().handle_exit(sig, frame)


def _settle_memory() -> None:
    """Leave what is there for good out of later garbage collections: to go through it holds the loop for 60 ms."""
    gc.collect()
    gc.freeze()


def address(listener: uvicorn.Server) -> str:
    """Where a server that has started listens."""
    host, port = listener.servers[0].sockets[0].getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@asynccontextmanager
async def listening(gateway: Gateway) -> AsyncIterator[str]:
    """Serve a gateway inside the block; gives its address. Raises RuntimeError when it does not start."""
    listener = server(gateway, signals=False)
    task = asyncio.create_task(listener.serve(), name="http server")
    try:
        while not listener.started:
            if task.done():
                raise RuntimeError("the gateway did not start") from task.exception()
            await asyncio.sleep(0.01)
        yield address(listener)
    finally:
        listener.should_exit = True
        await asyncio.wait([task])
