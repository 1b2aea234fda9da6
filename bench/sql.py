"""What a SQL answer costs: kept, known by its meaning only, and run; what is run at all; how long the loop is held.

    python -m bench.sql [--rounds N]

CPU time is that of the gateway and all its children, as the kernel counts it, beside what a bare HTTP exchange with
the same server costs (`GET /health` with a body as long) at the same pace. Figures are medians of rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import itertools
import random
import statistics
import tempfile
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp
import duckdb
import orjson
import uvloop

from backends.sql.cache import ResultCache, ResultKey
from bench.site import Site, gateway, machine, tell
from gateway.cli import read_config
from gateway.compose import compose
from gateway.gateway import Gateway
from gateway.listening import listening

POINT = "SELECT id, name, amount FROM orders WHERE id = 7"
GROUPED = "SELECT grp, count(*) AS n, sum(amount) AS total FROM orders GROUP BY grp ORDER BY grp"
WHERE = "SELECT grp, sum(amount) AS total FROM orders WHERE id > {} GROUP BY grp ORDER BY grp"
HTTP_EACH = 200
CLIENTS = 64
STRETCHES = 5
QUERIES, ASKED, WORKERS = 500, 10_000, 4


@dataclass(frozen=True, slots=True)
class Bar:
    """One line of the table: what was measured, and what it may be at most."""

    what: str
    value: float
    most: float
    unit: str

    def line(self) -> str:
        verdict = "holds" if self.value <= self.most else "MISSED"
        return f"{self.what:<66}{self.value:>9.2f} {self.unit:<4} ≤ {self.most:g} {self.unit:<4} {verdict}"


# --- CPU per request ------------------------------------------------------------------------------------------------


async def costs(folder: Path, rounds: int) -> list[Bar]:
    """CPU per request beyond the exchange itself: exact text kept, canonical form kept, nothing kept."""
    numbers = itertools.count(1)
    kinds: dict[str, Callable[[], bytes]] = {
        "exact": lambda: post(ask(POINT)),
        "canonical": lambda: post(ask(f"{POINT} -- {next(numbers)}")),
        "grouped": lambda: post(ask(f"{GROUPED} -- {next(numbers)}")),
        "uncached": lambda: post(ask(f"select {next(numbers)}")),
    }
    beyond: dict[str, list[float]] = {kind: [] for kind in kinds}
    own: list[float] = []
    async with gateway(pools(folder, workers=1)) as site, connected(site) as (reader, writer):
        for number in range(-1, rounds):  # the first is to warm up
            for kind, request in kinds.items():
                cost, pace = await cost_of(request, site, reader, writer)
                bare, _ = await cost_of(lambda: exchange(len(ask(POINT))), site, reader, writer, pace=pace)
                if kind == "uncached":
                    own.append(alone("select {}", pace))
                    bare += own[-1]
                if number >= 0:
                    beyond[kind].append((cost - bare) / 1000)
    tell(f"DuckDB's own time for `select 1` at the pace of the requests: {statistics.median(own):.0f} µs of CPU")
    for kind, values in beyond.items():
        tell(f"{kind}: {min(values):.3f} to {max(values):.3f} ms in {rounds} rounds")
    middle = {kind: statistics.median(values) for kind, values in beyond.items()}
    return [
        Bar("(a) exact text kept: CPU beyond the exchange", middle["exact"] * 1000, 150, "µs"),
        Bar("(b) canonical form kept, short query: CPU beyond it", middle["canonical"], 1.2, "ms"),
        Bar("(b) canonical form kept, grouped query: CPU beyond it", middle["grouped"], 1.2, "ms"),
        Bar("(d) uncached `select 1`: CPU beyond it and DuckDB's own", middle["uncached"], 1.5, "ms"),
    ]


async def cost_of(
    request: Callable[[], bytes],
    site: Site,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    *,
    pace: float = 0.0,
) -> tuple[float, float]:
    """The CPU that a request costs, in µs, and the seconds from one to the next: at least `pace`, waited for.

    What comes seldom finds cold caches, and costs more than in a tight loop: like is compared with like.
    """
    before, began = cpu_of(site.pid), time.perf_counter()
    for number in range(1, HTTP_EACH + 1):
        writer.write(request())
        await reply(reader)
        if (early := began + number * pace - time.perf_counter()) > 0:
            await asyncio.sleep(early)
    took = time.perf_counter() - began
    return (cpu_of(site.pid) - before) / HTTP_EACH / 1000, took / HTTP_EACH


def alone(sql: str, pace: float) -> float:
    """The CPU that DuckDB takes by itself for a statement on a cursor of its own, in µs; one each `pace` seconds."""
    with duckdb.connect(config={"threads": 1}) as connection:
        spent, began = time.process_time_ns(), time.perf_counter()
        for number in range(1, HTTP_EACH + 1):
            connection.cursor().execute(sql.format(number)).fetchall()
            time.sleep(max(0.0, began + number * pace - time.perf_counter()))
        return (time.process_time_ns() - spent) / HTTP_EACH / 1000


def cpu_of(pid: int) -> int:
    """Nanoseconds that a process and its living children have run."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
        total += sum(cpu_of(int(child)) for child in (task / "children").read_text().split())
    return total


# --- what is run at all ---------------------------------------------------------------------------------------------


async def counts(folder: Path) -> list[Bar]:
    """How many statements the workers run of those they are asked."""
    async with inside(folder, workers=WORKERS) as (up, url), aiohttp.ClientSession() as session:
        before = await runs(up)
        said = Counter(await asyncio.gather(*(answer(session, url, GROUPED) for _ in range(CLIENTS))))
        same = await runs(up) - before
        tell(f"{CLIENTS} identical at once: {dict(said)}")
        rng = random.Random(1)  # noqa: S311
        ranks = rng.choices(range(QUERIES), [1 / (rank + 1) for rank in range(QUERIES)], k=ASKED)
        texts = iter([WHERE.format(rank) for rank in ranks])

        async def client() -> None:
            for text in texts:
                await answer(session, url, text)

        before = await runs(up)
        await asyncio.gather(*(client() for _ in range(16)))
        run = await runs(up) - before
    tell(f"{ASKED:,} asked of {QUERIES} ({len(set(ranks))} of them came up), Zipf: {run} run")
    return [
        Bar(f"(e) {CLIENTS} concurrent identical queries run", same, 1, "time"),
        Bar(f"(f) of what is asked (Zipf over {QUERIES}, {WORKERS} workers) is run", 100 * run / ASKED, 10, "%"),
    ]


async def runs(up: Gateway) -> int:
    """The statements that the workers have run so far, as they count them."""
    reports = await asyncio.gather(*(engine.report() for engine in up.runtime.engines.values()))
    return int(sum(report.counters["runs"] for report in reports))


async def answer(session: aiohttp.ClientSession, url: str, sql: str) -> str:
    """Where the answer to a statement came from."""
    async with session.post(f"{url}/v1/sql", data=ask(sql)) as got:
        assert got.status == 200, await got.text()
        return got.headers["x-workflow-cache"]


# --- what is kept ---------------------------------------------------------------------------------------------------


class Latest:
    """Keeps what was used last, in as many bytes: what the cache is compared with."""

    def __init__(self, most: int) -> None:
        self._left = most
        self._results: OrderedDict[ResultKey, bytes] = OrderedDict()

    def get(self, key: ResultKey) -> bytes | None:
        if key in self._results:
            self._results.move_to_end(key)
        return self._results.get(key)

    def put(self, key: ResultKey, result: bytes, *, seconds: float) -> None:
        self._results[key] = result
        self._left -= len(result)
        while self._left < 0:
            self._left += len(self._results.popitem(last=False)[1])


def keeping() -> None:
    """Say which share of the engine's seconds a cache saves that holds a part of all results: Zipf over queries
    whose sizes and times are log-normal, and independent of each other.
    """
    rng = random.Random(1)  # noqa: S311
    key = ResultKey(tenant="", database="", generation=(), canonical="", limit=1, max_bytes=1)
    queries = [
        (
            replace(key, canonical=str(number)),
            b"x" * int(min(1e5, max(80, rng.lognormvariate(7, 1.8)))),
            min(2.0, max(0.0005, rng.lognormvariate(-5, 1.5))),
        )
        for number in range(QUERIES)
    ]
    asked = rng.choices(queries, [1 / (rank + 1) for rank in range(QUERIES)], k=ASKED)
    total = sum(seconds for _, _, seconds in asked)
    for share in (0.02, 0.1, 0.25):
        most = int(share * sum(len(result) + 400 for _, result, _ in queries))
        saved = []
        for cache in (ResultCache(most), Latest(most)):
            saved.append(0.0)
            for one, result, seconds in asked:
                if cache.get(one) is not None:
                    saved[-1] += seconds / total
                else:
                    cache.put(one, result, seconds=seconds)
        tell(
            f"room for {share:.0%} of the results: {saved[0]:.0%} of the seconds saved; the last used: {saved[1]:.0%}"
        )


# --- how long the loop is held --------------------------------------------------------------------------------------


async def stretches(folder: Path) -> list[Bar]:
    """The longest that the event loop works without a pause, in CPU time, while a thread asks and it does nothing
    else: for answers that are known by their text or by their meaning, and for texts that are refused.
    """
    bars = []
    async with inside(folder, workers=1) as (_, url):
        for kind, texts in {"plain SQL": plain(), "20 kB of hostile SQL": hostile()}.items():
            first, _ = await longest_stretch(url, texts)
            longest, longer = zip(
                *[
                    await longest_stretch(url, [*texts, *(text + " " * spelling for text in texts)])
                    for spelling in range(1, STRETCHES + 1)
                ],
                strict=True,
            )
            tell(f"{kind}: {len(texts)} texts; when first asked, most of them run: {first:.2f} ms")
            for values in longer:
                tell(
                    f"  asked again, as they were and in another spelling: {', '.join(f'{v:.2f}' for v in values)} ms"
                )
            bars.append(Bar(f"(c) longest stretch of the event loop, {kind}", statistics.median(longest), 1, "ms"))
    return bars


async def longest_stretch(url: str, texts: list[str]) -> tuple[float, list[float]]:
    """The longest stretch in milliseconds, and the five longest."""
    loop = asyncio.get_running_loop()
    asking = loop.create_task(asyncio.to_thread(ask_all, url, texts))
    longest: list[float] = []
    before = time.thread_time_ns()
    while not asking.done():
        await asyncio.sleep(0)
        now = time.thread_time_ns()
        longest.append((now - before) / 1e6)
        before = now
    await asking
    longest.sort(reverse=True)
    return longest[0], longest[:5]


def ask_all(url: str, texts: list[str]) -> None:
    """Ask each text once, all over one connection."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    for text in texts:
        connection.request("POST", "/v1/sql", ask(text), {"Content-Type": "application/json"})
        connection.getresponse().read()
    connection.close()


def plain() -> list[str]:
    return [WHERE.format(number) for number in range(100)]


def hostile() -> list[str]:
    """Texts that cost a parser most, each of nearly 20 kB, some of them queries that run and are kept."""
    shapes: list[Callable[[int], str]] = [
        lambda n: "SELECT 1 WHERE 5 IN (" + ", ".join(map(str, range(10_000, 10_000 + n // 7))) + ")",
        lambda n: "SELECT 1 WHERE " + " OR ".join(["1 = 2"] * (n // 9)),
        lambda n: "SELECT " + "(" * (n // 2) + "1" + ")" * (n // 2),
        lambda n: "SELECT " + "- " * (n // 2) + "1",
        lambda n: "SELECT '" + "x" * n + "' AS text",
        lambda n: "SELECT 'é" + "é" * (n // 2 - 20) + "' AS text",
        lambda n: "SELECT " + "/*" * (n // 2),
        lambda n: "SELECT " + "CASE WHEN 1 THEN " * (n // 18) + "1" + " END" * 20,
        lambda n: "WITH " + ", ".join(f"c{i} AS (SELECT 1)" for i in range(n // 22)) + " SELECT 1",
        lambda n: "SELECT " + ", ".join(f"{i} AS c{i}" for i in range(n // 14)),
        lambda n: '"' * n,
        lambda n: "\u2028" * (n // 3),
    ]
    return [shape(19_900) for shape in shapes]


# --- scaffolding ----------------------------------------------------------------------------------------------------


def pools(folder: Path, *, workers: int) -> dict[str, object]:
    path = folder / "orders.duckdb"
    if not path.exists():
        with duckdb.connect(str(path)) as connection:
            connection.execute(
                "CREATE TABLE orders AS SELECT id, 'name ' || id AS name, id % 9 AS grp, id % 97 AS amount"
                " FROM range(20000) AS r(id)"
            )
    backend = {"name": "duckdb", "databases": {"shop": str(path)}, "timeout": "20s"}
    return {"warehouse": {"backend": backend, "engines": {"min": workers, "max": workers}}}


@asynccontextmanager
async def inside(folder: Path, *, workers: int) -> AsyncIterator[tuple[Gateway, str]]:
    """A gateway in this very process."""
    path = folder / "inside.yaml"
    path.write_bytes(orjson.dumps({"server": {"port": 0}, "insecure": True, "pools": pools(folder, workers=workers)}))
    up = await compose(read_config(path, {}), report_every=60)
    async with listening(up) as url:
        yield up, url


@asynccontextmanager
async def connected(site: Site) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, _, port = site.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()
        await writer.wait_closed()


async def reply(reader: asyncio.StreamReader) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    lines = dict(line.lower().split(b": ", 1) for line in head.splitlines()[1:-1])
    body = await reader.readexactly(int(lines[b"content-length"]))
    assert head.startswith(b"HTTP/1.1 200 "), body


def ask(sql: str) -> bytes:
    return orjson.dumps({"sql": sql})


def post(body: bytes) -> bytes:
    return message("POST /v1/sql", body)


def exchange(size: int) -> bytes:
    return message("GET /health", b" " * size)


def message(what: str, body: bytes) -> bytes:
    head = f"{what} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


async def main(rounds: int) -> None:
    tell(f"machine: {machine()}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bars = [*await costs(folder, rounds), *await stretches(folder), *await counts(folder)]
    keeping()
    for bar in sorted(bars, key=lambda bar: bar.what[:3]):
        tell(bar.line())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=15)
    uvloop.run(main(parser.parse_args().rounds))
