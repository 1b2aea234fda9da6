"""Runs one query on a cursor and hands its rows over as they come: NDJSON, in pieces of bounded size."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import duckdb
import orjson

from backends.sql.encode import Column, columns_of, encode_row, type_name
from backends.sql.run import BATCH, Query, TooLarge, only, projected, run, summary

PIECE: Final = 128 * 1024
"""Bytes of rows that are handed over at once; a row that is larger goes whole."""


def stream_query(
    cursor: duckdb.DuckDBPyConnection, query: Query, hand_over: Callable[[bytes], None], *, row_bytes: int
) -> tuple[bytes, int]:
    """Hand over a line of columns and a line for each row; what comes back is the last line, and the count of rows.

    No row may have more than `row_bytes`; `query.max_bytes` bounds all of them. Nothing is handed over before the
    first rows are there. Raises NotAQuery, TooLarge and what DuckDB raises, also between pieces.
    """
    started = time.perf_counter()
    only(cursor, query.sql)
    piece, columns = _described(cursor, query)
    plain = not any(column.cast for column in columns)
    run(cursor, query, query.limited if plain else projected(query, columns))
    count, room, truncated = 0, query.max_bytes, False
    for line in _lines(cursor, columns):
        if len(line) > row_bytes:
            raise TooLarge(row_bytes)
        room -= len(line)
        if count == query.limit or room < 0:
            truncated = True
            break
        count += 1
        piece += line
        if len(piece) >= PIECE:
            hand_over(bytes(piece))
            piece.clear()
    hand_over(bytes(piece))
    return summary(count, truncated=truncated, started=started), count


def _described(cursor: duckdb.DuckDBPyConnection, query: Query) -> tuple[bytearray, list[Column]]:
    """The line of columns, and how to fetch them, by plans alone: a query that sorts is not to be run twice.

    Rows that have gone out cannot be fetched otherwise any more, so every cast that may be needed is made.
    """
    # As a subquery the columns would get other names where two have the same.
    names = [row[0] for row in cursor.execute(f"DESCRIBE {query.sql}", query.params).fetchall()]
    run(cursor, query, f"SELECT * FROM ({query.sql}) AS result LIMIT 0")  # noqa: S608
    kinds = [kind for _, kind, *_ in cursor.description]
    columns = [{"name": name, "type": type_name(kind)} for name, kind in zip(names, kinds, strict=True)]
    head = bytearray(orjson.dumps({"columns": columns}) + b"\n")
    return head, columns_of(kinds, exact=True)


def _lines(cursor: duckdb.DuckDBPyConnection, columns: Sequence[Column]) -> Iterator[bytes]:
    while batch := cursor.fetchmany(BATCH):
        for row in batch:
            yield orjson.dumps(encode_row(columns, row)) + b"\n"
