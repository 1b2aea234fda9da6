"""SQLite's SQL is read by the columns of its database: what is text in double quotes, what compares as a date."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import duckdb

from gateway.access import Caller
from gateway.columns import AGAIN_AFTER, Columns
from gateway.identity import Identity
from gateway.intake import Asked
from gateway.verdicts import Answer, refusal
from tests.gateway.support import Running, children, metric, running, settled, until, written

PARSER = "backends.sql.reading"


def _put(path: Path, *columns: str) -> None:
    """A database of visits, with more columns of text where they are named, in the place of the one before."""
    new = path.with_name("new.duckdb")
    with duckdb.connect(str(new)) as connection:
        more = "".join(f", 'column' AS {column}" for column in columns)
        connection.execute(
            f"CREATE TABLE visits AS SELECT i AS id, DATE '2024-01-01' + i::INTEGER AS day{more} FROM range(60) r(i)"
        )
    new.rename(path)


@asynccontextmanager
async def house(folder: Path, **settings: object) -> AsyncIterator[tuple[Running, Path]]:
    path = folder / "data" / "visits.duckdb"
    path.parent.mkdir()
    _put(path)
    backend = {"name": "duckdb", "databases": {"visits": str(path)}, "timeout": "20s", **settings}
    async with running(folder, written({"warehouse": {"backend": backend}}), report_every=60) as up:
        yield up, path
        await settled(up.gateway)


async def row(up: Running, sql: str, dialect: str = "sqlite", **headers: str) -> tuple[Any, str]:
    reply = await up.http.post("/v1/sql", json={"sql": sql, "dialect": dialect}, headers=headers)
    assert reply.status_code == 200, reply.text
    return reply.json()["rows"][0], reply.headers["x-workflow-cache"]


def runs(up: Running) -> int:
    """How many calls the SQL pool's engines have had."""
    return int(metric(up.gateway, "cortex_sql_answers_total", cache="miss"))


async def test_a_word_in_double_quotes_is_text_unless_a_column_has_the_name(tmp_path: Path) -> None:
    async with house(tmp_path) as (up, path):
        sql = 'SELECT "id", CASE WHEN id > 5 THEN "many" ELSE "few" END AS size FROM visits WHERE "id" = 7'
        assert await row(up, sql) == ([7, "many"], "miss")
        assert await row(up, sql) == ([7, "many"], "hit")
        assert runs(up) == 2, "the statement, and the description"
        _put(path, "few", "many")
        assert await row(up, sql) == ([7, "column"], "miss")
        assert await row(up, sql) == ([7, "column"], "hit")
        assert runs(up) == 4


async def test_dates_compare_with_a_part_of_a_date(tmp_path: Path) -> None:
    async with house(tmp_path, dialect="sqlite") as (up, _):
        count = "SELECT count(*) AS n FROM visits WHERE {}"
        for condition, many in [
            ("day >= '2024-02'", 29),
            ("day < '2024-01-11'", 10),
            ("day BETWEEN '2024' AND '2024-01-31'", 31),
            ("day <> ''", 60),
        ]:
            reply = await up.http.post("/v1/sql", json={"sql": count.format(condition)})
            assert reply.json()["rows"] == [[many]], condition


async def test_other_dialects_ask_for_no_description(tmp_path: Path) -> None:
    async with house(tmp_path) as (up, _):
        for dialect in ("duckdb", "postgres", "mysql"):
            assert (await row(up, "SELECT count(*) AS n FROM visits", dialect))[0] == [60]
        assert runs(up) == 1


async def test_many_at_once_share_one_description_and_it_moves_no_run(tmp_path: Path) -> None:
    async with house(tmp_path) as (up, _):
        texts = [f'SELECT id, "text {number}" AS t FROM visits WHERE id = {number}' for number in range(8)]
        said = await asyncio.gather(*(row(up, text, **{"X-Workflow-Id": "r1"}) for text in texts))
        assert [answer for answer, _ in said] == [[number, f"text {number}"] for number in range(8)]
        assert runs(up) == 9
        (run,) = up.gateway.runtime.dispatcher.runs
        assert (run.key[2], run.calls) == ("r1", 8)


async def test_a_reader_that_was_killed_is_told_the_columns_again(tmp_path: Path) -> None:
    async with house(tmp_path) as (up, _):
        assert (await row(up, 'SELECT "a" AS x FROM visits'))[0] == ["a"]
        (pid,) = children(PARSER)
        os.kill(pid, signal.SIGKILL)
        await until(lambda: pid not in children(PARSER), "the reader's end")
        await up.http.post("/v1/sql", json={"sql": "SELECT 1 AS spent"})  # may be the one that finds the reader dead
        assert (await row(up, 'SELECT "b" AS x FROM visits'))[0] == ["b"]


async def test_a_database_that_is_gone_and_back_is_described_when_it_is_there(tmp_path: Path) -> None:
    async with house(tmp_path) as (up, path):
        with duckdb.connect(str(path.with_name("new.duckdb"))) as connection:
            connection.execute("CREATE TABLE visits AS SELECT 1 AS id")
        path.unlink()
        reply = await up.http.post("/v1/sql", json={"sql": "SELECT 1 AS x", "dialect": "sqlite"})
        assert reply.status_code == 503
        path.with_name("new.duckdb").rename(path)
        assert (await row(up, 'SELECT "id" AS x FROM visits WHERE \'a\' = "a"'))[0] == [1]


async def test_a_description_that_took_too_long_is_tried_again_after_a_while_and_one_that_failed_is_not() -> None:
    now, said = 0.0, [Answer(status=504, body=b"{}", fate="timeout"), refusal("it is no database", "sql_error")]

    async def describe(_: Asked, database: str) -> Answer:
        return said.pop(0)

    columns = Columns(describe, clock=lambda: now)
    asked = Asked(caller=Caller(), identity=Identity(), request_id="r", run="r", own="o", arrived=0.0, raw_headers=())
    for now in (0.0, AGAIN_AFTER - 1):  # noqa: B007 - the clock reads it
        assert await columns.of(asked, "d", 1) is None
        assert columns.at_hand("d", 1) == (True, None)
        assert len(said) == 1
    now = AGAIN_AFTER
    assert columns.at_hand("d", 1) == (False, None)
    for now in (AGAIN_AFTER, 1e9):  # noqa: B007
        assert await columns.of(asked, "d", 1) is None
        assert columns.at_hand("d", 1) == (True, None)
    assert said == []


async def test_a_database_that_takes_too_long_to_be_described_is_read_by_the_text_alone(tmp_path: Path) -> None:
    path = tmp_path / "wide.duckdb"
    with duckdb.connect(str(path)) as connection:
        columns = ", ".join(f"md5((i + {number})::VARCHAR) AS c{number}" for number in range(300))
        connection.execute(f"CREATE TABLE wide AS SELECT {columns} FROM range(10000) r(i)")
    backend = {"name": "duckdb", "databases": {"wide": str(path)}, "samples": 3, "timeout": "100ms"}
    async with running(tmp_path, written({"warehouse": {"backend": backend}}), report_every=60) as up:
        for text in ("one", "other"):
            reply = await up.http.post("/v1/sql", json={"sql": f'SELECT upper("{text}") AS x', "dialect": "sqlite"})
            assert reply.status_code in (400, 504), "a column that no table has"
        assert runs(up) == 3, "one description, which was not tried again, and the statements"
        await settled(up.gateway)
