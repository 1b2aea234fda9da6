"""Only what the data alone decide may be kept: compared with what the engine says of its own functions."""

from __future__ import annotations

import duckdb
import pytest

from policies.sql import SqlRefused, read_statement
from policies.sql_functions import FUNCTIONS, STABLE, UNSTABLE

NOT_IN_THE_LIST = {
    "ago",
    "localtime",
    "localtimestamp",
    "current_timestamp",
    "current_time",
    "rand",
    "reservoir_quantile",
}
"""Words that the engine reads as one of its functions or calls stable, and that depend on clock or chance."""


def _by_stability() -> dict[str, set[str]]:
    with duckdb.connect() as connection:
        rows = connection.execute("SELECT DISTINCT function_name, stability FROM duckdb_functions()").fetchall()
    return {kind: {name for name, other in rows if other == kind} for kind in {kind for _, kind in rows if kind}}


def test_every_function_that_the_engine_calls_unstable_is_refused_or_never_kept() -> None:
    kinds = _by_stability()
    unstable = kinds["VOLATILE"] | kinds["CONSISTENT_WITHIN_QUERY"]
    assert len(unstable) > 25, "the engine does say so of some"
    assert unstable & FUNCTIONS <= UNSTABLE
    assert not STABLE & UNSTABLE


def test_no_function_is_called_unstable_that_the_engine_calls_stable() -> None:
    kinds = _by_stability()
    assert UNSTABLE - kinds["VOLATILE"] - kinds["CONSISTENT_WITHIN_QUERY"] == NOT_IN_THE_LIST


@pytest.mark.parametrize(
    "sql",
    [
        *(f"SELECT {name}()" for name in ("now", "random", "uuid", "uuidv7", "today", "get_current_timestamp")),
        *(f"SELECT {word}" for word in ("current_date", "CURRENT_TIMESTAMP", "localtime", "current_time")),
        "SELECT age(TIMESTAMP '2020-01-01')",
        "SELECT * FROM t TABLESAMPLE 10%",
        "SELECT * FROM t USING SAMPLE 5 ROWS",
        "SELECT * FROM (SELECT * FROM t USING SAMPLE 5 ROWS (reservoir, 42)) AS s",
        "SELECT id FROM t ORDER BY random() LIMIT 3",
        "SELECT id FROM t WHERE at > now() - INTERVAL 1 DAY",
        "WITH c AS (SELECT gen_random_uuid() AS u) SELECT count(*) FROM c",
        "SELECT (SELECT max(x) FROM (VALUES (random())) AS v(x))",
        "SELECT list_transform([1, 2], x -> random())",
        "SELECT reservoir_quantile(id, 0.5) FROM t",
    ],
)
def test_what_reads_the_clock_or_chance_is_not_kept(sql: str) -> None:
    try:
        assert not read_statement(sql).deterministic
    except SqlRefused:
        pytest.fail(f"{sql} may run, it is only not kept")


@pytest.mark.parametrize("word", ["now", "today", "tomorrow", "yesterday"])
@pytest.mark.parametrize("kind", ["DATE", "TIMESTAMP", "TIMESTAMPTZ"])
def test_no_text_is_read_as_a_time_by_the_clock(word: str, kind: str) -> None:
    """A cast of 'now' looks like a constant here, so it must not be one word for the engine either."""
    with duckdb.connect() as connection, pytest.raises(duckdb.ConversionException):
        connection.execute(f"SELECT CAST('{word}' AS {kind})").fetchall()
