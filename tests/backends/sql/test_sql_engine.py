"""The engine over a real worker process: results, errors, deadlines, deaths and departures."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pytest

from backends.base import BackendError, Request
from backends.sql.breaker import Breaker
from backends.sql.engine import SqlCluster, SqlEngine
from backends.sql.options import SqlOptions

Ask = Callable[..., Coroutine[Any, Any, tuple[int, Any]]]

ENDLESS = "SELECT COUNT(*) FROM big AS a, big AS b, big AS c"
DEAF = "SELECT LENGTH(LPAD('x', 1000000000, 'y'))"  # holds the engine for seconds and heeds no interrupt


async def test_a_query_gives_typed_columns_rows_and_no_more_than_the_limit(engine: SqlEngine, ask: Ask) -> None:
    sql = "SELECT id, name FROM t ORDER BY id"
    for unlimited in (True, False):
        status, result = await ask(engine, sql=sql, limit=2, unlimited=unlimited)
        assert status == 200
        assert result.pop("elapsed_ms") > 0
        assert result == {
            "columns": [{"name": "id", "type": "BIGINT"}, {"name": "name", "type": "VARCHAR"}],
            "rows": [[0, "name 0"], [1, "name 1"]],
            "row_count": 2,
            "truncated": True,
        }
    status, result = await ask(engine, sql="SELECT id FROM t WHERE id < 2", limit=2, database="scratch")
    assert (result["row_count"], result["truncated"]) == (2, False)
    status, result = await ask(engine, sql="SELECT id FROM t WHERE id < 0", unlimited=True)
    assert (status, result["rows"], result["truncated"]) == (200, [], False)


async def test_bytes_and_rows_are_bounded_by_the_pool_and_by_the_request(engine: SqlEngine, ask: Ask) -> None:
    _, result = await ask(engine, sql="SELECT name FROM t", max_bytes=1000, limit=10**9)
    assert result["truncated"]
    assert 40 < result["row_count"] < 100
    _, result = await ask(engine, sql="SELECT REPEAT('x', 600000) FROM RANGE(3)", max_bytes=10**9)
    assert (result["row_count"], result["truncated"]) == (1, True)
    _, result = await ask(engine, sql="SELECT id FROM t", limit=10**9)
    assert result["row_count"] == SqlOptions(databases={}).max_rows


async def test_a_row_that_does_not_fit_is_an_error_that_says_so(engine: SqlEngine, ask: Ask) -> None:
    for most in (None, 10**9):
        status, body = await ask(engine, sql="SELECT REPEAT('x', 10000000)", max_bytes=most)
        assert (status, body["error"]["code"]) == (400, "too_large")
        assert "larger than 1000000 bytes: select fewer" in body["error"]["message"]
    status, body = await ask(engine, sql="SELECT REPEAT('x', n) FROM (VALUES (5), (500)) AS v(n)", max_bytes=100)
    assert (status, body["row_count"], body["truncated"]) == (200, 1, True)


async def test_errors_of_a_statement_say_what_is_wrong_and_nothing_of_the_server(
    engine: SqlEngine, ask: Ask, scratch: Path
) -> None:
    for sql, code, words in [
        ("SELECT nope FROM t", "binder", "candidate columns: name"),
        ("SELECT * FROM tt", "binder", "tt does not exist"),
        ("SELECT * FROM zzzzzz", "binder", "zzzzzz does not exist"),
        ("SELECT FROM WHERE", "syntax", "syntax error"),
        ("SELECT CAST(name AS INT) FROM t", "execution", "Could not convert"),
        ("SELECT * FROM '/etc/passwd'", "binder", "…"),
        (f"SELECT * FROM '{scratch}'", "binder", "…"),
        ("SELECT LENGTH(REPEAT('x', 2000000000))", "memory", "memory"),
        ("SELECT 1; SELECT 2", "refused", "one query"),
        ("CREATE TEMP TABLE t AS SELECT 1", "refused", "one query"),
        ("SET threads = 9", "refused", "one query"),
    ]:
        status, body = await ask(engine, sql=sql)
        assert (status, body["error"]["code"]) == (400, code), sql
        message = body["error"]["message"]
        assert words in message
        assert not [
            word for word in (*scratch.parts[1:], "LINE", "pg_", "duckdb_", "\n", "passwd") if word in message
        ]


async def test_what_is_not_a_task_is_refused_by_field(
    engine: SqlEngine, ask: Ask, raw: Callable[[str, bytes], Request]
) -> None:
    tasks: list[tuple[dict[str, object], str]] = [
        ({}, "sql:"),
        ({"sql": " "}, "sql:"),
        ({"sql": 5}, "sql:"),
        ({"sql": "SELECT 1", "database": "other"}, "database: one of scratch"),
        ({"sql": "SELECT 1", "database": 5}, "database:"),
        ({"sql": "SELECT 1", "limit": 0}, "limit:"),
        ({"sql": "SELECT 1", "limit": True}, "limit:"),
        ({"sql": "SELECT 1", "timeout": "2"}, "timeout:"),
        ({"sql": "SELECT 1", "max_bytes": -1}, "max_bytes:"),
        ({"sql": "SELECT 1", "tables": "t"}, "tables:"),
        ({"sql": "SELECT 1", "tables": [1]}, "tables:"),
        ({"sql": "SELECT 1", "threads": 0}, "threads:"),
        ({"sql": "SELECT 1", "threads": True}, "threads:"),
        ({"sql": "SELECT 1", "threads": 1.5}, "threads:"),
    ]
    for body, words in tasks:
        status, answer = await ask(engine, **body)
        assert (status, answer["error"]["code"]) == (400, "invalid_request")
        assert words in answer["error"]["message"]
    for path, text in [("/sql/drop", b"{}"), ("/sql/query", b"{"), ("/sql/query", b"[]")]:
        async with engine.open(raw(path, text)) as reply:
            assert reply.status == 400
    assert (await engine.report()).counters["runs"] == 0


async def test_a_description_is_the_same_text_for_the_same_data(engine: SqlEngine, ask: Ask) -> None:
    status, one = await ask(engine, "/sql/describe")
    assert status == 200
    assert one == (await ask(engine, "/sql/describe"))[1]
    assert one["text"] == (
        "big(i BIGINT) -- 2000000 rows\n"
        "t(id BIGINT, g BIGINT, name VARCHAR) -- 100000 rows\n"
        "vw(id BIGINT, g BIGINT, name VARCHAR) -- view\n"
    )
    assert one["tables"][0] == {
        "name": "big",
        "columns": [{"name": "i", "type": "BIGINT"}],
        "rows": 2_000_000,
        "text": "big(i BIGINT) -- 2000000 rows\n",
    }
    assert one["tables"][2]["rows"] is None


async def test_a_statement_that_takes_too_long_is_stopped_and_one_that_is_deaf_is_killed(
    engine: SqlEngine, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = engine.pid
    for sql, timeout, same in [(ENDLESS, None, True), (ENDLESS, 0.1, True), (DEAF, 0.2, False)]:
        if same:  # a busy machine may take its time, and no kill is meant
            monkeypatch.setattr("backends.sql.engine.GRACE", 10.0)
        started = time.monotonic()
        status, body = await ask(engine, sql=sql, timeout=timeout)
        assert time.monotonic() - started < (timeout or 1.0) + 8.0  # the statement would never end
        monkeypatch.undo()
        assert (status, body["error"]["code"]) == (504, "timeout")
        assert (await ask(engine, sql="SELECT 7"))[1]["rows"] == [[7]]
        assert (engine.pid == first) is same
    assert (await engine.report()).counters == {"runs": 6, "kills": 1, "crashes": 0}


async def test_a_worker_that_dies_of_a_statement_fails_that_one_and_the_next_one_runs(
    engine: SqlEngine, ask: Ask
) -> None:
    query = asyncio.create_task(ask(engine, sql=ENDLESS))
    await _working(engine)
    _kill(engine)
    with pytest.raises(BackendError) as error:
        await query
    assert (error.value.trouble, error.value.retryable) == ("crashed", False)
    assert (await ask(engine, sql="SELECT 7"))[0] == 200
    assert (await engine.report()).counters["crashes"] == 1


async def test_a_worker_that_died_with_nothing_in_hand_costs_no_statement(engine: SqlEngine, ask: Ask) -> None:
    child = engine.pid
    _kill(engine)
    await _until(lambda: engine.pid is None)
    statuses = [(await ask(engine, sql="SELECT 7"))[0] for _ in range(2)]
    assert statuses == [200, 200]
    assert engine.pid != child


async def test_a_worker_runs_one_statement_at_a_time(engine: SqlEngine, ask: Ask) -> None:
    query = asyncio.create_task(ask(engine, sql=ENDLESS, timeout=0.3))
    await _working(engine)
    assert (await engine.report()).running == 1
    with pytest.raises(BackendError) as error:
        await ask(engine, sql="SELECT 7")
    assert (error.value.trouble, error.value.retryable) == ("overloaded", True)
    assert (await query)[0] == 504
    assert (await engine.report()).running == 0


async def test_a_client_that_leaves_stops_its_statement(
    options: SqlOptions, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = SqlEngine(replace(options, timeout=20.0))
    await engine.start()
    for sql, same in [(ENDLESS, True), (DEAF, False)]:
        monkeypatch.setattr("backends.sql.engine.GRACE", 10.0 if same else 0.25)
        child = engine.pid
        query = asyncio.create_task(ask(engine, sql=sql))
        await _working(engine)
        query.cancel()
        with pytest.raises(asyncio.CancelledError):
            await query
        started = time.monotonic()
        assert (await ask(engine, sql="SELECT 7"))[1]["rows"] == [[7]]
        if same:
            assert time.monotonic() - started < 15.0  # the statement had twenty seconds
        assert (engine.pid == child) is same
    assert (await engine.report()).counters["kills"] == 1
    await engine.aclose()


async def test_no_process_is_left_behind(options: SqlOptions, ask: Ask) -> None:
    cluster = SqlCluster(options)
    engines = [await cluster.start(name) for name in ("a", "b", "c")]
    with pytest.raises(BackendError, match="already") as taken:
        await cluster.start("b")
    assert (taken.value.trouble, taken.value.retryable) == ("refused", False)
    pids = [engine.pid for engine in engines if engine.pid]
    assert len(pids) == 3
    query = asyncio.create_task(ask(engines[1], sql=ENDLESS))
    await _working(engines[1])
    await cluster.stop("a")
    await cluster.stop("nobody")
    await cluster.aclose()
    await cluster.aclose()
    with pytest.raises(BackendError):
        await query
    assert not any(_exists(pid) for pid in pids)
    for use in (engines[0].report(), ask(engines[0], sql="SELECT 1")):
        with pytest.raises(BackendError, match="closed"):
            await use


async def test_closing_while_a_worker_starts_leaves_no_process(options: SqlOptions) -> None:
    engine = SqlEngine(options)
    starting = asyncio.create_task(engine.start())
    await asyncio.sleep(0)
    await engine.aclose()
    with pytest.raises(BackendError, match="closed"):
        await starting
    assert engine.pid is None


async def test_closing_ends_a_worker_that_is_being_brought_up(options: SqlOptions, ask: Ask) -> None:
    engine = SqlEngine(options)
    await engine.start()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await ask(engine, sql=DEAF)
    await engine.aclose()
    assert engine.pid is None


def test_a_worker_ends_with_its_parent_also_in_the_middle_of_a_statement(options: SqlOptions) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, options.to_json().decode(), DEAF], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    with parent, parent.stdout:
        worker = int(parent.stdout.readline())
        assert _exists(worker)
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 5
    while _exists(worker):
        assert time.monotonic() < deadline
        os.sched_yield()


_PARENT = """
import asyncio, sys
from backends.sql.options import SqlOptions
from backends.sql.process import Child

async def main():
    options = SqlOptions.from_json(sys.argv[1].encode())
    child = await Child.spawn("backends.sql.worker", options.to_json(), timeout=20)
    task = {"op": "query", "database": "scratch", "sql": sys.argv[2], "timeout": 60.0, "limit": 1,
            "max_bytes": 100, "unlimited": False}
    import orjson
    print(child.pid, flush=True)
    await child.ask(orjson.dumps(task), 60)

asyncio.run(main())
"""


@pytest.fixture
async def broken(scratch: Path, tmp_path: Path) -> AsyncIterator[tuple[SqlEngine, Path]]:
    """An engine whose worker is dead and cannot come back while its database is away, and where that belongs."""
    path = tmp_path / "gone.duckdb"
    shutil.copyfile(scratch, path)
    shutil.copyfile(scratch, tmp_path / "kept")
    engine = SqlEngine(
        SqlOptions(databases={"gone": str(path)}), breaker=Breaker(limit=2, window=60.0, first=0.1, longest=0.1)
    )
    await engine.start()
    os.unlink(path)
    _kill(engine)
    await _until(lambda: engine.pid is None)
    yield engine, path
    await engine.aclose()


async def test_a_statement_waits_for_a_worker_that_is_down_as_long_as_its_head_may_take(
    broken: tuple[SqlEngine, Path], raw: Callable[..., Request]
) -> None:
    engine, _ = broken
    with pytest.raises(BackendError) as error:
        async with engine.open(raw("/sql/query", b'{"sql": "SELECT 1"}', head_timeout=1.0)):
            pass
    assert (error.value.trouble, error.value.retryable) == ("refused", True)
    assert (error.value.retry_after or 0) >= 1.0


async def test_a_statement_that_waited_for_its_worker_is_answered(broken: tuple[SqlEngine, Path], ask: Ask) -> None:
    engine, path = broken
    waiting = asyncio.create_task(ask(engine, sql="SELECT 7"))
    await _refuses_to_report(engine)
    os.rename(path.parent / "kept", path)
    assert (await waiting)[1]["rows"] == [[7]]
    assert (await engine.report()).counters == {"runs": 1, "kills": 0, "crashes": 0}


async def test_a_client_that_leaves_while_its_worker_is_down_leaves_the_engine_free(
    broken: tuple[SqlEngine, Path], ask: Ask
) -> None:
    engine, path = broken
    leaving = asyncio.create_task(ask(engine, sql="SELECT 1"))
    await _refuses_to_report(engine)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    os.rename(path.parent / "kept", path)
    assert (await ask(engine, sql="SELECT 7"))[1]["rows"] == [[7]]


async def test_closing_ends_the_wait_for_a_worker(broken: tuple[SqlEngine, Path], ask: Ask) -> None:
    engine, _ = broken
    waiting = asyncio.create_task(ask(engine, sql="SELECT 1"))
    await _refuses_to_report(engine)
    await engine.aclose()
    with pytest.raises(BackendError, match="closed"):
        await waiting


async def test_a_start_that_fails_says_which_database_and_not_which_file(tmp_path: Path) -> None:
    cluster = SqlCluster(SqlOptions(databases={"sales": str(tmp_path / "secret.duckdb")}))
    with pytest.raises(BackendError, match="'sales'") as error:
        await cluster.start("a")
    assert str(tmp_path) not in str(error.value)
    (tmp_path / "secret.duckdb").write_bytes(b"no database" * 1000)
    with pytest.raises(BackendError, match=r"database .sales.: .*not a valid DuckDB database") as error:
        await cluster.start("a")
    assert not {str(tmp_path), "secret"} & set(str(error.value).split())
    assert "secret.duckdb" not in str(error.value)


async def test_a_file_that_was_replaced_is_read_anew(tmp_path: Path, ask: Ask) -> None:
    path = tmp_path / "sales.duckdb"
    for value in (1, 2):
        fresh = tmp_path / f"fresh{value}"
        with duckdb.connect(str(fresh)) as connection:
            connection.execute(f"create table t as select {value} as x")
    os.rename(tmp_path / "fresh1", path)
    engine = SqlEngine(SqlOptions(databases={"sales": str(path)}))
    await engine.start()
    assert (await ask(engine, sql="SELECT x FROM t"))[1]["rows"] == [[1]]
    worker = engine.pid
    os.rename(tmp_path / "fresh2", path)
    assert (await ask(engine, sql="SELECT x FROM t"))[1]["rows"] == [[2]]
    assert engine.pid == worker
    await engine.aclose()


async def test_statements_of_a_kind_that_the_guard_would_refuse_still_change_nothing(
    engine: SqlEngine, ask: Ask
) -> None:
    """The second layer alone: what the guard might miss meets locked settings and a read-only file."""
    for sql in [
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT content FROM read_text('/etc/hostname')",
        "SELECT * FROM glob('/etc/*')",
        "INSERT INTO t VALUES (1, 1, 'x')",
        "COPY t TO '/tmp/x.csv'",
        "ATTACH ':memory:' AS m",
        "INSTALL httpfs",
        "SET memory_limit = '100GB'",
    ]:
        status, body = await ask(engine, sql=sql)
        assert (status, "error" in body) == (400, True), sql


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 (another process sets no event here)
            await asyncio.sleep(0.002)  # a loop without a pause would hold up what it waits for


async def _refuses_to_report(engine: SqlEngine) -> None:
    """Wait until the engine says that it keeps failing."""
    async with asyncio.timeout(20):
        while True:
            try:
                await engine.report()
            except BackendError:
                return
            await asyncio.sleep(0.005)


async def _working(engine: SqlEngine) -> None:
    """Wait until the worker has spent some time of the processor on the statement."""
    before = _ticks(engine.pid)
    await _until(lambda: _ticks(engine.pid) > before + 2)


def _ticks(pid: int | None) -> int:
    if pid is None:
        return 0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def _kill(engine: SqlEngine) -> None:
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)


def _exists(pid: int | None) -> bool:
    try:
        return pid is not None and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
