"""Rewriting a tree of SQL: expressions from templates in DuckDB's dialect, and what a node is known to be."""

from __future__ import annotations

from collections.abc import Iterator

import sqlglot
from sqlglot import exp

PREDICATES = (exp.Predicate, exp.Connector, exp.Not)
SUBQUERIES = (exp.Select, exp.SetOperation, exp.Subquery)


class Untranslatable(ValueError):
    """DuckDB has no form for a piece of another dialect; the message says what to write instead."""


def fill(template: str, **parts: exp.Expr) -> exp.Expr:
    """The expression that the template says in DuckDB's dialect, with copies of the parts for its `$names`."""
    root = exp.Paren(this=sqlglot.parse_one(template, read="duckdb"))
    for hole in list(root.find_all(exp.Placeholder)):
        part = parts[str(hole.this)]
        hole.replace(
            exp.paren(part)
            if isinstance(part, exp.Binary | exp.Unary) and not isinstance(part, exp.Paren)
            else part.copy()
        )
    inner: exp.Expr = root.this
    inner.pop()
    return inner


def inner_first(root: exp.Expr) -> Iterator[exp.Expr]:
    """Every node below the root, inner ones before those around them: each may be replaced when it comes."""
    yield from reversed(list(root.walk(bfs=True))[1:])


def bare(node: exp.Expr | None) -> exp.Expr | None:
    """The node without the parentheses around it."""
    return node.unnest() if isinstance(node, exp.Expr) else None


def is_predicate(node: exp.Expr | None) -> bool:
    """Is its value true, false or NULL whatever the tables hold?"""
    return isinstance(bare(node), PREDICATES)


def as_text(node: exp.Expr) -> exp.Expr:
    return exp.cast(node.copy(), exp.DType.TEXT)


def string(node: exp.Expr | None) -> str | None:
    """The text of a string literal, None for anything else."""
    inner = bare(node)
    return inner.name if isinstance(inner, exp.Literal) and inner.is_string else None


def called(node: exp.Expr) -> str:
    """The name of a function that the parser does not know, lower case; empty for anything else."""
    return node.name.lower() if isinstance(node, exp.Anonymous) else ""
