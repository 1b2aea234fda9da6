"""SQL ahead of its call: how soon after its closing quote a statement starts, and what that saves the client.

    python -m bench.ahead [--turns N] [--clients N]

An emulated engine writes a token every 20 ms. Between it and the gateway stands a tap that notes when the delta with
a statement's closing quote passes; a statement has started when it is handed to its worker. Engine, tap and clients
share one process, and the gateway has its own (`bench.noted`). Every fifth client never asks for what its model has
called: its statement ahead is wasted.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import duckdb
import orjson
import uvloop

from backends.emulated.options import EmulatedOptions
from backends.emulated.script import read_script
from backends.emulated.server import serve
from bench.noted import NUMBER
from bench.site import CHAT, MODEL, address, machine, tell

WORKERS = 2
STEP = 0.02
STARTS_WITHIN = 0.005
TOOLS = [{"type": "function", "function": {"name": "execute_sql", "parameters": {"type": "object"}}}]
KINDS: Mapping[str, tuple[int, str]] = {
    "cheap, statement last": (10, ""),
    "slow, statement last": (3000, ""),
    "slow, a reason after it": (3000, "the sum of all pairs says whether the ranges are whole"),
}
"""By name: the rows on each side of the statement's join, and what the model writes after the statement."""
_SERIES = re.compile(r"^(cortex_sql_ahead_\S+) (\S+)", re.MULTILINE)
_ARGUMENTS = re.compile(rb'"(?:name|arguments)":\s*("(?:[^"\\]|\\.)*")')


@dataclass(frozen=True, slots=True)
class Turn:
    """One question to the model; its number stands in its statement, so that no two are the same."""

    number: int
    kind: str

    @property
    def sql(self) -> str:
        rows = KINDS[self.kind][0]
        pairs = f"range({rows}) AS a(i), range({rows}) AS b(i)"
        return f"SELECT {self.number} AS n, sum(a.i * b.i) AS t FROM {pairs}"  # noqa: S608 - numbers of our own

    @property
    def rules(self) -> list[dict[str, object]]:
        after = KINDS[self.kind][1]
        arguments = {"sql": self.sql, **({"reason": after} if after else {})}
        last: dict[str, object] = {"task": "any", "quotes": ['"row_count"'], "say": "Whole."}
        return [last, {"task": "any", "call": {"name": "execute_sql", "arguments": arguments}}]

    @property
    def body(self) -> dict[str, object]:
        messages = [{"role": "user", "content": f"TASK\nQuestion: number {self.number}\n"}]
        return {"model": MODEL, "messages": messages, "tools": TOOLS, "stream": True}


@dataclass(slots=True)
class Notes:
    """When what happened, by the number of the statement."""

    whole: dict[int, float] = field(default_factory=dict)
    started: dict[int, float] = field(default_factory=dict)

    def lags(self, turns: list[Turn]) -> list[float]:
        numbers = [turn.number for turn in turns if turn.number in self.started]
        return [self.started[number] - self.whole[number] for number in numbers]


@dataclass(slots=True)
class Tap:
    """Passes bytes on between gateway and engine, and notes when a statement's closing quote goes by."""

    engine: str
    notes: Notes

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self.engine.removeprefix("http://").split(":")
        theirs, ours = await asyncio.open_connection(host, int(port))
        try:
            await asyncio.gather(self._pass(reader, ours), self._pass(theirs, writer, look=True))
        except ConnectionError:
            pass  # either side may go first
        finally:
            ours.close()
            writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, look: bool = False) -> None:
        arguments = b""
        while piece := await reader.read(65536):
            for text in _ARGUMENTS.findall(piece) if look else ():
                said = orjson.loads(text).encode()
                arguments = b"" if said == b"execute_sql" else arguments + said
                if arguments.count(b'"') >= 4 and (number := NUMBER.search(arguments)):  # {"sql":"…"
                    self.notes.whole.setdefault(int(number[1]), time.perf_counter())
            writer.write(piece)
            await writer.drain()
        writer.close()


@asynccontextmanager
async def site(turns: list[Turn], *, ahead: int) -> AsyncIterator[tuple[str, Notes]]:
    """Engine, tap, workers and a gateway that runs so many statements ahead at once. Its notes come in the end."""
    notes = Notes()
    entries = {f"number {turn.number}": turn.rules for turn in turns}
    script = read_script({"tasks": {"any": "TASK"}, "marker": "Question:", "entries": entries})
    options = EmulatedOptions(decode_step=STEP, decode_sequence=0.0, prefill_rate=1e6)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        duckdb.connect(str(folder / "any.duckdb")).close()
        engine = await stack.enter_async_context(serve(options, script=script, model=MODEL))
        tap = await asyncio.start_server(Tap(engine.url, notes), "127.0.0.1", 0)
        stack.callback(tap.close)
        host, port = tap.sockets[0].getsockname()[:2]
        store = {"name": "duckdb", "databases": {"any": "any.duckdb"}, "timeout": "10s", "ahead": ahead}
        pools = {
            "default": {"model": MODEL, "backend": {"name": "vllm", "attach": [f"http://{host}:{port}"]}},
            "warehouse": {"backend": store, "engines": {"min": WORKERS, "max": WORKERS}},
        }
        (folder / "config.yaml").write_text(json.dumps({"server": {"port": 0}, "insecure": True, "pools": pools}))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bench.noted", str(folder / "config.yaml")),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            url = await address(process)
            gc.collect()
            gc.freeze()
            yield url, notes
        finally:
            gc.unfreeze()
            said, _ = await process.communicate(b"")  # which ends its input
        notes.started = {int(number): at for number, at in orjson.loads(said).items()}


async def clients(url: str, turns: list[Turn], tools: str, at_once: int) -> dict[int, float]:
    """Ask the model all turns. By number, the seconds from the turn's last token to its rows, or, where the gateway
    runs the tools, from the first token to the last."""
    left = iter(turns)
    taken: dict[int, float] = {}

    async def client(session: aiohttp.ClientSession) -> None:
        for turn in left:
            async with session.post(url + CHAT, json=turn.body, headers={"X-Workflow-Tools": tools}) as reply:
                assert reply.status == 200, await reply.text()
                began = time.perf_counter()
                assert (await reply.text()).endswith("data: [DONE]\n\n")
                ended = time.perf_counter()
            if tools == "intercept":
                taken[turn.number] = ended - began
            elif turn.number % 5:
                async with session.post(url + "/v1/sql", json={"sql": turn.sql}) as answer:
                    assert answer.status == 200, await answer.text()
                    await answer.read()
                taken[turn.number] = time.perf_counter() - ended

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(client(session) for _ in range(at_once)))
    return taken


async def main(count: int, at_once: int) -> bool:
    """Measure and print; whether the statements started in time."""
    numbers = iter(range(1, 10**6))
    plan = {mode: [Turn(next(numbers), kind) for kind in KINDS for _ in range(count)] for mode in range(4)}
    tell(f"machine: {machine()}; a token every {STEP * 1000:g} ms, {at_once} client(s), {WORKERS} workers")
    taken: dict[int, dict[int, float]] = {}
    async with site([*plan[0], *plan[1]], ahead=0) as (url, _):
        taken[0] = await clients(url, plan[0], "pass", at_once)
        taken[1] = await clients(url, plan[1], "intercept", at_once)
    async with site([*plan[2], *plan[3]], ahead=WORKERS) as (url, notes):
        taken[2] = await clients(url, plan[2], "ahead", at_once)
        passed = await fates(url)
        taken[3] = await clients(url, plan[3], "intercept", at_once)
        both = await fates(url)
    tell(f"{'medians in ms, p99':<26}{'closing quote':>20}{'end of turn to rows,':>30}{'intercepted':>22}")
    tell(f"{'':<26}{'to start':>20}{'asked for by a client':>30}{'turn':>22}")
    tell(f"{'':<26}{'p50      p99':>20}{'waits     ahead   saved':>30}{'waits     ahead':>22}")
    for kind in KINDS:
        chosen = {mode: [turn for turn in plan[mode] if turn.kind == kind] for mode in plan}
        p50, p99 = quantiles(notes.lags(chosen[2] + chosen[3]))
        mean = [statistics.median([taken[m][t.number] for t in chosen[m] if t.number in taken[m]]) for m in range(4)]
        waits, ahead, saved = mean[0] * 1000, mean[2] * 1000, (mean[0] - mean[2]) * 1000
        tell(
            f"{kind:<26}{p50 * 1000:>11.2f}{p99 * 1000:>9.2f}{waits:>15.1f}{ahead:>10.1f}{saved:>8.1f}"
            f"{mean[1] * 1000:>13.1f}{mean[3] * 1000:>9.1f}"
        )
    p50, p99 = quantiles(notes.lags(plan[2] + plan[3]))
    tell(f"passed to clients: {told(passed)}")
    tell(f"intercepted:       {told({fate: both[fate] - passed[fate] for fate in both})}")
    good = p99 <= STARTS_WITHIN
    verdict = f"≤ {STARTS_WITHIN * 1000:g} ms {'holds' if good else 'MISSED'}"
    tell(f"start after the closing quote: p50 {p50 * 1000:.2f} ms, p99 {p99 * 1000:.2f} ms {verdict}")
    return good


async def fates(url: str) -> dict[str, float]:
    """What became of the statements ahead so far. What is unused by now will not be used: all clients have asked."""
    async with aiohttp.ClientSession() as session, session.get(url + "/metrics") as reply:
        values = dict(_SERIES.findall(await reply.text()))
    names = ("started", "hit", "joined", "skipped")
    found = {name: float(values.get(f'cortex_sql_ahead_total{{fate="{name}"}}', 0)) for name in names}
    found["wasted"] = found["started"] - found["hit"] - found["joined"]
    found["seconds saved"] = float(values.get("cortex_sql_ahead_saved_seconds_total", 0))
    return found


def told(found: Mapping[str, float]) -> str:
    return ", ".join(f"{value:.4g} {fate}" for fate, value in found.items())


def quantiles(values: list[float]) -> tuple[float, float]:
    """Median and 99th percentile."""
    ordered = sorted(values)
    return statistics.median(ordered), ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=sys.modules[__name__].__doc__)
    parser.add_argument("--turns", type=int, default=20, help="turns of each kind in each of four modes")
    parser.add_argument("--clients", type=int, default=1, help="how many ask at once")
    chosen = parser.parse_args()
    sys.exit(not uvloop.run(main(chosen.turns, chosen.clients)))
