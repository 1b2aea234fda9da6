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
from gateway.keeping import ProfileFile
from gateway.metrics import Metrics
from gateway.monitor import Monitor
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
            await asyncio.gather(self.runtime.start(), *(start() for start in self.openers))
            await self.monitor.poll()
            watch = asyncio.create_task(self.monitor.run(), name="monitor")
            stack.push_async_callback(_ended, watch)
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
        dispatcher, metrics, now = self.runtime.dispatcher, self.metrics, self.runtime.now()
        for name in self.runtime.pools:
            engines = dispatcher.fleet.of(name)
            for state in ("starting", "ready", "draining", "gone"):
                metrics.engines.labels(name, state).set(sum(engine.status == state for engine in engines))
            metrics.waiting.labels(name).set(dispatcher.pool_view(name, now).waiting)
            metrics.running.labels(name).set(sum(len(engine.slots) for engine in engines))
            metrics.work.labels(name).set(sum(engine.work for engine in engines))
            metrics.gate_parked.labels(name).set(dispatcher.gate.parked(name))
        self._measure_engines(now)
        self._measure_caches()
        metrics.gate_window.set(dispatcher.gate.window)
        metrics.gate_active.set(dispatcher.gate.active)
        metrics.runs.set(len(dispatcher.runs))
        metrics.journal.set(self.runtime.journal_dropped)
        shelf = self.state.artifacts.memory.shelf
        metrics.artifacts.set(len(shelf))
        metrics.artifact_bytes.set(shelf.bytes)
        metrics.state_readers.set(self.state.events.readers)

    def _measure_engines(self, now: float) -> None:
        """Set the gauges of each engine; the series of those that are gone end."""
        dispatcher, metrics = self.runtime.dispatcher, self.metrics
        for gauge in (metrics.kv, metrics.budget, metrics.on_loan, metrics.pressure, metrics.prefix):
            gauge.clear()
        for engine in dispatcher.fleet:
            name = engine.name
            metrics.kv.labels(name).set(engine.kv_use)
            metrics.budget.labels(name).set(engine.budget)
            metrics.on_loan.labels(name).set(engine.on_loan)
            metrics.pressure.labels(name).set(engine.pressure(now))
            metrics.prefix.labels(name).set(dispatcher.prefixes.resident(name))

    def _measure_caches(self) -> None:
        self.metrics.resident.clear()
        for name, blocks in self.residence.resident().items() if self.residence is not None else ():
            self.metrics.resident.labels(name).set(blocks)

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
