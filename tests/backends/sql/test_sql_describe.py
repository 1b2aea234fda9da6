"""What is said of a database's tables: keys, comments and examples, in a text that is always the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pytest

from backends.sql.database import Database
from backends.sql.describe import SAMPLE_MOST, SAMPLED_ROWS, describe
from backends.sql.keywords import KEYWORDS
from backends.sql.opened import Files
from backends.sql.options import SqlOptions

TABLES = """
    CREATE TABLE customers (id INTEGER PRIMARY KEY, name VARCHAR, "Home Town" VARCHAR);
    CREATE TABLE orders (
        day DATE, number INTEGER, customer INTEGER REFERENCES customers (id), note VARCHAR UNIQUE,
        PRIMARY KEY (day, number), CHECK (number > 0)
    );
    CREATE TABLE lines (
        day DATE, number INTEGER, amount DECIMAL(9, 2), FOREIGN KEY (day, number) REFERENCES orders (day, number)
    );
    CREATE VIEW late AS SELECT day, note FROM orders;
    CREATE SCHEMA old;
    CREATE TABLE old."Customers, all" (id INTEGER PRIMARY KEY, friend INTEGER REFERENCES old."Customers, all" (id));
"""


@pytest.fixture
def cursor(tmp_path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(str(tmp_path / "shop.duckdb")) as connection:
        yield connection


def described(cursor: duckdb.DuckDBPyConnection, samples: int = 0) -> Any:
    return orjson.loads(describe(cursor, "shop", samples=samples))


def test_keys_stand_where_sql_has_them(cursor: duckdb.DuckDBPyConnection) -> None:
    cursor.execute(TABLES)
    found = described(cursor)
    assert found["text"] == (
        'customers(id INTEGER PRIMARY KEY, name VARCHAR, "Home Town" VARCHAR) -- 0 rows\n'
        "late(day DATE, note VARCHAR) -- view\n"
        "lines(day DATE, number INTEGER, amount DECIMAL(9,2), "
        "FOREIGN KEY (day, number) REFERENCES orders(day, number)) -- 0 rows\n"
        "orders(day DATE, number INTEGER, customer INTEGER REFERENCES customers(id), note VARCHAR, "
        "PRIMARY KEY (day, number)) -- 0 rows\n"
        '"Customers, all"(id INTEGER PRIMARY KEY, friend INTEGER REFERENCES "Customers, all"(id)) -- 0 rows\n'
    )
    tables = {table["name"]: table for table in found["tables"]}
    assert tables["orders"]["primary_key"] == ["day", "number"]
    assert tables["orders"]["foreign_keys"] == [{"columns": ["customer"], "table": "customers", "references": ["id"]}]
    assert tables["lines"]["foreign_keys"][0]["references"] == ["day", "number"]
    assert "primary_key" not in tables["lines"]
    assert "".join(table["text"] for table in found["tables"]) == found["text"]


def test_a_comment_is_on_one_line_and_cannot_pass_for_a_table(cursor: duckdb.DuckDBPyConnection) -> None:
    cursor.execute("CREATE TABLE t (a INTEGER, b INTEGER); CREATE VIEW v AS SELECT 1 AS x")
    cursor.execute("COMMENT ON TABLE t IS 'What\nsecrets(id INTEGER)\n -- is'; COMMENT ON VIEW v IS 'One'")
    cursor.execute("COMMENT ON COLUMN t.b IS ' The\tsecond '; COMMENT ON COLUMN v.x IS 'Is 1'")
    found = described(cursor)
    assert found["text"] == (
        "t(a INTEGER, b INTEGER) -- 0 rows: What secrets(id INTEGER) -- is\n"
        "  b: The second\n"
        "v(x INTEGER) -- view: One\n"
        "  x: Is 1\n"
    )
    assert found["tables"][0]["comment"] == "What secrets(id INTEGER) -- is"
    assert found["tables"][0]["columns"] == [
        {"name": "a", "type": "INTEGER"},
        {"name": "b", "type": "INTEGER", "comment": "The second"},
    ]


def test_samples_are_the_most_frequent_texts_and_only_on_request(cursor: duckdb.DuckDBPyConnection) -> None:
    cursor.execute("CREATE TABLE t (a VARCHAR, n INTEGER); CREATE VIEW v AS SELECT a FROM t")
    values = [
        "rare",
        *["often"] * 3,
        *["O'Hara"] * 2,
        None,
        None,
        "",
        "",
        "",
        "",
        "x" * (SAMPLE_MOST + 1),
        "two\nlines",
    ]
    cursor.executemany("INSERT INTO t VALUES (?, 1)", [[value] for value in values])
    assert "samples" not in str(described(cursor))
    found = described(cursor, samples=2)
    assert found["tables"][0]["columns"][0]["samples"] == ["often", "O'Hara"]
    assert (
        found["text"] == "t(a VARCHAR, n INTEGER) -- 14 rows\n  a: such as 'often', 'O''Hara'\nv(a VARCHAR) -- view\n"
    )
    assert described(cursor, samples=10)["tables"][0]["columns"][0]["samples"] == ["often", "O'Hara", "rare"]


def test_samples_come_from_the_start_of_a_table_alone(cursor: duckdb.DuckDBPyConnection) -> None:
    cursor.execute(
        f"CREATE TABLE t AS SELECT CASE WHEN i < {SAMPLED_ROWS} THEN 'early' ELSE 'late' END AS a "
        f"FROM range({SAMPLED_ROWS * 3}) AS r(i)"
    )
    assert described(cursor, samples=5)["tables"][0]["columns"][0]["samples"] == ["early"]


def test_the_same_data_give_the_same_bytes(cursor: duckdb.DuckDBPyConnection) -> None:
    cursor.execute(TABLES)
    cursor.execute("INSERT INTO customers SELECT i, 'n' || (i % 7), 'town' FROM range(1000) AS r(i)")
    assert len({describe(cursor, "shop", samples=3) for _ in range(5)}) == 1


def test_a_view_over_a_table_that_is_gone_does_not_hide_the_others(cursor: duckdb.DuckDBPyConnection) -> None:
    cursor.execute(
        "CREATE TABLE gone (a INTEGER); CREATE TABLE here (a INTEGER); CREATE VIEW v AS SELECT * FROM gone"
    )
    cursor.execute("DROP TABLE gone")
    assert "here(a INTEGER) -- 0 rows\n" in described(cursor, samples=3)["text"]


def test_a_folder_of_parquet_files_is_described_like_tables(tmp_path: Path) -> None:
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE t AS SELECT i AS id, 'v' || (i % 2) AS kind FROM range(10) AS r(i)")
        connection.execute(f"COPY t TO '{tmp_path / 'items.parquet'}'")
    database = Database(str(tmp_path), Files(SqlOptions(databases={"files": str(tmp_path)})))
    with database.cursor() as cursor:
        found = described(cursor, samples=1)
    database.close()
    assert found["text"] == "items(id BIGINT, kind VARCHAR) -- 10 rows\n  kind: such as 'v0'\n"


def test_an_empty_database_has_an_empty_text(cursor: duckdb.DuckDBPyConnection) -> None:
    assert described(cursor, samples=3) == {"database": "shop", "tables": [], "text": ""}


def test_the_words_that_need_quotes_are_the_engines() -> None:
    rows = duckdb.execute(
        "SELECT keyword_name FROM duckdb_keywords() WHERE keyword_category IN ('reserved', 'type_function')"
    ).fetchall()
    assert {word for (word,) in rows} == KEYWORDS


def test_every_name_of_a_description_can_be_written_as_it_stands_there() -> None:
    with duckdb.connect() as connection:
        for word in ("order", "both", "left", "plain", "Capital", "two words"):
            connection.execute(f'CREATE TABLE "{word}" ("{word}" INTEGER)')
        text = orjson.loads(describe(connection.cursor(), "d"))["text"]
        for line in text.strip().splitlines():
            table, column = line.partition(" INTEGER)")[0].split("(")
            connection.execute(f"SELECT {column} FROM {table}")
