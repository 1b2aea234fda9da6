"""What the benchmarks share: a gateway in a process of its own before engines in this one, and its CPU time."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from backends.emulated.options import EmulatedOptions
from backends.emulated.server import EmulatedServer, serve

MODEL = "cortex-emulated"
CHAT = "/v1/chat/completions"
_LISTENING = re.compile(rb"listening on (http://\S+)")
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Site:
    """A gateway that listens at `url` as process `pid`, and its engines."""

    url: str
    pid: int
    engines: Sequence[EmulatedServer]

    def cpu(self) -> float:
        """Seconds of CPU that the gateway has used, in user mode and in the kernel."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    @property
    def running(self) -> int:
        """Requests that the engines hold."""
        return sum(server.engine.running + server.engine.waiting for server in self.engines)


@asynccontextmanager
async def site(
    options: EmulatedOptions, *, engines: int = 1, sequences: int = 1000, python: Sequence[str] = ()
) -> AsyncIterator[Site]:
    """Start engines and a gateway; `python` are options of the interpreter that runs the gateway."""
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(serve(options)) for _ in range(engines)]
        pool = {
            "model": MODEL,
            "backend": {"name": "vllm", "attach": [server.url for server in servers]},
            "concurrency": {"sequences": sequences, "work": 10**9},
        }
        yield replace(await stack.enter_async_context(gateway({"default": pool}, python=python)), engines=servers)


@asynccontextmanager
async def gateway(
    pools: Mapping[str, object], *, python: Sequence[str] = (), more: Mapping[str, object] | None = None
) -> AsyncIterator[Site]:
    """Start a gateway over these pools; `more` is what its configuration says besides, port aside."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(json.dumps({"server": {"port": 0}, "insecure": True, "pools": pools, **(more or {})}))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, *python, "-m", "gateway", "serve", "--config", str(path)),
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            yield Site(await address(process), process.pid, ())
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
            await process.communicate()


async def address(process: asyncio.subprocess.Process) -> str:
    """The URL that a starting gateway says on its standard error."""
    assert process.stderr is not None
    async with asyncio.timeout(30):
        async for line in process.stderr:
            if found := _LISTENING.search(line):
                return found[1].decode()
    raise RuntimeError("the gateway did not start")


def body(content: str, **more: object) -> bytes:
    """The body of a chat call."""
    return json.dumps({"model": MODEL, "messages": [{"role": "user", "content": content}], **more}).encode()


def tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def machine() -> str:
    """The machine, as far as a figure needs it."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    name = names[0].partition(": ")[2] if names else "unknown CPU"
    return f"{name}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}"
