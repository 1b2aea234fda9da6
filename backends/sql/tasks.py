"""What a request to a SQL engine asks for: its body read strictly, held to the pool's limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from backends.base import Request
from backends.sql.options import SqlOptions

Scalar = None | bool | int | float | str

_OPERATIONS: Final = {"/sql/query": "query", "/sql/stream": "stream", "/sql/describe": "describe"}


class BadTask(Exception):
    """The request is not one for a SQL engine; the message names the field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One operation of a worker. `timeout` in seconds; `unlimited` as in `policies.sql.Statement`.

    `tables` are those that the statement names, `params` the values of its parameters by name. `row_bytes` bounds one
    row. `progress`: say in parts how far a query is. `threads` are what the statement runs on.
    """

    op: str
    database: str
    timeout: float
    sql: str
    tables: Sequence[str]
    limit: int
    max_bytes: int
    unlimited: bool
    params: Mapping[str, Scalar]
    row_bytes: int
    progress: bool
    threads: int

    def to_json(self) -> bytes:
        return orjson.dumps(self)


def read_task(request: Request, options: SqlOptions) -> Task:
    """Raises BadTask.

    The body is `{"sql", "database"?, "limit"?, "max_bytes"?, "timeout"?, "unlimited"?, "tables"?, "params"?,
    "progress"?, "threads"?}`; a description needs no `sql`. What is absent is the pool's default, or one thread; what
    is larger is cut to it. `sql` is the canonical text. A stream has rows and bytes of its own, and each of its rows
    those of a whole result.
    """
    op = _OPERATIONS.get(request.path)
    if op is None:
        raise BadTask("unknown operation")
    try:
        body: Any = orjson.loads(request.body)
    except orjson.JSONDecodeError:
        raise BadTask("the body is not JSON") from None
    if not isinstance(body, dict):
        raise BadTask("the body is not an object")
    stream = op == "stream"
    max_bytes = int(_number(body, "max_bytes", options.max_stream_bytes if stream else options.max_bytes))
    return Task(
        op=op,
        database=_database(body, options),
        timeout=_number(body, "timeout", options.timeout),
        sql="" if op == "describe" else _sql(body),
        tables=_tables(body),
        limit=int(_number(body, "limit", options.max_stream_rows if stream else options.max_rows)),
        max_bytes=max_bytes,
        unlimited=body.get("unlimited") is True,
        params=_params(body),
        row_bytes=min(max_bytes, options.max_bytes),
        progress=body.get("progress") is True,
        threads=_threads(body, options.max_threads),
    )


def _sql(body: dict[str, Any]) -> str:
    sql = body.get("sql")
    if not isinstance(sql, str) or not sql.strip():
        raise BadTask("sql: a statement is needed")
    return sql


def _database(body: dict[str, Any], options: SqlOptions) -> str:
    name = body.get("database")
    if name is None:
        name = next(iter(options.databases), None)
    if not isinstance(name, str) or name not in options.databases:
        raise BadTask(f"database: one of {', '.join(options.databases)}")
    return name


def _tables(body: dict[str, Any]) -> Sequence[str]:
    tables = body.get("tables", [])
    if not isinstance(tables, list) or not all(isinstance(table, str) for table in tables):
        raise BadTask("tables: a list of names is needed")
    return tables


def _params(body: dict[str, Any]) -> Mapping[str, Scalar]:
    params = body.get("params", {})
    if not isinstance(params, dict) or any(isinstance(value, dict | list) for value in params.values()):
        raise BadTask("params: an object of scalars is needed")
    return params


def _threads(body: dict[str, Any], most: int) -> int:
    threads = body.get("threads", 1)
    if type(threads) is not int or threads < 1:
        raise BadTask("threads: a whole number above 0 is needed")
    return min(threads, most)


def _number(body: dict[str, Any], field: str, most: float) -> float:
    value = body.get(field)
    if value is None:
        return most
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise BadTask(f"{field}: a number above 0 is needed")
    return min(value, most)
