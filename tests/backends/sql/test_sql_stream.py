"""Rows handed over as they come, values bound to parameters, and news of how far a statement is."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pytest

from backends.base import BackendError, Request
from backends.sql import answers
from backends.sql.engine import SqlEngine
from backends.sql.options import SqlOptions
from backends.sql.progress import reported
from backends.sql.run import Query, TooLarge
from backends.sql.stopper import Stopper
from backends.sql.stream import PIECE, stream_query
from backends.sql.worker import Worker

Raw = Callable[..., Request]
Ask = Callable[..., Coroutine[Any, Any, tuple[int, Any]]]

PIECES = "application/x-sql-pieces"
MANY = "SELECT a.i AS i, 'row ' || b.i AS s FROM big AS a, big AS b"
"""Four million million rows: no reader gets to the end of them."""
SLOW = "SELECT COUNT(*) AS n FROM big AS a, RANGE({}) AS b WHERE a.i + b.range = 3"


@pytest.fixture
async def streaming(scratch: Path) -> AsyncIterator[SqlEngine]:
    """An engine that gives a stream more time than a statement."""
    engine = SqlEngine(SqlOptions(databases={"scratch": str(scratch)}, timeout=4.0, stream_timeout=60.0))
    await engine.start()
    yield engine
    await engine.aclose()


@pytest.fixture
def raw_stream(raw: Raw) -> Callable[..., Request]:
    return lambda **body: raw("/sql/stream", orjson.dumps(body))


async def read(engine: SqlEngine, request: Request) -> tuple[list[Any], str, Any]:
    """The lines of a stream, the outcome and what is said behind them."""
    async with engine.open(request) as reply:
        assert (reply.status, dict(reply.headers)) == (200, {"content-type": PIECES})
        pieces = [answers.split(chunk) async for chunk in reply.chunks]
    *rows, (outcome, last) = pieces
    assert {word for word, _ in rows} == {"rows"}
    assert all(body.endswith(b"\n") for _, body in rows)
    lines = b"".join(body for _, body in rows).splitlines()
    return [orjson.loads(line) for line in lines], outcome, orjson.loads(last)


# --- streams --------------------------------------------------------------------------------------------------


async def test_a_stream_has_its_columns_its_rows_and_what_there_is_to_say_of_them(
    streaming: SqlEngine, raw_stream: Raw
) -> None:
    sql = "SELECT id, id AS id, INTERVAL (g) DAY AS span FROM t ORDER BY id"
    lines, outcome, last = await read(streaming, raw_stream(sql=sql, unlimited=True))
    columns = [
        {"name": name, "type": kind} for name, kind in (("id", "BIGINT"), ("id", "BIGINT"), ("span", "INTERVAL"))
    ]
    assert lines[0] == {"columns": columns}
    assert lines[2] == [1, 1, "1 day"]
    assert [row[0] for row in lines[1:]] == list(range(100_000))
    assert outcome == "ok"
    assert last.pop("elapsed_ms") > 0
    assert last == {"row_count": 100_000, "truncated": False}


async def test_a_stream_without_rows_is_empty(streaming: SqlEngine, raw_stream: Raw) -> None:
    lines, outcome, last = await read(streaming, raw_stream(sql="SELECT id FROM t WHERE id < 0"))
    assert lines == [{"columns": [{"name": "id", "type": "BIGINT"}]}]
    assert (outcome, last["row_count"], last["truncated"]) == ("empty", 0, False)


async def test_a_stream_is_cut_at_its_own_bounds_and_says_so(streaming: SqlEngine, raw_stream: Raw) -> None:
    for bounds, rows in [({"limit": 5000}, range(5000, 5001)), ({"max_bytes": 100_000}, range(4000, 12_000))]:
        for unlimited in (True, False):
            lines, outcome, last = await read(
                streaming, raw_stream(sql="SELECT name FROM t", unlimited=unlimited, **bounds)
            )
            assert (outcome, last["truncated"]) == ("ok", True)
            assert last["row_count"] == len(lines) - 1
            assert last["row_count"] in rows


async def test_a_statement_that_fails_before_its_first_row_is_no_stream(streaming: SqlEngine, ask: Ask) -> None:
    for sql, code in [
        ("SELECT nope FROM t", "binder"),
        ("SELECT CAST(name AS INT) FROM t", "execution"),
        ("SELECT REPEAT('x', 2000000)", "too_large"),
        ("DROP TABLE t", "refused"),
        ("SELECT 1; SELECT 2", "refused"),
    ]:
        status, body = await ask(streaming, "/sql/stream", sql=sql)
        assert (status, body["error"]["code"]) == (400, code)


async def test_what_goes_wrong_between_rows_is_said_behind_them(scratch: Path, raw_stream: Raw) -> None:
    async with _engine(SqlOptions(databases={"scratch": str(scratch)}, timeout=60.0)) as engine:
        sql = "SELECT CASE WHEN i < 400000 THEN i ELSE CAST('x' || i AS INT) END AS i FROM big"
        lines, outcome, last = await read(engine, raw_stream(sql=sql))
        assert len(lines) > 1000
        assert (outcome, last["error"]["code"]) == ("error", "execution")
        sql = "SELECT REPEAT('x', CASE WHEN i = 300000 THEN 2000000 ELSE 1 END) AS x FROM big"
        lines, outcome, last = await read(engine, raw_stream(sql=sql))
        assert (outcome, last["error"]["code"]) == ("error", "too_large")
        assert "1000000 bytes" in last["error"]["message"]
        assert (await engine.report()).counters["kills"] == 0


async def test_a_reader_who_takes_nothing_holds_the_worker_up_and_not_the_memory(
    streaming: SqlEngine, raw_stream: Raw, ask: Ask
) -> None:
    """What lies between the worker and its reader is bounded, and the wait is not the statement's time."""
    async with streaming.open(raw_stream(sql=MANY)) as reply:
        chunks = reply.chunks
        pid = streaming.pid
        assert pid is not None
        started, before = time.monotonic(), 0
        while time.monotonic() - started < 4.5:  # longer than the statement's time
            word, lines = answers.split(await anext(chunks))
            assert (word, len(lines) < PIECE + 10_000) == ("rows", True)
            await _asleep(pid)
            before = before or _memory(pid)
        assert _memory(pid) - before < 10_000_000
    assert (await ask(streaming, sql="SELECT 7"))[1]["rows"] == [[7]]
    assert (streaming.pid, (await streaming.report()).counters["kills"]) == (pid, 0)


async def test_a_stream_whose_statement_takes_too_long_says_so_in_the_end(scratch: Path, raw_stream: Raw) -> None:
    async with _engine(SqlOptions(databases={"scratch": str(scratch)}, timeout=2.0, stream_timeout=30.0)) as engine:
        lines, outcome, last = await read(engine, raw_stream(sql=MANY))
        assert len(lines) > 1
        assert (outcome, last["error"]["code"]) == ("timeout", "timeout")


async def test_a_reader_who_leaves_stops_the_statement(
    scratch: Path, raw_stream: Raw, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backends.sql.engine.GRACE", 10.0)  # a busy machine may take its time, and no kill is meant
    async with _engine(SqlOptions(databases={"scratch": str(scratch)}, timeout=30.0)) as engine:
        pid = engine.pid
        for _ in range(3):
            async with engine.open(raw_stream(sql=MANY)) as reply:
                await anext(reply.chunks)
            started = time.monotonic()
            assert (await ask(engine, sql="SELECT 7"))[1]["rows"] == [[7]]
            assert time.monotonic() - started < 20.0  # the statement had thirty seconds
        reading = asyncio.create_task(read(engine, raw_stream(sql=MANY)))
        await _until(lambda: _state(pid) == "R")
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert (await ask(engine, sql="SELECT 7"))[1]["rows"] == [[7]]
        assert (engine.pid, (await engine.report()).counters["crashes"]) == (pid, 0)


async def test_a_worker_that_dies_in_the_middle_of_a_stream_breaks_it_off_and_is_replaced(
    streaming: SqlEngine, raw_stream: Raw, ask: Ask
) -> None:
    async with streaming.open(raw_stream(sql=MANY)) as reply:
        await anext(reply.chunks)
        assert streaming.pid is not None
        os.kill(streaming.pid, signal.SIGKILL)
        with pytest.raises(BackendError) as error:
            _ = [chunk async for chunk in reply.chunks]
    assert (error.value.trouble, error.value.retryable) == ("crashed", False)
    assert (await ask(streaming, sql="SELECT 7"))[1]["rows"] == [[7]]


def test_pieces_are_of_bounded_size_and_hold_whole_lines() -> None:
    pieces: list[bytes] = []
    query = Query(sql="SELECT REPEAT('x', 100) AS x FROM RANGE(5000)", limit=10_000, max_bytes=10_000_000)
    with duckdb.connect() as connection:
        last, rows = stream_query(connection, query, pieces.append, row_bytes=1000)
        with pytest.raises(TooLarge, match="50 bytes"):
            stream_query(connection, query, pieces.append, row_bytes=50)
    assert rows == 5000 == orjson.loads(last)["row_count"]
    assert len(pieces) > 2
    assert all(piece.endswith(b"\n") and len(piece) < PIECE + 1000 for piece in pieces)


# --- parameters -----------------------------------------------------------------------------------------------


async def test_values_are_bound_and_never_read_as_sql(streaming: SqlEngine, ask: Ask, raw_stream: Raw) -> None:
    hostile = "'; DROP TABLE t; --"
    status, result = await ask(streaming, sql="SELECT $1 AS x, $2 AS y", params={"1": hostile, "2": None})
    assert (status, result["rows"]) == (200, [[hostile, None]])
    status, result = await ask(streaming, sql="SELECT name FROM t WHERE id = $id", params={"id": "7"})
    assert result["rows"] == [["name 7"]]
    huge = str(2**120)
    sql = (
        "SELECT CAST($n AS HUGEINT) + 1 AS n, CAST($d AS DECIMAL(38, 20)) AS d, $f AS f, $b AS b, INTERVAL 1 DAY AS i"
    )
    values = {"n": huge, "d": "1.00000000000000000001", "f": 0.1, "b": True}
    row = [str(2**120 + 1), "1.00000000000000000001", 0.1, True, "1 day"]
    assert (await ask(streaming, sql=sql, params=values))[1]["rows"] == [row]
    assert (await read(streaming, raw_stream(sql=sql, params=values)))[0][1] == row


async def test_a_list_or_object_is_no_value(streaming: SqlEngine, ask: Ask) -> None:
    wrong: list[object] = [[1], {"1": [1]}, {"1": {}}, "x"]
    for params in wrong:
        status, body = await ask(streaming, sql="SELECT $1", params=params)
        assert (status, body["error"]["code"]) == (400, "invalid_request")
        assert "params:" in body["error"]["message"]


# --- progress -------------------------------------------------------------------------------------------------


async def test_a_long_query_says_how_far_it_is_before_it_answers(streaming: SqlEngine, raw: Raw) -> None:
    task = {"sql": SLOW.format(1200), "progress": True, "timeout": 3.0}
    async with streaming.open(raw("/sql/query", orjson.dumps(task))) as reply:
        assert dict(reply.headers) == {"content-type": PIECES}
        pieces = [answers.split(chunk) async for chunk in reply.chunks]
    *news, (outcome, _) = pieces
    assert outcome in {"ok", "timeout"}  # on a machine that is busy it takes too long
    assert {word for word, _ in news} == {"progress"}
    percents = [float(body) for _, body in news]
    assert percents == sorted(percents)
    assert 0 < percents[0] <= percents[-1] <= 100


async def test_a_query_that_is_over_at_once_only_answers(streaming: SqlEngine, ask: Ask) -> None:
    status, result = await ask(streaming, sql="SELECT 1 AS x", progress=True)
    assert (status, result["rows"]) == (200, [[1]])


def test_nothing_is_said_where_the_engine_may_not_be_asked() -> None:
    said: list[float] = []
    with duckdb.connect() as connection:
        connection.execute("SET lock_configuration = true")
        with reported(connection, said.append, every=0.001):
            connection.execute("SELECT SUM(a.range) FROM RANGE(2000) AS a, RANGE(2000) AS b").fetchall()
    assert said == []


def test_progress_grows_and_ends_with_its_statement(scratch: Path) -> None:
    said: list[float] = []
    with duckdb.connect(str(scratch), read_only=True, config={"threads": "1"}) as connection:
        with reported(connection, said.append, every=0.001):
            connection.execute(SLOW.format(60)).fetchall()
        count = len(said)
        connection.execute(SLOW.format(5)).fetchall()
    assert said
    assert said == sorted(set(said))
    assert len(said) == count


def test_a_worker_lets_nothing_else_be_set_for_it(options: SqlOptions) -> None:
    worker = Worker(options)
    database = worker._databases["scratch"]
    with database.cursor() as cursor:
        cursor.execute("SET enable_progress_bar = true")
        for name, value in (("threads", "9"), ("allowed_configs", "['threads']"), ("memory_limit", "'9GB'")):
            with pytest.raises(duckdb.Error, match="configuration"):
                cursor.execute(f"SET {name} = {value}")
    worker.close()


# --- the stopper's clock --------------------------------------------------------------------------------------


class Heard:
    def __init__(self) -> None:
        self.interrupted = threading.Event()

    def interrupt(self) -> None:
        self.interrupted.set()


def test_time_in_a_pause_does_not_count() -> None:
    stopper, statement = Stopper(every=0.001), Heard()
    with stopper.limit(statement, 0.05):
        with stopper.paused():
            assert not statement.interrupted.wait(0.2)
        assert statement.interrupted.wait(10)


def test_what_is_stopped_in_a_pause_stays_stopped() -> None:
    stopper, statement = Stopper(every=0.001), Heard()
    with stopper.limit(statement, 60.0):
        with stopper.paused():
            stopper.stop()
            assert statement.interrupted.wait(10)
            statement.interrupted.clear()
        assert statement.interrupted.wait(10)


def test_a_pause_gives_no_time_to_what_has_none_left() -> None:
    stopper, statement = Stopper(every=0.001), Heard()
    with stopper.limit(statement, 0.0), stopper.paused():
        assert statement.interrupted.wait(10)


# --- looking at the worker ------------------------------------------------------------------------------------


@asynccontextmanager
async def _engine(options: SqlOptions) -> AsyncIterator[SqlEngine]:
    engine = SqlEngine(options)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.aclose()


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _state(pid: int | None) -> str:
    return "" if pid is None else _stat(pid)[0]


def _memory(pid: int) -> int:
    return int(_stat(pid)[21]) * 4096


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 (another process sets no event here)
            await asyncio.sleep(0.002)  # a loop without a pause would hold up what it waits for


async def _asleep(pid: int) -> None:
    """Wait until the worker waits: the processor time that it has used stands still."""

    def ticks() -> int:
        return int(_stat(pid)[11]) + int(_stat(pid)[12])

    async with asyncio.timeout(20):
        before = -1
        while (now := ticks()) != before:
            before = now
            await asyncio.sleep(0.25)
