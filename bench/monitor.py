"""What it costs the gateway to watch its engines: CPU time with 32 of them attached and no calls.

    python -m bench.monitor [--engines N] [--seconds S]

The engines are one process besides, which answers `/metrics` with pages as long as those of a vLLM 0.32 server that
has worked, in as many series. The bar: at most 2 % of a core for 32 engines with a report every 2 s.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator

from backends.emulated.metrics import Metrics
from backends.emulated.model import Engine
from backends.emulated.options import EmulatedOptions
from bench.site import MODEL, gateway, machine, tell

PAGE = 55_600
"""Bytes of the page of a real server."""
BAR = 0.02
SETTLE = 4.0


class Answers(asyncio.Protocol):
    """One connection of an engine that has a page of metrics, is well, and answers nothing else."""

    def __init__(self, page: bytes) -> None:
        self._page = _answer("200 OK", page)
        self._left = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        *heads, self._left = (self._left + data).split(b"\r\n\r\n")
        for head in heads:
            known = {b"/metrics": self._page, b"/health": _answer("200 OK", b"")}
            self._transport.write(known.get(head.split(b" ", 2)[1], _answer("404 Not Found", b"")))


def _answer(status: str, body: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\ncontent-type: text/plain; version=1.0.0; charset=utf-8\r\ncontent-length: {len(body)}"
    )
    return f"{head}\r\n\r\n".encode() + body


def page() -> bytes:
    """The metrics of an emulated engine, and histograms that nobody asks for until it is as long as a real one."""
    made = [Metrics(MODEL, Engine(EmulatedOptions().engine_config())).render()]
    labels = f'engine="0",model_name="{MODEL}"'
    while sum(map(len, made)) < PAGE:
        name = f"vllm:request_histogram_{len(made)}_seconds"
        buckets = "".join(f'{name}_bucket{{{labels},le="{edge}.0"}} 12.0\n' for edge in range(1, 20))
        made.append(f"# HELP {name} Histogram of what nobody asks for.\n# TYPE {name} histogram\n{buckets}".encode())
    return b"".join(made)


async def engines(count: int) -> None:
    """Be so many engines until standard input ends; their ports are told on one line."""
    loop, body = asyncio.get_running_loop(), page()
    servers = [await loop.create_server(lambda: Answers(body), "127.0.0.1", 0) for _ in range(count)]
    tell(" ".join(str(server.sockets[0].getsockname()[1]) for server in servers))
    await asyncio.to_thread(sys.stdin.read)


@contextlib.asynccontextmanager
async def engines_beside(count: int) -> AsyncIterator[list[str]]:
    """The addresses of so many engines in a process of their own."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.monitor", "--be", str(count)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        ports = (await process.stdout.readline()).split()
        yield [f"http://127.0.0.1:{int(port)}" for port in ports]
    finally:
        process.stdin.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                await process.wait()
        if process.returncode is None:
            os.kill(process.pid, signal.SIGKILL)


async def cost(urls: list[str], seconds: float) -> float:
    """The share of a core that a gateway takes which has these engines and no calls."""
    size = {"min": len(urls), "start": len(urls), "max": len(urls)}
    pool = {"model": MODEL, "backend": {"name": "vllm", "attach": urls}, "engines": size}
    async with gateway({"default": pool}) as up:
        await asyncio.sleep(SETTLE)
        before = up.cpu()
        await asyncio.sleep(seconds)
        return (up.cpu() - before) / seconds


async def main(count: int, seconds: float) -> bool:
    tell(f"machine: {machine()}")
    async with engines_beside(count) as urls:
        shares = {number: await cost(urls[:number], seconds) for number in (1, count)}
    for number, share in shares.items():
        tell(f"{number:3} engines, a report of {PAGE / 1000:.1f} kB each every 2 s: {share:.2%} of a core")
    good = shares[count] <= BAR * count / 32
    tell(f"bar: {BAR * count / 32:.1%} for {count} engines: {'holds' if good else 'MISSED'}")
    return good


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=sys.modules[__name__].__doc__)
    parser.add_argument("--engines", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--be", type=int, metavar="N", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.be is not None:
        asyncio.run(engines(arguments.be))
    else:
        sys.exit(not asyncio.run(main(arguments.engines, arguments.seconds)))
