"""`POST /v1/sql` beyond one JSON document: parameters, dialects, rows as they come, and progress."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import duckdb
import httpx
import orjson
import pytest
import pytest_asyncio

from gateway.progress import telling
from tests.gateway.rawhttp import connected
from tests.gateway.support import Running, metric, settled, until
from tests.gateway.test_sqlapi import busy, query, runs, store, workers

NDJSON = {"Accept": "application/x-ndjson"}
EVENTS = {"Accept": "text/event-stream"}
MANY = "SELECT a.i AS i, 'row ' || b.i AS s FROM numbers AS a, numbers AS b"
"""A million million rows: no client gets to the end of them."""
SLOW = "SELECT count(*) AS n FROM numbers AS a, range(600) AS b WHERE a.i + b.range = 3"

module_loop = pytest.mark.asyncio(loop_scope="module")


@asynccontextmanager
async def numbers(folder: Path, **more: Any) -> AsyncIterator[Running]:
    """A gateway over a million numbers."""
    path = folder / "shop.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE numbers AS SELECT i FROM range(1000000) AS r(i)")
    async with store(folder, **more) as up:
        yield up


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    """One gateway for the tests that leave nothing behind."""
    async with numbers(tmp_path_factory.mktemp("numbers"), timeout="20s", max_rows=5) as up:
        yield up


def lines(reply: httpx.Response) -> list[Any]:
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == "application/x-ndjson"
    assert reply.text.endswith("\n")
    return [orjson.loads(line) for line in reply.text.splitlines()]


def events(reply: httpx.Response) -> list[tuple[str, Any]]:
    """The events by name, each with its data."""
    assert reply.headers["content-type"].startswith("text/event-stream")
    pairs = [event.split("\n") for event in reply.text.removesuffix("\n\n").split("\n\n")]
    return [(name.removeprefix("event: "), orjson.loads(data.removeprefix("data: "))) for name, data in pairs]


# --- parameters and dialects ----------------------------------------------------------------------------------


@module_loop
@pytest.mark.parametrize(
    ("sql", "params", "row"),
    [
        ("SELECT ? AS a, ? AS b", [1, "'; DROP TABLE numbers"], [1, "'; DROP TABLE numbers"]),
        ("SELECT $2 AS a, $1 AS b", [1, None], [None, 1]),
        ("SELECT $a || $a AS x, $B AS y", {"A": "é", "b": True}, ["éé", True]),
        ("SELECT $n::HUGEINT AS n", {"n": str(2**100)}, [str(2**100)]),
        ("SELECT $1::DECIMAL(20, 3) AS n", ["1.100"], ["1.100"]),
        ("SELECT i FROM numbers WHERE i = ?", ["7"], [7]),
        ("SELECT ? AS big, ? AS small", [2**64 - 1, -(2**63)], [str(2**64 - 1), str(-(2**63))]),
        ("SELECT i FROM numbers WHERE i < $most ORDER BY i DESC LIMIT $rows", {"most": 9, "rows": 1}, [8]),
        ("SELECT 1 AS one", [], [1]),
        ("SELECT 1 AS one", {}, [1]),
    ],
)
async def test_values_are_bound_by_the_engine(shared: Running, sql: str, params: Any, row: list[Any]) -> None:
    reply = await query(shared, sql, params=params)
    assert reply.status_code == 200, reply.text
    assert reply.json()["rows"] == [row]
    assert lines(await query(shared, sql, params=params, format="ndjson"))[1] == row


@module_loop
@pytest.mark.parametrize(
    ("sql", "params", "words"),
    [
        ("SELECT ? AS a, ? AS b", [1], "no value for $2"),
        ("SELECT ? AS a", [1, 2], "the statement has no $2"),
        ("SELECT ? AS a", None, "no value for $1"),
        ("SELECT $a + $b AS x", {"a": 1, "c": 2}, "no value for $b"),
        ("SELECT $a AS x", {"a": 1, "A": 2}, "$A is given twice"),
        ("SELECT 1 AS x", {"a": 1}, "the statement has no $a"),
        ("SELECT $a + $b + $c + $d + $e + $f AS x", [], "no value for $a, $b, $c, $d, $e, …"),
        ("SELECT ? AS a", "1", "a list or an object"),
        ("SELECT ? AS a", [0] * 1001, "at most 1000"),
        ("SELECT ? AS a", [[1]], "null, booleans, numbers and texts"),
        ("SELECT $a AS a", {"a": {"b": 1}}, "null, booleans, numbers and texts"),
        ("SELECT ? AS a", [2**64], "more than 64 bits as text"),
        ("SELECT $a AS a", {"a": -(2**63) - 1}, "more than 64 bits as text"),
    ],
)
async def test_values_that_do_not_fit_are_a_400_that_names_params(
    shared: Running, sql: str, params: Any, words: str
) -> None:
    before = await runs(shared)
    for headers in ({}, NDJSON, EVENTS):
        reply = await shared.http.post("/v1/sql", content=json.dumps({"sql": sql, "params": params}), headers=headers)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "params")
        assert words in reply.json()["error"]["message"]
    assert await runs(shared) == before


@module_loop
async def test_a_number_that_is_no_whole_one_may_be_as_large_as_it_likes(shared: Running) -> None:
    assert (await query(shared, "SELECT ? AS x", params=[1e20])).json()["rows"] == [[1e20]]


@module_loop
async def test_a_result_is_kept_for_its_values_and_no_others(shared: Running) -> None:
    said = []
    for params in ([1], [1], ["1"], [1.0], [True], [1]):
        reply = await query(shared, "SELECT ? AS kept", params=params)
        said.append((reply.headers["x-workflow-cache"], reply.json()["rows"][0][0]))
    assert said == [("miss", 1), ("hit", 1), ("miss", "1"), ("miss", 1.0), ("miss", True), ("hit", 1)]
    named = [{"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 2, "b": 1}]
    replies = [await query(shared, "SELECT $a - $b AS d", params=params) for params in named]
    assert [reply.headers["x-workflow-cache"] for reply in replies] == ["miss", "hit", "miss"]


@module_loop
async def test_a_statement_may_be_in_another_dialect(shared: Running) -> None:
    reply = await query(shared, "SELECT `i` FROM `numbers` WHERE `i` = ?", params=[3], dialect="mysql")
    assert reply.json()["rows"] == [[3]]
    reply = await query(shared, "SELECT COUNT(*), i::text FROM numbers WHERE i = 3 GROUP BY i", dialect="PostgreSQL")
    assert [column["name"] for column in reply.json()["columns"]] == ["count", "i"]
    reply = await query(shared, "SELECT 1 AS x", dialect="klingon")
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "dialect")
    assert "duckdb, sqlite, postgres" in reply.json()["error"]["message"]


async def test_the_pool_says_what_its_statements_are_written_in(tmp_path: Path) -> None:
    async with numbers(tmp_path, dialect="MariaDB") as up:
        sql = "SELECT `i` FROM `numbers` WHERE `i` = 3"
        assert (await query(up, sql)).json()["rows"] == [[3]]
        assert (await query(up, sql, dialect="duckdb")).status_code == 400


# --- rows as they come ----------------------------------------------------------------------------------------


@module_loop
async def test_rows_come_one_to_a_line_between_the_columns_and_what_there_is_to_say(shared: Running) -> None:
    sql = "SELECT i, i / 2 AS half, INTERVAL (i) DAY AS span FROM numbers ORDER BY i"
    first, *rows, last = lines(await query(shared, sql, headers=NDJSON, limit=20_000))
    assert [column["type"] for column in first["columns"]] == ["BIGINT", "DOUBLE", "INTERVAL"]
    assert rows[3] == [3, 1.5, "3 days"]
    assert [row[0] for row in rows] == list(range(20_000))
    assert last.pop("elapsed_ms") > 0
    assert last == {"row_count": 20_000, "truncated": True}


@module_loop
async def test_the_shape_is_what_the_body_says_else_what_the_client_accepts(shared: Running) -> None:
    for accept, said, kind in [
        ("*/*", None, "application/json"),
        ("text/html, application/x-ndjson;q=0.5, application/json", None, "application/x-ndjson"),
        ("APPLICATION/NDJSON", None, "application/x-ndjson"),
        ("application/json, text/event-stream", None, "application/json"),
        ("text/event-stream", None, "text/event-stream; charset=utf-8"),
        ("text/event-stream", "ndjson", "application/x-ndjson"),
        ("application/x-ndjson", "json", "application/json"),
        ("application/x-ndjson", "events", "text/event-stream; charset=utf-8"),
    ]:
        more = {} if said is None else {"format": said}
        reply = await query(shared, "SELECT 1 AS x", headers={"Accept": accept}, **more)
        assert (reply.status_code, reply.headers["content-type"]) == (200, kind)
    reply = await query(shared, "SELECT 1 AS x", format="csv")
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "format")


@module_loop
async def test_a_stream_says_who_serves_it_and_keeps_nothing(shared: Running) -> None:
    before = metric(shared.gateway, "cortex_sql_answers_total", cache="stream")
    for _ in range(2):
        reply = await query(shared, "SELECT 1 AS streamed", headers=NDJSON)
        assert reply.headers["x-workflow-engine"] == "warehouse/0"
    assert metric(shared.gateway, "cortex_sql_answers_total", cache="stream") == before + 2
    assert (await query(shared, "SELECT 1 AS streamed")).headers["x-workflow-cache"] == "miss"


@module_loop
async def test_a_statement_without_rows_to_stream_is_an_error_reply_as_ever(shared: Running) -> None:
    placed = await query(shared, "SELECT i,\n  nope FROM numbers", headers=NDJSON)
    assert "(line 2, column 3)" in placed.json()["error"]["message"]
    for sql, code in [("SELECT nope FROM numbers", "binder"), ("DROP TABLE numbers", "refused")]:
        for headers in (NDJSON, EVENTS):
            reply = await query(shared, sql, headers=headers)
            assert (reply.status_code, reply.headers["content-type"]) == (400, "application/json")
            assert reply.json()["error"]["code"] == code
    first, last = lines(await query(shared, "SELECT i FROM numbers WHERE i < 0", headers=NDJSON))
    assert (first["columns"][0]["name"], last["row_count"], last["truncated"]) == ("i", 0, False)


@module_loop
async def test_what_goes_wrong_after_the_first_line_is_the_last_line(shared: Running) -> None:
    sql = "SELECT CASE WHEN i < 400000 THEN i ELSE CAST('x' || i AS INT) END AS i FROM numbers"
    before = metric(shared.gateway, "cortex_calls_total", outcome="error", source="engine")
    _, *rows, last = lines(await query(shared, sql, headers=NDJSON))
    assert len(rows) > 1000
    assert set(last["error"]) == {"message", "type", "param", "code"}
    assert (last["error"]["code"], last["error"]["param"]) == ("execution", "sql")
    assert metric(shared.gateway, "cortex_calls_total", outcome="error", source="engine") == before + 1


async def test_streams_have_bounds_of_their_own(tmp_path: Path) -> None:
    async with numbers(tmp_path, max_rows=2, max_stream_rows=3000) as up:
        *_, last = lines(await query(up, "SELECT i FROM numbers", headers=NDJSON, limit=100_000))
        assert (last["row_count"], last["truncated"]) == (3000, True)
        assert (await query(up, "SELECT i FROM numbers")).json()["row_count"] == 2
    (tmp_path / "b").mkdir()
    async with numbers(tmp_path / "b", max_stream_bytes="100KB") as up:
        reply = await query(up, "SELECT i FROM numbers", headers=NDJSON)
        assert lines(reply)[-1]["truncated"]
        assert 90_000 < len(reply.content) < 110_000


async def test_a_client_that_reads_nothing_is_waited_for_within_bounds_and_then_told(tmp_path: Path) -> None:
    """Nothing piles up in the gateway: the worker itself waits, until the time of the stream is over."""
    async with numbers(tmp_path, timeout="60s", stream_timeout="2s") as up, connected(up.url) as slow:
        await slow.send(_request(MANY))
        head = await slow.head()
        assert (head.status, head.headers["content-type"]) == (200, "application/x-ndjson")
        await until(lambda: busy(up) == 0, "the end of the stream's time")
        said = await slow.reader.read()
        assert b"deadline_exceeded" in said[-1000:]
        assert len(said) < 20_000_000
        assert (await query(up, "SELECT 7 AS x")).json()["rows"] == [[7]]


async def test_clients_that_read_nothing_give_their_workers_to_others_who_wait(tmp_path: Path) -> None:
    async with (
        numbers(tmp_path, timeout="60s", workers=2, stream_stall="1s") as up,
        connected(up.url) as one,
        connected(up.url) as other,
    ):
        for slow in (one, other):
            await slow.send(_request(MANY))
            await slow.head()
        assert busy(up) == 2
        began = time.monotonic()
        assert (await query(up, "SELECT 7 AS x")).json()["rows"] == [[7]]
        assert 0.5 < time.monotonic() - began < 15  # of the 60 that a stream may take
        told = [asyncio.create_task(slow.reader.read()) for slow in (one, other)]
        await until(lambda: any(task.done() for task in told), "the end of a stream")
        said = next(task.result() for task in told if task.done())[-1000:]
        assert b"stream_interrupted" in said
        assert b"while others waited (pools.warehouse.backend.stream_stall)" in said
        for task in told:
            task.cancel()


async def test_a_client_that_reads_nothing_keeps_its_worker_where_nobody_waits(tmp_path: Path) -> None:
    async with (
        numbers(tmp_path, timeout="60s", workers=2, stream_stall="10ms") as up,
        connected(up.url) as slow,
    ):
        await slow.send(_request(MANY))
        await slow.head()
        assert (await query(up, SLOW)).json()["rows"] == [[4]]
        assert busy(up) == 1
        assert len(await slow.reader.readexactly(20_000_000)) == 20_000_000


async def test_a_client_that_leaves_stops_its_stream(tmp_path: Path) -> None:
    async with numbers(tmp_path, timeout="60s") as up:
        pid = workers(up)[0].pid
        for reads in (False, True):
            async with connected(up.url) as client:
                await client.send(_request(MANY))
                await client.head()
                if reads:
                    await client.reader.readexactly(1_000_000)
                client.leave()
            await settled(up.gateway)
        assert (await query(up, "SELECT 7 AS x")).json()["rows"] == [[7]]
        assert workers(up)[0].pid == pid
        assert metric(up.gateway, "cortex_cancellations_total", endpoint="sql") == 2


async def test_a_worker_that_dies_in_the_middle_of_a_stream_is_told_in_the_last_line(tmp_path: Path) -> None:
    async with numbers(tmp_path, timeout="60s") as up:
        async with up.http.stream("POST", "/v1/sql", json={"sql": MANY}, headers=NDJSON) as reply:
            pid, seen = workers(up)[0].pid, b""
            async for piece in reply.aiter_bytes():
                seen = (seen + piece)[-1000:]
                if pid is not None:
                    os.kill(pid, 9)
                    pid = None
        assert orjson.loads(seen.splitlines()[-1])["error"]["code"] == "stream_interrupted"
        assert (await query(up, "SELECT 7 AS x")).json()["rows"] == [[7]]


def _request(sql: str) -> bytes:
    body = orjson.dumps({"sql": sql, "format": "ndjson"})
    return b"POST /v1/sql HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )


# --- progress -------------------------------------------------------------------------------------------------


@module_loop
async def test_progress_comes_before_the_result(shared: Running) -> None:
    *news, (name, result) = events(await query(shared, SLOW, headers=EVENTS))
    assert (name, result["rows"]) == ("result", [[4]])
    percents = [data["percent"] for name, data in news if name == "progress"]
    assert len(percents) == len(news) > 0
    assert percents == sorted(percents)
    assert all(0 < percent <= 100 for percent in percents)
    again = await query(shared, SLOW, headers=EVENTS)
    assert [name for name, _ in events(again)] == ["result"]
    assert again.headers["x-workflow-cache"] == "hit"


async def test_what_goes_wrong_after_progress_is_the_last_event(tmp_path: Path) -> None:
    async with numbers(tmp_path, timeout="1s") as up:
        slower = SLOW.replace("600", "100000")
        *news, (name, error) = events(await query(up, slower, headers=EVENTS))
        assert {name for name, _ in news} == {"progress"}
        assert (name, error["error"]["code"], error["error"]["type"]) == ("error", "timeout", "timeout_error")


async def test_a_worker_that_dies_after_progress_is_the_last_event(tmp_path: Path) -> None:
    async with numbers(tmp_path, timeout="60s") as up:
        slower = SLOW.replace("600", "100000")
        async with up.http.stream("POST", "/v1/sql", json={"sql": slower}, headers=EVENTS) as reply:
            pid, seen = workers(up)[0].pid, b""
            async for piece in reply.aiter_bytes():
                seen += piece
                if pid is not None:
                    os.kill(pid, 9)
                    pid = None
        assert seen.startswith(b"event: progress\n")
        assert seen.rpartition(b"event: ")[2].startswith(b"error\n")
        assert b"stream_interrupted" in seen


async def test_a_client_that_leaves_amid_progress_stops_its_statement(tmp_path: Path) -> None:
    async with numbers(tmp_path, timeout="60s") as up:
        slower = SLOW.replace("600", "100000")
        async with up.http.stream("POST", "/v1/sql", json={"sql": slower}, headers=EVENTS) as reply:
            assert (await anext(reply.aiter_bytes())).startswith(b"event: progress")
        await settled(up.gateway)
        assert (await query(up, "SELECT 7 AS x")).json()["rows"] == [[7]]


async def test_whoever_is_slow_to_hear_is_told_the_latest_and_holds_nothing_up() -> None:
    heard: list[float] = []
    free = asyncio.Event()

    async def slow(percent: float) -> None:
        heard.append(percent)
        await free.wait()

    async with telling(slow) as say:
        for percent in (1.0, 2.0, 3.0):
            say(percent)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert heard == [1.0]
        free.set()
        await until(lambda: len(heard) == 2, "more news")
    assert heard == [1.0, 3.0]


async def test_whoever_cannot_be_told_is_told_no_more_and_the_rest_goes_on() -> None:
    async def deaf(_: float) -> None:
        raise ConnectionError

    async with telling(deaf) as say:
        say(1.0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        say(2.0)


async def test_nobody_is_told_any_more_when_the_block_is_left_by_an_error() -> None:
    never = asyncio.Event()
    left = asyncio.Event()

    async def stuck(_: float) -> None:
        try:
            await never.wait()
        finally:
            left.set()

    with pytest.raises(KeyError):
        await _left_by_an_error(stuck)
    assert left.is_set()


async def _left_by_an_error(told: Any) -> None:
    async with telling(told) as say:
        say(1.0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        raise KeyError
