"""Runs one query on a cursor and encodes its rows, within limits."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import orjson

from backends.sql.encode import Column, Inexact, columns_of, encode_row, type_name

_BATCH = 256


class NotAQuery(Exception):
    """The engine itself does not read the text as exactly one SELECT."""


class TooLarge(Exception):
    """Not even one row of the result fits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A statement that has passed `policies.sql`, and the most rows and bytes of rows that are wanted.

    `unlimited`: the text has no LIMIT and takes one, so the engine can stop early, or sort only what is wanted.
    """

    sql: str
    limit: int
    max_bytes: int
    unlimited: bool = False


def run_query(cursor: duckdb.DuckDBPyConnection, query: Query) -> tuple[bytes, int]:
    """The result as JSON, and how many rows it has. Raises NotAQuery, TooLarge and what DuckDB raises."""
    started = time.perf_counter()
    statements = cursor.extract_statements(query.sql)
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise NotAQuery
    sql = f"{query.sql} LIMIT {query.limit + 1}" if query.unlimited else query.sql
    cursor.execute(sql)
    described = [(str(name), kind) for name, kind, *_ in cursor.description]
    kinds = [kind for _, kind in described]
    try:
        rows, truncated = _fetch(cursor, sql, columns_of(kinds, exact=False), query)
    except Inexact:
        cursor.execute(sql)
        rows, truncated = _fetch(cursor, sql, columns_of(kinds, exact=True), query)
    columns = [{"name": name, "type": type_name(kind)} for name, kind in described]
    elapsed = round((time.perf_counter() - started) * 1000, 3)
    body = (
        b'{"columns":%b,"rows":[%b],"row_count":%d,"truncated":%b,"elapsed_ms":%b}'
        % (orjson.dumps(columns), b",".join(rows), len(rows), orjson.dumps(truncated), orjson.dumps(elapsed))
    )  # fmt: skip
    return body, len(rows)


def _fetch(
    cursor: duckdb.DuckDBPyConnection, sql: str, columns: Sequence[Column], query: Query
) -> tuple[list[bytes], bool]:
    """Encoded rows, and whether there were more than fit. Raises Inexact and TooLarge."""
    if any(column.cast for column in columns):
        # A subquery keeps the order of its rows here: nothing above it reorders them, on one thread.
        cursor.execute(f"SELECT {_projection(columns)} FROM ({sql}) AS result")  # noqa: S608
    rows: list[bytes] = []
    room = query.max_bytes
    while batch := cursor.fetchmany(min(_BATCH, query.limit + 1 - len(rows))):
        for row in batch:
            encoded = orjson.dumps(encode_row(columns, row))
            room -= len(encoded) + 1
            if room < 0 and not rows:
                raise TooLarge
            if room < 0 or len(rows) == query.limit:
                return rows, True
            rows.append(encoded)
    return rows, False


def _projection(columns: Sequence[Column]) -> str:
    """The columns by position, since names may repeat, each cast where Python would lose part of it."""
    return ", ".join(
        f"#{place}" if column.cast is None else f"CAST(#{place} AS {column.cast})"
        for place, column in enumerate(columns, 1)
    )
