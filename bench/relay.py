"""What one call costs the gateway: CPU time per call, streamed and not, and the time it adds.

    python -m bench.relay [--calls N] [--profile FILE]

The gateway is a process of its own, whose CPU time the kernel counts; client and engine share another.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time

import aiohttp

from backends.emulated.options import EmulatedOptions
from bench.site import CHAT, Site, body, machine, site, tell

CHUNKS = 64
KINDS = {
    "non-streamed": body("Say one word.", max_tokens=1),
    f"{CHUNKS}-chunk stream": body("Say many words.", max_tokens=CHUNKS, stream=True),
}
AT_ONCE = 16


async def main(calls: int, profile: str | None) -> None:
    python = ["-m", "cProfile", "-o", profile] if profile else []
    tell(f"machine: {machine()}")
    # A step of 4 ms: the events of a stream come one by one, as from a real engine.
    options = EmulatedOptions(decode_step=0.004, decode_sequence=0.0, prefill_rate=1e7, max_num_seqs=256)
    headers = {"content-type": "application/json"}
    async with site(options, python=python) as up, aiohttp.ClientSession(headers=headers) as session:
        for name, data in KINDS.items():
            await many(session, up.url, data, 50)
            await report(session, up, name, data, calls)


async def report(session: aiohttp.ClientSession, up: Site, name: str, data: bytes, calls: int) -> None:
    direct = await many(session, up.engines[0].url, data, calls)
    before = up.cpu()
    through = await many(session, up.url, data, calls)
    cost = (up.cpu() - before) / calls
    added = statistics.median(through) - statistics.median(direct)
    tell(
        f"{name:16} {cost * 1000:6.2f} ms CPU per call;"
        f" first byte p50 {statistics.median(through) * 1000:.2f} ms, {added * 1000:+.2f} ms against the engine alone"
        f" ({calls} calls, {AT_ONCE} at once)"
    )


async def many(session: aiohttp.ClientSession, url: str, data: bytes, calls: int) -> list[float]:
    """The times to the first byte of so many calls."""
    left = iter(range(calls))
    times: list[float] = []

    async def client() -> None:
        for _ in left:
            began = time.perf_counter()
            async with session.post(url + CHAT, data=data) as reply:
                assert reply.status == 200, await reply.text()
                times.append(time.perf_counter() - began)
                assert b"finish_reason" in await reply.read()

    await asyncio.gather(*(client() for _ in range(AT_ONCE)))
    return times


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=sys.modules[__name__].__doc__)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--profile", metavar="FILE")
    arguments = parser.parse_args()
    asyncio.run(main(arguments.calls, arguments.profile))
