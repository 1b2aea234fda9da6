"""Where whoever wrote a refused statement can turn: to the description, to another dialect, to another spelling."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final

from sqlglot import exp

from policies.placeholders import HOW
from policies.repair import closest
from policies.sql_functions import FUNCTIONS

TABLES: Final = "describe_tables, or GET /v1/databases/{db}/schema, tells the tables and their columns"

_DESCRIBES: Final = (exp.Show, exp.Describe, exp.Summarize, exp.Pragma)
_CALL_MOST: Final = 200
# Of the session and the server: no name is near one of these.
_SESSION: Final = frozenset(
    {
        *("connection_id", "current_catalog", "current_database", "current_query", "current_role", "current_schema"),
        *("current_schemas", "current_setting", "current_user", "current_version", "database", "getenv"),
        *("getvariable", "last_insert_id", "pg_backend_pid", "schema", "session_user", "sqlite_version"),
        *("system_user", "txid_current", "user", "version"),
    }
)
_TOP: Final = re.compile(r"\s*select\s+(?:distinct\s+)?top\b\s*\(?\s*\d", re.IGNORECASE)
_BRACKETS: Final = re.compile(r"""'[^']*'|"[^"]*"|[()]""")
# Texts, names and comments hold none, and neither does a cast (`::`) or a slice (`[1:n]`).
_FOREIGN: Final = re.compile(
    r"""'[^']*'|"[^"]*"|--[^\n]*|/\*.*?(?:\*/|\Z)|(?P<sign>%\(\w+\)s|%s\b|\?\d+|(?<![:\w\]\[]):[A-Za-z_]\w*)""",
    re.DOTALL,
)


def instead_of(root: exp.Expr) -> str:
    """What to do instead of a statement that is no query; begins with a semicolon where there is something."""
    asks = isinstance(root, _DESCRIBES) or (
        isinstance(root, exp.Command) and str(root.this).upper() in {"SHOW", "DESCRIBE", "DESC", "SUMMARIZE"}
    )
    return f"; {TABLES}" if asks else ""


def spelling(text: str) -> str:
    """How to write what a text that cannot be read has in another style: its parameters, the most rows."""
    if _TOP.match(text):
        return "; write LIMIT at the end, not TOP"
    found = next((match["sign"] for match in _FOREIGN.finditer(text) if match["sign"]), None)
    return f"; {HOW}, not as {found[:40]}" if found else ""


def written(node: exp.Expr, source: str) -> tuple[str, str]:
    """A function's name and its whole call as they stand in the text that was parsed; empty where that is unknown."""
    start, end = int(node.meta.get("start", 0)), int(node.meta.get("end", -1))
    name = source[start : end + 1]
    if not name.isidentifier():
        return "", ""
    depth = 0
    for match in _BRACKETS.finditer(source, start, start + _CALL_MOST):
        depth += {"(": 1, ")": -1}.get(match[0], 0)
        if depth == 0:
            return name.lower(), source[start : match.end()]
    return name.lower(), ""


def other_function(name: str, call: str, dialects: Iterable[str], runs: Callable[[str, str], bool]) -> str:
    """What to call instead of a function that is not available: the same in the dialect that has it, or a near name.

    `call` is the whole call as it is written, empty where that is not known. `runs` says whether a statement would
    run in a dialect.
    """
    if name in _SESSION:
        return ""
    known = [dialect for dialect in dialects if call and runs(f"SELECT {call}", dialect)]
    if known:
        quoted = " or ".join(f'"{dialect}"' for dialect in known)
        return f': with "dialect": {quoted} it would run'
    near = closest(name, FUNCTIONS)
    return f": did you mean {' or '.join(near)}?" if near else ""
