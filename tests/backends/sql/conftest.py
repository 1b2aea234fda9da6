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
            headers = dict(reply.headers)
            body = orjson.loads(b"".join([chunk async for chunk in reply.chunks]))
            assert headers.pop("x-sql-outcome") == outcome_of(reply.status, body)
            assert headers == {"content-type": "application/json"}
            return reply.status, body

    return ask


@pytest.fixture
def raw() -> Callable[..., Request]:
    return request


def outcome_of(status: int, body: Any) -> str:
    """How a statement went, judged by what it answered."""
    if status == 200:
        return "empty" if body.get("rows") == [] else "ok"
    return {400: "error", 504: "timeout"}[status]


def request(path: str, body: bytes, *, head_timeout: float = 60.0) -> Request:
    call = Call(id="c", pool="warehouse", run="r", arrived=0.0)
    return Request(call=call, path=path, body=body, head_timeout=head_timeout)
