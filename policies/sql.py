"""Reads one SQL statement: is it a single read-only query, what is its canonical text, and what does it depend on.

The rules, in the order in which they are applied:

1. The text has at most `MAX_BYTES` bytes: the cost of parsing grows with it.
2. It is exactly one statement, and its root is a query. Roots are allowed, never denied: the parser reads some
   commands (`checkpoint`, `listen x`) as columns and aliases.
3. Nothing inside writes, locks, describes or takes parameters.
4. Functions are those of `policies.sql_functions`.
5. What stands in FROM is a table by name: no file, no URL, no system table, no other function than a few.

The caller executes `Statement.canonical`, never the text it was given, so what was checked is what runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

import sqlglot
from sqlglot import exp
from sqlglot.errors import ErrorLevel, ParseError, SqlglotError, UnsupportedError
from sqlglot.optimizer.scope import traverse_scope

from policies.sql_functions import FUNCTIONS, READ_AS, TABLE_FUNCTIONS, UNSTABLE

MAX_BYTES: Final = 20_000

Refusal = Literal["syntax", "refused", "too_long", "too_complex"]

# Besides its own errors sqlglot lets through what its code raises on arguments that it did not expect.
_PARSER_FAILS: Final = (SqlglotError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError)
_ROOTS: Final = (exp.Select, exp.SetOperation, exp.Subquery, exp.Values)
_NEVER: Final = (
    *(exp.DDL, exp.DML, exp.Drop, exp.Alter, exp.Command, exp.Set, exp.Pragma, exp.Use, exp.Attach, exp.Detach),
    *(exp.Describe, exp.Summarize, exp.Show, exp.Into, exp.Lock, exp.Transaction, exp.Commit, exp.Rollback),
)
_PARAMETERS: Final = (exp.Parameter, exp.Placeholder, exp.SessionParameter)
_NAMED: Final = (exp.Anonymous, exp.AnonymousAggFunc)
_SYSTEM_SCHEMAS: Final = frozenset({"information_schema", "pg_catalog"})
_SYSTEM_TABLE: Final = re.compile(r"(duckdb|pragma|pg|sqlite)_")
_NO_TABLE_NAME: Final = re.compile(r"[^\w $#@-]")
# Without parentheses the engine reads these as calls where no column has the name.
_SESSION_WORDS: Final = frozenset(
    {"current_catalog", "current_database", "current_role", "current_schema", "current_user", "session_user"}
)


class SqlRefused(Exception):
    """The statement may not run. The message is for whoever wrote it; it holds nothing of the server's.

    `code`: `syntax` (it does not parse), `refused` (it is not allowed), `too_long`, `too_complex`.
    """

    def __init__(self, message: str, code: Refusal) -> None:
        super().__init__(message)
        self.code: Refusal = code


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """A query that may run.

    `canonical` is equal for texts that differ in layout, comments, spelling of operators and case of names only.
    `tables` are the tables it names, lower case, as `table`, `schema.table` or `database.schema.table`; views are
    not resolved. `deterministic`: the same data give the same rows. `unlimited`: ` LIMIT n` may be appended.
    """

    canonical: str
    tables: frozenset[str]
    deterministic: bool
    unlimited: bool


def read_statement(text: str, *, dialect: str = "duckdb") -> Statement:
    """Check a text and give its canonical form, always in DuckDB's dialect.

    Raises SqlRefused. The cost is bounded by `MAX_BYTES`, but a hostile text can take a second and can exhaust the
    C stack: callers run it in a process of its own.
    """
    check_text(text)
    try:
        root = _parse(text, dialect)
        _check(root)
        deterministic = not any(_is_unstable(node) for node in root.walk())
        tables = _tables(root)
        _fold_names(root)
        canonical = root.sql("duckdb", comments=False, unsupported_level=ErrorLevel.RAISE)
    except RecursionError:
        raise SqlRefused("the statement is nested too deeply", "too_complex") from None
    except UnsupportedError as error:
        raise SqlRefused(f"the statement cannot be run as it is: {error}", "refused") from None
    except _PARSER_FAILS:
        raise SqlRefused("the statement cannot be read", "syntax") from None
    return Statement(canonical=canonical, tables=tables, deterministic=deterministic, unlimited=_is_unlimited(root))


def check_text(text: str) -> None:
    """Raise SqlRefused where the text is too long to be parsed, or no text that has an encoding."""
    try:
        too_long = len(text) > MAX_BYTES or len(text.encode()) > MAX_BYTES
    except UnicodeEncodeError:
        raise SqlRefused("the statement is not valid Unicode", "syntax") from None
    if too_long:
        raise SqlRefused(f"the statement is longer than {MAX_BYTES:,} bytes", "too_long")


def _parse(text: str, dialect: str) -> exp.Expr:
    if not text.isprintable() and any(ord(sign) < 32 and sign not in "\t\n\r\f" for sign in text):
        raise SqlRefused("the statement holds control characters", "syntax")
    try:
        parsed = sqlglot.parse(text, read=dialect)
    except ParseError as error:
        raise SqlRefused(_where(error), "syntax") from None
    roots = [root for root in parsed if root is not None and not isinstance(root, exp.Semicolon)]
    if not roots:
        raise SqlRefused("there is no statement", "syntax")
    if len(roots) > 1:
        raise SqlRefused("send one statement at a time", "refused")
    if not isinstance(roots[0], _ROOTS):
        raise SqlRefused("only a query may run: SELECT, WITH … SELECT or VALUES", "refused")
    return roots[0]


def _where(error: ParseError) -> str:
    if not error.errors:
        return "the statement cannot be read"
    first = error.errors[0]
    place = f"line {first.get('line')}, column {first.get('col')}"
    return f"{first.get('description')} at {place}, near {first.get('highlight')!r}"


def _check(root: exp.Expr) -> None:
    for node in root.walk():
        if isinstance(node, _NEVER):
            raise SqlRefused(f"{node.key.upper()} is not allowed in a query", "refused")
        if isinstance(node, _PARAMETERS):
            raise SqlRefused("parameters are not supported: write the values into the statement", "refused")
        if isinstance(node, exp.Func):
            _check_function(node)
        elif isinstance(node, exp.Table):
            _check_table(node)
        elif isinstance(node, exp.Column) and not node.table and node.name.lower() in _SESSION_WORDS:
            raise SqlRefused(f"{node.name.lower()} is not available", "refused")


def _check_function(node: exp.Func) -> None:
    if isinstance(node, _NAMED):
        allowed = node.name.lower() in FUNCTIONS or _is_table_function(node)
    else:
        allowed = any(name in FUNCTIONS or name in READ_AS for name in _names(node))
    if not allowed:
        raise SqlRefused(f"the function {_shown(node)} is not available", "refused")


def _is_table_function(node: exp.Expr) -> bool:
    return isinstance(node.parent, exp.Table) and node.name.lower() in TABLE_FUNCTIONS


def _names(node: exp.Func) -> Iterator[str]:
    if isinstance(node, _NAMED):
        yield node.name.lower()
    else:
        yield from (name.lower() for name in type(node).sql_names())


def _shown(node: exp.Func) -> str:
    return next(_names(node))[:60]


def _check_table(node: exp.Table) -> None:
    if isinstance(node.this, exp.Func):
        if not any(name in TABLE_FUNCTIONS for name in _names(node.this)):
            raise SqlRefused(f"the function {_shown(node.this)} is not available in FROM", "refused")
        return
    parts = [part.name.lower() for part in node.parts]
    if any(_NO_TABLE_NAME.search(part) for part in parts):
        raise SqlRefused("FROM takes tables of the database by name: no files, no URLs", "refused")
    if _SYSTEM_SCHEMAS.intersection(parts) or _SYSTEM_TABLE.match(parts[-1]):
        raise SqlRefused("system tables are not available: ask for the description of the tables", "refused")


def _is_unstable(node: exp.Expr) -> bool:
    if isinstance(node, exp.Func):
        # age(x) counts from today, age(x, y) does not.
        return any(name in UNSTABLE for name in _names(node)) or (
            node.name.lower() == "age" and len(node.expressions) == 1
        )
    if isinstance(node, exp.Column):
        return not node.table and node.name.lower() in UNSTABLE
    return isinstance(node, exp.TableSample | exp.Version | exp.HistoricalData)


def _tables(root: exp.Expr) -> frozenset[str]:
    """Every table named, less the names that only stand for a CTE."""
    real = {
        _dotted(source)
        for scope in traverse_scope(root)
        for source in scope.sources.values()
        if isinstance(source, exp.Table) and not isinstance(source.this, exp.Func)
    }
    named = {_dotted(node) for node in root.find_all(exp.Table) if not isinstance(node.this, exp.Func)}
    ctes = {node.alias.lower() for node in root.find_all(exp.CTE)}
    return frozenset(named - (ctes - real))


def _dotted(table: exp.Table) -> str:
    return ".".join(part.name.lower() for part in table.parts)


def _fold_names(root: exp.Expr) -> None:
    """Put table names, aliases of tables and the first part of every column name in lower case.

    Later parts stay as written: they may be keys of a JSON or MAP value, where case counts. So do the names of
    output columns and the keys of structs, which the result shows.
    """
    for node in root.walk():
        if isinstance(node, exp.Table):
            folded: list[exp.Expr] = node.parts
        elif isinstance(node, exp.Column):
            folded = node.parts[:1]
        elif isinstance(node, exp.TableAlias):
            folded = [node.this]
        else:
            continue
        for part in folded:
            if isinstance(part, exp.Identifier):
                part.set("this", part.name.lower())


def _is_unlimited(root: exp.Expr) -> bool:
    return not any(root.args.get(clause) for clause in ("limit", "offset", "sample")) and not isinstance(
        root, exp.Values
    )
