"""The dialects that statements may be written in, and the way from each to DuckDB's.

sqlglot translates; this corrects what it leaves as it was or gets wrong, on the tree, before it is written out. What
comes out is text in DuckDB's dialect that has still to pass the guard: nothing here decides what may run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from sqlglot import exp
from sqlglot.errors import ErrorLevel

from policies import bigquery, sqlite
from policies.calls_of_dialects import translated as translated_call
from policies.grouping import settle_bare_columns
from policies.naming import Names, name_columns
from policies.rewriting import bare, fill, inner_first, is_predicate

DIALECTS: Final = ("duckdb", "sqlite", "postgres", "mysql", "bigquery", "snowflake")

_CALLED: Final[Mapping[str, str]] = {
    **{dialect: dialect for dialect in DIALECTS},
    **{"postgresql": "postgres", "pg": "postgres", "sqlite3": "sqlite", "mariadb": "mysql"},
}

Schema = Mapping[str, Mapping[str, str]]
"""The columns of each table with their types in DuckDB's words, where the caller knows them."""
BY_SCHEMA: Final = frozenset({"sqlite"})
"""The dialects that are read better with a schema; others take no notice of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """The schema of a database as it is now; no two that differ have the same `version`."""

    database: str
    version: int
    schema: Schema


_ARITHMETIC: Final = (exp.Add, exp.Sub, exp.Mul, exp.Div, exp.Mod, exp.Avg)
_PLAIN_WORD: Final = re.compile(r"[^\W\d]\w*")
_NO_WHOLE_NUMBER: Final = (exp.Interval, exp.Extract, exp.Anonymous)


def dialect_called(name: str) -> str | None:
    """The dialect that a client or a configuration means, whatever the case; None for none of them."""
    return _CALLED.get(name.lower())


def to_duckdb(root: exp.Expr, dialect: str, schema: Schema | None = None, names: Names = ()) -> str:
    """The statement, a tree read in `dialect`, as text for DuckDB. Changes the tree.

    `names` are those of the result's columns, as `policies.naming.names_of` has them. Raises Untranslatable, and what
    sqlglot raises where it cannot write a node.
    """
    if dialect == "sqlite":
        sqlite.settle_quotes(root, schema)
        sqlite.settle_totals(root)
        sqlite.settle_recursion(root)
        sqlite.settle_comparisons(root, schema)
    if dialect == "bigquery":
        bigquery.check_tables(root)
        bigquery.settle_limits(root)
    if dialect in {"sqlite", "mysql"}:
        sqlite.settle_patterns(root)
    if dialect in {"sqlite", "mysql", "postgres"}:
        settle_bare_columns(root, extremes=dialect == "sqlite")
    _settle_orders(root)
    for node in inner_first(root):
        for rule in _RULES[dialect]:
            changed = rule(node)
            if changed is not None:
                node.replace(changed)
                break
    name_columns(root, names)
    for name in root.find_all(exp.Identifier):
        # DuckDB reads `$x`, `#1` and the like as something else than a name.
        if not name.quoted and not _PLAIN_WORD.fullmatch(name.name):
            name.set("quoted", True)
    return root.sql("duckdb", comments=False, unsupported_level=ErrorLevel.RAISE)


def _settle_orders(root: exp.Expr) -> None:
    """`ORDER BY NULL` asks for no order; DuckDB takes it for a mistake."""
    for order in list(root.find_all(exp.Order)):
        keys = [key for key in order.expressions if not isinstance(bare(key.this), exp.Null)]
        if not keys and isinstance(order.parent, exp.Query):
            order.pop()
        elif keys:
            order.set("expressions", keys)


def _division(node: exp.Expr) -> exp.Expr | None:
    """Where whole numbers divide to whole numbers; DuckDB's `//` does so, and divides others as ever."""
    if not isinstance(node, exp.Div) or not node.args.get("typed"):
        return None
    if any(isinstance(bare(side), _NO_WHOLE_NUMBER) for side in (node.this, node.expression)):
        return None
    divisor = fill("NULLIF($x, 0)", x=node.expression) if node.args.get("safe") else node.expression.copy()
    return exp.IntDiv(this=node.this.copy(), expression=divisor)


def _remainder(node: exp.Expr) -> exp.Expr | None:
    """Divided by nothing, it is NULL and no error."""
    if not isinstance(node, exp.Mod):
        return None
    return exp.Mod(this=node.this.copy(), expression=fill("NULLIF($x, 0)", x=node.expression))


def _number(node: exp.Expr) -> exp.Expr | None:
    """A comparison that is counted with is 0 or 1."""
    if is_predicate(node) and isinstance(node.parent, _ARITHMETIC) and not isinstance(node, exp.Paren):
        return fill("CAST($x AS INTEGER)", x=node)
    if isinstance(node, exp.Paren) and is_predicate(node) and isinstance(node.parent, _ARITHMETIC):
        return fill("CAST($x AS INTEGER)", x=node)
    return None


def _pattern(node: exp.Expr) -> exp.Expr | None:
    """LIKE that takes no notice of case."""
    if type(node) is not exp.Like:
        return None
    return exp.ILike(**node.copy().args)


def _text_argument(node: exp.Expr) -> exp.Expr | None:
    """Functions of text that take numbers and dates as well."""
    if not isinstance(node, exp.Column) or not isinstance(node.parent, _OF_TEXT) or node.parent.this is not node:
        return None
    return exp.cast(node.copy(), exp.DType.TEXT)


def _limit(node: exp.Expr) -> exp.Expr | None:
    """A negative limit is none."""
    if isinstance(node, exp.Limit) and isinstance(node.expression, exp.Neg):
        return exp.Limit(expression=exp.Null())
    return None


_OF_TEXT: Final = (
    *(exp.Substring, exp.Length, exp.StrPosition, exp.Trim, exp.Upper),
    *(exp.Lower, exp.Left, exp.Right, exp.Pad),
)

Rule = Callable[[exp.Expr], exp.Expr | None]
_RULES: Final[Mapping[str, tuple[Rule, ...]]] = {
    "sqlite": (sqlite.translated, _division, _remainder, _number, _pattern, _text_argument, _limit),
    "postgres": (lambda node: translated_call(node, "postgres"), _division),
    "mysql": (lambda node: translated_call(node, "mysql"), _remainder, _number, _pattern, _text_argument),
    "bigquery": (lambda node: translated_call(node, "bigquery"),),
    "snowflake": (lambda node: translated_call(node, "snowflake"),),
}
