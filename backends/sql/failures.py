"""What a client is told of a statement that failed: a code, and words to mend it by, none of the server's."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Final

import duckdb

from backends.sql.places import known_by_name
from policies.repair import Names, explained
from policies.sql_functions import FUNCTIONS

_CODES: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (duckdb.ParserException, "syntax"),
    (duckdb.SyntaxException, "syntax"),
    (duckdb.BinderException, "binder"),
    (duckdb.CatalogException, "binder"),
    (duckdb.InterruptException, "timeout"),
    (duckdb.OutOfMemoryException, "memory"),
    (MemoryError, "memory"),
)
_READ_MOST: Final = 4_000
"""Characters of an error that are looked at: it may quote a value of the statement's, of whatever length."""
_PATH: Final = re.compile(r"(?<![\w.])/(?:[^\s/'\"]+/)+[^\s'\"]*")
# The engine offers its own system tables where it knows no better, and its settings; the guard refuses them.
_NO_HINT: Final = re.compile(
    r'Did you mean "(?:pg_|duckdb_|sqlite_|pragma_|information_schema)[^"]*"\?'
    r"|(?:\* |, or )SET \w+ ?=[^.\n]*\.?"
)
_COLUMNS: Final = """
    SELECT schema_name, table_name, column_name FROM duckdb_columns()
    WHERE NOT internal AND database_name = current_database()
    ORDER BY schema_name, table_name, column_index LIMIT 5000
"""
_SAID: Final = {
    "timeout": "the statement took too long and was stopped",
    "memory": "the statement needs more memory than a statement may have",
}

Cursor = Callable[[], AbstractContextManager[duckdb.DuckDBPyConnection]]


def code_of(error: BaseException) -> str:
    """`syntax`, `binder`, `timeout`, `memory`, else `execution`."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), "execution")


def message_of(
    error: BaseException, private: Iterable[str], cursor: Cursor | None = None, tables: Iterable[str] = ()
) -> str:
    """What went wrong, at most 500 characters, without `private` words; `cursor` opens the database it went wrong in.

    A name that the database does not have comes with those that it has, those of the statement's own `tables` first.
    """
    if isinstance(error, FileNotFoundError):
        return "the database is not there now"
    code = code_of(error)
    if code in _SAID:
        return _SAID[code]
    known = _names(cursor) if cursor is not None and code == "binder" else {}
    text = explained(_NO_HINT.sub("", str(error)[:_READ_MOST]), known, FUNCTIONS, tables)
    for word in sorted(private, key=len, reverse=True):
        text = text.replace(word, "…")
    return _PATH.sub("…", text)[:500]


def _names(cursor: Cursor) -> Names:
    """The columns of the database's tables, none where it cannot be asked now."""
    try:
        with cursor() as connection:
            columns = connection.execute(_COLUMNS).fetchall()
    except (duckdb.Error, OSError):
        return {}
    plain = known_by_name((schema, table) for schema, table, _ in columns)
    names: dict[str, list[str]] = {}
    for schema, table, column in columns:
        names.setdefault(table if (schema, table) in plain else f"{schema}.{table}", []).append(column)
    return names
