"""The sample warehouse, built once for all tests of the examples."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from examples.nl2sql import database


@pytest.fixture(scope="session")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "sales.duckdb"
    database.make(path)
    return path


@pytest.fixture(scope="session")
def connection(warehouse: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(str(warehouse), read_only=True) as connection:
        yield connection


@pytest.fixture(scope="session")
def schema(connection: duckdb.DuckDBPyConnection) -> str:
    """A description of the tables as a prompt would quote it."""
    columns = connection.execute(
        "SELECT table_name, column_name, data_type, comment FROM duckdb_columns() WHERE NOT internal ORDER BY ALL"
    ).fetchall()
    return "\n".join(f"{table}.{column} {kind} -- {comment}" for table, column, kind, comment in columns)
