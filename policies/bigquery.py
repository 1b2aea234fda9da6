"""What BigQuery writes in other places: the most values of a list inside its aggregate, projects before tables."""

from __future__ import annotations

from sqlglot import exp

from policies.rewriting import Untranslatable, fill

_AROUND = (exp.IgnoreNulls, exp.RespectNulls, exp.Filter, exp.Window)


def settle_limits(root: exp.Expr) -> None:
    """`ARRAY_AGG(x LIMIT n)` and `STRING_AGG(x LIMIT n)`: the list is made whole and cut."""
    for node in list(root.find_all(exp.ArrayAgg, exp.GroupConcat)):
        if not isinstance(node.this, exp.Limit):
            continue
        values, most = node.this.this, node.this.expression
        made: exp.Expr = exp.ArrayAgg(this=values.copy())
        template = "LIST_SLICE($list, 1, $most)"
        if isinstance(node, exp.GroupConcat):
            made = exp.Filter(this=made, expression=exp.Where(this=fill("NOT $x IS NULL", x=_value(values))))
            template = f"ARRAY_TO_STRING({template}, $between)"
        node.replace(made)
        while isinstance(made.parent, _AROUND) and made.parent.this is made:
            made = made.parent
        between = node.args.get("separator") or exp.Literal.string(",")
        made.replace(fill(template, list=made, most=most, between=between))


def check_tables(root: exp.Expr) -> None:
    """Raises Untranslatable for a table with its project: there is none here that it could be compared with."""
    for table in root.find_all(exp.Table):
        if table.catalog:
            raise Untranslatable(f"tables have no project here, so write {table.name} alone")


def _value(values: exp.Expr) -> exp.Expr:
    """What is aggregated, without its order and DISTINCT."""
    inner = values.this if isinstance(values, exp.Order) else values
    return inner.expressions[0] if isinstance(inner, exp.Distinct) else inner
