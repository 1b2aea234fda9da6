"""What expressions of other dialects give, value by value and type by type, where DuckDB's own would give another."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from datetime import date, datetime
from typing import Any

import duckdb
import pytest

from policies.sql import read_statement


@pytest.fixture(scope="module")
def table() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.execute("set TimeZone = 'UTC'")
        connection.execute(
            """create table t as select 550 as amount, 'abc' as s, 0 as z, 9007199254740993 as big,
            date '2020-02-29' as ends, timestamp '2020-02-29 10:00:00' as seen"""
        )
        yield connection


def value(table: duckdb.DuckDBPyConnection, expression: str, dialect: str) -> Any:
    canonical = read_statement(f"select {expression} as answer from t", dialect=dialect).canonical
    row = table.execute(canonical).fetchone()
    assert row is not None
    return row[0]


# As the manuals of the dialects have it.
VALUES: list[tuple[str, str, object]] = [
    ("mysql", "5.5 div 2", 2),
    ("mysql", "-5.5 div 2", -2),
    ("mysql", "7 div 0", None),
    ("mysql", "big div 1", 9007199254740993),
    ("mysql", "sum(amount) div 100", 5),
    ("mysql", "7 % 0", None),
    ("mysql", "mod(amount, 100)", 50),
    ("mysql", "char(65, 66)", "AB"),
    ("mysql", "char(65)", "A"),
    ("mysql", "substr('abc', 0, 2)", ""),
    ("mysql", "substring(s, locate('x', s))", ""),
    ("mysql", "substring(s, locate('b', s))", "bc"),
    ("mysql", "substr(s, z, 2)", ""),
    ("mysql", "mid(s, z, 2)", ""),
    ("mysql", "substr(s, -2)", "bc"),
    ("postgres", "div(5.5, 2)", 2.0),
    ("postgres", "div(7, 2)", 3.0),
    ("bigquery", "div(7, 2)", 3),
    ("bigquery", "div(cast('5.5' as numeric), 2)", 2.0),
    ("bigquery", "(select array_agg(x order by x desc limit 2) from unnest([1, 3, 2]) as x)", [3, 2]),
    ("bigquery", "(select array_agg(distinct x order by x limit 2) from unnest([1, 1, 2]) as x)", [1, 2]),
    ("bigquery", "(select string_agg(x, '-' order by x limit 2) from unnest(['c', null, 'b', 'a']) as x)", "a-b"),
    ("bigquery", "(select string_agg(distinct x limit 1) from unnest(['a', 'a']) as x)", "a"),
    ("bigquery", "array_agg(s limit 1) over (partition by z)", ["abc"]),
    ("bigquery", "(select array_agg(x ignore nulls limit 2) from unnest([null, 1, 2, 3]) as x)", [1, 2]),
    ("mysql", "date_add(date '2020-02-28', interval 1 day)", date(2020, 2, 29)),
    ("mysql", "date_sub(cast(seen as date), interval 1 month)", date(2020, 1, 29)),
    ("mysql", "date(seen) + interval 1 year", date(2021, 2, 28)),
    ("mysql", "interval 1 quarter + date(seen)", date(2020, 5, 29)),
    ("mysql", "date_add(date_add(date(seen), interval 1 day), interval 1 day)", date(2020, 3, 2)),
    ("mysql", "date_add(date(seen), interval 1 hour)", datetime(2020, 2, 29, 1)),
    ("mysql", "date_add(seen, interval 1 day)", datetime(2020, 3, 1, 10)),
    ("bigquery", "date_add(date '2020-02-28', interval 1 day)", date(2020, 2, 29)),
    ("bigquery", "date_sub(ends, interval 1 week)", date(2020, 2, 22)),
    ("bigquery", "date_trunc(date(seen), month)", date(2020, 2, 1)),
    ("bigquery", "date_trunc(date '2020-02-29', week(monday))", date(2020, 2, 24)),
    ("bigquery", "datetime_add(seen, interval 1 day)", datetime(2020, 3, 1, 10)),
    ("bigquery", "date '2020-02-28' + interval 1 day", datetime(2020, 2, 29)),
    ("snowflake", "dateadd(day, 1, '2020-02-28'::date)", date(2020, 2, 29)),
    ("snowflake", "dateadd(month, -1, date_trunc('month', to_date(seen)))", date(2020, 1, 1)),
    ("snowflake", "date_trunc('year', date_from_parts(2020, 2, 29))", date(2020, 1, 1)),
    ("snowflake", "to_date(seen) + interval '1 day'", date(2020, 3, 1)),
    ("snowflake", "dateadd(hour, 1, '2020-02-28'::date)", datetime(2020, 2, 28, 1)),
    ("snowflake", "date_trunc('month', seen)", datetime(2020, 2, 1)),
    ("sqlite", "char(65, 66)", "AB"),
    ("sqlite", "char(65)", "A"),
    ("sqlite", "7 % 0", None),
    ("sqlite", "substr('abc', 0, 2)", "a"),
]


@pytest.mark.parametrize(("dialect", "expression", "answer"), VALUES)
def test_an_expression_has_the_value_of_its_dialect(
    table: duckdb.DuckDBPyConnection, dialect: str, expression: str, answer: object
) -> None:
    found = value(table, expression, dialect)
    assert found == answer
    assert type(found) is type(answer)


@pytest.mark.parametrize(
    "condition",
    [
        "ends < curdate()",
        "ends < current_date()",
        "ends <= current_timestamp",
        "ends < now()",
        "ends between '2020-01-01' and curdate()",
        "ends not in (curdate(), '2020-01-01')",
        "case when ends < curdate() then 1 else 0 end = 1",
        "case ends when curdate() then 0 else 1 end = 1",
        "curdate() > seen",
        "ends like '2020-02%'",
        "seen not like '2021%'",
    ],
)
def test_columns_of_dates_compare_with_the_clock_in_mysql(table: duckdb.DuckDBPyConnection, condition: str) -> None:
    canonical = read_statement(f"select count(*) as n from t where {condition}", dialect="mysql").canonical
    assert table.execute(canonical).fetchall() == [(1,)]


@pytest.mark.parametrize("extreme", ["max(x)", "min(x)"])
@pytest.mark.parametrize("rows", ["('a', null)", "('a', 1), (null, 3), ('c', 2)", "('a', null), ('b', 4)"])
def test_a_column_beside_an_extreme_is_that_of_its_row_or_of_any_where_there_is_none(extreme: str, rows: str) -> None:
    text = f"with v(s, x) as (values {rows}) select s, {extreme} as x from v"
    own = sqlite3.connect(":memory:")
    with duckdb.connect() as connection:
        found = connection.execute(read_statement(text, dialect="sqlite").canonical).fetchall()
    assert found == own.execute(text).fetchall()
    own.close()
