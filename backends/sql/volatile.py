"""Which tables of a database give other rows though its data stay: those that call the clock or chance inside.

Views, macros and generated columns hold expressions of whoever made the database. They are looked at as the engine
writes them out, by their words: a word too many costs a result that is not kept, one too few would be a wrong answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import duckdb

from policies.sql_functions import FUNCTIONS, READ_AS, TABLE_FUNCTIONS, UNSTABLE

_CALLABLE: Final = FUNCTIONS | READ_AS | TABLE_FUNCTIONS
"""What a statement may call; a macro of such a name is called in place of the engine's function."""

# The engine makes this list anew each time, in some 20 ms, so it is asked for once.
_FUNCTIONS: Final = """
    SELECT function_name, macro_definition, stability IS NULL FROM duckdb_functions()
    WHERE stability <> 'CONSISTENT' OR function_type = 'table'
        OR (NOT internal AND database_name = current_database())
"""
_TABLES: Final = """
    SELECT view_name, sql FROM duckdb_views() WHERE NOT internal AND database_name = current_database()
    UNION ALL
    SELECT table_name, generation_expression FROM duckdb_columns()
    WHERE is_generated AND NOT internal AND database_name = current_database()
"""
_WORD: Final = re.compile(
    r"""'(?:[^']|'')*'|(?:"(?P<quoted>(?:[^"]|"")*)"|(?P<plain>using\s+sample|\w+))(?P<call>\s*\()?""", re.IGNORECASE
)
# The engine reads these as calls without parentheses, too.
_BARE: Final = frozenset({"current_date", "current_time", "current_timestamp", "localtime", "localtimestamp"})
_SAMPLING: Final = frozenset({"tablesample", "using sample"})
# With one argument the first counts from today; the others are consistent only in the engine's own list.
_BESIDES: Final = frozenset({"age", "current_localtime", "current_localtimestamp"})


@dataclass(frozen=True, slots=True)
class Volatile:
    """The names of such tables, in lower case; `all`: any statement may call such a macro unawares."""

    names: frozenset[str] = frozenset()
    all: bool = False

    def concerns(self, tables: Iterable[str]) -> bool:
        """Whether one of the tables that a statement names, as in `policies.sql.Statement`, is such a table."""
        return self.all or any(_last(table) in self.names for table in tables)


def volatile(connection: duckdb.DuckDBPyConnection) -> Volatile:
    """What is volatile in the database that a connection has open. Raises duckdb.Error."""
    functions = [(name.lower(), *more) for name, *more in connection.execute(_FUNCTIONS).fetchall()]
    macros = [(name, text) for name, text, _ in functions if text is not None]
    tables = [(name.lower(), text) for name, text in connection.execute(_TABLES).fetchall()]
    # Nothing is said of table functions: those that statements may not call count, as `query('…')` and the like.
    found = {name for name, text, unsaid in functions if text is None and not (unsaid and name in _CALLABLE)}
    unstable = found | UNSTABLE | _BESIDES
    found = _tainted([*macros, *tables], {f"{name}(" for name in unstable} | _BARE | _SAMPLING)
    shadowing = found.intersection(name for name, _ in macros) & _CALLABLE
    return Volatile(frozenset(map(_last, found)), all=bool(shadowing))


def _tainted(definitions: Iterable[tuple[str, str]], signs: Iterable[str]) -> set[str]:
    """The names of the definitions that hold one of the signs, or the name of one that does."""
    users: dict[str, set[str]] = {}
    for name, text in definitions:
        for word in _words(text):
            users.setdefault(word, set()).add(name)
    found: set[str] = set()
    ahead = set(signs)
    while ahead:
        ahead = {user for word in ahead for user in users.get(word, ())} - found
        found |= ahead
    return found


def _words(text: str) -> Iterator[str]:
    """Every word and quoted name outside of texts, in lower case; `word(` besides where it is called."""
    for match in _WORD.finditer(text):
        quoted, plain = match["quoted"], match["plain"]
        word = quoted.replace('""', '"').lower() if quoted else " ".join((plain or "").lower().split())
        if word:
            yield word
            if match["call"]:
                yield f"{word}("


def _last(name: str) -> str:
    """What stands behind the last dot: a statement's tables come with their schema, and names may hold dots."""
    return name.rpartition(".")[2]
