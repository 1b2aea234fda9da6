"""What is asked of the data: one statement with everything that decides its rows, read strictly.

The body of `POST /v1/sql`, the arguments of an MCP tool and those of a model's tool call are read here, by the same
rules and in the same words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from gateway.openai.errors import bad_request, ill_formed, missing, unknown_member
from gateway.params import Params, read_params
from policies.dialects import DIALECTS, dialect_called

LIMIT_MOST = 1_000_000_000
TABLES_MOST = 1000
QUESTION = ("sql", "database", "params", "limit", "dialect")
"""The members that make a question."""
TABLES = ("database", "tables")
"""The members that choose tables to be described."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One statement. What is None is for the pool to say: its only database, its most rows, its dialect."""

    sql: str
    database: str | None = None
    limit: int | None = None
    dialect: str | None = None
    params: Params = ()


def read_question(document: Mapping[str, Any], text: str | bytes | None) -> Question:
    """`text` is what the document was read from, None where its numbers have all their digits.

    Raises ApiError (400) that names what is wrong. Other members are not looked at: see `only`.
    """
    return Question(
        sql=_sql(document.get("sql")),
        database=read_text(document, "database"),
        limit=_limit(document.get("limit")),
        dialect=_dialect(document),
        params=read_params(document, text),
    )


def read_arguments(text: str) -> dict[str, Any]:
    """The arguments of a model's tool call, where `query` may stand for `sql`. Raises ApiError 400.

    Their other members are none of ours: the tool is described by the client, who may have it take more.
    """
    try:
        document = orjson.loads(text or "{}")
    except orjson.JSONDecodeError:
        raise bad_request("the arguments of the tool call are not valid JSON") from None
    if not isinstance(document, dict):
        raise bad_request("the arguments of the tool call must be a JSON object")
    if "sql" not in document and "query" in document:
        document["sql"] = document["query"]
    return document


def read_tables(document: Mapping[str, Any]) -> list[str] | None:
    """The tables that are to be described; None for all. Raises ApiError 400."""
    tables = document.get("tables")
    if tables is None:
        return None
    if not isinstance(tables, list) or not 0 < len(tables) <= TABLES_MOST:
        raise ill_formed("tables", f"must be a list of 1 to {TABLES_MOST} names")
    if not all(isinstance(name, str) for name in tables):
        raise ill_formed("tables", "must hold names as text only")
    return tables


def only(document: Iterable[str], known: Sequence[str]) -> None:
    """Refuse members that mean nothing here: most likely they are meant to. Raises ApiError 400."""
    for name in document:
        if name not in known:
            raise unknown_member(name, known)


def read_text(document: Mapping[str, Any], name: str) -> str | None:
    """A member that is a text, if it is there. Raises ApiError 400."""
    value = document.get(name)
    if value is not None and not isinstance(value, str):
        raise ill_formed(name, "must be a string")
    return value


def choice(document: Mapping[str, Any], name: str, known: Iterable[str]) -> str | None:
    """A member that is one of these texts, if it is there. Raises ApiError 400."""
    value = document.get(name)
    if value is not None and value not in tuple(known):
        raise ill_formed(name, f"must be one of {', '.join(known)}")
    return value


def _dialect(document: Mapping[str, Any]) -> str | None:
    name = read_text(document, "dialect")
    if name is None:
        return None
    dialect = dialect_called(name)
    if dialect is None:
        raise ill_formed("dialect", f"must be one of {', '.join(DIALECTS)}")
    return dialect


def _sql(sql: object) -> str:
    if sql is None:
        raise missing("sql")
    if not isinstance(sql, str) or not sql.strip():
        raise ill_formed("sql", "must be one SQL statement as text")
    return sql


def _limit(limit: object) -> int | None:
    if limit is None:
        return None
    if type(limit) is not int or not 0 < limit <= LIMIT_MOST:
        raise ill_formed("limit", f"must be a whole number from 1 to {LIMIT_MOST}")
    return limit
