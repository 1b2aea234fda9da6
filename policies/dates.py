"""Dates that stay dates: where other engines add days to a DATE, or cut it, DuckDB gives a TIMESTAMP.

What is a date is told by its expression alone: a literal, a cast, the day of today, or one of these changed again.
"""

from __future__ import annotations

from typing import Final

from sqlglot import exp

from policies.rewriting import bare

_DATES: Final = (exp.CurrentDate, exp.Date, exp.DateFromParts, exp.LastDay, exp.TsOrDsToDate)
_SHIFTS: Final = (exp.DateAdd, exp.DateSub)
_CUTS: Final = (exp.DateTrunc, exp.TimestampTrunc)
_UNITS: Final = frozenset({"DAY", "WEEK", "MONTH", "QUARTER", "YEAR", "ISOWEEK", "ISOYEAR"})


def still_a_date(node: exp.Expr, dialect: str) -> exp.Expr | None:
    """The expression cast to DATE where its dialect says that it is one, None where not."""
    if dialect not in {"mysql", "bigquery", "snowflake"} or not _is_date(node, dialect):
        return None
    return exp.cast(node.copy(), exp.DType.DATE)


def _is_date(node: exp.Expr, dialect: str) -> bool:
    if isinstance(node, _SHIFTS):
        # In BigQuery these take nothing but dates.
        return _in_days(node) and (dialect == "bigquery" or _gives_date(node.this))
    if isinstance(node, _CUTS):
        return _in_days(node) and _gives_date(node.this)
    if isinstance(node, exp.Add | exp.Sub) and dialect != "bigquery":
        one, other = node.this, node.expression
        one, other = (other, one) if isinstance(one, exp.Interval) else (one, other)
        return isinstance(other, exp.Interval) and _in_days(other) and _gives_date(one)
    return False


def _in_days(node: exp.Expr) -> bool:
    unit = node.args.get("unit")
    return isinstance(unit, exp.WeekStart) or (isinstance(unit, exp.Expr) and unit.name.upper() in _UNITS)


def _gives_date(node: exp.Expr) -> bool:
    inner = bare(node)
    return isinstance(inner, _DATES) or (isinstance(inner, exp.Cast) and inner.to.this == exp.DType.DATE)
