"""A folder of Parquet files as a database: its tables, its versions, and that it is only read."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import duckdb
import pytest

from backends.base import BackendError
from backends.sql.cache import generation
from backends.sql.database import Database, OutOfReach
from backends.sql.engine import SqlEngine
from backends.sql.opened import Files
from backends.sql.options import SqlOptions
from backends.sql.parquet import parquet_tables, parquet_version

Ask = Callable[..., Coroutine[Any, Any, tuple[int, Any]]]


@pytest.fixture
def mart(tmp_path: Path) -> Path:
    """`sales`, one file; `visits`, two files by year; what is no table beside them."""
    mart = tmp_path / "mart"
    for place in (mart, mart / "visits" / "year=2024", mart / "visits" / "year=2025", mart / "empty"):
        place.mkdir(parents=True)
    _write(mart / "sales.parquet", "select i as id, i * 2 as amount from range(100) r(i)")
    _write(mart / "visits" / "year=2024" / "a.parquet", "select 1 as id")
    _write(mart / "visits" / "year=2025" / "b.parquet", "select 2 as id")
    _write(mart / 'it\'s "odd".parquet', "select 7 as x")
    _write(mart / "_half.parquet", "select 1 as x")
    (mart / "notes.txt").write_text("no table")
    return mart


def _write(path: Path, query: str) -> None:
    duckdb.execute(f"copy ({query}) to '{str(path).replace(chr(39), chr(39) * 2)}' (format parquet)")


def _contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


async def test_files_and_folders_are_tables_by_their_names(mart: Path, ask: Ask) -> None:
    engine = SqlEngine(SqlOptions(databases={"mart": str(mart)}))
    await engine.start()
    for sql, rows in [
        ("SELECT SUM(amount) FROM sales", [[9900]]),
        ("SELECT id, year FROM visits ORDER BY id", [[1, 2024], [2, 2025]]),
        ('SELECT x FROM "it\'s ""odd"""', [[7]]),
        ("SELECT COUNT(*) FROM sales JOIN visits USING (id)", [[2]]),
    ]:
        assert (await ask(engine, sql=sql))[1]["rows"] == rows
    _, described = await ask(engine, "/sql/describe")
    assert [table["name"] for table in described["tables"]] == ['"it\'s ""odd"""', "sales", "visits"]
    await engine.aclose()


async def test_a_folder_is_only_read_and_its_place_is_not_told(mart: Path, ask: Ask) -> None:
    before = _contents(mart)
    engine = SqlEngine(SqlOptions(databases={"mart": str(mart)}))
    await engine.start()
    for sql in (
        "SELECT filename FROM sales",
        "SELECT * FROM nope",
        f"SELECT * FROM '{mart}/_half.parquet'",
        f"COPY (SELECT 1) TO '{mart}/new.csv'",
        "CREATE TABLE sales2 AS SELECT 1",
        "INSERT INTO sales VALUES (1, 2)",
        "ATTACH ':memory:' AS other",
    ):
        status, body = await ask(engine, sql=sql)
        assert status == 400, sql
        assert str(mart.parent) not in body["error"]["message"]
    await engine.aclose()
    assert _contents(mart) == before


def test_the_engine_alone_writes_no_row_of_a_folder(mart: Path) -> None:
    """Without the check that a statement is a query: the transaction is read-only, the settings are locked."""
    database = Database(str(mart), Files(SqlOptions(databases={})))
    for sql, error in [
        ("CREATE TABLE evil AS SELECT 1", "read-only"),
        ("DROP VIEW sales", "read-only"),
        (f"COPY (SELECT 1) TO '{mart}/new.csv'", "disabled by configuration"),
        (f"SELECT * FROM read_parquet('{mart}/_half.parquet')", "disabled by configuration"),
        (f"ATTACH '{mart}/new.duckdb'", "disabled by configuration"),
        ("SET memory_limit = '100GB'", "locked"),
        ("SET threads = 64", "locked"),
    ]:
        with database.cursor() as cursor, pytest.raises(duckdb.Error, match=error):
            cursor.execute(sql)
    database.close()


async def test_a_folder_is_opened_anew_when_a_file_of_it_changes(mart: Path, ask: Ask) -> None:
    engine = SqlEngine(SqlOptions(databases={"mart": str(mart)}))
    await engine.start()
    worker = engine.pid
    versions = {generation(str(mart))}
    count = "SELECT COUNT(*) FROM visits"
    assert (await ask(engine, sql=count))[1]["rows"] == [[2]]
    _write(mart / "visits" / "year=2025" / "c.parquet", "select 3 as id")
    versions.add(generation(str(mart)))
    assert (await ask(engine, sql=count))[1]["rows"] == [[3]]
    (mart / "visits" / "year=2024" / "a.parquet").unlink()
    versions.add(generation(str(mart)))
    assert (await ask(engine, sql=count))[1]["rows"] == [[2]]
    _write(mart / "_next", "select 5 as id, 5 as amount")
    os.rename(mart / "_next", mart / "sales.parquet")
    versions.add(generation(str(mart)))
    assert (await ask(engine, sql="SELECT * FROM sales"))[1]["rows"] == [[5, 5]]
    (mart / "notes.txt").write_text("still no table")
    versions.add(generation(str(mart)))
    assert len(versions) == 4
    assert engine.pid == worker
    await engine.aclose()


def test_a_file_that_cannot_be_read_is_no_table_and_the_others_are(mart: Path) -> None:
    (mart / "broken.parquet").write_bytes(b"PAR1, but then nothing")
    database = Database(str(mart), Files(SqlOptions(databases={})))
    with database.cursor() as cursor:
        assert cursor.execute("SELECT COUNT(*) FROM sales").fetchall() == [(100,)]
        with pytest.raises(duckdb.CatalogException):
            cursor.execute("FROM broken")
    database.close()


def test_names_that_are_hidden_or_of_another_kind_are_no_tables(tmp_path: Path) -> None:
    assert parquet_tables(str(tmp_path)) == {}
    for name in (".a.parquet", "_b.parquet", "c.csv", "d.parquet/_temporary/x.parquet", "d.parquet/y.parquet", "e/z"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert parquet_tables(str(tmp_path)) == {"d": [str(tmp_path / "d.parquet" / "y.parquet")]}
    assert parquet_version(str(tmp_path)) == parquet_version(str(tmp_path))


async def test_a_statement_may_be_given_more_threads_where_the_pool_allows_it(scratch: Path) -> None:
    allowing = Database(str(scratch), Files(SqlOptions(databases={}, max_threads=2)))
    threads = "SELECT current_setting('threads')"
    for asked in (1, 2, 2, 1):
        with allowing.cursor(threads=asked) as cursor:
            assert cursor.execute(threads).fetchall() == [(asked,)]
    with allowing.cursor() as cursor, pytest.raises(duckdb.Error, match="locked"):
        cursor.execute("SET memory_limit = '100GB'")
    allowing.close()
    strict = Database(str(scratch), Files(SqlOptions(databases={})))
    with strict.cursor() as cursor:
        assert cursor.execute(threads).fetchall() == [(1,)]
        with pytest.raises(duckdb.Error, match="locked"):
            cursor.execute("SET threads = 2")
    strict.close()


@pytest.mark.parametrize("name", ["data.duckdb", "mart"])
async def test_a_link_to_another_place_is_followed_by_a_new_worker(name: str, tmp_path: Path, ask: Ask) -> None:
    for value in (1, 2):
        (tmp_path / f"v{value}" / "mart").mkdir(parents=True)
        _write(tmp_path / f"v{value}" / "mart" / "t.parquet", f"select {value} as x")
        with duckdb.connect(str(tmp_path / f"v{value}" / "data.duckdb")) as connection:
            connection.execute(f"create table t as select {value} as x")
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "current"
    link.symlink_to(tmp_path / "v1" / name)
    engine = SqlEngine(SqlOptions(databases={"sales": str(link)}))
    await engine.start()
    assert (await ask(engine, sql="SELECT x FROM t"))[1]["rows"] == [[1]]
    link.unlink()
    link.symlink_to(tmp_path / "v2" / name)
    with suppress(BackendError):  # where Landlock holds, the first worker cannot read there, and ends
        assert (await ask(engine, sql="SELECT x FROM t"))[1]["rows"] == [[2]]
    assert (await ask(engine, sql="SELECT x FROM t"))[1]["rows"] == [[2]]
    await engine.aclose()


def test_a_database_that_this_process_may_not_read_any_more_is_out_of_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object) -> int:
        raise PermissionError

    path = tmp_path / "data.duckdb"
    duckdb.connect(str(path)).close()
    database = Database(str(path), Files(SqlOptions(databases={})))
    path.unlink()
    path.write_bytes(b"no database")
    with pytest.raises(duckdb.IOException), database.cursor():
        pass
    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(OutOfReach), database.cursor():
        pass
    monkeypatch.setattr(os, "stat", denied)
    with pytest.raises(OutOfReach), database.cursor():
        pass
    monkeypatch.undo()
    path.unlink()
    duckdb.connect(str(path)).close()
    with database.cursor() as cursor:
        assert cursor.execute("SELECT 1").fetchall() == [(1,)]
    database.close()
