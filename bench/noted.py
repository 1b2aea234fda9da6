"""A gateway in a process of its own that notes when it hands each statement to a worker: what `bench.ahead` measures.

    python -m bench.noted CONFIG

It ends when its standard input does, and then writes its notes: the number in each statement, and the seconds of
`time.perf_counter`, which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import gc
import re
import sys
import time
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import orjson
import uvloop

from backends.base import Engine, EngineReport, Reply, Request
from backends.capabilities import Capabilities
from gateway.cli import read_config
from gateway.compose import compose
from gateway.listening import listening

NUMBER = re.compile(rb"SELECT (\d+) AS n")


class Noted:
    """A worker, and when it is handed which statement."""

    def __init__(self, engine: Engine, started: dict[str, float]) -> None:
        self._engine = engine
        self._started = started

    def open(self, request: Request) -> AbstractAsyncContextManager[Reply]:
        if number := NUMBER.search(request.body):
            self._started.setdefault(number[1].decode(), time.perf_counter())
        return self._engine.open(request)

    async def report(self) -> EngineReport:
        return await self._engine.report()

    async def capabilities(self) -> Capabilities:
        return await self._engine.capabilities()

    async def aclose(self) -> None:
        await self._engine.aclose()


async def main(config: Path) -> None:
    started: dict[str, float] = {}
    gateway = await compose(read_config(config, {}))
    async with listening(gateway) as url:
        for name, worker in list(gateway.runtime.engines.items()):
            if name.startswith("warehouse/"):
                gateway.runtime.engines[name] = Noted(worker, started)
        gc.collect()
        gc.freeze()  # as `cortex serve` does
        sys.stderr.write(f"listening on {url}\n")
        sys.stderr.flush()
        await asyncio.to_thread(sys.stdin.read)
    sys.stdout.buffer.write(orjson.dumps(started))


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1])))
