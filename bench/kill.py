"""Engines that are killed under load: what their clients are told, and what is left of them.

    python -m bench.kill [--engines N] [--kills N]            emulated engines
    python -m bench.kill --real VENV [--kills N]              three vLLM servers

Processes of engines get SIGKILL while calls run, streamed and whole. A call that has sent nothing yet is tried
elsewhere; a stream that has begun ends by an error event. Afterwards the gateway must hold what it held before: files
and sockets, processes, slots.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import logging
import os
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import orjson
import uvloop

import backends.vllm
from backends.launcher import CPU_ARGS, ON_A_CPU
from bench.site import CHAT, MODEL, body, machine, tell
from gateway.cli import read_config
from gateway.compose import compose
from gateway.gateway import Gateway
from gateway.listening import listening

EMULATED: Final = (
    "import sys; from backends.emulated.__main__ import main;"
    f" main(['--model', '{MODEL}', '--port', sys.argv[-1], '--decode-step', sys.argv[1]])"
)
"""An emulated engine in the place of a vLLM server: it takes the port, the seconds of a step, and no other option."""
TOKENS: Final = 12
REAL_ARGS: Final = (*CPU_ARGS, "--max-model-len", "2560", "--num-gpu-blocks-override", "400")
PATIENCE: Final = 300.0
"""Seconds until all engines are there again, and until nothing is held any more."""


# --- what a process holds ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Held:
    """What this process holds: open files by their kind, and processes below it."""

    files: int
    sockets: int
    processes: int

    @classmethod
    def now(cls) -> Held:
        kinds = Counter(kind.startswith("socket:") for kind in _files())
        return cls(files=kinds[False], sockets=kinds[True], processes=len(list(descendants(os.getpid()))))

    def within(self, other: Held) -> bool:
        return self.files <= other.files and self.sockets <= other.sockets and self.processes <= other.processes


def _files() -> Iterator[str]:
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # that of the folder itself
            yield os.readlink(entry)


def children(pid: int) -> list[int]:
    """The processes that a process has started, from any of its threads."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (thread / "children").read_text().split())
    return found


def descendants(pid: int) -> Iterator[int]:
    for child in children(pid):
        yield child
        yield from descendants(child)


def victims() -> list[int]:
    """The processes of engines: all that a keeper keeps."""
    return [pid for keeper in children(os.getpid()) if _keeps(keeper) for pid in descendants(keeper)]


def _keeps(pid: int) -> bool:
    try:
        return b"backends.keeper" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


# --- the site ---------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Site:
    """A gateway in this process, and where it listens."""

    gateway: Gateway
    url: str
    engines: int
    addresses: set[str] = field(default_factory=set)

    def ready(self) -> int:
        """How many engines may be given calls; remembers where they listen."""
        self.addresses |= {
            url for engine in self.gateway.runtime.engines.values() if (url := vars(engine).get("url"))
        }
        return sum(engine.status == "ready" for engine in self.gateway.runtime.dispatcher.fleet)

    def failed(self) -> int:
        """How many attempts have failed."""
        series = self.gateway.metrics.registry.collect()
        samples = (one for metric in series for one in metric.samples)
        return int(sum(one.value for one in samples if one.name == "cortex_attempt_failures_total"))

    def idle(self) -> bool:
        fleet, calls = self.gateway.runtime.dispatcher.fleet, self.gateway.runtime.dispatcher.calls
        return not calls and not self.gateway.door.inside and not any(engine.slots for engine in fleet)


@asynccontextmanager
async def site(launch: dict[str, object], engines: int, *, model: str = MODEL) -> AsyncIterator[Site]:
    """A gateway whose engines are all ready. They are not asked for reports, so idle connections end."""
    pool = {
        "model": model,
        "backend": {"name": "vllm", "launch": {"gpus": 0, "ready": "10m", "grace": "1s", **launch}},
        "engines": {"min": engines, "max": engines},
        "concurrency": {"sequences": 2},  # few, so that all engines have calls
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_bytes(orjson.dumps({"server": {"port": 0}, "insecure": True, "pools": {"default": pool}}))
        gateway = await compose(read_config(path, {}), seed=1, report_every=3600.0)
        async with listening(gateway) as url:
            up = Site(gateway, url, engines)
            await until(lambda: up.ready() == engines, "all engines")
            yield up


async def until(holds: Callable[[], bool], what: str) -> float:
    """Wait for a condition; returns the seconds that it took. Raises RuntimeError where it does not come about."""
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > PATIENCE:
            raise RuntimeError(f"not within {PATIENCE:g} s: {what}")
        await asyncio.sleep(0.02)
    return time.monotonic() - began


# --- the load ---------------------------------------------------------------------------------------------------


class Load:
    """Clients that ask without a pause, every other call streamed. `seen` is how their calls ended:

    `answered`; `told`: by an error event, in a stream that had begun; `refused STATUS (MESSAGE)`: before the first
    byte, by an error in OpenAI's form; `lost`: in any other way.
    """

    def __init__(self, url: str, *, tokens: int = TOKENS, model: str = MODEL) -> None:
        self.seen = Counter[str]()
        self._url = url
        self._tokens = tokens
        self._model = model
        self._over = False
        self._numbers = itertools.count()

    @asynccontextmanager
    async def running(self, clients: int) -> AsyncIterator[None]:
        """Clients until the block is left, which waits for their last calls."""
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(connector=connector) as http, asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(self._ask_on(http))
            try:
                yield
            finally:
                self._over = True

    async def _ask_on(self, http: aiohttp.ClientSession) -> None:
        while not self._over:
            number = next(self._numbers)
            self.seen[await self._ask(http, number, stream=number % 2 == 0)] += 1

    async def _ask(self, http: aiohttp.ClientSession, number: int, *, stream: bool) -> str:
        more = {"max_tokens": self._tokens, "ignore_eos": True, "stream": stream, "model": self._model}
        try:
            async with http.post(self._url + CHAT, data=body(f"call {number}", **more)) as reply:
                text, status = await reply.text(), reply.status
        except aiohttp.ClientError:
            return "lost"
        if status != 200:
            return f"refused {status} ({said})" if (said := _said(text)) else "lost"
        if not stream or text.endswith("data: [DONE]\n\n"):
            return "answered"
        return "told" if text.rpartition("data: ")[2].startswith('{"error"') else "lost"


def _said(text: str) -> str:
    """The message of an error in OpenAI's form."""
    try:
        return str(orjson.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return ""


async def killing(kills: int, *, at_once: int, every: float, chance: Random) -> None:
    """Kill so many processes of engines, some at once."""
    for _ in range(0, kills, at_once):
        await asyncio.sleep(every)
        alive = await asyncio.to_thread(victims)  # reads many files, and the gateway is in this process
        for pid in chance.sample(alive, min(at_once, len(alive))):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How the calls ended, how many attempts failed on the way, what the gateway held before and after, and which
    addresses still listen after its end.
    """

    seen: Counter[str]
    failed: int
    before: Held
    after: Held
    back: float
    listening: Sequence[str]

    @property
    def sound(self) -> bool:
        return not self.seen["lost"] and self.after.within(self.before) and not self.listening


async def storm(
    launch: dict[str, object], *, engines: int, kills: int, at_once: int = 1, every: float = 0.5, **load: Any
) -> Result:
    """Kill engines under load, and see what is left; `load` as `Load` has it, and the number of its `clients`."""
    clients = load.pop("clients", 2 * engines)
    async with site(launch, engines, model=load.get("model", MODEL)) as up:
        await asyncio.sleep(2.5 * backends.vllm.KEEP_ALIVE)  # until no idle connection is left
        before = Held.now()
        asked = Load(up.url, **load)
        async with asked.running(clients):
            await until(lambda: asked.seen["answered"] > clients, "the first answers")
            await killing(kills, at_once=at_once, every=every, chance=Random(1))  # noqa: S311 - repeatable
            back = await until(lambda: up.ready() == engines, "the engines in the place of those that were killed")
        await until(up.idle, "an end of all calls")
        with contextlib.suppress(RuntimeError):  # what is left is the result
            await until(lambda: Held.now().within(before), "what was held before")
        after, failed = Held.now(), up.failed()
    still = [address for address in up.addresses if _listens(address)]
    return Result(seen=asked.seen, failed=failed, before=before, after=after, back=back, listening=still)


def _listens(address: str) -> bool:
    parts = urlsplit(address)
    with socket.socket() as probe:
        return probe.connect_ex((parts.hostname, parts.port)) == 0


def emulated(engines: int) -> dict[str, object]:
    """Engines that are the slower the more there are, so that calls wait for them and not for this process."""
    return {"command": [sys.executable, "-c", EMULATED, str(engines / 200)]}


async def real(venv: Path, model: Path) -> dict[str, object]:
    """Small vLLM servers on a CPU."""
    making = await asyncio.create_subprocess_exec(venv / "bin" / "python", "deploy/vllm/make_model.py", model)
    if await making.wait():
        raise RuntimeError("no model was made")
    return {
        "command": [str(venv / "bin" / "vllm"), "serve"],
        "model": str(model),
        "args": REAL_ARGS,
        "env": ON_A_CPU,
        "grace": "10s",
    }


async def main(arguments: argparse.Namespace) -> int:
    tell(f"machine: {machine()}")
    began = time.monotonic()
    if arguments.real:
        with tempfile.TemporaryDirectory() as folder:
            launch = await real(arguments.real, Path(folder))
            kills = arguments.kills or 4
            result = await storm(launch, engines=3, kills=kills, every=3.0, clients=6, tokens=60)
    else:
        kills = arguments.kills or arguments.engines // 2
        result = await storm(
            emulated(arguments.engines), engines=arguments.engines, kills=kills, at_once=max(1, kills // 20)
        )
    tell(f"{kills} kills in {time.monotonic() - began:.0f} s; all engines back {result.back:.1f} s after the last")
    tell("calls: " + ", ".join(f"{count} {how}" for how, count in sorted(result.seen.items())))
    tell(f"attempts that failed: {result.failed}")
    tell(f"held before: {result.before}\nheld after:  {result.after}")
    tell(f"listening after the gateway's end: {result.listening or 'nothing'}")
    tell("holds" if result.sound else "MISSED")
    return 0 if result.sound else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--engines", type=int, default=100)
    parser.add_argument("--kills", type=int, default=0, help="without: half as many as engines; 4 of real ones")
    parser.add_argument("--real", type=Path, metavar="VENV", help="the environment that has vLLM")
    logging.getLogger("cortex").setLevel(logging.CRITICAL)
    sys.exit(uvloop.run(main(parser.parse_args())))
