"""Public questions with gold SQL: what DuckDB runs gives the same rows through the executor, kept or not."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import duckdb
import orjson
import pytest
import sqlglot
from sqlglot import exp

from gateway.app import create_app
from tests.backends.sql.asked import gateway_over, query

DATA: Final = Path(__file__).parents[4] / "shared" / "data" / "nl2sql"
QUESTIONS: Final = ("questions_gen_postgres", "instruct_basic_postgres", "instruct_advanced_postgres")

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the public questions in {DATA}")


@dataclass(frozen=True, slots=True)
class Gold:
    """One right answer to a question, in PostgreSQL's words."""

    database: str
    sql: str


def gold() -> list[Gold]:
    """All right answers to all questions: several are split by `;`, `{a, b}` may be any of the columns."""
    found = []
    for name in QUESTIONS:
        with (DATA / f"{name}.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                text = re.sub(r"GROUP BY \{\}", "GROUP BY ALL", row["query"], flags=re.IGNORECASE)
                parts = re.sub(r"\{([^{}]*)\}", r"\1", text).split(";")
                found += [Gold(row["db_name"], part) for part in parts if part.strip()]
    return found


@pytest.fixture(scope="module")
def databases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The databases of the questions, by name."""
    folder = tmp_path_factory.mktemp("gold")
    dumps = sorted((DATA / "databases").glob("*.sql"))
    return {dump.stem: load(dump, folder / f"{dump.stem}.duckdb") for dump in dumps}


def load(dump: Path, path: Path) -> Path:
    """Make a database of a PostgreSQL dump, without foreign keys and in one schema; a format of MySQL's is mended."""
    text = dump.read_text().replace("'%Y%m%d %H:%i:%s'", "'YYYYMMDD HH24:MI:SS'")
    with duckdb.connect(str(path)) as connection:
        for statement in filter(None, sqlglot.parse(text, read="postgres")):
            for key in [*statement.find_all(exp.ForeignKey), *statement.find_all(exp.Reference)]:
                (key.parent if isinstance(key.parent, exp.ColumnConstraint | exp.Constraint) else key).pop()
            for table in statement.find_all(exp.Table):
                table.set("db", None)
            connection.execute(re.sub(r"\bSERIAL\b", "BIGINT", statement.sql("duckdb", comments=False)))
    return path


@pytest.mark.untraced
async def test_all_gold_queries_that_duckdb_runs_give_the_same_rows_through_the_executor_kept_or_not(
    databases: dict[str, Path], tmp_path: Path
) -> None:
    by_itself = directly(databases, gold())
    assert len(by_itself) > 150, "most of the questions' SQL is understood by DuckDB as it is"
    gateway = await gateway_over(tmp_path, databases, max_rows=100_000, max_bytes="20MB")
    kept, wrong = 0, []
    async with gateway.running():
        app = create_app(gateway)
        for one, rows in by_itself.items():
            for _ in range(2):
                document, cache = await query(app, one.sql, database=one.database)
                if not same(document.get("rows", []), rows):
                    wrong.append((cache, one, document, rows))
            kept += cache == "hit"
    assert wrong == []
    assert kept > len(by_itself) / 2, "the others depend on the clock"


@pytest.mark.untraced
async def test_gold_in_postgresql_words_runs_where_it_is_said_to_be_in_them(
    databases: dict[str, Path], tmp_path: Path
) -> None:
    queries = gold()
    by_itself = directly(databases, queries)
    gateway = await gateway_over(tmp_path, databases, max_rows=100_000, max_bytes="20MB")
    unlike, failed = [], []
    async with gateway.running():
        app = create_app(gateway)
        for one in queries:
            document, _ = await query(app, one.sql, database=one.database, dialect="postgres")
            if "rows" not in document:
                failed.append((one, document["error"]))
            elif one in by_itself and not same(document["rows"], by_itself[one]):
                unlike.append((one, document))
    # A series in the SELECT list is a row for each of its values in PostgreSQL, and one list to DuckDB by itself.
    assert [one for one in unlike if "SELECT generate_series(" not in one[0].sql] == []
    assert len(failed) <= 3, failed
    assert not [one for one, _ in failed if one in by_itself]


def directly(databases: Mapping[str, Path], queries: Iterable[Gold]) -> dict[Gold, list[tuple[Any, ...]]]:
    """The rows of each query that DuckDB understands as it is, as DuckDB itself writes them."""
    found = {}
    with ExitStack() as stack:
        connections = {
            name: stack.enter_context(duckdb.connect(str(path), read_only=True, config={"threads": 1}))
            for name, path in databases.items()
        }
        for one in queries:
            cursor = connections[one.database].cursor()
            cursor.execute("SET TimeZone = 'UTC'")
            with suppress(duckdb.Error):
                found[one] = cursor.execute(f"SELECT CAST(COLUMNS(*) AS VARCHAR) FROM ({one.sql})").fetchall()
    return found


def same(rows: Sequence[Sequence[Any]], others: Sequence[Sequence[Any]]) -> bool:
    """Whether both hold the same rows, each as often, in any order; numbers may differ by 1e-6 of their size.

    A REAL in text has no more digits than that.
    """
    left, right = (sorted(tuple(map(cell, row)) for row in side) for side in (rows, others))
    return len(left) == len(right) and all(
        len(one) == len(other) and all(map(alike, one, other)) for one, other in zip(left, right, strict=True)
    )


def cell(value: Any) -> tuple[bool, str, float]:
    """A value of a JSON reply, or DuckDB's text of it, in a form that sorts: NULL, text, or a number to 9 digits."""
    if value is None:
        return (False, "", 0.0)
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
    try:
        return (True, "", float(text))
    except ValueError:
        return (True, re.sub(r"[\s'\"]|(?<=\d)T(?=\d)", "", text).replace("+00:00", "+00"), 0.0)


def alike(one: tuple[bool, str, float], other: tuple[bool, str, float]) -> bool:
    return one[:2] == other[:2] and (math.isclose(one[2], other[2], rel_tol=1e-6) or math.isnan(one[2] + other[2]))
