"""The contract of engines: for an emulated server over HTTP, and for a SQL worker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import duckdb
import pytest

from backends.emulated.options import EmulatedOptions
from backends.emulated.server import serve
from backends.sql.engine import SqlEngine
from backends.sql.options import SqlOptions
from backends.vllm import HttpEngine, connections
from tests.backends.contract import *  # noqa: F403 - the tests
from tests.backends.contract import Case, asks


@asynccontextmanager
async def over_http(_: Path) -> AsyncIterator[Case]:
    async with connections(1.0) as session, AsyncExitStack() as behind:
        server = await behind.enter_async_context(serve(EmulatedOptions(decode_step=0.01)))
        messages = [{"role": "user", "content": "hello"}]
        yield Case(
            engine=HttpEngine(server.url, session),
            quick=asks("/v1/chat/completions", messages=messages, max_tokens=2),
            long=asks("/v1/chat/completions", messages=messages, max_tokens=5000),
            end=behind.aclose,
        )


@asynccontextmanager
async def sql_worker(folder: Path) -> AsyncIterator[Case]:
    with duckdb.connect(str(folder / "d.duckdb")) as connection:
        connection.execute("create table t as select 1 as one")
    engine = SqlEngine(SqlOptions(databases={"d": str(folder / "d.duckdb")}, timeout=20.0))
    await engine.start()
    statement = "select count(*) from range(1000000) a(x), range(1000000) b(y) where x + y = 7"
    try:
        yield Case(
            engine=engine,
            quick=asks("/sql/query", database="d", sql="select one from t", limit=5, max_bytes=1000, timeout=10.0),
            long=asks("/sql/query", database="d", sql=statement, limit=5, max_bytes=1000, timeout=20.0),
            end=engine.aclose,
        )
    finally:
        await engine.aclose()


@pytest.fixture(params=[over_http, sql_worker], ids=["http", "sql"])
async def case(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Case]:
    async with request.param(tmp_path) as case:
        yield case
