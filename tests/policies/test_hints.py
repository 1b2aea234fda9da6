"""A refusal says where to go: what describes the tables, the dialect that has the function, a style of parameters."""

from __future__ import annotations

import time

import pytest

from policies.dialects import DIALECTS, dialect_called
from policies.sql import SqlRefused, read_statement

SCHEMA = "describe_tables, or GET /v1/databases/{db}/schema"


def refusal(text: str, dialect: str = "duckdb", *, parameters: bool = False) -> str:
    with pytest.raises(SqlRefused) as refused:
        read_statement(text, dialect=dialect, parameters=parameters)
    return str(refused.value)


@pytest.mark.parametrize(
    ("dialect", "text"),
    [
        ("duckdb", "show tables"),
        ("duckdb", "describe orders"),
        ("duckdb", "pragma table_info('orders')"),
        ("duckdb", "summarize orders"),
        ("duckdb", "from (describe orders)"),
        ("duckdb", "select * from duckdb_tables"),
        ("duckdb", "select * from information_schema.tables"),
        ("mysql", "show tables"),
        ("mysql", "desc orders"),
        ("sqlite", "pragma table_info(orders)"),
        ("sqlite", "select name from sqlite_master"),
        ("postgres", "select * from pg_catalog.pg_tables"),
        ("snowflake", "describe table orders"),
    ],
)
def test_whoever_asks_for_the_tables_is_told_who_knows_them(dialect: str, text: str) -> None:
    assert SCHEMA in refusal(text, dialect)


@pytest.mark.parametrize("text", ["drop table t", "explain select 1", "set x = 1", "update t set a = 1"])
def test_what_asks_for_no_table_is_not_told_of_them(text: str) -> None:
    assert SCHEMA not in refusal(text)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("to_char(d, 'YYYY')", 'to_char is not available: with "dialect": "postgres" or "snowflake" it would run'),
        ("date_format(d, '%Y')", 'date_format is not available: with "dialect": "mysql" it would run'),
        ("JULIANDAY(d)", 'julianday is not available: with "dialect": "sqlite" it would run'),
        ("iff(a > (1), ')', 2)", 'iff is not available: with "dialect": "snowflake" it would run'),
        ("json_build_object('a', ?)", 'with "dialect": "postgres" it would run'),
        ("uper(a)", "uper is not available: did you mean upper"),
        ("zzzzzz(a)", "the function zzzzzz is not available"),
        ("iff(" + "a + " * 300 + "1, 2, 3)", "the function iff is not available: did you mean if"),
    ],
)
def test_a_function_of_another_dialect_comes_with_the_dialect(call: str, words: str) -> None:
    assert words in refusal(f"select 1, {call} from t", parameters=True)


@pytest.mark.parametrize("call", ["version()", "current_database()", "user()", "current_setting('x')", "getenv('A')"])
def test_nothing_is_near_a_function_of_the_session(call: str) -> None:
    assert refusal(f"select {call}") == f"the function {call.partition('(')[0]} is not available"
    assert "did you mean" not in refusal(f"select {call}", "postgres")


@pytest.mark.parametrize(
    ("dialect", "text", "sign"),
    [
        ("duckdb", "select :id", ":id"),
        ("duckdb", "select * from t where a = %s", "%s"),
        ("duckdb", "select * from t where a = %(name)s and b = 1", "%(name)s"),
        ("duckdb", "select ?1", "?1"),
        ("sqlite", "select ?1", "?1"),
    ],
)
def test_another_style_of_parameters_is_told_the_right_one(dialect: str, text: str, sign: str) -> None:
    for parameters in (False, True):
        said = refusal(text, dialect, parameters=parameters)
        assert said.endswith(f"write parameters as ?, $1 or $name, not as {sign}")


def test_the_most_rows_stand_in_limit() -> None:
    for text in ("select top 3 a from t", "SELECT DISTINCT TOP 3 a FROM t"):
        assert refusal(text).endswith("write LIMIT at the end, not TOP")
    assert read_statement("select top 3 a from t", dialect="snowflake").canonical == "SELECT a FROM t LIMIT 3"


@pytest.mark.parametrize(
    ("dialect", "text", "words"),
    [
        ("bigquery", "select * from `proj.shop.sales`", "tables have no project here, so write sales alone"),
        ("snowflake", "select f.value from lateral flatten(input => [1, 2]) f", "write UNNEST(list) AS f(value)"),
        ("snowflake", "select value from t, table(flatten(input => t.a))", "write UNNEST(list) AS f(value)"),
    ],
)
def test_what_has_no_form_here_is_refused_in_clear_words(dialect: str, text: str, words: str) -> None:
    assert words in refusal(text, dialect)


def test_a_syntax_error_without_parameters_tells_nothing_of_them() -> None:
    for text in ("select a[1:n] from", "select '%s' ':x' from", "select a::int from", "select a % s, from where"):
        assert "parameters" not in refusal(text)


@pytest.mark.parametrize("sign", ["/*", "'", '"', "--", ":", "%(", "?", "`"])
def test_a_hostile_text_is_refused_without_much_looking(sign: str) -> None:
    text = "select (" + sign * (19_000 // len(sign))
    started = time.thread_time()
    refusal(text)
    assert time.thread_time() - started < 2


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("```sql\nselect 1\n```", "SELECT 1"),
        ("\n ```\nselect 1;\n```\n\n", "SELECT 1"),
        ("```PostgreSQL  \nselect 1```", "SELECT 1"),
        ("```sql select 1 ```", "SELECT 1"),
        ("```select 1```", "SELECT 1"),
        ("select '```'", "SELECT '```'"),
    ],
)
def test_a_fence_around_the_whole_text_is_none_of_it(text: str, canonical: str) -> None:
    assert read_statement(text).canonical == canonical
    assert read_statement(text, dialect="mysql").canonical.startswith(canonical)


def test_a_fence_moves_no_place_and_joins_no_texts() -> None:
    assert "at line 3, column 8" in refusal("```sql\nselect 1,\n  from (\n```")
    for text in ("Here it is:\n```sql\nselect 1\n```", "```sql\nselect 1\n```\nor\n```sql\nselect 2\n```", "```"):
        refusal(text)
    assert read_statement("```sql\nselect ?, $$x$$\n```", parameters=True).parameters == ("1",)


def test_a_dialect_goes_by_other_names_too() -> None:
    assert {dialect_called(name) for name in ("postgresql", "pg", "Postgres", "PostgreSQL")} == {"postgres"}
    assert [dialect_called(dialect.upper()) for dialect in DIALECTS] == list(DIALECTS)
    assert dialect_called("tsql") is None


def test_try_makes_null_of_an_error() -> None:
    assert read_statement("select try(cast(a as int)) from t").canonical == "SELECT TRY(CAST(a AS INT)) FROM t"
    assert refusal("select try(read_text('x'))").startswith("the function read_text is not available")


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("select a from t order by null", "SELECT a FROM t"),
        ("select a from t order by a, (null)", "SELECT a FROM t ORDER BY a"),
        ("select a from t union select 1 order by null limit 1", "SELECT a FROM t UNION SELECT 1 LIMIT 1"),
    ],
)
def test_an_order_by_null_is_none(text: str, canonical: str) -> None:
    assert read_statement(text, dialect="mysql").canonical.replace(" NULLS FIRST", "") == canonical
