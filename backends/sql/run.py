"""Runs one query on a cursor and encodes its rows, within limits."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import duckdb
import orjson

from backends.sql.encode import Column, Inexact, columns_of, encode_row, type_name
from backends.sql.tasks import Scalar

BATCH: Final = 256
"""Rows fetched at once."""


class NotAQuery(Exception):
    """The engine itself does not read the text as exactly one SELECT; the message says what to write."""


class TooLarge(Exception):
    """Not even one row of the result fits into so many bytes."""

    def __init__(self, most: int) -> None:
        super().__init__(f"a row of the result is larger than {most} bytes: select fewer or shorter columns")


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A statement that has passed `policies.sql`, and the most rows and bytes of rows that are wanted.

    `unlimited`: the text has no LIMIT and takes one, so the engine can stop early, or sort only what is wanted.
    `params` are bound to `$1` or `$name` by what stands behind the sign.
    """

    sql: str
    limit: int
    max_bytes: int
    unlimited: bool = False
    params: Mapping[str, Scalar] = field(default_factory=dict)

    @property
    def limited(self) -> str:
        """The text, with one row more than is wanted as its limit where it takes one."""
        return f"{self.sql} LIMIT {self.limit + 1}" if self.unlimited else self.sql


def run_query(cursor: duckdb.DuckDBPyConnection, query: Query) -> tuple[bytes, int]:
    """The result as JSON, and how many rows it has. Raises NotAQuery, TooLarge and what DuckDB raises."""
    started = time.perf_counter()
    run(cursor, query, query.limited)
    described = [(str(name), kind) for name, kind, *_ in cursor.description]
    kinds = [kind for _, kind in described]
    try:
        rows, truncated = _fetch(cursor, query, columns_of(kinds, exact=False))
    except Inexact:
        run(cursor, query, query.limited)
        rows, truncated = _fetch(cursor, query, columns_of(kinds, exact=True))
    columns = [{"name": name, "type": type_name(kind)} for name, kind in described]
    body = b'{"columns":%b,"rows":[%b],%b' % (
        orjson.dumps(columns),
        b",".join(rows),
        summary(len(rows), truncated=truncated, started=started)[1:],
    )
    return body, len(rows)


def only(cursor: duckdb.DuckDBPyConnection, text: str) -> duckdb.Statement:
    """What the engine itself reads as exactly one SELECT. Raises NotAQuery."""
    statements = cursor.extract_statements(text)
    if len(statements) == 1 and statements[0].type == duckdb.StatementType.MULTI:
        # It would first make a type of all values.
        raise NotAQuery("PIVOT has to name the values that become columns: PIVOT … ON column IN ('a', 'b')")
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise NotAQuery("only one query at a time may run")
    return statements[0]


def run(cursor: duckdb.DuckDBPyConnection, query: Query, text: str) -> None:
    """Run a form of the query, as the engine has read it. Raises NotAQuery."""
    statement = only(cursor, text)
    if query.params:
        cursor.execute(statement, query.params)
    else:  # to bind nothing takes time too
        cursor.execute(statement)


def summary(rows: int, *, truncated: bool, started: float) -> bytes:
    """What is said of a result behind its rows, as an object. `started` as `time.perf_counter` had it."""
    elapsed = round((time.perf_counter() - started) * 1000, 3)
    return orjson.dumps({"row_count": rows, "truncated": truncated, "elapsed_ms": elapsed})


def projected(query: Query, columns: Sequence[Column]) -> str:
    """The query with each column cast where Python would lose part of it; by position, since names may repeat.

    A subquery keeps the order of its rows here: nothing above it reorders them, on one thread.
    """
    casts = ", ".join(
        f"#{place}" if column.cast is None else f"CAST(#{place} AS {column.cast})"
        for place, column in enumerate(columns, 1)
    )
    return f"SELECT {casts} FROM ({query.limited}) AS result"  # noqa: S608


def _fetch(cursor: duckdb.DuckDBPyConnection, query: Query, columns: Sequence[Column]) -> tuple[list[bytes], bool]:
    """Encoded rows, and whether there were more than fit. Raises Inexact and TooLarge."""
    if any(column.cast for column in columns):
        run(cursor, query, projected(query, columns))
    rows: list[bytes] = []
    room = query.max_bytes
    while batch := cursor.fetchmany(min(BATCH, query.limit + 1 - len(rows))):
        for row in batch:
            encoded = orjson.dumps(encode_row(columns, row))
            room -= len(encoded) + 1
            if room < 0 and not rows:
                raise TooLarge(query.max_bytes)
            if room < 0 or len(rows) == query.limit:
                return rows, True
            rows.append(encoded)
    return rows, False
