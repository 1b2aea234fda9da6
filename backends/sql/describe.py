"""Describes the tables of a database, as data and as a text for prompts that is the same for the same data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import duckdb
import orjson

from backends.sql.keywords import KEYWORDS
from backends.sql.places import Place, known_by_name, quoted

SAMPLED_ROWS: Final = 10_000
"""Samples are looked for in so many rows from the start of a table, so that its size does not matter."""
SAMPLE_MOST: Final = 40
"""A longer text is prose, and no example of what to compare a column with."""

# A database without a file is a folder of Parquet files, whose tables are views of them: as quick to count as tables.
_TABLES: Final = """
    SELECT schema_name, table_name, comment, FALSE FROM duckdb_tables()
    WHERE NOT internal AND database_name = current_database()
    UNION ALL
    SELECT schema_name, view_name, v.comment, path IS NOT NULL
    FROM duckdb_views() AS v JOIN duckdb_databases() AS d USING (database_name)
    WHERE NOT v.internal AND database_name = current_database()
    ORDER BY 1, 2
"""
_COLUMNS: Final = """
    SELECT schema_name, table_name, column_name, data_type, comment FROM duckdb_columns()
    WHERE NOT internal AND database_name = current_database()
    ORDER BY schema_name, table_name, column_index
"""
_KEYS: Final = """
    SELECT schema_name, table_name, constraint_column_names, referenced_table, referenced_column_names
    FROM duckdb_constraints()
    WHERE constraint_type IN ('PRIMARY KEY', 'FOREIGN KEY') AND database_name = current_database()
    ORDER BY schema_name, table_name, constraint_index
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Column:
    name: str
    type: str
    comment: str
    samples: Sequence[str]

    def data(self) -> dict[str, Any]:
        said = {"comment": self.comment, "samples": self.samples}
        return {"name": self.name, "type": self.type} | {key: value for key, value in said.items() if value}

    def note(self) -> str:
        """What is said of the column on a line of its own, if anything."""
        examples = ", ".join(_literal(value) for value in self.samples)
        said = [self.comment, f"such as {examples}" if examples else ""]
        return "; ".join(filter(None, said))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Key:
    """A primary key, or where `table` is named a foreign one: the rows of that table that it points to."""

    columns: Sequence[str]
    table: str = ""
    references: Sequence[str] = ()

    def data(self) -> dict[str, Any]:
        return {"columns": self.columns, "table": self.table, "references": self.references}

    def text(self) -> str:
        """The key as SQL has it: after its column where it is of one, else with its columns."""
        target = f"REFERENCES {self.table}({_names(self.references)})" if self.table else ""
        if len(self.columns) == 1:
            return target or "PRIMARY KEY"
        return f"FOREIGN KEY ({_names(self.columns)}) {target}" if target else f"PRIMARY KEY ({_names(self.columns)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    name: str
    columns: Sequence[_Column]
    rows: int | None
    comment: str
    keys: Sequence[_Key]

    def data(self) -> dict[str, Any]:
        primary = [column for key in self.keys if not key.table for column in key.columns]
        foreign = [key.data() for key in self.keys if key.table]
        said = {"comment": self.comment, "primary_key": primary, "foreign_keys": foreign}
        return {
            "name": self.name,
            "columns": [column.data() for column in self.columns],
            "rows": self.rows,
            **{key: value for key, value in said.items() if value},
            "text": self.text(),
        }

    def text(self) -> str:
        """A line for the table, and below it one for each column that more is known of than its type."""
        count = "view" if self.rows is None else f"{self.rows} rows"
        first = f"{self.name}({', '.join(self._parts())}) -- {count}"
        lines = [f"{first}: {self.comment}" if self.comment else first]
        lines += [f"  {_name(column.name)}: {note}" for column in self.columns if (note := column.note())]
        return "".join(f"{line}\n" for line in lines)

    def _parts(self) -> Iterator[str]:
        of_one: dict[str, list[str]] = defaultdict(list)
        for key in self.keys:
            if len(key.columns) == 1:
                of_one[key.columns[0]].append(key.text())
        for column in self.columns:
            yield " ".join([_name(column.name), column.type, *of_one[column.name]])
        yield from (key.text() for key in self.keys if len(key.columns) > 1)


def describe(cursor: duckdb.DuckDBPyConnection, database: str, *, samples: int = 0) -> bytes:
    """`{"database", "tables": [{"name", "columns": [{"name", "type"}], "rows", "text"}], "text"}`.

    Tables by name, columns in their order; `text` is that of all tables, one after the other. `rows` is null for a
    view: counting could take any time. Where there are any, a table has `comment`, `primary_key` (columns) and
    `foreign_keys` (`columns`, `table`, `references`), a column `comment` and `samples`: up to so many of its texts
    as `samples` says, the most frequent first. Raises what DuckDB raises.
    """
    tables = [table.data() for table in _tables(cursor, samples)]
    text = "".join(table["text"] for table in tables)
    return orjson.dumps({"database": database, "tables": tables, "text": text})


def _tables(cursor: duckdb.DuckDBPyConnection, samples: int) -> Iterator[_Table]:
    columns, tables = _columns(cursor), cursor.execute(_TABLES).fetchall()
    plain = known_by_name((schema, name) for schema, name, *_ in tables)
    keys = _keys(cursor, plain)
    for schema, name, comment, is_view in tables:
        place = (schema, name)
        wanted = 0 if is_view else samples
        yield _Table(
            name=_full(place, plain),
            columns=[
                _Column(
                    name=column,
                    type=kind,
                    comment=_folded(said),
                    samples=_samples(cursor, place, column, wanted) if wanted and kind == "VARCHAR" else (),
                )
                for column, kind, said in columns.get(place, ())
            ],
            rows=None if is_view else _count(cursor, place),
            comment=_folded(comment),
            keys=keys.get(place, ()),
        )


def _columns(cursor: duckdb.DuckDBPyConnection) -> Mapping[Place, Sequence[tuple[str, str, str | None]]]:
    found: dict[Place, list[tuple[str, str, str | None]]] = defaultdict(list)
    for schema, table, *column in cursor.execute(_COLUMNS).fetchall():
        name, kind, comment = column
        found[schema, table].append((name, kind, comment))
    return found


def _keys(cursor: duckdb.DuckDBPyConnection, plain: Collection[Place]) -> Mapping[Place, Sequence[_Key]]:
    found: dict[Place, list[_Key]] = defaultdict(list)
    for schema, table, columns, target, references in cursor.execute(_KEYS).fetchall():
        # A foreign key never leaves its schema.
        name = _full((schema, target), plain) if target else ""
        found[schema, table].append(_Key(columns=columns, table=name, references=references or ()))
    return found


def _count(cursor: duckdb.DuckDBPyConnection, place: Place) -> int:
    row = cursor.execute(f"SELECT count(*) FROM {_source(place)}").fetchone()  # noqa: S608
    return int(row[0]) if row else 0


def _samples(cursor: duckdb.DuckDBPyConnection, place: Place, column: str, most: int) -> Sequence[str]:
    rows = cursor.execute(
        f"SELECT value FROM (SELECT {quoted(column)} AS value FROM {_source(place)} LIMIT {SAMPLED_ROWS}) "  # noqa: S608
        f"WHERE length(value) BETWEEN 1 AND {SAMPLE_MOST} GROUP BY value ORDER BY count(*) DESC, value LIMIT {most}"
    ).fetchall()
    return [value for (value,) in rows if value.isprintable()]


def _folded(comment: str | None) -> str:
    """A comment on one line, so that no comment can pass for a table."""
    return " ".join((comment or "").split())


def _full(place: Place, plain: Collection[Place]) -> str:
    """The table's name as a statement may write it, with its schema where it is needed."""
    schema, table = place
    return _name(table) if place in plain else f"{_name(schema)}.{_name(table)}"


def _source(place: Place) -> str:
    return ".".join(quoted(part) for part in place)


def _names(names: Sequence[str]) -> str:
    return ", ".join(_name(name) for name in names)


def _name(name: str) -> str:
    """The name as a statement may write it, on one line whatever it holds."""
    if name.isidentifier() and name.islower() and name.isascii() and name not in KEYWORDS:
        return name
    return quoted("".join(char if char.isprintable() else ascii(char)[1:-1] for char in name))


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
