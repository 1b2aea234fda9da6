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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import sqlglot
from sqlglot import exp
from sqlglot.errors import ErrorLevel, ParseError, SqlglotError, TokenError, UnsupportedError
from sqlglot.optimizer.scope import traverse_scope

from policies.dialects import DIALECTS, Schema, to_duckdb
from policies.hints import TABLES, instead_of, other_function, spelling, written
from policies.naming import names_of
from policies.placeholders import PARAMETERS, BadParameters, named, numbered
from policies.rewriting import Untranslatable
from policies.sql_functions import FUNCTIONS, READ_AS, TABLE_FUNCTIONS, UNSTABLE

MAX_BYTES: Final = 20_000
_TRANSLATED_MOST: Final = 5 * MAX_BYTES

Instead = Callable[[str, str], str]
"""What to write instead of a function, by its name and its whole call."""

Refusal = Literal["syntax", "refused", "too_long", "too_complex"]

_MARKS: Final = re.compile(r"[?$:@%{]")
"""Without one of these a text has no parameters, in whichever dialect."""

_FENCED: Final = re.compile(r"\s*```(?:\w*(?=\s*\n)|sql(?=\s))?(.*)```\s*", re.DOTALL | re.IGNORECASE)
# Besides its own errors sqlglot lets through what its code raises on arguments that it did not expect.
_PARSER_FAILS: Final = (SqlglotError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError)
_ROOTS: Final = (exp.Select, exp.SetOperation, exp.Subquery, exp.Values)
_NEVER: Final = (
    *(exp.DDL, exp.DML, exp.Drop, exp.Alter, exp.Command, exp.Set, exp.Pragma, exp.Use, exp.Attach, exp.Detach),
    *(exp.Describe, exp.Summarize, exp.Show, exp.Into, exp.Lock, exp.Transaction, exp.Commit, exp.Rollback),
)
_NAMED: Final = (exp.Anonymous, exp.AnonymousAggFunc)
_SYSTEM_SCHEMAS: Final = frozenset({"information_schema", "pg_catalog"})
_SYSTEM_TABLE: Final = re.compile(r"(duckdb|pragma|pg|sqlite)_")
# Of a name that no table has, the engine puts the parts together again and looks for such a file.
_FILES: Final = frozenset(
    {"csv", "tsv", "json", "jsonl", "ndjson", "parquet", "gz", "zst", "db", "ddb", "duckdb", "xlsx", "arrow", "avro"}
)
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
    `parameters`: what `canonical` needs values for, `("1", "2")` as `$1, $2` (where the text has `?` as well, in its
    order), or names without their `$`.
    """

    canonical: str
    tables: frozenset[str]
    deterministic: bool
    unlimited: bool
    parameters: tuple[str, ...] = ()


def read_statement(
    text: str, *, dialect: str = "duckdb", parameters: bool = False, schema: Schema | None = None
) -> Statement:
    """Check a text and give its canonical form, always in DuckDB's dialect.

    `dialect`: one of `policies.dialects.DIALECTS`. A text in another than DuckDB's is translated first, and the guard
    reads the translation. `schema` tells names from texts and dates from other columns where the dialect mixes them.
    `parameters`: the caller has values to bind, so the text may hold `?`, `$1` or `$name`, of one kind.
    Raises SqlRefused. The cost is bounded by `MAX_BYTES`, but a hostile text can take a second and can exhaust the
    C stack: callers run it in a process of its own.
    """
    check_text(text)
    if "```" in text:
        text = _unfenced(text)
    if dialect not in DIALECTS:
        raise SqlRefused(f"the dialect {dialect[:40]!r} is unknown: use {', '.join(DIALECTS)}", "refused")
    others = DIALECTS[1:] if dialect == "duckdb" else ()
    return _read(text, dialect, parameters, schema, lambda name, call: other_function(name, call, others, _runs))


def _read(text: str, dialect: str, parameters: bool, schema: Schema | None, instead: Instead) -> Statement:
    try:
        root, source = _parse(text, dialect), text
        names: tuple[str, ...] = ()
        if parameters and _MARKS.search(text):
            root, source, names = _bind(root, text, dialect)
        if dialect != "duckdb":
            root, source = _translate(root, text, dialect, schema)
        nodes = list(root.walk())
        _check(nodes, source, instead, parameters=parameters)
        deterministic = not any(_is_unstable(node) for node in nodes)
        tables, unlimited = _tables(root, nodes), _is_unlimited(root)
        _fold_names(nodes)
        canonical = root.sql("duckdb", copy=False, comments=False, unsupported_level=ErrorLevel.RAISE)
    except RecursionError:
        raise SqlRefused("the statement is nested too deeply", "too_complex") from None
    except (Untranslatable, UnsupportedError) as error:
        raise SqlRefused(f"the statement cannot be run as it is: {error}", "refused") from None
    except _PARSER_FAILS:
        raise SqlRefused("the statement cannot be read", "syntax") from None
    return Statement(
        canonical=canonical,
        tables=tables,
        deterministic=deterministic,
        unlimited=unlimited,
        parameters=names,
    )


def check_text(text: str) -> None:
    """Raise SqlRefused where the text is too long to be parsed, or no text that has an encoding."""
    try:
        too_long = len(text) > MAX_BYTES or len(text.encode()) > MAX_BYTES
    except UnicodeEncodeError:
        raise SqlRefused("the statement is not valid Unicode", "syntax") from None
    if too_long:
        raise SqlRefused(f"the statement is longer than {MAX_BYTES:,} bytes", "too_long")


def _unfenced(text: str) -> str:
    """The text without the Markdown fence around it; spaces in its place keep what is told of lines and columns."""
    found = _FENCED.fullmatch(text)
    if found is None:
        return text
    start, end = found.span(1)
    return " " * start + text[start:end] + " " * (len(text) - end)


def _parse(text: str, dialect: str) -> exp.Expr:
    if not text.isprintable() and any(ord(sign) < 32 and sign not in "\t\n\r\f" for sign in text):
        raise SqlRefused("the statement holds control characters", "syntax")
    try:
        parsed = sqlglot.parse(text, read=dialect)
    except ParseError as error:
        raise SqlRefused(_where(error) + spelling(text), "syntax") from None
    except TokenError:
        raise SqlRefused("a quote or a comment is not closed", "syntax") from None
    roots = [root for root in parsed if root is not None and not isinstance(root, exp.Semicolon)]
    if not roots:
        raise SqlRefused("there is no statement", "syntax")
    if len(roots) > 1:
        raise SqlRefused("send one statement at a time", "refused")
    if not isinstance(roots[0], _ROOTS):
        hint = instead_of(roots[0])
        raise SqlRefused(f"only a query may run: SELECT, WITH … SELECT or VALUES{hint}", "refused")
    return roots[0]


def _translate(root: exp.Expr, text: str, dialect: str, schema: Schema | None) -> tuple[exp.Expr, str]:
    """The tree that DuckDB will make of the statement, and its text: what is checked from here on is what runs."""
    _check_kinds(root.walk())
    translated = to_duckdb(root, dialect, schema, names_of(root, text, dialect))
    if len(translated) > _TRANSLATED_MOST:
        raise SqlRefused("the statement is too long once it is translated for DuckDB", "too_complex")
    return _parse(translated, "duckdb"), translated


def _where(error: ParseError) -> str:
    if not error.errors:
        return "the statement cannot be read"
    first = error.errors[0]
    near = str(first.get("highlight") or "")
    # The parser tells where a piece ends.
    column = max(1, int(first.get("col") or 1) - len(near) + 1)
    said = str(first.get("description"))
    said = "Something is missing" if said.startswith("Required keyword") else said
    return f"{said} at line {first.get('line')}, column {column}, near {near!r}"


def _bind(root: exp.Expr, text: str, dialect: str) -> tuple[exp.Expr, str, tuple[str, ...]]:
    """The tree with its parameters named, the text that it was read from, and the names."""
    try:
        renamed = numbered(root, text, dialect)
        if renamed is not None:
            root = _parse(renamed, dialect)
        return root, text if renamed is None else renamed, named(root, unnumbered=renamed is not None)
    except BadParameters as error:
        raise SqlRefused(str(error), "refused") from None


def _check_kinds(nodes: Iterable[exp.Expr]) -> None:
    for node in nodes:
        if isinstance(node, _NEVER):
            raise SqlRefused(f"{node.key.upper()} is not allowed in a query{instead_of(node)}", "refused")


def _check(nodes: Sequence[exp.Expr], source: str, instead: Instead, *, parameters: bool) -> None:
    """`source`: the text of the nodes."""
    _check_kinds(nodes)
    for node in nodes:
        if isinstance(node, PARAMETERS) and not parameters:
            raise SqlRefused("parameters need values beside the statement: none are given", "refused")
        if isinstance(node, exp.Func):
            _check_function(node, source, instead)
        elif isinstance(node, exp.Table):
            _check_table(node)
        elif isinstance(node, exp.Column) and not node.table and node.name.lower() in _SESSION_WORDS:
            raise SqlRefused(f"{node.name.lower()} is not available", "refused")


def _check_function(node: exp.Func, source: str, instead: Instead) -> None:
    if isinstance(node, _NAMED):
        allowed = node.name.lower() in FUNCTIONS or _is_table_function(node)
    else:
        allowed = any(name in FUNCTIONS or name in READ_AS for name in _names(node))
    if not allowed:
        as_written, call = written(node, source)
        shown = as_written or _shown(node)
        raise SqlRefused(f"the function {shown[:60]} is not available{instead(shown, call)}", "refused")


def _runs(text: str, dialect: str) -> bool:
    try:
        _read(text, dialect, True, None, lambda _name, _call: "")
    except SqlRefused:
        return False
    return True


def _is_table_function(node: exp.Expr) -> bool:
    return isinstance(node.parent, exp.Table) and node.name.lower() in TABLE_FUNCTIONS


def _names(node: exp.Func) -> Iterator[str]:
    if isinstance(node, _NAMED):
        yield node.name.lower()
    else:
        # The parser takes its own names of JSON functions to pieces.
        yield from (name.lower().replace("j_s_o_n", "json") for name in type(node).sql_names())


def _shown(node: exp.Func) -> str:
    return next(_names(node))[:60]


def _check_table(node: exp.Table) -> None:
    if isinstance(node.this, exp.Func):
        if not any(name in TABLE_FUNCTIONS for name in _names(node.this)):
            raise SqlRefused(f"the function {_shown(node.this)} is not available in FROM", "refused")
        return
    if any(isinstance(part, PARAMETERS) for part in node.parts):
        raise SqlRefused("a parameter stands for a value, never for a table", "refused")
    parts = [part.name.lower() for part in node.parts]
    if any(_NO_TABLE_NAME.search(part) for part in parts) or (len(parts) > 1 and parts[-1] in _FILES):
        raise SqlRefused("FROM takes tables of the database by name: no files, no URLs", "refused")
    if _SYSTEM_SCHEMAS.intersection(parts) or _SYSTEM_TABLE.match(parts[-1]):
        raise SqlRefused(f"system tables are not available: {TABLES}", "refused")


def _is_unstable(node: exp.Expr) -> bool:
    if isinstance(node, exp.Func):
        # age(x) counts from today, age(x, y) does not.
        return any(name in UNSTABLE for name in _names(node)) or (
            node.name.lower() == "age" and len(node.expressions) == 1
        )
    if isinstance(node, exp.Column):
        return not node.table and node.name.lower() in UNSTABLE
    return isinstance(node, exp.TableSample | exp.Version | exp.HistoricalData)


def _tables(root: exp.Expr, nodes: Sequence[exp.Expr]) -> frozenset[str]:
    """Every table named, less the names that only stand for a CTE."""
    named = {_dotted(node) for node in nodes if isinstance(node, exp.Table) and not isinstance(node.this, exp.Func)}
    ctes = {node.alias.lower() for node in nodes if isinstance(node, exp.CTE)}
    if not ctes:
        return frozenset(named)
    real = {
        _dotted(source)
        for scope in traverse_scope(root)
        for source in scope.sources.values()
        if isinstance(source, exp.Table) and not isinstance(source.this, exp.Func)
    }
    return frozenset(named - (ctes - real))


def _dotted(table: exp.Table) -> str:
    return ".".join(part.name.lower() for part in table.parts)


def _fold_names(nodes: Iterable[exp.Expr]) -> None:
    """Put table names, aliases of tables and the first part of every column name in lower case.

    Later parts stay as written: they may be keys of a JSON or MAP value, where case counts. So do the names of
    output columns and the keys of structs, which the result shows.
    """
    for node in nodes:
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
