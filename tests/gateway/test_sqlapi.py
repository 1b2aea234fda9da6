"""`POST /v1/sql` and `GET /v1/databases/…`: SQL for clients that run their tools themselves."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import duckdb
import httpx
import orjson
import pytest
import pytest_asyncio
from openai import APIStatusError, AsyncOpenAI

from backends.sql.engine import SqlEngine
from tests.gateway.shop import COUNT, MISSPELT, database, warehouse
from tests.gateway.support import Running, children, metric, running, settled, until, written

ENDLESS = "SELECT count(*) FROM range(100000000) AS a, range(100000) AS b"
"""Runs for hours, and is well-behaved: it stops when it is interrupted."""
KEYS = {"keys": [{"key": "a", "tenant": "one"}, {"key": "b", "tenant": "two"}]}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@asynccontextmanager
async def store(
    folder: Path, *, workers: int = 1, sections: dict[str, Any] | None = None, **more: object
) -> AsyncIterator[Running]:
    pools = {"warehouse": warehouse(folder, workers=workers, **more)}
    async with running(folder, written(pools, **(sections or {})), report_every=60) as up:
        yield up
        await settled(up.gateway)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    """One gateway for the tests that leave nothing behind."""
    async with store(tmp_path_factory.mktemp("store"), timeout="20s", max_rows=5) as up:
        yield up


module_loop = pytest.mark.asyncio(loop_scope="module")


async def query(up: Running, sql: str, **more: Any) -> httpx.Response:
    headers = more.pop("headers", {})
    return await up.http.post("/v1/sql", json={"sql": sql, **more}, headers=headers)


async def runs(up: Running) -> int:
    """The statements that the workers have run so far."""
    reports = [await engine.report() for engine in up.gateway.runtime.engines.values()]
    return int(sum(report.counters["runs"] for report in reports))


def workers(up: Running) -> list[SqlEngine]:
    found = list(up.gateway.runtime.engines.values())
    assert all(isinstance(engine, SqlEngine) for engine in found)
    return [engine for engine in found if isinstance(engine, SqlEngine)]


def busy(up: Running) -> int:
    return sum(len(engine.slots) for engine in up.gateway.runtime.dispatcher.fleet)


# --- results --------------------------------------------------------------------------------------------------


@module_loop
async def test_every_type_comes_back_as_json_without_loss(shared: Running) -> None:
    values = {
        "TRUE": True,
        "42::TINYINT": 42,
        "9007199254740993": "9007199254740993",
        "12.50::DECIMAL(9,2)": "12.50",
        "1.5::DOUBLE": 1.5,
        "'NaN'::DOUBLE": "NaN",
        "'é\"'": 'é"',
        "DATE '2024-02-29'": "2024-02-29",
        "TIMESTAMP '2024-02-29 01:02:03.5'": "2024-02-29T01:02:03.5",
        "TIME '01:02:03'": "01:02:03",
        "INTERVAL 3 MONTH": "3 months",
        "'ab'::BLOB": "YWI=",
        "[1, NULL, 3]": [1, None, 3],
        "{'a': 1, 'b': [2]}": {"a": 1, "b": [2]},
        "MAP {'k': 1}": [{"key": "k", "value": 1}],
        "NULL": None,
        "'5d2e7b3c-0000-4000-8000-000000000001'::UUID": "5d2e7b3c-0000-4000-8000-000000000001",
    }
    reply = await query(shared, "SELECT " + ", ".join(f"{sql} AS c{i}" for i, sql in enumerate(values)))
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == "application/json"
    answer = reply.json()
    assert answer["rows"] == [list(values.values())]
    assert [column["name"] for column in answer["columns"]] == [f"c{index}" for index in range(len(values))]
    assert answer["columns"][3]["type"] == "DECIMAL(9,2)"
    assert (answer["row_count"], answer["truncated"]) == (1, False)


@module_loop
async def test_the_limit_cuts_the_rows_and_never_more_come_than_the_pool_allows(shared: Running) -> None:
    sql = "SELECT i FROM range(10) AS r(i) ORDER BY i"
    for limit, rows in [(None, 5), (3, 3), (5, 5), (1000, 5)]:
        answer = (await query(shared, sql, **({} if limit is None else {"limit": limit}))).json()
        assert (answer["rows"], answer["truncated"]) == ([[number] for number in range(rows)], True)
    whole = (await query(shared, "SELECT 1 AS x", limit=1)).json()
    assert (whole["row_count"], whole["truncated"]) == (1, False)


@module_loop
async def test_the_reply_says_who_served_it_and_from_where(shared: Running) -> None:
    sql = "SELECT 'who' AS served"
    headers = {"X-Workflow-Type": "w", "X-Workflow-Id": "r", "X-Workflow-Stage": "execute", "X-Request-Id": "q"}
    first = await query(shared, sql, headers=headers)
    assert first.headers["x-workflow-cache"] == "miss"
    assert first.headers["x-workflow-pool"] == "warehouse"
    assert first.headers["x-workflow-engine"] == "warehouse/0"
    assert [first.headers[name] for name in ("x-workflow-id", "x-workflow-stage", "x-request-id")] == [
        "r",
        "execute",
        "q",
    ]
    again = await query(shared, "select   'who' AS served -- the same", headers=headers)
    assert again.headers["x-workflow-cache"] == "hit"
    assert "x-workflow-engine" not in again.headers
    assert again.content == first.content


@module_loop
@pytest.mark.parametrize(
    ("sql", "code", "words"),
    [
        ("DROP TABLE orders", "refused", "SELECT"),
        ("SELECT 1; SELECT 2", "refused", "one"),
        ("SELECT * FROM read_csv('/etc/passwd')", "refused", "read_csv"),
        ("SELEC 1", "syntax", "unexpected token"),
        (MISSPELT, "binder", 'Referenced column "amuont" not found'),
        ("SELECT CAST('x' AS INTEGER)", "execution", "Could not convert"),
    ],
)
async def test_a_statement_that_cannot_be_run_is_told_so_that_it_can_be_repaired(
    shared: Running, sql: str, code: str, words: str
) -> None:
    reply = await query(shared, sql)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", "sql")
    assert words.lower() in error["message"].lower()
    assert error["code"] == code or code == "refused"
    assert str(shared.gateway.config.pools["warehouse"].backend) not in reply.text
    assert ".duckdb" not in reply.text


@module_loop
@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        (b"{", None, "not valid JSON"),
        (b"[]", None, "must be a JSON object"),
        (b"{}", "sql", "is required"),
        (b'{"sql": ""}', "sql", "must be one SQL statement"),
        (b'{"sql": 7}', "sql", "must be one SQL statement"),
        (b'{"sql": "SELECT 1", "database": 3}', "database", "must be a string"),
        (b'{"sql": "SELECT 1", "limit": 0}', "limit", "whole number"),
        (b'{"sql": "SELECT 1", "limit": true}', "limit", "whole number"),
        (b'{"sql": "SELECT 1", "limit": "5"}', "limit", "whole number"),
        (b'{"sql": "SELECT 1", "limit": 9999999999}', "limit", "whole number"),
        (b'{"sql": "SELECT 1", "parms": [1]}', "parms", "did you mean params?"),
        (b'{"sql": "SELECT 1", "stream": true}', "stream", "known: sql, database, params, limit, dialect, format"),
        (b'{"sql": "SELECT 1", "workflow": {"typ": "w"}}', "workflow.typ", "did you mean type?"),
    ],
)
async def test_a_body_that_is_wrong_is_refused_by_name(
    shared: Running, body: bytes, param: str | None, words: str
) -> None:
    before = await runs(shared)
    reply = await shared.http.post("/v1/sql", content=body)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == param
    assert words in reply.json()["error"]["message"]
    assert await runs(shared) == before


@module_loop
async def test_an_unknown_database_is_404_with_the_known_ones(shared: Running) -> None:
    for reply in (
        await query(shared, COUNT, database="nowhere"),
        await shared.http.get("/v1/databases/nowhere/schema"),
    ):
        assert (reply.status_code, reply.json()["error"]["code"]) == (404, "database_not_found")
        assert "shop" in reply.json()["error"]["message"]


@module_loop
async def test_what_is_refused_is_counted(shared: Running) -> None:
    before = metric(shared.gateway, "cortex_sql_answers_total", cache="refused")
    ran = await runs(shared)
    await query(shared, "DELETE FROM orders")
    assert metric(shared.gateway, "cortex_sql_answers_total", cache="refused") == before + 1
    assert await runs(shared) == ran


@module_loop
async def test_the_schema_is_the_same_text_every_time(shared: Running) -> None:
    assert (await shared.http.get("/v1/databases")).json() == {"databases": ["shop"]}
    first, second = [await shared.http.get("/v1/databases/shop/schema") for _ in range(2)]
    assert first.content == second.content
    assert second.headers["x-workflow-cache"] == "hit"
    assert first.json() == {
        "database": "shop",
        "text": "orders(id INTEGER, region VARCHAR, amount INTEGER) -- 4 rows\n",
        "tables": [
            {
                "name": "orders",
                "columns": [
                    {"name": "id", "type": "INTEGER"},
                    {"name": "region", "type": "VARCHAR"},
                    {"name": "amount", "type": "INTEGER"},
                ],
                "rows": 4,
                "text": "orders(id INTEGER, region VARCHAR, amount INTEGER) -- 4 rows\n",
            }
        ],
    }


@module_loop
async def test_a_result_that_does_not_fit_is_an_error_and_not_an_empty_result(shared: Running) -> None:
    for _ in range(2):
        reply = await query(shared, "SELECT repeat('x', 10000000) AS x")
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "too_large")
        assert reply.headers["x-workflow-cache"] == "miss"


@module_loop
async def test_a_result_without_rows_is_empty_also_when_it_comes_from_the_cache(shared: Running) -> None:
    def count(source: str) -> float:
        return metric(shared.gateway, "cortex_calls_total", outcome="empty", source=source)

    before = {source: count(source) for source in ("engine", "cache")}
    for _ in range(2):
        reply = await query(shared, "SELECT 1 AS x, '\"row_count\":0,' AS y WHERE 1 = 2")
        assert (reply.status_code, reply.json()["rows"]) == (200, [])
    assert {source: count(source) - before[source] for source in before} == {"engine": 1, "cache": 1}


# --- the cache ------------------------------------------------------------------------------------------------


async def test_many_identical_statements_at_once_run_once(tmp_path: Path) -> None:
    async with store(tmp_path, workers=2) as up:
        sql = "SELECT sum(a.i * b.i) AS s FROM range(2000) AS a(i), range(2000) AS b(i)"
        replies = await asyncio.gather(*(query(up, sql) for _ in range(64)))
        assert {reply.status_code for reply in replies} == {200}
        assert len({reply.content for reply in replies}) == 1
        said = [reply.headers["x-workflow-cache"] for reply in replies]
        assert said.count("miss") == 1
        assert set(said) <= {"miss", "joined", "hit"}
        assert "joined" in said
        assert await runs(up) == 1
        for cache in ("miss", "joined", "hit"):
            assert metric(up.gateway, "cortex_sql_answers_total", cache=cache) == said.count(cache)


async def test_statements_that_give_other_rows_each_time_are_never_kept(tmp_path: Path) -> None:
    async with store(tmp_path) as up:
        replies = [await query(up, "SELECT random() AS r") for _ in range(3)]
        assert len({orjson.dumps(reply.json()["rows"]) for reply in replies}) == 3
        assert not any(reply.headers.get("x-workflow-cache") == "hit" for reply in replies)
        assert metric(up.gateway, "cortex_sql_answers_total", cache="bypass") == 3


async def test_tenants_share_no_result(tmp_path: Path) -> None:
    async with store(tmp_path, sections={"auth": KEYS}) as up:
        said = [
            (await query(up, COUNT, headers=bearer(key))).headers["x-workflow-cache"] for key in ("a", "b", "a", "b")
        ]
        assert said == ["miss", "miss", "hit", "hit"]
        assert await runs(up) == 2
        assert (await query(up, COUNT)).status_code == 401


async def test_failures_are_never_kept(tmp_path: Path) -> None:
    async with store(tmp_path) as up:
        for _ in range(2):
            assert (await query(up, MISSPELT)).headers["x-workflow-cache"] == "miss"
        assert await runs(up) == 2


async def test_a_replaced_database_gives_its_new_rows_at_once(tmp_path: Path) -> None:
    async with store(tmp_path) as up:
        assert (await query(up, COUNT)).json()["rows"] == [[4]]
        schema = (await up.http.get("/v1/databases/shop/schema")).json()["text"]
        newer = database(tmp_path / "newer.duckdb")
        with duckdb.connect(str(newer)) as connection:
            connection.execute("INSERT INTO orders VALUES (5, 'east', 1)")
        os.replace(newer, tmp_path / "shop.duckdb")
        reply = await query(up, COUNT)
        assert (reply.json()["rows"], reply.headers["x-workflow-cache"]) == ([[5]], "miss")
        assert (await up.http.get("/v1/databases/shop/schema")).json()["text"] != schema


async def test_a_database_that_is_gone_is_503_and_works_again_when_it_is_back(tmp_path: Path) -> None:
    async with store(tmp_path) as up:
        assert (await query(up, COUNT)).status_code == 200
        os.rename(tmp_path / "shop.duckdb", tmp_path / "away.duckdb")
        reply = await query(up, COUNT)
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "pool_unavailable")
        assert int(reply.headers["retry-after"]) >= 1
        os.rename(tmp_path / "away.duckdb", tmp_path / "shop.duckdb")
        assert (await query(up, COUNT)).json()["rows"] == [[4]]


async def test_with_several_databases_one_must_be_named(tmp_path: Path) -> None:
    other = database(tmp_path / "other.duckdb")
    databases = {"shop": str(database(tmp_path / "shop.duckdb")), "other": str(other)}
    async with store(tmp_path, databases=databases) as up:
        reply = await query(up, COUNT)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "database")
        assert "other, shop" in reply.json()["error"]["message"]
        assert (await up.http.get("/v1/databases")).json() == {"databases": ["other", "shop"]}
        assert (await query(up, COUNT, database="other")).headers["x-workflow-cache"] == "miss"
        assert (await query(up, COUNT, database="shop")).headers["x-workflow-cache"] == "miss"
        assert (await query(up, COUNT, database="other")).headers["x-workflow-cache"] == "hit"


# --- statements that do not end -------------------------------------------------------------------------------


async def test_a_statement_that_takes_too_long_is_504_and_its_worker_is_free_again(tmp_path: Path) -> None:
    async with store(tmp_path, timeout="300ms") as up:
        reply = await query(up, ENDLESS)
        assert (reply.status_code, reply.json()["error"]["type"]) == (504, "timeout_error")
        assert reply.json()["error"]["code"] == "timeout"
        words = "the statement took longer than 0.3 s (pools.warehouse.backend.timeout): read fewer rows, or filter"
        assert reply.json()["error"]["message"].startswith(words)
        assert (await query(up, COUNT)).json()["rows"] == [[4]]


async def test_an_openai_client_runs_a_statement_that_is_too_slow_once(tmp_path: Path) -> None:
    async with (
        store(tmp_path, timeout="300ms") as up,
        AsyncOpenAI(base_url=f"{up.url}/v1", api_key="unused", max_retries=2) as client,
    ):
        with pytest.raises(APIStatusError) as caught:
            await client.post("/sql", body={"sql": ENDLESS}, cast_to=object)
        assert caught.value.status_code == 504
        assert await runs(up) == 1
        assert metric(up.gateway, "cortex_calls_total", outcome="timeout", source="engine") == 1


async def leave_during(up: Running, sql: str, *, holds: int) -> None:
    """A client that goes once so many calls are under way."""
    async with httpx.AsyncClient(base_url=up.url, trust_env=False, timeout=30) as client:
        asking = asyncio.create_task(client.post("/v1/sql", json={"sql": sql}))
        await until(lambda: up.gateway.runtime.dispatcher.calls == holds, f"{holds} calls under way")
        await until(lambda: busy(up) == 1, "the statement at its worker")
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


async def test_a_client_that_leaves_during_its_statement_frees_the_worker(tmp_path: Path) -> None:
    async with store(tmp_path, timeout="60s") as up:
        await leave_during(up, ENDLESS, holds=1)
        await settled(up.gateway)
        assert (await query(up, COUNT)).json()["rows"] == [[4]]
        assert metric(up.gateway, "cortex_cancellations_total", endpoint="sql") == 1


async def test_a_leader_that_leaves_takes_nothing_from_those_who_follow(tmp_path: Path) -> None:
    # Long enough to be left, short enough to end.
    sql = "SELECT sum(a.i * b.i) AS s FROM range(20000) AS a(i), range(10000) AS b(i)"
    async with store(tmp_path, timeout="60s") as up:
        async with httpx.AsyncClient(base_url=up.url, trust_env=False, timeout=30) as leader:
            leading = asyncio.create_task(leader.post("/v1/sql", json={"sql": sql}))
            await until(lambda: busy(up) == 1, "the statement at its worker")
            following = [asyncio.create_task(query(up, sql)) for _ in range(3)]
            await until(lambda: up.gateway.runtime.dispatcher.calls == 4, "three followers")
            leading.cancel()
            await asyncio.gather(leading, return_exceptions=True)
            await until(lambda: up.gateway.door.inside == 3, "the leader's leaving")
            assert {reply.headers["x-workflow-cache"] for reply in await asyncio.gather(*following)} == {"joined"}
        assert await runs(up) == 1


async def test_when_all_who_wait_have_left_the_statement_is_stopped(tmp_path: Path) -> None:
    async with store(tmp_path, timeout="60s") as up:
        async with httpx.AsyncClient(base_url=up.url, trust_env=False, timeout=30) as clients:
            asking = [asyncio.create_task(clients.post("/v1/sql", json={"sql": ENDLESS})) for _ in range(3)]
            await until(lambda: up.gateway.runtime.dispatcher.calls == 3, "three calls")
            for one in asking:
                one.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        await settled(up.gateway)
        assert (await query(up, COUNT)).json()["rows"] == [[4]]


async def test_followers_of_a_leader_that_is_refused_go_on_by_their_own_right(tmp_path: Path) -> None:
    async with store(tmp_path, sections={"limits": {"queue_calls": 1}}, timeout="60s") as up:
        async with httpx.AsyncClient(base_url=up.url, trust_env=False, timeout=30) as others:
            blocking = asyncio.create_task(others.post("/v1/sql", json={"sql": ENDLESS}))
            await until(lambda: busy(up) == 1, "a busy worker")
            waiting = asyncio.create_task(others.post("/v1/sql", json={"sql": "SELECT 1 AS x"}))
            await until(lambda: up.gateway.runtime.dispatcher.calls == 2, "a full queue")
            # All three come in one step: the second follows the first, which is refused.
            replies = await asyncio.gather(*(query(up, COUNT) for _ in range(2)))
            assert {reply.status_code for reply in replies} == {429}
            assert all(int(reply.headers["retry-after"]) >= 1 for reply in replies)
            blocking.cancel()
            await asyncio.gather(blocking, return_exceptions=True)
            assert (await waiting).status_code == 200
        assert (await query(up, COUNT)).json()["rows"] == [[4]]


async def test_a_killed_worker_fails_its_statement_alone_and_is_replaced(tmp_path: Path) -> None:
    async with store(tmp_path, timeout="60s") as up:
        asking = asyncio.create_task(query(up, ENDLESS))
        await until(lambda: busy(up) == 1, "the statement at its worker")
        pid = workers(up)[0].pid
        assert pid is not None
        following = asyncio.create_task(query(up, ENDLESS))
        await until(lambda: up.gateway.runtime.dispatcher.calls == 2, "a follower")
        os.kill(pid, 9)
        replies = await asyncio.gather(asking, following)
        # What killed the leader's worker is not tried again for those who followed it.
        assert [reply.status_code for reply in replies] == [502, 502]
        assert {reply.headers["x-should-retry"] for reply in replies} == {"false"}
        assert (await query(up, COUNT)).json()["rows"] == [[4]]
        assert workers(up)[0].pid not in (None, pid)
        assert await runs(up) == 2


@pytest.mark.slow
@pytest.mark.untraced
async def test_workers_that_are_killed_again_and_again_fail_only_what_they_had_in_hand(tmp_path: Path) -> None:
    async with store(tmp_path, timeout="60s") as up:
        sql = "SELECT sum(a.i * b.i) + {} AS s FROM range(2000) AS a(i), range(2000) AS b(i)"
        asking = [asyncio.create_task(query(up, ENDLESS))]
        await until(lambda: busy(up) == 1, "a busy worker")
        asking += [asyncio.create_task(query(up, sql.format(number))) for number in range(50)]
        await until(
            lambda: up.gateway.runtime.dispatcher.calls == 51, "a queue"
        )  # no more may wait to be read at once
        asking += [asyncio.create_task(query(up, sql.format(number))) for number in range(50, 99)]
        await until(lambda: up.gateway.runtime.dispatcher.calls == 100, "a longer queue")
        kills = 7  # more than the worker is brought up after without a pause
        seen: set[int | None] = {None}
        for _ in range(kills):
            await until(lambda: busy(up) == 1 and workers(up)[0].pid not in seen, "another worker")
            pid = workers(up)[0].pid
            assert pid is not None
            seen.add(pid)
            os.kill(pid, 9)
        statuses = [reply.status_code for reply in await asyncio.gather(*asking)]
        assert set(statuses) == {200, 502}
        assert 1 <= statuses.count(502) <= kills


async def test_a_statement_has_so_much_time_with_its_wait_in_the_queue(tmp_path: Path) -> None:
    async with store(tmp_path, timeout="60s") as up:
        up.gateway.sql._desk._total = 1.0
        blocking = asyncio.create_task(query(up, ENDLESS))
        await until(lambda: busy(up) == 1, "a busy worker")
        up.gateway.sql._desk._total = 0.05
        for reply in (await query(up, COUNT), await blocking):
            assert (reply.status_code, reply.json()["error"]["code"]) == (504, "deadline_exceeded")
        up.gateway.sql._desk._total = 60.0
        assert (await query(up, COUNT)).json()["rows"] == [[4]]


async def test_while_statements_cannot_be_read_the_answer_is_503(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = children("backends.sql.reading")
    async with store(tmp_path) as up:
        (reader,) = children("backends.sql.reading") - before
        os.kill(reader, 9)
        await until(lambda: children("backends.sql.reading") == before, "the end of the reader")
        monkeypatch.setattr(sys, "executable", str(tmp_path / "nowhere"))
        for _ in range(3):  # the first may still find the pipe open
            reply = await query(up, COUNT)
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "pool_unavailable")
        monkeypatch.undo()
        assert (await query(up, COUNT)).status_code == 200


async def test_a_database_that_is_away_is_named_to_the_operator_once_and_its_file_to_no_client(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with store(tmp_path) as up:
        path = tmp_path / "shop.duckdb"
        for _ in range(2):
            away = path.rename(tmp_path / "away.duckdb")
            replies = [await query(up, COUNT) for _ in range(2)]
            assert {reply.status_code for reply in replies} == {503}
            assert {reply.json()["error"]["message"] for reply in replies} == {"the database 'shop' is not there now"}
            away.rename(path)
            assert (await query(up, COUNT)).status_code == 200
    said = f"database cannot be read pool=warehouse database=shop: {path}: No such file or directory"
    assert [one for one in caplog.messages if "shop.duckdb" in one] == [said] * 2, "again when it is away again"
