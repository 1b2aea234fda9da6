"""The databases of a worker: each stands for itself, and all its tables are known by their names."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pytest

from backends.base import BackendError
from backends.sql import answers
from backends.sql.engine import SqlCluster
from backends.sql.failures import message_of
from backends.sql.options import SqlOptions
from backends.sql.worker import Worker, start
from tests.gateway.support import until

Ask = Callable[..., Coroutine[Any, Any, tuple[int, Any]]]


def made(path: Path, *statements: str) -> Path:
    """A database that is put in its place whole."""
    fresh = path.with_suffix(".new")
    with duckdb.connect(str(fresh)) as connection:
        for statement in statements:
            connection.execute(statement)
    fresh.rename(path)
    return path


def handled(worker: Worker, database: str, sql: str = "", **more: object) -> tuple[str, Any]:
    whole = {"op": "query", "timeout": 1.0, "limit": 10, "max_bytes": 1000, "unlimited": False}
    answer = worker.handle(orjson.dumps(whole | {"database": database, "sql": sql} | more))
    outcome, body = answers.split(answer)
    return outcome, orjson.loads(body)


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    """As one that was loaded from a dump of PostgreSQL: hardly anything lies in `main`."""
    return made(
        tmp_path / "dump.duckdb",
        "create schema public",
        'create schema "Odd, \'name"',
        "create table public.stores as select 1 as store_id, 'Rome' as city",
        "create table public.shared as select 'public' as place",
        "create table main.shared as select 'main' as place",
        'create table "Odd, \'name".sales as select 7 as amount',
        "create table public.twice as select 1 as x",
        'create table "Odd, \'name".twice as select 2 as x',
        "create view public.cities as select city, now() as seen from public.stores",
    )


@pytest.fixture
def worker(dump: Path) -> Iterator[Worker]:
    worker = Worker(SqlOptions(databases={"dump": str(dump)}))
    yield worker
    worker.close()


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("SELECT city FROM stores", [["Rome"]]),
        ("SELECT city FROM public.stores", [["Rome"]]),
        ("SELECT amount FROM sales", [[7]]),
        ("SELECT place FROM shared", [["main"]]),
        ("SELECT place FROM public.shared", [["public"]]),
        ("SELECT city FROM cities", [["Rome"]]),
        ("SELECT x FROM twice", [[2]]),
    ],
)
def test_a_table_is_known_by_its_name_in_whichever_schema_it_lies(worker: Worker, sql: str, rows: object) -> None:
    outcome, body = handled(worker, "dump", sql)
    assert outcome.startswith("ok")
    assert body["rows"] == rows


def test_the_description_names_a_schema_only_where_it_is_needed(worker: Worker) -> None:
    _, body = handled(worker, "dump", op="describe")
    names = [table["name"] for table in body["tables"]]
    assert names == ["sales", '"Odd, \'name".twice', "shared", "cities", "public.shared", "stores", "public.twice"]
    for name in names:
        assert handled(worker, "dump", f"SELECT * FROM {name}")[0].startswith("ok")


def test_complaints_and_what_is_volatile_know_the_tables_of_all_schemas(worker: Worker) -> None:
    _, body = handled(worker, "dump", "SELECT * FROM store")
    assert body["error"]["message"].endswith("did you mean stores?")
    assert handled(worker, "dump", "SELECT city FROM cities", tables=["cities"])[0] == "ok volatile"
    assert handled(worker, "dump", "SELECT city FROM stores", tables=["stores"])[0] == "ok"
    assert handled(worker, "dump", "SET search_path = 'main'")[1]["error"]["code"] == "refused"


def test_what_cannot_be_opened_costs_only_itself_and_heals(tmp_path: Path) -> None:
    good = made(tmp_path / "good.duckdb", "create table t as select 1 as x")
    bad = tmp_path / "bad.duckdb"
    bad.write_bytes(b"x" * 10_000)
    late, mart = tmp_path / "late.duckdb", tmp_path / "mart"
    databases = {"late": str(late), "good": str(good), "bad": str(bad), "mart": str(mart)}
    worker = Worker(SqlOptions(databases=databases))
    assert worker.amiss["late"] == worker.amiss["mart"] == "the database is not there now"
    assert "not a valid DuckDB database file" in worker.amiss["bad"]
    assert str(tmp_path) not in worker.amiss["bad"]
    assert set(worker.amiss) == {"late", "bad", "mart"}
    assert handled(worker, "good", "SELECT x FROM t")[1]["rows"] == [[1]]
    for name in worker.amiss:
        outcome, body = handled(worker, name, "SELECT 1")
        assert (outcome, body["error"]["message"]) == ("error", worker.amiss[name])
    made(late, "create table t as select 2 as x")
    made(bad, "create table t as select 3 as x")
    mart.mkdir()
    duckdb.execute(f"copy (select 4 as x) to '{mart / 't.parquet'}' (format parquet)")
    for name, value in [("late", 2), ("bad", 3), ("mart", 4), ("good", 1)]:
        assert handled(worker, name, "SELECT x FROM t")[1]["rows"] == [[value]]
    worker.close()


async def test_a_pool_starts_without_a_database_and_says_once_which(
    tmp_path: Path, ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    good = made(tmp_path / "good.duckdb", "create table t as select 1 as x")
    late = tmp_path / "elsewhere" / "late.duckdb"
    cluster = SqlCluster(SqlOptions(databases={"good": str(good), "late": str(late)}))
    with caplog.at_level(logging.WARNING, "cortex.sql"):
        engines = [await cluster.start("one"), await cluster.start("two")]
    told = f"database 'late' ({late}: no such file): the database is not there now"
    assert [record.getMessage() for record in caplog.records] == [told]
    assert (await ask(engines[0], database="good", sql="SELECT x FROM t"))[1]["rows"] == [[1]]
    status, body = await ask(engines[0], database="late", sql="SELECT 1")
    assert (status, body["error"]["message"]) == (400, "the database is not there now")
    late.parent.mkdir()
    made(late, "create table t as select 2 as x")
    try:
        _, body = await ask(engines[0], database="late", sql="SELECT x FROM t")
    except BackendError:  # its folder was not there for the sandbox: another worker is started for it
        _, body = await ask(engines[0], database="late", sql="SELECT x FROM t")
    assert body["rows"] == [[2]]
    await cluster.aclose()


async def test_a_pool_without_any_database_does_not_start_and_says_which(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "b.duckdb").write_bytes(b"no database")
    cluster = SqlCluster(SqlOptions(databases={"a": str(tmp_path / "a.duckdb"), "b": str(tmp_path / "b.duckdb")}))
    with pytest.raises(BackendError, match=r"database 'a': the database is not there now; database 'b': ") as failed:
        await cluster.start("one")
    assert str(tmp_path) not in str(failed.value)
    places = f"'a' ({tmp_path}/a.duckdb: no such file), 'b' ({tmp_path}/b.duckdb)"
    assert caplog.messages == [f"sql worker did not start with the databases {places}"], "for the operator alone"


async def test_a_worker_that_finds_its_database_gone_says_once_in_the_log_where_it_was(
    tmp_path: Path, ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    path = made(tmp_path / "a.duckdb", "create table t as select 1 as x")
    cluster = SqlCluster(SqlOptions(databases={"a": str(path)}))
    engine = await cluster.start("one")
    away = path.rename(tmp_path / "away.duckdb")
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)
    await until(lambda: engine.pid is None, "the end of the worker")
    waiting = asyncio.create_task(ask(engine, sql="SELECT x FROM t"))
    await until(lambda: len(caplog.messages) >= 2, "the log")
    away.rename(path)
    assert (await waiting)[1]["rows"] == [[1]]
    assert caplog.messages == [
        "sql worker does not come back: no database can be opened: database 'a': the database is not there now",
        f"sql worker did not start with the databases 'a' ({path}: no such file)",
    ]
    await cluster.aclose()


def test_names_for_one_file_share_it_and_part_when_a_link_moves(tmp_path: Path) -> None:
    first = made(tmp_path / "first.duckdb", "create table t as select 1 as x")
    second = made(tmp_path / "second.duckdb", "create table t as select 2 as x")
    link = tmp_path / "now.duckdb"
    link.symlink_to(first)
    same = f"{tmp_path}/./first.duckdb"
    names = {"link": str(link), "first": str(first), "same": same, "second": str(second)}
    worker = Worker(SqlOptions(databases=names))
    assert worker.amiss == {}

    def values() -> list[int]:
        return [handled(worker, name, "SELECT x FROM t")[1]["rows"][0][0] for name in names]

    assert values() == [1, 1, 1, 2]
    other = tmp_path / "other"
    other.symlink_to(second)
    os.replace(other, link)
    assert values() == [2, 1, 1, 2]
    made(first, "create table t as select 3 as x")
    assert values() == [2, 3, 3, 2]
    made(second, "create table t as select 4 as x")
    assert values() == [4, 3, 3, 4]
    worker.close()


def test_a_folder_hides_its_path_and_no_name_of_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mart = tmp_path / "sales"
    mart.mkdir()
    duckdb.execute(f"copy (select 1 as sales_idx) to '{mart / 'sales.parquet'}' (format parquet)")
    monkeypatch.chdir(tmp_path)
    for path in (str(mart), "sales"):
        worker = Worker(SqlOptions(databases={"mart": path}))
        _, body = handled(worker, "mart", "SELECT sales_id FROM sales")
        assert 'column "sales_id" not found' in body["error"]["message"]
        assert "did you mean sales_idx" in body["error"]["message"]
        shutil.move(mart, tmp_path / "gone")
        _, body = handled(worker, "mart", "SELECT sales_idx FROM sales")
        assert str(tmp_path) not in body["error"]["message"]
        shutil.move(tmp_path / "gone", mart)
        worker.close()


def test_an_error_of_any_length_is_told_in_time(tmp_path: Path) -> None:
    for sign in ("\n", " ", "/", "a/"):
        error = duckdb.ConversionException(f"Could not convert string '{sign * 1_000_000}' to INT32")
        started = time.thread_time()
        assert len(message_of(error, ["/data/a.duckdb"])) <= 500
        assert time.thread_time() - started < 0.1


def test_only_what_is_there_or_called_as_a_file_is_opened_to_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readable: list[list[str]] = []
    monkeypatch.setattr("backends.sql.sandbox.confine", lambda folders: readable.append(list(folders)))
    good = made(tmp_path / "good.duckdb")
    later = tmp_path / "elsewhere" / "later.duckdb"
    databases = {"good": str(good), "later": str(later), "mart": str(tmp_path / "deep" / "mart")}
    options = SqlOptions(databases=databases, layers=frozenset({"sandbox"}))
    service = start(options.to_json())
    assert readable == [[str(tmp_path), str(later.parent)]]
    assert isinstance(service, Worker)
    service.close()


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("SELECT * FROM stores AS s JOIN sales AS r USING (regionid)", "did you mean region_id"),
        ("SELECT regionid FROM stores", "did you mean region_id"),
        ("SELECT 1 // 0", "Use TRY(...) to return NULL for this expression"),
        ("SELECT city FROM stores ORDER BY 'a'", "ORDER BY non-integer literal has no effect"),
        ("SELECT * FROM (PIVOT stores ON city USING COUNT(*))", "PIVOT … ON column IN ('a', 'b')"),
    ],
)
def test_a_complaint_names_what_the_statement_could_have_meant(tmp_path: Path, sql: str, words: str) -> None:
    path = made(
        tmp_path / "shop.duckdb",
        "create table stores (store_id int, city text, region_id int)",
        "create table sales (store_id int, region_id int)",
        "create table customers (region__id int)",
    )
    worker = Worker(SqlOptions(databases={"shop": str(path)}))
    _, body = handled(worker, "shop", sql, tables=["stores", "sales"])
    message = body["error"]["message"]
    assert words in message
    assert "customers" not in message
    assert "SET " not in message
    worker.close()
