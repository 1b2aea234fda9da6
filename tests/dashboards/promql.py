"""What an expression asks of Prometheus: which metrics, and which of their labels."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import promql_parser
from promql_parser import AggregateExpr, BinaryExpr, Expr, MatrixSelector, VectorSelector

TARGET = frozenset({"instance", "job"})
"""The labels that Prometheus adds to what it scrapes."""
VARIABLES = {"$__rate_interval": "15s", "$__range": "2m", "$workflow": ".*", "$pool": ".*", "$instance": ".*"}


@dataclass(frozen=True, slots=True)
class Asked:
    """One series name, with the matchers that pick among its series and all labels that the expression counts on."""

    metric: str
    matchers: str
    labels: frozenset[str]


def filled(expr: str, variables: Mapping[str, str] = VARIABLES) -> str:
    """An expression as Grafana sends it, with all values of each variable chosen."""
    return re.sub(r"\$\w+", lambda found: variables[found[0]], expr)


def asked(expr: str) -> list[Asked]:
    """Raises ValueError for what is no PromQL."""
    return list(_asked(promql_parser.parse(expr), frozenset()))


def _asked(expr: Expr, labels: frozenset[str]) -> Iterator[Asked]:
    """`labels` are those that what stands around the expression wants of all its series."""
    match expr:
        case VectorSelector():
            wanted = labels | {matcher.name for matcher in expr.matchers.matchers}
            yield Asked(expr.name or "", str(expr), wanted)
        case MatrixSelector():
            yield from _asked(expr.vector_selector, labels)
        case AggregateExpr():
            by = expr.modifier.labels if expr.modifier else []
            yield from _asked(expr.expr, frozenset(by))
        case BinaryExpr():
            matched = expr.modifier.matching.labels if expr.modifier and expr.modifier.matching else []
            for side in (expr.lhs, expr.rhs):
                yield from _asked(side, labels | set(matched))
        case _:
            for part in (getattr(expr, "expr", None), *getattr(expr, "args", ())):
                if isinstance(part, Expr):
                    yield from _asked(part, labels)
