"""Columns that the statement does not name are called as the engine of its dialect calls them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import duckdb
import pytest

from policies.sql import read_statement


@pytest.fixture(scope="module")
def table() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.execute("create table t as select 1 as a, 'x-y' as name, date '2020-01-01' as d")
        yield connection


def names(table: duckdb.DuckDBPyConnection, text: str, dialect: str, **params: object) -> list[str]:
    canonical = read_statement(text, dialect=dialect, parameters=bool(params)).canonical
    return [column[0] for column in table.execute(canonical, params or None).description]


@pytest.mark.parametrize(
    ("dialect", "columns", "shown"),
    [
        ("mysql", "upper( name ), 'abc', `a`, a as b, 1 + 1, t.*", ["upper( name )", "abc", "a", "b", "1 + 1", "*"]),
        ("snowflake", "split_part(name, '-', 1), a", ["SPLIT_PART(NAME, '-', 1)", "a"]),
        ("snowflake", "top 3 iff(a > 1, 'x', 'y')", ["IFF(A > 1, 'X', 'Y')"]),
        ("bigquery", "a + 1, a, count(*) over ()", ["f0_", "a", "f1_"]),
        ("bigquery", "struct(a as b).b", ["b"]),
        ("postgres", "initcap(name), max(a) over ()", ["initcap", "max"]),
        ("postgres", "a + 1, 'x', -a, not (a = 1), lower(name) || 'x'", ["?column?"] * 5),
        ("postgres", "name::text, (t.name), cast(a as int), d::date::text", ["name", "name", "a", "d"]),
        ("postgres", "'x'::text, 2::bigint, (1 + 1)::numeric(9, 2)", ["text", "int8", "numeric"]),
        ("postgres", "cast(date_trunc('month', d) as date), upper(name)::text", ["date_trunc", "upper"]),
        ("postgres", "cast(upper(name) as text), cast(sum(a) over () as int)", ["upper", "sum"]),
        ("postgres", "case when a = 1 then 2 end, case when a = 1 then 2 else a end", ["case", "a"]),
        ("postgres", "case when a = 1 then 2 else abs(a) end", ["abs"]),
        ("postgres", "exists (select 1), array[1, 2], (select max(a) from t), (select a x)", "exists array max x"),
        ("postgres", "(select a + 1), extract(year from d), coalesce(a, 1), now()", "?column? extract coalesce now"),
        ("postgres", "distinct on (a, name) a, lower(name)", ["a", "lower"]),
        ("postgres", "all count(*) filter (where true) over ()", ["count"]),
    ],
)
def test_an_expression_is_called_as_in_its_dialect(
    table: duckdb.DuckDBPyConnection, dialect: str, columns: str, shown: str | list[str]
) -> None:
    wanted = shown.split() if isinstance(shown, str) else shown
    every = [column for name in wanted for column in (["a", "name", "d"] if name == "*" else [name])]
    assert names(table, f"select {columns} from t", dialect) == every


@pytest.mark.parametrize(
    "text",
    [
        'select max(a),  a+ 1, a as b, "name", count( * ), (select 1) from t',
        "select /* one */ a||name, 'it''s', strftime('%Y', d), t.a from t",
        "select a + 1 from t union all select 2 from t order by 1",
        "with w(x) as (select a + 1 from t) select x + 1, (select max(x) from w) from w",
        "select distinct lower(name) from t group by lower(name) having count(*) > 0 limit 1",
        "select date(d, '-3 months', 'start of month') from t",
    ],
)
def test_sqlite_calls_an_expression_by_its_text(table: duckdb.DuckDBPyConnection, text: str) -> None:
    own = sqlite3.connect(":memory:")
    own.execute("create table t as select 1 as a, 'x-y' as name, '2020-01-01' as d")
    shown = [column[0] for column in own.execute(text).description]
    own.close()
    assert names(table, text, "sqlite") == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("with q as (select 1 + 1) (select count(*) from t) union select 2", ["count"]),
        ("((select sum(a) from t)) order by 1", ["sum"]),
        ("select count(*), count(a), count(*) from t order by count(*)", ["count", "count", "count"]),
        ("select a::text from t order by a", ["a"]),
        ("select length(name)::text as a, name::date from t where false", ["a", "name"]),
        ("select current_date, current_date + 1 from t", ["CURRENT_DATE", "?column?"]),
        ("values (1, 2)", ["col0", "col1"]),
    ],
)
def test_the_outermost_select_names_the_columns(
    table: duckdb.DuckDBPyConnection, text: str, shown: list[str]
) -> None:
    assert names(table, text, "postgres") == shown


def test_a_parameter_is_called_as_in_its_dialect(table: duckdb.DuckDBPyConnection) -> None:
    values = {"1": 1}
    assert names(table, "select ?", "sqlite", **values) == ["?"]
    assert names(table, "select ? + 1", "mysql", **values) == ["? + 1"]
    assert names(table, "select ?", "postgres", **values) == ["?column?"]
    assert names(table, "select ?", "duckdb", **values) == ["$1"]


def test_duckdb_calls_its_own_as_it_does(table: duckdb.DuckDBPyConnection) -> None:
    text = "select count(*), a + 1, upper(name) from t group by all"
    assert names(table, text, "duckdb") == [column[0] for column in table.execute(text).description]
    assert "AS" not in read_statement("select upper(name), 1 from t").canonical


def test_what_is_called_otherwise_is_another_statement() -> None:
    one, other = (read_statement("select count(*) from t", dialect=dialect) for dialect in ("sqlite", "postgres"))
    assert one != other
    named = {read_statement("select count(*) as n from t", dialect=dialect) for dialect in ("sqlite", "postgres")}
    assert named == {read_statement("select count(*) as n from t")}


def test_a_text_whose_columns_cannot_be_told_apart_is_named_by_its_tree(table: duckdb.DuckDBPyConnection) -> None:
    assert names(table, "select * except (a, d), a + 1 from t", "bigquery") == ["name", "f0_"]
