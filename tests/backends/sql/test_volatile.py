"""A view that reads the clock or chance: its rows are not those of the data alone, so nobody is given them later."""

from __future__ import annotations

import asyncio
from pathlib import Path

import duckdb
import pytest

from backends.sql.volatile import Volatile, volatile
from gateway.app import create_app
from policies.sql_functions import UNSTABLE
from tests.backends.sql.asked import gateway_over, query
from tests.gateway.support import metric

VOLATILE = {
    "clock": "SELECT *, now() AS seen FROM t",
    "day": "SELECT current_date AS today, a FROM t",
    "moment": "WITH q AS (SELECT 1) SELECT * FROM q, (SELECT localtimestamp)",
    "zone": "SELECT current_localtimestamp()",
    "chance": "SELECT a FROM t ORDER BY random() LIMIT 1",
    "qualified": 'SELECT "main"."uuid"() AS id',
    "sampled": "SELECT * FROM t USING SAMPLE 3",
    "part": "SELECT a FROM t TABLESAMPLE 10%",
    "older": "SELECT age(d) AS age FROM t",
    "setting": "SELECT current_setting('threads') AS threads",
    "on_view": "SELECT * FROM clock",
    "on_that": "SELECT count(*) AS n FROM on_view",
    "on_macro": "SELECT dice() AS d",
    "on_rows": "SELECT * FROM drawn(3)",
    "on_column": "SELECT a FROM generated",
    "Some.View": 'SELECT * FROM "clock"',
    "in_text": "SELECT * FROM query('SELECT random() AS r')",
    "by_text": "SELECT * FROM query_table('clock')",
    "two  spaces": "SELECT random() AS r",
    "on_spaces": 'SELECT * FROM "two  spaces"',
    "on_engine": "SELECT * FROM duckdb_settings()",
}
STEADY = {
    "plain": "SELECT * FROM t",
    "words": 'SELECT \'now() USING SAMPLE\' AS text, a AS now, 1 AS "random", 2 AS sample, 3 AS "uuid" FROM t',
    "summed": "SELECT d, sum(a) AS total FROM t GROUP BY d",
    "between": "SELECT date_diff('day', d, DATE '2024-01-01') AS days FROM t",
    "doubled": "SELECT twice(a) AS b FROM t",
    "listed": "SELECT repeat('x', i::INTEGER) AS x FROM range(3) AS r(i), unnest([1, 2])",
    "on_steady": 'SELECT "now", "random" FROM words',
}
MACROS = (
    "CREATE MACRO dice() AS floor(random() * 6)",
    "CREATE MACRO twice(x) AS 2 * x",
    "CREATE MACRO drawn(n) AS TABLE SELECT a, dice() AS r FROM t LIMIT n",
)


def _made(path: Path | str, *more: str) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(str(path))
    connection.execute("CREATE TABLE t AS SELECT i AS a, DATE '2024-01-01' + i::INTEGER AS d FROM range(50) r(i)")
    connection.execute("CREATE TABLE steadily (a INTEGER, b INTEGER AS (a + 1), made TIMESTAMP DEFAULT now())")
    connection.execute("CREATE TABLE generated (a INTEGER, b TIMESTAMPTZ GENERATED ALWAYS AS (now()))")
    for statement in (*MACROS, *more):
        connection.execute(statement)
    for name, text in (VOLATILE | STEADY).items():
        connection.execute(f'CREATE VIEW "{name}" AS {text}')
    return connection


def test_views_macros_and_columns_that_read_clock_or_chance_are_found_and_no_others() -> None:
    with _made(":memory:") as connection:
        found = volatile(connection)
    views = {name.rpartition(".")[2].lower() for name in VOLATILE}
    assert found == Volatile(frozenset({*views, "generated", "dice", "drawn"}))


@pytest.mark.parametrize("name", sorted(UNSTABLE - {"reservoir_quantile", "ago", "rand"}))
def test_every_function_that_is_never_kept_makes_its_view_volatile(name: str) -> None:
    with duckdb.connect() as connection:
        for text in (f"{name}()", name):
            try:
                connection.execute(f"CREATE VIEW v AS SELECT {text} AS x")
            except duckdb.Error:
                continue  # the engine knows it in the other form only
            assert volatile(connection).concerns(["v"])
            return
    pytest.fail(f"{name} is no function of the engine's")


def test_a_macro_in_the_place_of_a_function_that_all_may_call_makes_everything_volatile() -> None:
    with _made(":memory:", "CREATE MACRO nvl(a, b) AS now()") as connection:
        assert volatile(connection).concerns([])
        connection.execute("CREATE OR REPLACE MACRO nvl(a, b) AS coalesce(a, b)")
        assert not volatile(connection).concerns(["t"])


@pytest.mark.parametrize(
    ("table", "concerned"),
    [("clock", True), ("main.clock", True), ("d.main.clock", True), ("some.view", True), ("t", False), ("", False)],
)
def test_a_table_is_known_with_and_without_its_schema(table: str, concerned: bool) -> None:
    with _made(":memory:") as connection:
        assert volatile(connection).concerns(["t", table]) is concerned


async def test_what_a_volatile_view_gave_is_not_kept_and_callers_at_the_same_time_share_it(tmp_path: Path) -> None:
    _made(tmp_path / "d.duckdb").close()
    gateway = await gateway_over(tmp_path, {"d": tmp_path / "d.duckdb"})
    async with gateway.running():
        app = create_app(gateway)
        for name in ("clock", "on_that", "on_macro", "generated"):
            assert [(await query(app, f"SELECT * FROM {name}"))[1] for _ in range(2)] == ["miss", "miss"], name
        ids = [(await query(app, 'SELECT id FROM "qualified"'))[0]["rows"] for _ in range(2)]
        assert ids[0] != ids[1]
        for name in ("plain", "words", "doubled"):
            assert [(await query(app, f"SELECT * FROM {name}"))[1] for _ in range(2)] == ["miss", "hit"], name
        sql = 'SELECT id FROM "qualified"'  # known by its text by now, so that the next four begin together
        together = await asyncio.gather(*(query(app, sql) for _ in range(4)))
        assert sorted(cache for _, cache in together) == ["joined", "joined", "joined", "miss"]
        assert len({str(answer["rows"]) for answer, _ in together}) == 1
        assert metric(gateway, "cortex_sql_answers_total", cache="bypass") == 11


async def test_a_new_file_decides_anew_what_is_volatile(tmp_path: Path) -> None:
    path = tmp_path / "d.duckdb"
    _put(path, "SELECT 1 AS x")
    gateway = await gateway_over(tmp_path, {"d": path})
    async with gateway.running():
        app = create_app(gateway)
        for text, cache in [(None, "hit"), ("SELECT random() AS x", "miss"), ("SELECT 2 AS x", "hit")]:
            if text is not None:
                _put(path, text)
            assert [(await query(app, "SELECT x FROM v"))[1] for _ in range(2)] == ["miss", cache], text


def _put(path: Path, text: str) -> None:
    """A database whose view `v` has this text, in the place of the one before."""
    new = path.with_name("new.duckdb")
    with duckdb.connect(str(new)) as connection:
        connection.execute(f"CREATE VIEW v AS {text}")
    new.rename(path)
