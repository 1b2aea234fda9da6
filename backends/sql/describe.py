"""Describes the tables of a database, as data and as a text for prompts that is the same for the same data."""

from __future__ import annotations

from typing import Any, Final

import duckdb
import orjson

_COLUMNS: Final = """
    SELECT c.schema_name, c.table_name, c.column_name, c.data_type, t.table_name IS NULL AS is_view
    FROM duckdb_columns() AS c LEFT JOIN duckdb_tables() AS t USING (database_name, schema_name, table_name)
    WHERE NOT c.internal AND c.database_name = current_database()
    ORDER BY c.schema_name, c.table_name, c.column_index
"""


def describe(cursor: duckdb.DuckDBPyConnection, database: str) -> bytes:
    """`{"database", "tables": [{"name", "columns": [{"name", "type"}], "rows"}], "text"}`.

    Tables by name, columns in their order. `rows` is null for a view: counting could take any time.
    The text has one line for each table. Raises what DuckDB raises.
    """
    tables: dict[str, dict[str, Any]] = {}
    for schema, table, column, kind, is_view in cursor.execute(_COLUMNS).fetchall():
        name = _name(table) if schema == "main" else f"{_name(schema)}.{_name(table)}"
        if name not in tables:
            tables[name] = {"name": name, "columns": [], "rows": None if is_view else _count(cursor, schema, table)}
        tables[name]["columns"].append({"name": column, "type": kind})
    text = "".join(_line(table) for table in tables.values())
    return orjson.dumps({"database": database, "tables": list(tables.values()), "text": text})


def _count(cursor: duckdb.DuckDBPyConnection, schema: str, table: str) -> int:
    row = cursor.execute(f"SELECT count(*) FROM {_quoted(schema)}.{_quoted(table)}").fetchone()  # noqa: S608
    return int(row[0]) if row else 0


def _line(table: dict[str, Any]) -> str:
    columns = ", ".join(f"{_name(column['name'])} {column['type']}" for column in table["columns"])
    count = "view" if table["rows"] is None else f"{table['rows']} rows"
    return f"{table['name']}({columns}) -- {count}\n"


def _name(name: str) -> str:
    return name if name.isidentifier() and name.islower() and name.isascii() else _quoted(name)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
