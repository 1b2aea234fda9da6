"""Parameters of a statement: only where values come with it, and bound in the order in which they are written."""

from __future__ import annotations

import duckdb
import pytest

from policies.sql import SqlRefused, read_statement

DIALECTS = ["duckdb", "sqlite", "postgres", "mysql", "bigquery", "snowflake"]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("text", ["select ?", "select 1 where 1 = ?", "select * from t limit ?"])
def test_without_values_parameters_are_refused(text: str, dialect: str) -> None:
    with pytest.raises(SqlRefused, match="none are given") as refused:
        read_statement(text, dialect=dialect)
    assert refused.value.code == "refused"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_question_marks_are_numbered_in_the_order_of_the_text(dialect: str) -> None:
    text = """with a as (select ? as x)  -- is it ?
        select ? as y, '?' as z, x from a where x = ? limit ?"""
    statement = read_statement(text, dialect=dialect, parameters=True)
    assert statement.parameters == ("1", "2", "3", "4")
    with duckdb.connect() as connection:
        assert connection.execute(statement.canonical, ["x", "y", "x", 1]).fetchall() == [("y", "?", "x")]


def test_an_argument_that_the_translation_moves_or_repeats_keeps_its_value() -> None:
    statement = read_statement("select strftime(?, ?), 7 / ?", dialect="sqlite", parameters=True)
    with duckdb.connect() as connection:
        assert connection.execute(statement.canonical, ["%Y", "2024-03-01", 2]).fetchall() == [("2024", 3)]


@pytest.mark.parametrize(
    ("text", "dialect", "names"),
    [
        ("select $1 + $2 + $1", "duckdb", ("1", "2")),
        ("select $1 + $2 + $1", "postgres", ("1", "2")),
        ("select $2 + $1", "sqlite", ("1", "2")),
        ("select $b + $a + $b", "duckdb", ("a", "b")),
        ("select $b + :a", "sqlite", ("a", "b")),
        ("select @b + @a", "bigquery", ("a", "b")),
        ("select %(b)s + %(a)s", "postgres", ("a", "b")),
        ("select 1", "duckdb", ()),
        ('select $$ $1 ? $$, @x, "$1" from t', "duckdb", ()),
    ],
)
def test_the_parameters_of_a_statement_are_told(text: str, dialect: str, names: tuple[str, ...]) -> None:
    statement = read_statement(text, dialect=dialect, parameters=True)
    assert statement.parameters == names
    again = read_statement(statement.canonical, parameters=True)
    assert (again.canonical, again.parameters) == (statement.canonical, names)


@pytest.mark.parametrize(
    ("text", "dialect", "match"),
    [
        ("select ?, $1", "postgres", "one way"),
        ("select ?, $1", "sqlite", "one way"),
        ("select :position_1, ?", "mysql", "one way"),
        ("select $a, $1", "duckdb", "one way"),
        ("select $2", "duckdb", "without a gap"),
        ("select @@version", "mysql", "write parameters as"),
        ("select %s", "postgres", "write parameters as"),
        ("select 'ä', $ä", "postgres", "write parameters as"),
        (f"select ${'a' * 65}", "duckdb", "write parameters as"),
        ("select * from $t", "duckdb", "never for a table"),
    ],
)
def test_parameters_that_cannot_be_bound_are_refused(text: str, dialect: str, match: str) -> None:
    with pytest.raises(SqlRefused, match=match):
        read_statement(text, dialect=dialect, parameters=True)


def test_a_parameter_opens_no_way_around_the_guard() -> None:
    for text in ("select read_text($1)", "select * from read_csv(?)", "select sleep_ms(?)", "drop table t; select ?"):
        with pytest.raises(SqlRefused):
            read_statement(text, parameters=True)
