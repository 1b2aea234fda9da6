"""The last statement of a run gets the threads of workers that stand idle; `max_threads` switches it on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import duckdb
import pytest

from tests.gateway.support import Running, running, settled, until, written

ENDLESS = "SELECT count(*) FROM range(100000000) AS a, range(100000) AS b"
THREADS = "SELECT threads FROM setting"
GRAPH = {
    "stages": {
        "look": {"pool": "warehouse", "tool": "execute_sql"},
        "judge": {"pool": "warehouse", "tool": "execute_sql"},
    },
    "edges": [{"from": "start", "to": "look"}, {"from": "look", "to": "judge"}],
}


@asynccontextmanager
async def house(folder: Path, *, workers: int = 3, **settings: object) -> AsyncIterator[Running]:
    """A gateway over a database whose view tells on how many threads its reader runs."""
    path = folder / "d.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE VIEW setting AS SELECT current_setting('threads') AS threads")
    backend = {"name": "duckdb", "databases": {"d": str(path)}, "timeout": "60s", **settings}
    pools = {"warehouse": {"backend": backend, "engines": {"min": workers, "max": workers}}}
    async with running(folder, written(pools, workflows={"graph": GRAPH}), report_every=60) as up:
        yield up
        await settled(up.gateway)


async def threads(up: Running, **headers: str) -> int:
    reply = await up.http.post(
        "/v1/sql", json={"sql": THREADS}, headers={f"X-Workflow-{k}": v for k, v in headers.items()}
    )
    ((number,),) = reply.json()["rows"]
    return int(number)


@asynccontextmanager
async def endless(up: Running, **headers: str) -> AsyncIterator[None]:
    """A statement that runs as long as the block."""
    view = up.gateway.runtime.dispatcher.pool_view
    before = view("warehouse", 0.0).running
    more = {f"X-Workflow-{k}": v for k, v in headers.items()}
    task = asyncio.create_task(up.http.post("/v1/sql", json={"sql": f"{ENDLESS} -- {before}"}, headers=more))
    await until(lambda: view("warehouse", up.gateway.runtime.now()).running > before, "the statement's start")
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_the_last_statement_of_a_run_has_the_threads_of_idle_workers(tmp_path: Path) -> None:
    async with house(tmp_path, max_threads=8) as up:
        assert await threads(up) == 3, "a run of one"
        assert await threads(up, Id="r1") == 1
        assert await threads(up, Id="r1", Final="true") == 3
        assert await threads(up, Type="graph", Id="r2", Stage="look") == 1, "another stage follows"
        assert await threads(up, Type="graph", Id="r2", Stage="judge") == 3, "none does"
        assert await threads(up, Type="graph", Id="r2", Stage="unheard") == 1
        assert await threads(up, Priority="-8") == 1
        async with endless(up, Id="r3"):
            assert await threads(up) == 2, "one of three is busy"


@pytest.mark.parametrize(("most", "given"), [(1, 1), (2, 2)])
async def test_no_statement_has_more_threads_than_are_configured(tmp_path: Path, most: int, given: int) -> None:
    async with house(tmp_path, max_threads=most) as up:
        assert await threads(up) == given


async def test_no_statement_has_more_than_one_thread_by_default(tmp_path: Path) -> None:
    async with house(tmp_path) as up:
        assert await threads(up) == 1


async def test_threads_that_are_given_are_not_given_twice(tmp_path: Path) -> None:
    async with house(tmp_path, max_threads=8) as up:
        async with endless(up):
            assert await threads(up) == 1, "the first has them all"
        await settled(up.gateway)
        assert await threads(up) == 3
