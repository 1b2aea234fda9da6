"""The SQL tools as they are offered to a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

SPECS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "execute_sql": {
            "name": "execute_sql",
            "description": "Run one read-only SQL statement (DuckDB dialect) and return its rows.",
            "parameters": {
                "type": "object",
                "properties": {"sql": {"type": "string", "description": "one SELECT statement"}},
                "required": ["sql"],
            },
        },
        "describe_tables": {
            "name": "describe_tables",
            "description": "Return the tables of the database with their columns and types.",
            "parameters": {"type": "object", "properties": {}},
        },
    }
)


def offered(names: Iterable[str]) -> list[dict[str, Any]]:
    """The `tools` member of a request that offers these tools."""
    return [{"type": "function", "function": dict(SPECS[name])} for name in names]
