"""How soon an engine is free again after a client has left: in a stream, before it, and where none was asked for.

    python -m bench.disconnect [--clients N]

The gateway is a process of its own. Measured from the client's close to the engine's having dropped the request.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from urllib.parse import urlsplit

from backends.emulated.options import EmulatedOptions
from bench.site import CHAT, Site, body, machine, site, tell

PROMISED = 0.25
LONG = 5000
PHASES = ("mid-stream", "streamed, before the first token", "non-streamed")


async def main(clients: int) -> None:
    tell(f"machine: {machine()}")
    # Prefill is slow, so that there is a time before the first token.
    options = EmulatedOptions(decode_step=0.01, prefill_rate=200.0)
    async with site(options) as up:
        for phase in PHASES:
            took = sorted([await one(up, phase, index) for index in range(clients)])
            late = sum(seconds > PROMISED for seconds in took)
            quantiles = [statistics.median(took), took[round(0.95 * (clients - 1))], took[-1]]
            shown = ", ".join(
                f"{name} {seconds * 1000:.1f} ms"
                for name, seconds in zip(("p50", "p95", "max"), quantiles, strict=True)
            )
            tell(f"{phase:34} {shown}; {late} of {clients} above {PROMISED * 1000:.0f} ms")


async def one(up: Site, phase: str, index: int) -> float:
    """One client; returns the seconds from its leaving until the engine holds nothing."""
    parts = urlsplit(up.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    prompt = f"client {index} " * (1 if phase == "mid-stream" else 40)
    data = body(prompt, max_tokens=LONG, stream=phase != "non-streamed")
    writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
    if phase == "mid-stream":
        await reader.readuntil(b'"content":"')
    await held(up, True)
    began = time.perf_counter()
    writer.transport.abort()
    await held(up, False)
    return time.perf_counter() - began


async def held(up: Site, wanted: bool) -> None:
    """Wait until the engine holds a request, or none."""
    async with asyncio.timeout(30):
        while bool(up.running) != wanted:  # noqa: ASYNC110 - the model in the engine has no event to wait for
            await asyncio.sleep(0.0005)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, default=100)
    asyncio.run(main(parser.parse_args().clients))
