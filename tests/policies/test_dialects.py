"""Other dialects than DuckDB's: what they mean is what runs, and the guard reads what runs."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

import duckdb
import pytest

from policies.dialects import DIALECTS
from policies.sql import MAX_BYTES, SqlRefused, read_statement

OTHERS = [dialect for dialect in DIALECTS if dialect != "duckdb"]


@pytest.fixture(scope="module")
def table() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.execute("set TimeZone = 'UTC'")
        connection.execute(
            """create table t as from (values
            (1, 2, 'abc', '2024-01-31', date '2024-01-31', timestamp '2024-01-31 13:45:12', 2.75::double),
            (7, 3, 'Abc', '2023-12-25', date '2023-12-25', timestamp '2023-12-25 01:02:03', -2.5)
            ) v(a, b, s, x, d, ts, r)"""
        )
        connection.execute("create table u as from (values (1, 'Rome'), (2, 'Oslo')) v(id, city)")
        yield connection


def first(table: duckdb.DuckDBPyConnection, expression: str, dialect: str) -> Any:
    text = f"select {expression} as answer from t order by x desc limit 1"
    if "(" in expression and any(
        name in expression for name in ("sum(", "count(", "countif(", "within group", "_agg(", "avg(")
    ):
        text = f"select {expression} as answer from t"
    row = table.execute(read_statement(text, dialect=dialect).canonical).fetchone()
    assert row is not None
    return float(row[0]) if isinstance(row[0], Decimal) else row[0]


# The answers are those of PostgreSQL 15 on the same rows.
POSTGRES: list[tuple[str, object]] = [
    ("a / b", 0),
    ("-7 / 2", -3),
    ("a * 10 / b", 5),
    ("r / 2", 1.375),
    ("a::numeric / b", 0.5),
    ("a::float / b", 0.5),
    ("sum(a) / count(*)", 4),
    ("count(*) * 100 / 3", 66),
    ("avg(a)", 4.0),
    ("(d - date '2020-01-01') / 7", 213),
    ("extract(year from d) / 100", 20.24),
    ("extract(epoch from ts - d) / 3600", 13.753333333333334),
    ("r::numeric", 2.75),
    ("round(2.345::numeric, 2)", 2.35),
    ("to_char(d, 'YYYY-MM-DD')", "2024-01-31"),
    ("to_char(ts, 'HH24:MI:SS.MS')", "13:45:12.000"),
    ("to_char(d, 'Month')", "January  "),
    ("to_char(d, 'FMMonth DD, YYYY')", "January 31, 2024"),
    ("to_char(d, 'MONTH')", "JANUARY  "),
    ("to_char(d, 'month')", "january  "),
    ("to_char(d, 'Mon YYYY')", "Jan 2024"),
    ("to_char(d, 'MON')", "JAN"),
    ("to_char(d, 'mon')", "jan"),
    ("to_char(d, 'FMDay')", "Wednesday"),
    ("to_char(d, 'Dy')", "Wed"),
    ("to_char(d, 'D')", "4"),
    ("to_char(d, 'Q')", "1"),
    ("to_char(d, 'YYYY-\"Q\"Q')", "2024-Q1"),
    ("to_char(d, 'IYYY-IW')", "2024-05"),
    ("to_char(d, 'WW')", "5"),
    ("to_char(d, 'FMMM/FMDD/YY')", "1/31/24"),
    ("to_char(ts, 'FMHH12:MI am')", "1:45 pm"),
    ("to_char(ts, 'HH12:MI AM')", "01:45 PM"),
    ("to_char(1234567.891, 'FM9,999,990.00')", "1,234,567.89"),
    ("to_char(r, '999.99')", "   2.75"),
    ("to_char(0.5, 'FM9.00')", ".50"),
    ("to_char(a, '000')", " 001"),
    ("to_char(a, 'FM000')", "001"),
    ("to_char(a, 'FM$99')", "$1"),
    ("date_trunc('month', ts)", datetime(2024, 1, 1)),
    ("d - interval '3 months'", datetime(2023, 10, 31)),
    ("d + 30", date(2024, 3, 1)),
    ("d - date '2024-01-01'", 30),
    ("ts - timestamp '2024-01-31'", timedelta(hours=13, minutes=45, seconds=12)),
    ("extract(dow from d)", 3),
    ("date_part('year', d)", 2024),
    ("to_date('31/12/2023', 'DD/MM/YYYY')", date(2023, 12, 31)),
    ("s ilike 'AB%'", True),
    ("s like 'AB%'", False),
    ("s ~* 'ABC'", True),
    ("s similar to '(a|z)%'", True),
    ("s similar to 'a.c'", False),
    ("substring(s from 'b(.)')", "c"),
    ("substring(s from 'b.')", "bc"),
    ("substring(s from 'z')", None),
    ("substring(s from 2 for 1)", "b"),
    ("mode() within group (order by a)", 1),
    ("percentile_cont(0.5) within group (order by a)", 4.0),
    ("json_build_object('k', a) ->> 'k'", "1"),
    ("width_bucket(r, 0, 10, 5)", 2),
    ("width_bucket(-1, 0, 10, 5)", 0),
    ("initcap('hello wORLD')", "Hello World"),
    ("string_agg(s, ',' order by a)", "abc,Abc"),
]
# What MySQL's, BigQuery's and Snowflake's manuals say that these give.
MYSQL: list[tuple[str, object]] = [
    ("a / b", 0.5),
    ("7 div 2", 3),
    ("1 / 0", None),
    ("ifnull(null, a)", 1),
    ("if(a > 1, 'x', 'y')", "y"),
    ("date_format(d, '%Y-%m')", "2024-01"),
    ("date_format(ts, '%M %e, %Y %H:%i:%s')", "January 31, 2024 13:45:12"),
    ("date_sub(d, interval 3 month)", datetime(2023, 10, 31)),
    ("datediff(d, '2024-01-01')", 30),
    ("timestampdiff(month, '2024-01-15', '2024-03-14')", 1),
    ("timestampdiff(year, '2000-06-01', d)", 23),
    ("dayofweek(d)", 4),
    ("weekday(d)", 2),
    ("week(d)", 4),
    ("monthname(d)", "January"),
    ("extract(year_month from d)", 202401),
    ("makedate(2024, 32)", date(2024, 2, 1)),
    ("adddate(d, 1)", datetime(2024, 2, 1)),
    ("subdate(d, 31)", datetime(2023, 12, 31)),
    ("period_diff(202402, 202301)", 13),
    ("unix_timestamp('2024-01-01')", 1704067200),
    ("unix_timestamp() > 1704067200", True),
    ("from_unixtime(1704067200)", datetime(2024, 1, 1)),
    ("str_to_date('31/01/2024', '%d/%m/%Y')", date(2024, 1, 31)),
    ("s like 'AB%'", True),
    ('s = "abc"', True),
    ("concat(s, null)", None),
    ("substring_index('a.b.c', '.', 2)", "a.b"),
    ("substring_index('a.b.c', '.', -1)", "c"),
    ("find_in_set('b', 'a,b')", 2),
    ("find_in_set('z', 'a,b')", 0),
    ("field(s, 'x', 'abc')", 2),
    ("elt(2, 'x', 'y')", "y"),
    ("mid(s, 2, 1)", "b"),
    ("strcmp('a', 'b')", -1),
    ("lpad(a, 3, '0')", "001"),
    ("rpad(a, 3, '0')", "100"),
    ("substring(d, 1, 4)", "2024"),
    ("sum(a > 1)", 1),
    ("avg(a > 1)", 0.5),
    ("(a < 5) + (b < 5)", 2),
    ("cast(2.7 as decimal)", 3.0),
    ("json_unquote(json_extract('{\"a\": \"b\"}', '$.a'))", "b"),
    ("a <=> null", False),
    ("group_concat(s order by a separator ';')", "abc;Abc"),
    ("format(1234.5, 2)", "1,234.50"),
]
BIGQUERY: list[tuple[str, object]] = [
    ("safe_divide(a, 0)", None),
    ("safe_divide(a, b)", 0.5),
    ("date_diff(date '2024-03-01', date '2024-01-31', month)", 2),
    ("timestamp_diff(timestamp '2024-01-01 02:30:00', timestamp '2024-01-01 00:45:00', hour)", 1),
    ("datetime_diff(datetime '2024-01-02 00:00:00', datetime '2024-01-01 23:59:00', day)", 1),
    ("date_sub(d, interval 1 week)", date(2024, 1, 24)),
    ("format_date('%Y-%m', d)", "2024-01"),
    ("parse_date('%Y-%m-%d', x)", date(2024, 1, 31)),
    ("extract(dayofweek from d)", 4),
    ("extract(week from d)", 4),
    ("extract(isoweek from d)", 5),
    ("extract(date from ts)", date(2024, 1, 31)),
    ("countif(a > 1)", 1),
    ("safe_cast(s as int64)", None),
    ("cast(0.1234567 as numeric)", 0.1234567),
    ("div(7, 2)", 3),
    ("format('%d-%s-%.1f', a, s, r)", "1-abc-2.8"),
    ("split('a,b', ',')[offset(1)]", "b"),
    ("regexp_contains(s, r'^a.c$')", True),
    ('s = "abc"', True),
    ("ieee_divide(1, 2)", 0.5),
    ("s like 'AB%'", False),
]
SNOWFLAKE: list[tuple[str, object]] = [
    ("iff(a > 1, 'x', 'y')", "y"),
    ("dateadd(month, 1, d)", datetime(2024, 2, 29)),
    ("dateadd('day', -3, d)", datetime(2024, 1, 28)),
    ("datediff(month, '2024-01-31'::date, '2024-02-01'::date)", 1),
    ("to_varchar(d, 'YYYY-MM')", "2024-01"),
    ("to_char(d, 'MON YYYY')", "Jan 2024"),
    ("to_char(d, 'MMMM DD')", "January 31"),
    ("to_varchar(ts, 'YYYY-MM-DD HH24:MI:SS')", "2024-01-31 13:45:12"),
    ("to_varchar(a)", "1"),
    ("to_timestamp(x)", datetime(2024, 1, 31)),
    ("to_timestamp(0 * a)", datetime(1970, 1, 1)),
    ("2.7::number", 3.0),
    ("div0(a, 0)", 0),
    ("zeroifnull(null)", 0),
    ("decode(a, 1, 'x', 'y')", "x"),
    ("nvl2(null, 1, 2)", 2),
    ("dayofweek(d)", 3),
    ("monthname(d)", "Jan"),
    ("to_boolean('true')", True),
    ("a / b", 0.5),
    ("s ilike any ('A%', 'B%')", True),
    ("parse_json('{\"k\": 5}'):k::int", 5),
    ("listagg(s, ',') within group (order by a)", "abc,Abc"),
    ("width_bucket(r, 0, 10, 5)", 2),
]
CASES = [
    *(("postgres", *case) for case in POSTGRES),
    *(("mysql", *case) for case in MYSQL),
    *(("bigquery", *case) for case in BIGQUERY),
    *(("snowflake", *case) for case in SNOWFLAKE),
]


@pytest.mark.parametrize(("dialect", "expression", "answer"), CASES)
def test_an_expression_means_what_its_dialect_means(
    table: duckdb.DuckDBPyConnection, dialect: str, expression: str, answer: object
) -> None:
    found = first(table, expression, dialect)
    if isinstance(answer, float):
        assert found == pytest.approx(answer)
    else:
        assert found == answer


@pytest.mark.parametrize("dialect", ["postgres", "mysql", "sqlite"])
def test_columns_that_the_group_determines_may_stand_beside_it(
    table: duckdb.DuckDBPyConnection, dialect: str
) -> None:
    text = "select u.id, u.city, count(*) as n from u join t on t.b = u.id group by u.id order by u.city"
    assert table.execute(read_statement(text, dialect=dialect).canonical).fetchall() == [(2, "Oslo", 1)]


@pytest.mark.parametrize("group", ["group by all", "group by rollup (city)", "group by grouping sets ((city), ())"])
def test_groups_whose_keys_cannot_be_told_stay_as_they_are(group: str) -> None:
    canonical = read_statement(f"select city, id from u {group}", dialect="postgres").canonical
    assert "FIRST" not in canonical


def test_without_a_schema_a_quoted_word_is_text_only_where_nothing_else_makes_sense() -> None:
    def canonical(text: str) -> str:
        return read_statement(text, dialect="sqlite").canonical

    assert "'Rome'" in canonical('select id from u where city = "Rome"')
    assert "'Rome'" in canonical('select id from u where city between "Rome" and "Oslo"')
    for kept in (
        'select "city" from u',
        'select id from u where "city" = "town"',
        'select id as town from u where city = "town"',
        'select u.id from u join v on u.id = v."id"',
        'with w(town) as (select 1) select 1 from u, w where city = "town"',
        "select id from u where \"city\" like 'R%'",
        'select date("day") from u',
    ):
        assert "'town'" not in canonical(kept)
        assert "'city'" not in canonical(kept)
        assert "'id'" not in canonical(kept)
        assert "'day'" not in canonical(kept)


def test_with_a_schema_a_quoted_word_is_text_where_no_table_has_the_column() -> None:
    schema = {"u": {"id": "INTEGER", "City": "VARCHAR"}}
    text = 'select "Rome", "city" from u where id = "id" and "Oslo" = city'
    canonical = read_statement(text, dialect="sqlite", schema=schema).canonical
    assert canonical == "SELECT 'Rome', \"city\" FROM u WHERE id = \"id\" AND 'Oslo' = city"


@pytest.mark.parametrize(
    ("condition", "canonical"),
    [
        ("day >= '2024-06'", "CAST(day AS TEXT) >= '2024-06'"),
        ("u.seen < '2024'", "CAST(u.seen AS TEXT) < '2024'"),
        ("day BETWEEN '2024-05' AND '2024-06-09'", "CAST(day AS TEXT) BETWEEN '2024-05' AND '2024-06-09'"),
        ("day IN ('', 'never')", "CAST(day AS TEXT) IN ('', 'never')"),
        ('day <> "unknown"', "CAST(day AS TEXT) <> 'unknown'"),
        ("day >= '2024-06-01'", "day >= '2024-06-01'"),
        ("seen = '2024-06-01 10:00:00.5'", "seen = '2024-06-01 10:00:00.5'"),
        ("name >= '2024-06'", "name >= '2024-06'"),
        ("mixed >= '2024-06'", "mixed >= '2024-06'"),
        ("day >= seen", "day >= seen"),
    ],
)
def test_with_a_schema_dates_compare_with_texts_that_are_no_dates(condition: str, canonical: str) -> None:
    schema = {
        "u": {"day": "DATE", "Seen": "TIMESTAMP WITH TIME ZONE", "name": "VARCHAR", "mixed": "DATE"},
        "v": {"mixed": "VARCHAR"},
    }
    said = read_statement(f"select name from u where {condition}", dialect="sqlite", schema=schema).canonical
    assert said == f"SELECT name FROM u WHERE {canonical}"


ATTACKS = [
    "drop table t",
    "select 1; drop table t",
    "with x as (delete from t returning *) select * from x",
    "select * from read_csv('/etc/passwd')",
    "select read_text('/etc/passwd')",
    "select sleep_ms(1)",
    "select * from duckdb_settings()",
    "select * from information_schema.tables",
    "select current_setting('x')",
    "select getenv('HOME')",
    "select * into x from t",
    "select 1 -- \x00",
]


@pytest.mark.parametrize("dialect", OTHERS)
@pytest.mark.parametrize("text", ATTACKS)
def test_no_dialect_is_a_way_around_the_guard(text: str, dialect: str) -> None:
    with pytest.raises(SqlRefused):
        read_statement(text, dialect=dialect)


@pytest.mark.parametrize("dialect", ["sqlite", "mysql", "bigquery"])
def test_a_name_that_duckdb_would_read_as_a_parameter_reaches_it_as_a_name(dialect: str) -> None:
    assert read_statement("select $x from t", dialect=dialect).canonical == 'SELECT "$x" FROM t'


@pytest.mark.parametrize(
    "text",
    [
        "select * from `/etc/passwd`",
        "select * from `a.csv`",
        "select * from `https://x/y`",
        'select * from "/etc/passwd"',
        "select `read_text`('x')",
    ],
)
def test_quotes_of_other_dialects_name_no_file(text: str) -> None:
    for dialect in OTHERS:
        with pytest.raises(SqlRefused):
            read_statement(text, dialect=dialect)


@pytest.mark.parametrize(("dialect", "expression", "_answer"), CASES)
def test_what_comes_out_is_its_own_canonical_text(dialect: str, expression: str, _answer: object) -> None:
    statement = read_statement(f"select {expression} from t", dialect=dialect)
    assert read_statement(statement.canonical) == statement


def test_an_unknown_dialect_is_refused_and_the_known_ones_are_named() -> None:
    with pytest.raises(SqlRefused, match=r"'tsql' is unknown: use duckdb, sqlite, postgres") as refused:
        read_statement("select 1", dialect="tsql")
    assert refused.value.code == "refused"


@pytest.mark.parametrize(
    ("text", "dialect", "words"),
    [
        ("select date(d, 'next tuesday') from t", "sqlite", "'next tuesday'"),
        ("select strftime('%Q', d) from t", "sqlite", "%Q"),
        (f"select date(d{', 1' * 9}) from t", "sqlite", "at most"),
        ("select to_char(r, 'FM999.99') from t", "postgres", "FM"),
        ("select to_char(r, '0,000.0') from t", "postgres", "leading zeros"),
        ("select to_char(d, s) from t", "postgres", "must be a text"),
        ("select strftime() from t", "sqlite", "format"),
    ],
)
def test_what_has_no_form_in_duckdb_is_refused_with_the_reason(text: str, dialect: str, words: str) -> None:
    with pytest.raises(SqlRefused, match=words) as refused:
        read_statement(text, dialect=dialect)
    assert refused.value.code in {"refused", "syntax"}


def test_what_reads_the_clock_in_another_dialect_is_not_deterministic() -> None:
    for text in ("select date('now')", "select datetime('now', '-1 day')", "select current_date", "select random()"):
        assert not read_statement(text, dialect="sqlite").deterministic
    assert read_statement("select date('2024-01-01', '+1 day')", dialect="sqlite").deterministic


@pytest.mark.slow
def test_a_statement_that_grows_beyond_measure_in_translation_is_refused() -> None:
    text = "select " + ", ".join("initcap(a)" for _ in range(1500)) + " from t"
    assert len(text) < MAX_BYTES
    with pytest.raises(SqlRefused, match="too long once") as refused:
        read_statement(text, dialect="postgres")
    assert refused.value.code == "too_complex"


def test_one_meaning_in_two_dialects_is_one_statement() -> None:
    mysql = read_statement("SELECT `A` FROM `T` WHERE IFNULL(`A`, 0) > 1 LIMIT 2, 5", dialect="mysql")
    ours = read_statement('select "A" from "t" where coalesce("a", 0) > 1 limit 5 offset 2')
    assert mysql == ours
