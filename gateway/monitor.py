"""Asks every engine how it is and feeds the answers to the scheduler; an engine that stays silent is given up."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from backends.base import BackendError, EngineReport
from gateway.runtime import Runtime
from policies.events import EngineGone, Reported

SILENT_MOST = 3
"""Reports in a row that an engine may miss before it is taken for dead and replaced."""
_log = logging.getLogger("cortex.monitor")


class Monitor:
    """Asks the engines every `interval` seconds. The last reports are in `reports`, by engine."""

    def __init__(self, runtime: Runtime, *, interval: float = 2.0) -> None:
        self._runtime = runtime
        self._interval = interval
        self._silent: dict[str, int] = {}
        self.reports: dict[str, EngineReport] = {}

    async def run(self) -> None:
        """Ask each engine once an interval, until cancelled. They take turns: a burst would hold up the calls."""
        asking: dict[str, asyncio.Task[None]] = {}
        try:
            while True:
                engines = list(self._runtime.engines)
                for name in engines:
                    if name not in asking:
                        task = asking[name] = asyncio.create_task(self._asked(name), name=f"report of {name}")
                        task.add_done_callback(partial(_done, asking, name))
                    await asyncio.sleep(self._interval / len(engines))
                if not engines:
                    await asyncio.sleep(self._interval)
                self._forget_gone()
        finally:
            for task in asking.values():
                task.cancel()

    async def poll(self) -> None:
        """Ask all engines once, side by side."""
        await asyncio.gather(*(self._asked(name) for name in list(self._runtime.engines)))
        self._forget_gone()

    def _forget_gone(self) -> None:
        for gone in self.reports.keys() - self._runtime.engines.keys():
            del self.reports[gone]
        for gone in self._silent.keys() - self._runtime.engines.keys():
            del self._silent[gone]

    async def _asked(self, name: str) -> None:
        try:
            await self._ask(name)
        except Exception:  # noqa: BLE001 - the root of the task: a defect must not go unheard
            _log.exception("poll failed")

    async def _ask(self, name: str) -> None:
        engine = self._runtime.engines.get(name)
        if engine is None:
            return
        asked = self._runtime.now()
        try:
            report = await engine.report()
        except BackendError as error:
            if self._runtime.heard.get(name, asked) <= asked:  # else it is busy with calls
                self._missed(name, error)
            return
        before, silent = self.reports.get(name), self._silent.pop(name, 0)
        self.reports[name] = report
        if silent or (before is not None and before.asleep and not report.asleep):
            await self._runtime.ask_again(name)
        self._runtime.handle(
            Reported(
                engine=name,
                alive=True,
                running=report.running,
                waiting=report.waiting,
                kv_use=report.kv_use,
                asleep=report.asleep,
            )
        )

    def _missed(self, name: str, error: BackendError) -> None:
        missed = self._silent[name] = self._silent.get(name, 0) + 1
        self._runtime.handle(Reported(engine=name, alive=False))
        if missed == SILENT_MOST:
            _log.warning("engine given up engine=%s reports_missed=%d reason=%s", name, missed, error)
            self._runtime.handle(EngineGone(engine=name))


def _done(asking: dict[str, asyncio.Task[None]], name: str, _: asyncio.Task[None]) -> None:
    del asking[name]
