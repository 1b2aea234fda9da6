"""What a client is told of a statement that failed: a code, and DuckDB's words without any of the server's."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import duckdb

_CODES: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (duckdb.ParserException, "syntax"),
    (duckdb.SyntaxException, "syntax"),
    (duckdb.BinderException, "binder"),
    (duckdb.CatalogException, "binder"),
    (duckdb.InterruptException, "timeout"),
    (duckdb.OutOfMemoryException, "memory"),
    (MemoryError, "memory"),
)
_PATH: Final = re.compile(r"(?<![\w.])/(?:[^\s/'\"]+/)+[^\s'\"]*")
# The engine offers its own system tables where it knows no better; the guard refuses them.
_NO_HINT: Final = re.compile(r'\s*Did you mean "(?:pg_|duckdb_|sqlite_|pragma_|information_schema)[^"]*"\?')
_SAID: Final = {
    "timeout": "the statement took too long and was stopped",
    "memory": "the statement needs more memory than a statement may have",
}


def code_of(error: BaseException) -> str:
    """`syntax`, `binder`, `timeout`, `memory`, else `execution`."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), "execution")


def message_of(error: BaseException, private: Iterable[str]) -> str:
    """The engine's message up to where it quotes the statement, at most 500 characters, without `private` words."""
    code = code_of(error)
    if code in _SAID:
        return _SAID[code]
    text = _NO_HINT.sub("", re.split(r"\n+LINE ", str(error))[0])
    for word in sorted(private, key=len, reverse=True):
        text = text.replace(word, "…")
    return _PATH.sub("…", " ".join(text.split()))[:500]
