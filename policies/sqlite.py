"""SQLite's expressions in DuckDB's terms: text in double quotes, loose types, and functions with other habits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import zip_longest
from typing import Final

from sqlglot import exp

from policies import sqlite_time
from policies.rewriting import as_text, bare, called, fill, is_predicate, string

COMPARISONS: Final = (exp.EQ, exp.NEQ, exp.LT, exp.LTE, exp.GT, exp.GTE, exp.NullSafeEQ, exp.NullSafeNEQ)
_PATTERNS: Final = (exp.Like, exp.ILike, exp.Glob, exp.RegexpLike)
_INTEGERS: Final = (exp.DType.INT, exp.DType.BIGINT, exp.DType.SMALLINT, exp.DType.TINYINT, exp.DType.MEDIUMINT)
_PRINTED: Final = re.compile(r"%[-+ 0#,]*\d*(?:\.\d+)?([a-zA-Z%])")
_MOMENT: Final = re.compile(r"\d{4}-\d\d?-\d\d?(?:[ T]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d(?::\d\d)?)?)?")
_TYPEOF: Final = """
    CASE WHEN $x IS NULL THEN 'null'
         WHEN TYPEOF($x) LIKE '%INT' OR TYPEOF($x) IN ('INTEGER', 'BOOLEAN') THEN 'integer'
         WHEN TYPEOF($x) IN ('DOUBLE', 'FLOAT') OR TYPEOF($x) LIKE 'DECIMAL%' THEN 'real'
         WHEN TYPEOF($x) = 'BLOB' THEN 'blob' ELSE 'text' END
"""


def settle_quotes(root: exp.Expr, schema: Mapping[str, Mapping[str, str]] | None) -> None:
    """Make text literals of the names in double quotes that name no column.

    With a schema (`policies.dialects.Schema`) a name is a column if any table has it. Without one, it is text where
    it is compared with a column that is not quoted, is a pattern or a date's modifier, and stands nowhere else as a
    name.
    """
    quoted = [column for column in root.find_all(exp.Column) if _is_quoted_word(column)]
    if not quoted:
        return
    known = _names_in(root)
    if schema is not None:
        known |= {column.lower() for columns in schema.values() for column in columns}
    for column in quoted:
        if column.name.lower() not in known and (schema is not None or _stands_for_a_value(column)):
            column.replace(exp.Literal.string(column.name))


def _is_quoted_word(node: exp.Expr | None) -> bool:
    return (
        isinstance(node, exp.Column) and isinstance(node.this, exp.Identifier) and node.this.quoted and not node.table
    )


def _names_in(root: exp.Expr) -> set[str]:
    """Names of columns that the statement gives, or uses in a way that only a name can be used."""
    names = {column.name.lower() for column in root.find_all(exp.Column) if not _is_quoted_word(column)}
    names |= {alias.alias.lower() for alias in root.find_all(exp.Alias)}
    names |= {part.name.lower() for alias in root.find_all(exp.TableAlias) for part in alias.columns}
    return names


def _stands_for_a_value(column: exp.Column) -> bool:
    parent = column.parent
    if isinstance(parent, _PATTERNS):
        return parent.expression is column
    if isinstance(parent, COMPARISONS):
        return parent.expression is column and not _is_quoted_word(bare(parent.this))
    if isinstance(parent, exp.In | exp.Between):
        return parent.this is not column and not _is_quoted_word(bare(parent.this))
    return parent is not None and sqlite_time.call_of(parent) is not None and sqlite_time.is_modifier(column.name)


def settle_patterns(root: exp.Expr) -> None:
    """Columns that are matched with a pattern are matched as text. MySQL does so as well."""
    for node in list(root.find_all(*_PATTERNS)):
        if isinstance(node.this, exp.Column):
            node.this.replace(as_text(node.this))


def settle_comparisons(root: exp.Expr, schema: Mapping[str, Mapping[str, str]] | None = None) -> None:
    """Columns that are compared with the text of a date function are compared as text.

    With a schema so are dates that are compared with a text that is none: `day >= '2024-06'`.
    """
    moments = _moments(schema or {})
    for node in list(root.find_all(*COMPARISONS, exp.Between, exp.In)):
        sides = [node.this, *_others(node)]
        every = any(sqlite_time.gives_moment_text(side) for side in sides)
        dates = bool(moments) and any(_is_no_moment(side) for side in sides)
        for side in sides:
            if isinstance(side, exp.Column) and (every or (dates and side.name.lower() in moments)):
                side.replace(as_text(side))


def _moments(schema: Mapping[str, Mapping[str, str]]) -> set[str]:
    """The columns that are dates or timestamps in whichever table."""
    kinds: dict[str, bool] = {}
    for columns in schema.values():
        for name, kind in columns.items():
            kinds[name.lower()] = kind.startswith(("DATE", "TIMESTAMP")) and kinds.get(name.lower(), True)
    return {name for name, is_moment in kinds.items() if is_moment}


def _is_no_moment(node: exp.Expr) -> bool:
    """Is it a text that the engine could not read as a date?"""
    text = string(node)
    return text is not None and not _MOMENT.fullmatch(text)


def _others(node: exp.Expr) -> list[exp.Expr]:
    if isinstance(node, exp.Between):
        return [node.args["low"], node.args["high"]]
    if isinstance(node, exp.In):
        return list(node.expressions)
    return [node.expression]


def settle_totals(root: exp.Expr) -> None:
    """`TOTAL`, a sum that is 0.0 over nothing: the window or filter around it is the sum's."""
    for node in [node for node in root.find_all(exp.Anonymous) if called(node) == "total"]:
        if len(node.expressions) != 1:
            continue
        whole: exp.Expr = exp.Sum(this=node.expressions[0])
        node.replace(whole)
        while isinstance(whole.parent, exp.Window | exp.Filter) and whole.parent.this is whole:
            whole = whole.parent
        whole.replace(fill("COALESCE(CAST($x AS DOUBLE), 0.0)", x=whole))


def settle_recursion(root: exp.Expr) -> None:
    """A common table expression may name itself without the word RECURSIVE."""
    for clause in root.find_all(exp.With):
        for table in clause.expressions:
            if any(named.name.lower() == table.alias.lower() for named in table.this.find_all(exp.Table)):
                clause.set("recursive", True)


def translated(node: exp.Expr) -> exp.Expr | None:
    """One expression for DuckDB, None where it is the same there. Raises Untranslatable."""
    moment = sqlite_time.translated(node)
    if moment is not None:
        return moment
    if isinstance(node, exp.Cast) and not isinstance(node, exp.TryCast):
        return _cast(node)
    if isinstance(node, exp.Typeof):
        return fill(_TYPEOF, x=node.this)
    if isinstance(node, exp.Rand) and not isinstance(node.parent, exp.Ordered):
        return fill("CAST(TRUNC((RANDOM() - 0.5) * 18446744073709551000) AS BIGINT)")
    if isinstance(node, exp.Format):
        return printed(node.this, node.expressions)
    if isinstance(node, exp.Chr):
        return characters(node)
    name = called(node)
    if name == "printf" and node.expressions:
        return printed(node.expressions[0], node.expressions[1:])
    return None


def _cast(node: exp.Cast) -> exp.Expr | None:
    """SQLite cuts where DuckDB rounds, and its NUMERIC has no fixed scale."""
    if node.to.this in _INTEGERS and not is_predicate(node.this):
        literal = bare(node.this)
        if isinstance(literal, exp.Literal) and literal.is_int:
            return fill("CAST($x AS BIGINT)", x=node.this)
        return fill("CAST(TRUNC(CAST($x AS DOUBLE)) AS BIGINT)", x=node.this)
    if node.to.this == exp.DType.DECIMAL:
        return fill("CAST($x AS DOUBLE)", x=node.this)
    return None


def characters(node: exp.Expr) -> exp.Expr | None:
    """`CHAR` of several numbers; DuckDB's takes one."""
    if len(node.expressions) < 2:
        return None
    single = [exp.Chr(expressions=[number.copy()]) for number in node.expressions]
    return exp.Anonymous(this="CONCAT", expressions=single)


def printed(pattern: exp.Expr, values: list[exp.Expr]) -> exp.Expr:
    """`printf`, each value cast to what its place takes: DuckDB converts none."""
    signs = [sign for sign in _PRINTED.findall(string(pattern) or "") if sign != "%"]
    number = "COALESCE(CAST($x AS DOUBLE), 0.0)"
    whole = f"CAST(TRUNC({number}) AS BIGINT)"
    casts = {"d": whole, "i": whole, "s": "COALESCE(CAST($x AS TEXT), '')", **dict.fromkeys("feEgG", number)}
    arguments = [
        fill(casts.get(sign, "$x"), x=value) for value, sign in zip_longest(values, signs) if value is not None
    ]
    return exp.Anonymous(this="PRINTF", expressions=[pattern.copy(), *arguments])
