"""Asks every engine how it is and feeds the answers to the scheduler; an engine that stays silent is given up."""

from __future__ import annotations

import asyncio
import logging

from backends.base import BackendError, EngineReport
from gateway.runtime import Runtime
from policies.events import EngineGone, Reported

SILENT_MOST = 3
"""Reports in a row that an engine may miss before it is taken for dead and replaced."""
_log = logging.getLogger("cortex.monitor")


class Monitor:
    """Polls the engines every `interval` seconds. The last reports are in `reports`, by engine."""

    def __init__(self, runtime: Runtime, *, interval: float = 2.0) -> None:
        self._runtime = runtime
        self._interval = interval
        self._silent: dict[str, int] = {}
        self.reports: dict[str, EngineReport] = {}

    async def run(self) -> None:
        """Poll until cancelled."""
        while True:
            try:
                await self.poll()
            except Exception:  # noqa: BLE001 - the root of the task: a watch that ends is noticed by nobody
                _log.exception("poll failed")
            await asyncio.sleep(self._interval)

    async def poll(self) -> None:
        """Ask all engines once, side by side."""
        engines = list(self._runtime.engines)
        await asyncio.gather(*(self._ask(name) for name in engines))
        for gone in self.reports.keys() - self._runtime.engines.keys():
            del self.reports[gone]
            self._silent.pop(gone, None)

    async def _ask(self, name: str) -> None:
        engine = self._runtime.engines.get(name)
        if engine is None:
            return
        try:
            report = await engine.report()
        except BackendError as error:
            self._missed(name, error)
            return
        self._silent.pop(name, None)
        self.reports[name] = report
        self._runtime.handle(
            Reported(engine=name, alive=True, running=report.running, waiting=report.waiting, kv_use=report.kv_use)
        )

    def _missed(self, name: str, error: BackendError) -> None:
        missed = self._silent[name] = self._silent.get(name, 0) + 1
        self._runtime.handle(Reported(engine=name, alive=False))
        if missed == SILENT_MOST:
            _log.warning("engine given up engine=%s reports_missed=%d reason=%s", name, missed, error)
            self._runtime.handle(EngineGone(engine=name))
