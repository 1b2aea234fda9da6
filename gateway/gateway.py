"""A whole gateway: the parts that `compose` has built, and the order in which they live and end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gateway.access import Access
from gateway.admin import AdminApi
from gateway.directory import Directory
from gateway.door import Door
from gateway.errands import Errands
from gateway.keeping import ProfileFile
from gateway.metrics import Metrics
from gateway.monitor import Monitor
from gateway.pulse import beat
from gateway.relay import Relay
from gateway.residency import Residence
from gateway.runtime import Runtime
from gateway.settings import Config
from gateway.sqlapi import SqlApi
from gateway.state import StateApi

if TYPE_CHECKING:  # costs too much to import where it is not used
    from gateway.mcpapi import McpApi

_log = logging.getLogger("cortex")


@dataclass(slots=True, kw_only=True)
class Gateway:
    """The parts. `openers` are awaited before the engines start, `closers` after they have ended."""

    config: Config
    access: Access
    directory: Directory
    runtime: Runtime
    monitor: Monitor
    metrics: Metrics
    door: Door
    relay: Relay
    errands: Errands
    sql: SqlApi
    state: StateApi
    admin: AdminApi
    mcp: McpApi | None = None
    keeper: ProfileFile | None = None
    residence: Residence | None = None
    openers: Sequence[Callable[[], Awaitable[None]]] = ()
    closers: Sequence[Callable[[], Awaitable[None]]] = ()
    draining: bool = False
    started: int = field(default_factory=lambda: int(time.time()))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start the engines and watch them; at the end stop everything, whatever happened."""
        async with contextlib.AsyncExitStack() as stack:
            for close in self.closers:
                stack.push_async_callback(close)
            stack.push_async_callback(self.runtime.aclose)
            await asyncio.gather(self.runtime.start(lambda: self.draining), *(start() for start in self.openers))
            await self.monitor.poll()
            watch = asyncio.create_task(self.monitor.run(), name="monitor")
            stack.push_async_callback(_ended, watch)
            stack.push_async_callback(_ended, asyncio.create_task(beat(self.metrics.requests.late), name="pulse"))
            if self.keeper is not None:
                stack.push_async_callback(self.keeper.save)
                stack.push_async_callback(_ended, asyncio.create_task(self.keeper.run(), name="profiles"))
            if self.mcp is not None:
                await stack.enter_async_context(self.mcp.running())
            self._report()
            yield
            self.draining = True

    def measure(self) -> None:
        """Set the gauges to how things stand."""
        dispatcher, metrics = self.runtime.dispatcher, self.metrics
        resident = self.residence.resident() if self.residence is not None else {}
        metrics.engines.measure(dispatcher, resident, self.runtime.now())
        metrics.runs.tracked.set(len(dispatcher.runs))
        metrics.requests.measure(keys=self.access.count, broken=self.access.broken)
        metrics.stores.measure(
            self.state.artifacts.memory.shelf,
            readers=self.state.events.readers,
            journal_dropped=self.runtime.journal_dropped,
        )

    def _report(self) -> None:
        """Say what is up, and where a client is to be pointed."""
        for name, spec in self.runtime.pools.items():
            engines = self.runtime.dispatcher.fleet.of(name)
            ready = sum(engine.status == "ready" for engine in engines)
            _log.info(
                "pool %-16s %d of %d engines ready (max %d)%s",
                name,
                ready,
                spec.start,
                spec.maximum,
                f", model {spec.model}" if spec.model else "",
            )
        for name, workflow in self.config.workflows.items():
            _log.info("workflow %-12s %s", name, " ".join(workflow.stages))


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
