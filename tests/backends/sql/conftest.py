"""A scratch database as the hostile statements expect it, and engines over it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pytest

from backends.base import Request
from backends.sql.engine import SqlEngine
from backends.sql.options import SqlOptions
from backends.sql.parser import Parser
from policies.calls import Call

Ask = Callable[..., Coroutine[Any, Any, tuple[int, Any]]]


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sql") / "scratch.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("create table t as select i id, i % 10 g, 'name ' || i as name from range(100000) r(i)")
        connection.execute("create view vw as select * from t")
        connection.execute("create table big as select i from range(2000000) r(i)")
    return path


@pytest.fixture
def options(scratch: Path) -> SqlOptions:
    return SqlOptions(databases={"scratch": str(scratch)}, timeout=1.0)


@pytest.fixture
async def engine(options: SqlOptions) -> AsyncIterator[SqlEngine]:
    engine = SqlEngine(options)
    await engine.start()
    yield engine
    await engine.aclose()


@pytest.fixture
async def parser() -> AsyncIterator[Parser]:
    parser = Parser()
    yield parser
    await parser.aclose()


@pytest.fixture
def ask() -> Ask:
    async def ask(engine: SqlEngine, path: str = "/sql/query", **body: object) -> tuple[int, Any]:
        async with engine.open(request(path, orjson.dumps(body))) as reply:
            assert dict(reply.headers) == {"content-type": "application/json"}
            return reply.status, orjson.loads(b"".join([chunk async for chunk in reply.chunks]))

    return ask


@pytest.fixture
def raw() -> Callable[[str, bytes], Request]:
    return request


def request(path: str, body: bytes) -> Request:
    return Request(call=Call(id="c", pool="warehouse", run="r", arrived=0.0), path=path, body=body)
