"""What the gateway did in a model's place, told to whoever reads the reply closely: the tool calls that it ran.

A whole reply has it as a member `cortex`, a stream as comments, which clients pass over.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from gateway.openai.errors import ApiError
from gateway.question import read_arguments
from gateway.verdicts import Answer

_ROW_COUNT = re.compile(rb'"row_count":([0-9]+),[^{}]*\}\Z')


def told(function: Mapping[str, str], answer: Answer, seconds: float) -> dict[str, Any]:
    """A tool call that was run: which, with what statement, and how that went."""
    rows = _ROW_COUNT.search(answer.body[-200:]) if answer.status == 200 else None
    return {
        "name": function["name"],
        "sql": _statement(function["arguments"]),
        "outcome": answer.fate,
        "rows": int(rows[1]) if rows else None,
        "cache": answer.cache or None,
        "ms": round(seconds * 1000, 1),
    }


def summary(ran: Sequence[Mapping[str, Any]], passed: str) -> dict[str, Any]:
    """All that was run, and where calls are left to the client after all, why they `passed`."""
    return {"tools": ran, **({"passed": passed} if passed else {})}


def comment(news: Mapping[str, Any]) -> bytes:
    """News as an event of a stream that no client takes for one."""
    return b": cortex " + orjson.dumps(news) + b"\n\n"


def _statement(arguments: str) -> str | None:
    try:
        sql = read_arguments(arguments).get("sql")
    except ApiError:
        return None
    return sql if isinstance(sql, str) else None
