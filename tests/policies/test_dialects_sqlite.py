"""SQLite's dialect, held to what SQLite itself answers on the same rows."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator
from datetime import date, datetime
from decimal import Decimal

import duckdb
import pytest

from policies.sql import read_statement

ROWS = [
    (1, "ann", "Rome", 7, 2.75, "2024-01-31", "2024-01-31 13:45:12", 1700000000, None),
    (2, "Bob", "Oslo", -7, -2.5, "2023-12-25", "2023-12-25 01:02:03", 0, 5),
    (3, "ANNA", "Rome", 10, 0.5, "2024-02-29", "2024-02-29 23:59:59", 1709251199, 8),
    (4, None, "Oslo", 0, None, None, None, None, 2),
    (5, "cy%d", "Bern", 3, 100.0, "2020-06-15", "2020-06-15 00:00:00", 86399, 2),
    (6, "Dan", "Rome", 3, 3.0, "1999-12-31", "1999-12-31 12:00:00", -1, None),
]
COLUMNS = "id, name, city, n, r, d, ts, u, m"

EXPRESSIONS = """
date(d) | date(ts) | datetime(ts) | datetime(d) | time(ts) | date(ts, '+1 day') | date(d, '-3 months')
date(d, '+1 month') | date(d, '-1 year') | date(d, 'start of month') | date(d, 'start of year', '+9 months')
date(d, 'start of month', '+1 month', '-1 day') | date(d, 'weekday 0') | date(d, 'weekday 3') | date(d, '+90 days')
datetime(ts, '+36 hours') | datetime(ts, '-90 minutes') | datetime(ts, '+1.5 days') | datetime(ts, '+30 seconds')
datetime(ts, '+01:30') | datetime(ts, '-02:00:30') | datetime(ts, 'start of day') | datetime(ts, 'utc')
datetime(u, 'unixepoch') | date(u, 'unixepoch', '+1 day') | strftime('%Y', u, 'unixepoch') | time(u, 'unixepoch')
datetime(2460341.5) | date(2460341.5, '+1 day') | date(julianday(d), 'julianday')
julianday(d) | julianday(ts) | julianday(ts) - julianday(d) | julianday('2024-03-01') - julianday(d)
cast(julianday(ts) - julianday('2020-01-01') as integer) | unixepoch(ts) | unixepoch(d, '+1 day')
strftime('%Y', d) | strftime('%m', d) | strftime('%d', ts) | strftime('%Y-%m', d) | strftime('%H:%M:%S', ts)
strftime('%w', d) | strftime('%j', d) | strftime('%W', d) | strftime('%s', ts) | strftime('%f', ts)
strftime('%Y-%m-%dT%H:%M:%fZ', ts) | strftime('%d/%m/%Y', d) | strftime('%% %Y', d) | strftime('%Y', d, '+6 months')
strftime('at %s!', ts) | strftime('%J', d) | strftime('%Y-W%W', d)
cast(strftime('%Y', d) as integer) | cast(strftime('%m', d) as integer) / 4 | strftime('%Y', d) = '2024'
date('2024-01-31', '+1 month') | datetime('10:20') | time('10:20:30', '+1 hour') | date('nonsense') | date(d || 'x')
date('now') = date() | strftime('%Y', 'now') = strftime('%Y', current_date) | date('now', '-3 months') < date('now')
date("now") = current_date | datetime('now') >= d | current_timestamp > ts
date(ts) = d | d < date('2024-01-01') | d between date('2023-01-01') and date('2024-01-31')
d >= date('2024-02-29', '-3 months') | date('2024-01-31') = d | d in (date('2024-01-31'), date('2020-06-15'))
strftime('%Y-%m-%d', ts) = d | ts >= datetime('2024-01-01')
n / 2 | n / 2.0 | n / m | n / 0 | 7 / 2 | -7 / 2 | 7 / -2 | r / 2 | n / r | (n + 1) / 2 | n * 100 / 3 | '9' / 2
n * 1.0 / m | n % 4 | -7 % 3 | n / 2 / 2 | 1 / 3 * 3.0 | (n / 2) * 2 | length(city) / 3 | -(n / 2)
cast(r as integer) | cast(2.7 as int) | cast(-2.7 as integer) | cast('12' as integer) | cast(n as real) / 2
cast(n as text) || 'x' | cast('3.5' as numeric) + 1 | cast(n > 2 as integer)
cast(1.25 as decimal) | cast(m as float)
(n > 2) + (m > 2) | (n > 2) * 10 | 1 - (name is null) | (n > 0 and m > 0) + 1 | not n | n > 2 | n = 3 or m = 2
name like 'AN%' | name like '%n' | name not like 'b%' | name like 'cy\\%%' escape '\\' | d like '2024%' | n like '1%'
city glob 'R*' | city glob 'r*' | name is null | name is not 'ann' | m is 5 | m is not null | n == 3 | n <> 3
substr(city, 1, 2) | substr(city, 2) | substr(city, -3, 2) | substr(city, -2) | substr(d, 1, 4) | substr(n, 1, 1)
substr(city, 0, 3) | length(name) | length(n) | upper(name) | lower(name) | instr(city, 'o') | replace(city, 'o', '0')
trim('  a ') | ltrim('xxa', 'x') | rtrim('axx', 'x') | city || '-' || n | ifnull(m, 0) | coalesce(m, n) | nullif(n, 3)
iif(n > 3, 'big', 'small') | case when n then 'yes' else 'no' end | max(n, m) | min(n, 2)
abs(n) | round(r) | round(r, 1)
printf('%d items', n) | printf('%.2f', n) | printf('%5.1f|%s|%d%%', r, city, r) | format('%03d', id) | typeof(n)
typeof(city) | typeof(null) | typeof(r) | sign(n) | char(65) | unicode('A') | hex('abc')
x'4142' = cast('AB' as blob) | n between 1 and 5 | city in ('Rome', 'Bern') | city = "Rome" | city in ("Rome", "Oslo")
city like "r%" | "city" = 'Rome' | exists (select 1 from t u where u.m = t.n) | 5 << 1 | n & 3 | n | 8
""".replace("n | 8", "").replace("\n", " | ")

QUERIES = [
    'select id from t where city = "Rome" order by id',
    'select id from t where city != "Rome" and name like "a%" order by id',
    'select "id", "city" from t where "city" = \'Oslo\' order by "id"',
    'select city as "The City", count(*) as "How many" from t group by city order by "How many", "The City"',
    "select city, count(*), sum(n), avg(n), total(m), min(n), max(r) from t group by city",
    "select city, country from (select city, max(n) as top, 'x' as country from t group by city) order by city",
    "select city, max(n), name from t group by city order by city",
    "select city, name, min(id) from t group by city order by name",
    "select city, max(r), name || '!' as shout from t group by 1 order by 1",
    "select max(id), name, d from t",
    "select upper(city) as c, count(*) from t group by c having count(*) > 1",
    "select substr(d, 1, 4) as year, count(*) from t where d is not null group by year order by year desc",
    "select substr(d, 1, 4), count(*) from t group by substr(d, 1, 4)",
    "select strftime('%Y', d) y, sum(n) from t group by strftime('%Y', d) order by y",
    "select city, sum(n = 3), avg(n > 0), sum(n > 0) * 100 / count(*) from t group by city",
    "select city, count(*) filter (where n > 1) from t group by city",
    "select t.city, count(*), t.city || count(*) from t group by city",
    "select city, group_concat(id) from (select * from t order by id) group by city order by city",
    "select city, group_concat(name, '; ') from (select * from t order by id) group by city",
    "select * from t order by m, id",
    "select * from t order by m desc, id limit 2 offset 1",
    "select id from t order by id limit 2, 3",
    "select id from t order by id limit -1 offset 4",
    "select id, row_number() over (partition by city order by n desc, id) from t",
    "select city, sum(n), rank() over (order by sum(n) desc) from t group by city",
    "select id, sum(n) over (order by id) / 2 from t",
    "with r(k) as (select 1 union all select k + 1 from r where k < 5) select k, k / 2 from r",
    "select `city`, [name] from t where [id] = 1",
    "select count(*) from t a join t b on a.city = b.city and a.id < b.id",
    "select name from t where name like 'a%' union select city from t where city like 'r%' order by 1",
    "select name from t where id = (select max(id) from t where d < date('2024-01-01'))",
    "select avg(julianday('2024-03-01') - julianday(d)) from t where d > date('2020-01-01', '-1 day')",
    'select city, name from t where lower(city) = "rome" order by lower(name)',
    "select name from t order by name collate nocase, id",
    "select total(n) from t where id > 100",
    "select city, total(n) over (partition by city) from t",
]


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[sqlite3.Connection, duckdb.DuckDBPyConnection]]:
    oracle = sqlite3.connect(":memory:")
    oracle.execute(
        "create table t (id integer, name text, city text, n integer, r real, d text, ts text, u integer, m integer)"
    )
    oracle.executemany("insert into t values (?, ?, ?, ?, ?, ?, ?, ?, ?)", ROWS)
    ours = duckdb.connect()
    ours.execute("set TimeZone = 'UTC'")
    ours.execute(
        "create table t (id bigint, name text, city text, n integer, r double, d text, ts text, u bigint, m integer)"
    )
    ours.execute("create view typed as select * replace (cast(d as date) as d, cast(ts as timestamp) as ts) from t")
    ours.executemany("insert into t values (?, ?, ?, ?, ?, ?, ?, ?, ?)", ROWS)
    yield oracle, ours
    oracle.close()
    ours.close()


def plain(value: object) -> object:
    """A value so that the engines' ways to say the same compare as equal."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, Decimal):
        value = float(value)
    if isinstance(value, float):
        return round(value, 6) if not math.isinf(value) else value
    if isinstance(value, datetime):
        return value.isoformat(" ")
    return value.isoformat() if isinstance(value, date) else value


def rows_of(cursor: sqlite3.Cursor | duckdb.DuckDBPyConnection) -> list[tuple[object, ...]]:
    return [tuple(plain(value) for value in row) for row in cursor.fetchall()]


@pytest.mark.parametrize("expression", [text.strip() for text in EXPRESSIONS.split(" | ") if text.strip()])
def test_an_expression_gives_what_sqlite_gives(
    both: tuple[sqlite3.Connection, duckdb.DuckDBPyConnection], expression: str
) -> None:
    oracle, ours = both
    expected = rows_of(oracle.execute(f"select id, {expression} from t order by id"))
    text = f"select id, {expression} from t order by id"
    assert rows_of(ours.execute(read_statement(text, dialect="sqlite").canonical)) == expected
    # The same on columns of DATE and TIMESTAMP, which SQLite does not have.
    typed = read_statement(text.replace("from t order", "from typed t order"), dialect="sqlite").canonical
    try:
        answer = rows_of(ours.execute(typed))
    except duckdb.BinderException:
        assert "d || 'x'" in expression
        return
    assert answer == expected


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_gives_what_sqlite_gives(
    both: tuple[sqlite3.Connection, duckdb.DuckDBPyConnection], query: str
) -> None:
    oracle, ours = both
    expected = rows_of(oracle.execute(query))
    answer = rows_of(ours.execute(read_statement(query, dialect="sqlite").canonical))
    if "order by" in query.rpartition(")")[2]:
        assert answer == expected
    assert sorted(answer, key=repr) == sorted(expected, key=repr)
