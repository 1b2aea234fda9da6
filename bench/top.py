"""What it costs to watch a gateway with `cortex top`: CPU time of 32 engines and 1,000 runs, drawn twice a second.

    python -m bench.top [--engines N] [--runs N] [--seconds S]

A gateway has four pools of emulated engines and runs of which a part has a call open and the others are between two
calls; `cortex top` draws on a pseudo-terminal of 120 columns and 40 lines, and what comes out of that says how often.
The bar: 5 % of a core, once it has started.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import os
import pty
import signal
import struct
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import httpx

from backends.emulated.options import EmulatedOptions
from backends.emulated.server import serve
from bench.site import CHAT, MODEL, Site, body, gateway, machine, tell

BAR = 0.05
POOLS = 4
COLUMNS, LINES = 120, 40
OPEN_SHARE = 0.4
"""Of the runs those that have a call open while it is measured."""
DEADLINE_MS = 900_000
WARM_UP = 5.0
HOME = b"\x1b[H"
"""What each frame begins with."""
TOKEN = "bench"  # noqa: S105 - of a gateway that lives as long as this program
_TICKS = os.sysconf("SC_CLK_TCK")


@asynccontextmanager
async def site(engines: int) -> AsyncIterator[Site]:
    """A gateway over so many engines in four pools, with an admin API."""
    options = EmulatedOptions(decode_step=0.5, max_num_seqs=64)
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(serve(options)) for _ in range(engines)]
        pools = {
            f"pool-{number}": {
                "model": MODEL,
                "backend": {"name": "vllm", "attach": [server.url for server in servers[number::POOLS]]},
            }
            for number in range(min(POOLS, engines))
        }
        stages = {f"stage-{number}": {"pool": name} for number, name in enumerate(pools)}
        edges = [{"from": here, "to": there} for here, there in pairwise(("start", *stages))]
        more = {
            "admin": {"token": TOKEN},
            "workflows": {"agent": {"stages": stages, "edges": edges}},
            "policies": {"gate": {"name": "open"}},
            "limits": {"queue_calls": 10_000},
        }
        yield replace(await stack.enter_async_context(gateway(pools, more=more)), engines=servers)


@asynccontextmanager
async def runs(up: Site, count: int) -> AsyncIterator[None]:
    """So many runs for the block: a part of them with a call that goes on and on, the others between two calls."""
    limits = httpx.Limits(max_connections=None)
    async with (
        httpx.AsyncClient(base_url=up.url, timeout=600, limits=limits, trust_env=False) as http,
        asyncio.TaskGroup() as group,
    ):
        waiting = round(OPEN_SHARE * count)
        for first in range(0, count - waiting, 50):
            some = range(first, min(first + 50, count - waiting))
            await asyncio.gather(*(_call(http, number, 1) for number in some))
        calls = [group.create_task(_call(http, number, 4000)) for number in range(count - waiting, count)]
        while up.running < waiting:  # noqa: ASYNC110 - the model in the engine has no event to wait for
            await asyncio.sleep(0.2)
        yield
        for call in calls:
            call.cancel()


async def _call(http: httpx.AsyncClient, number: int, tokens: int) -> None:
    headers = {
        "X-Workflow-Type": "agent",
        "X-Workflow-Id": f"run-{number:05}",
        "X-Workflow-Stage": f"stage-{number % POOLS}",
        "X-Workflow-Deadline-Ms": str(DEADLINE_MS + 100 * number),
    }
    content = body(f"question {number} " * 20, max_tokens=tokens, min_tokens=tokens)
    (await http.post(CHAT, content=content, headers=headers)).raise_for_status()


@asynccontextmanager
async def top(url: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, bytearray]]:
    """`cortex top` in a terminal; gives the process and what it has drawn, which grows."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "top", "--url", url),
        stdin=theirs,
        stdout=theirs,
        env={**os.environ, "CORTEX_ADMIN_TOKEN": TOKEN, "TERM": "xterm-256color"},
    )
    os.close(theirs)
    drawn = bytearray()
    loop = asyncio.get_running_loop()
    loop.add_reader(ours, lambda: drawn.extend(_read(ours)))
    try:
        yield process, drawn
    finally:
        loop.remove_reader(ours)
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        reading = loop.run_in_executor(None, _drain, ours)
        await process.wait()
        await reading
        os.close(ours)


def _read(fd: int) -> bytes:
    with contextlib.suppress(OSError):
        return os.read(fd, 65536)
    return b""


def _drain(fd: int) -> None:
    """Read until the last who could write is gone: one whose terminal is not read cannot end."""
    while _read(fd):
        pass


async def cost(url: str, seconds: float) -> tuple[float, float, int]:
    """The share of a core, frames a second and bytes of a frame of `cortex top` in its steady state."""
    async with top(url) as (process, drawn):
        async with asyncio.timeout(60):
            while drawn.count(HOME) < 3:  # noqa: ASYNC110 - it happens in another process
                await asyncio.sleep(0.1)
        await asyncio.sleep(WARM_UP)
        drawn.clear()
        before = _cpu(process.pid)
        await asyncio.sleep(seconds)
        share, frames = (_cpu(process.pid) - before) / seconds, drawn.count(HOME)
        return share, frames / seconds, len(drawn) // max(1, frames)


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


async def main(engines: int, count: int, seconds: float) -> bool:
    tell(f"machine: {machine()}")
    async with site(engines) as up, runs(up, count):
        alone = up.cpu()
        await asyncio.sleep(seconds / 2)
        alone = (up.cpu() - alone) / (seconds / 2)
        watched = up.cpu()
        share, rate, size = await cost(up.url, seconds)
        watched = (up.cpu() - watched) / (seconds + WARM_UP)
    tell(
        f"cortex top, {engines} engines, {count} runs: {share:.2%} of a core, {rate:.2f} frames a second of {size} B"
    )
    tell(f"the gateway meanwhile: {watched:.2%} of a core, {alone:.2%} without")
    good = share <= BAR and rate >= 1.9
    tell(f"bar: {BAR:.0%} at 2 frames a second: {'holds' if good else 'MISSED'}")
    return good


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=sys.modules[__name__].__doc__)
    parser.add_argument("--engines", type=int, default=32)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=20.0)
    arguments = parser.parse_args()
    sys.exit(not asyncio.run(main(arguments.engines, arguments.runs, arguments.seconds)))
