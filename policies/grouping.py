"""Columns that stand beside aggregates without being grouped by: some dialects give a row's value, DuckDB refuses.

SQLite and MySQL take the value from any row of the group, SQLite from the row of the extreme where MIN or MAX is the
only aggregate; PostgreSQL allows only what the group determines, so any row will do there too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sqlglot import exp

from policies.rewriting import SUBQUERIES, bare, fill

_CLAUSES = ("having", "order", "qualify")


def settle_bare_columns(root: exp.Expr, *, extremes: bool) -> None:
    """Wrap such columns, in every SELECT of the tree, so that they take one row's value.

    `extremes`: where the only aggregate is MIN or MAX, the row is that of the extreme.
    """
    for select in list(root.find_all(exp.Select)):
        aggregates = list(_aggregates(select))
        if not select.args.get("group") and not aggregates:
            continue
        keys = _Keys.of(select)
        if keys is None:
            continue
        extreme = aggregates[0] if extremes and len(aggregates) == 1 else None
        if not isinstance(extreme, exp.Min | exp.Max):
            extreme = None
        for column in list(_bare_columns(select, keys)):
            _wrap(column, extreme, column.name if column.parent is select else None)


@dataclass(frozen=True, slots=True)
class _Keys:
    """What a SELECT groups by: expressions as text, columns by name, and the names of its output."""

    texts: frozenset[str]
    names: frozenset[str]
    aliases: frozenset[str]

    @classmethod
    def of(cls, select: exp.Select) -> _Keys | None:
        """None where the keys cannot be told: GROUP BY ALL, grouping sets, `*`."""
        group = select.args.get("group")
        if group is not None and (group.args.get("all") or group.find(exp.Rollup, exp.Cube, exp.GroupingSets)):
            return None
        aliased = {item.alias.lower(): item.this for item in select.expressions if isinstance(item, exp.Alias)}
        keys: list[exp.Expr] = []
        for key in group.expressions if group is not None else []:
            inner = bare(key)
            if isinstance(inner, exp.Literal) and inner.is_int and 0 < int(inner.name) <= len(select.expressions):
                inner = select.expressions[int(inner.name) - 1].unalias()
            elif isinstance(inner, exp.Column) and not inner.table and inner.name.lower() in aliased:
                keys.append(aliased[inner.name.lower()])
            if inner is not None:
                keys.append(inner)
        return cls(
            texts=frozenset(_text(key) for key in keys),
            names=frozenset(key.name.lower() for key in keys if isinstance(key, exp.Column)),
            aliases=frozenset(aliased),
        )

    def hold(self, node: exp.Expr) -> bool:
        """Is it one of the keys?"""
        return _text(node) in self.texts or (isinstance(node, exp.Column) and node.name.lower() in self.names)


def _text(node: exp.Expr) -> str:
    return node.sql("duckdb", comments=False, normalize=True).lower()


def _aggregates(select: exp.Select) -> Iterator[exp.Expr]:
    """The aggregates that make rows of the SELECT into groups: those that no window turns into something else."""
    for part in _parts(select):
        for node in part.walk(prune=lambda node: isinstance(node, SUBQUERIES)):
            if isinstance(node, exp.AggFunc) and not _is_windowed(node):
                yield node


def _is_windowed(node: exp.Expr) -> bool:
    parent = node.parent
    while isinstance(parent, exp.Filter | exp.IgnoreNulls | exp.RespectNulls | exp.WithinGroup):
        node, parent = parent, parent.parent
    return isinstance(parent, exp.Window) and parent.this is node


def _parts(select: exp.Select) -> Iterator[exp.Expr]:
    yield from select.expressions
    yield from (clause for name in _CLAUSES if (clause := select.args.get(name)) is not None)


def _bare_columns(select: exp.Select, keys: _Keys) -> Iterator[exp.Column]:
    def closed(node: exp.Expr) -> bool:
        aggregate = isinstance(node, exp.AggFunc | exp.Filter | exp.WithinGroup) and not _is_windowed(node)
        return aggregate or isinstance(node, SUBQUERIES) or keys.hold(node)

    for part in _parts(select):
        for node in part.walk(prune=closed):
            if isinstance(node, exp.Column) and not isinstance(node.this, exp.Star) and not keys.hold(node):
                of_output = part.key in _CLAUSES and not node.table and node.name.lower() in keys.aliases
                if not of_output:
                    yield node


def _wrap(column: exp.Column, extreme: exp.Expr | None, name: str | None) -> None:
    """Put the aggregate around the column; `name` is the output column that it was, so that it keeps its name."""
    if extreme is None:
        wrapped = fill("FIRST($column)", column=column)
    else:
        # Of NULLs alone there is no extreme: any row will do, as these have it.
        function = "ARG_MIN_NULLS_LAST" if isinstance(extreme, exp.Min) else "ARG_MAX_NULLS_LAST"
        wrapped = fill(f"{function}($column, $by)", column=column, by=extreme.this)
    column.replace(exp.alias_(wrapped, name, quoted=True) if name is not None else wrapped)
