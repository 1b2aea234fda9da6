"""A request to run SQL, read strictly: the statement, what it runs with, and the shape that its answer is to have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gateway.openai.errors import ill_formed, missing
from gateway.openai.payload import object_of
from gateway.params import Params, read_params
from policies.dialects import DIALECTS

LIMIT_MOST = 1_000_000_000

Shape = Literal["json", "ndjson", "events"]
SHAPES: Mapping[str, Shape] = {
    "application/json": "json",
    "application/x-ndjson": "ndjson",
    "application/ndjson": "ndjson",
    "text/event-stream": "events",
}
"""By the type that a client accepts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What `POST /v1/sql` was sent. What is None is for the pool to say."""

    document: Mapping[str, Any]
    sql: str
    database: str | None
    params: Params
    limit: int | None
    dialect: str | None
    shape: Shape


def read_query(body: bytes, headers: Iterable[tuple[bytes, bytes]]) -> Wanted:
    """Raises ApiError (400) that names what is wrong."""
    document = object_of(body)
    return Wanted(
        document=document,
        sql=_sql(document),
        database=_text(document, "database"),
        params=read_params(document, body),
        limit=_limit(document),
        dialect=_choice(document, "dialect", DIALECTS),
        shape=_shape(document, headers),
    )


def _sql(document: Mapping[str, Any]) -> str:
    sql = document.get("sql")
    if sql is None:
        raise missing("sql")
    if not isinstance(sql, str) or not sql.strip():
        raise ill_formed("sql", "must be one SQL statement as text")
    return sql


def _text(document: Mapping[str, Any], name: str) -> str | None:
    value = document.get(name)
    if value is not None and not isinstance(value, str):
        raise ill_formed(name, "must be a string")
    return value


def _choice(document: Mapping[str, Any], name: str, known: Iterable[str]) -> str | None:
    value = document.get(name)
    if value is not None and value not in tuple(known):
        raise ill_formed(name, f"must be one of {', '.join(known)}")
    return value


def _limit(document: Mapping[str, Any]) -> int | None:
    limit = document.get("limit")
    if limit is not None and (type(limit) is not int or not 0 < limit <= LIMIT_MOST):
        raise ill_formed("limit", f"must be a whole number from 1 to {LIMIT_MOST}")
    return limit


def _shape(document: Mapping[str, Any], headers: Iterable[tuple[bytes, bytes]]) -> Shape:
    """What the body says, else the first type that the client accepts and is one of ours, else JSON."""
    said = _choice(document, "format", dict.fromkeys(SHAPES.values()))
    for shape in SHAPES.values():
        if said == shape:
            return shape
    accepted = b",".join(value for name, value in headers if name == b"accept").decode("latin-1")
    types = (part.partition(";")[0].strip().lower() for part in accepted.split(","))
    return next((SHAPES[kind] for kind in types if kind in SHAPES), "json")
