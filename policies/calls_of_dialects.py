"""Functions that PostgreSQL, MySQL, BigQuery and Snowflake have and DuckDB has not, or has with another meaning.

One template each: by the parser's own name for those that it knows, whose parts are `$this`, `$expression` and so on,
and by the function's name, with `$p1`, `$p2`, for the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sqlglot import exp

from policies.dates import still_a_date
from policies.rewriting import Untranslatable, bare, called, fill, string
from policies.sqlite import characters, printed
from policies.to_char import written_as

_WIDTH_BUCKET: Final = """
    CASE WHEN $this < $min_value THEN 0 WHEN $this >= $max_value THEN $num_buckets + 1
         ELSE CAST(FLOOR(($this - $min_value) * $num_buckets / ($max_value - $min_value)) AS INTEGER) + 1 END
"""
_MOMENT: Final = """
    COALESCE(TRY_CAST(CAST($p1 AS TEXT) AS TIMESTAMP),
             MAKE_TIMESTAMP(CAST(TRY_CAST(CAST($p1 AS TEXT) AS DOUBLE) * 1000000 AS BIGINT)))
"""
# DuckDB's `//` divides whole numbers exactly, and others as `/` does.
_WHOLE_QUOTIENT: Final = "TRUNC($this // $expression)"
_KNOWN: Final[Mapping[str, Mapping[str, str]]] = {
    "postgres": {"intdiv": _WHOLE_QUOTIENT, "widthbucket": _WIDTH_BUCKET},
    "mysql": {
        "intdiv": "CAST(TRUNC($this // NULLIF($expression, 0)) AS BIGINT)",
        "dayofweek": "(DAYOFWEEK(CAST($this AS TIMESTAMP)) + 1)",
        "week": "CAST(STRFTIME(CAST($this AS TIMESTAMP), '%U') AS INTEGER)",
        "substringindex": """
            ARRAY_TO_STRING(CASE WHEN $count >= 0 THEN LIST_SLICE(STRING_SPLIT($this, $delimiter), 1, $count)
                                 ELSE LIST_SLICE(STRING_SPLIT($this, $delimiter), $count, -1) END, $delimiter)
        """,
        "timestampdiff": "DATE_SUB($unit, CAST($expression AS TIMESTAMP), CAST($this AS TIMESTAMP))",
        "unixtotime": "MAKE_TIMESTAMP(CAST($this AS BIGINT) * 1000000)",
        "time": "CAST($this AS TIME)",
    },
    "bigquery": {
        "intdiv": _WHOLE_QUOTIENT,
        "timestampdiff": "DATE_SUB($unit, CAST($expression AS TIMESTAMP), CAST($this AS TIMESTAMP))",
    },
    "snowflake": {
        "toboolean": "CAST($this AS BOOLEAN)",
        "widthbucket": _WIDTH_BUCKET,
    },
}
_OTHERS: Final[Mapping[str, Mapping[str, str]]] = {
    "postgres": {
        "json_agg": "JSON_GROUP_ARRAY($p1)",
        "jsonb_agg": "JSON_GROUP_ARRAY($p1)",
        "jsonb_extract_path_text": "JSON_EXTRACT_STRING($p1, $p2)",
    },
    "mysql": {
        "adddate": "($p1 + TO_DAYS(CAST($p2 AS INTEGER)))",
        "subdate": "($p1 - TO_DAYS(CAST($p2 AS INTEGER)))",
        "find_in_set": "COALESCE(LIST_POSITION(STRING_SPLIT($p2, ','), $p1), 0)",
        "json_arrayagg": "JSON_GROUP_ARRAY($p1)",
        "json_unquote": "($p1 ->> '$')",
        "makedate": "CAST(MAKE_DATE($p1, 1, 1) + TO_DAYS(CAST($p2 - 1 AS INTEGER)) AS DATE)",
        "period_diff": "(($p1 // 100 - $p2 // 100) * 12 + $p1 % 100 - $p2 % 100)",
        "strcmp": "CASE WHEN $p1 < $p2 THEN -1 WHEN $p1 > $p2 THEN 1 WHEN $p1 = $p2 THEN 0 END",
        "sysdate": "NOW()",
        "unix_timestamp": "CAST(FLOOR(EPOCH(CAST($p1 AS TIMESTAMP))) AS BIGINT)",
        "unix_timestamp/0": "CAST(FLOOR(EPOCH(NOW())) AS BIGINT)",
        "weekday": "(ISODOW(CAST($p1 AS TIMESTAMP)) - 1)",
    },
    "bigquery": {"ieee_divide": "(CAST($p1 AS DOUBLE) / CAST($p2 AS DOUBLE))"},
    "snowflake": {"to_timestamp": _MOMENT, "to_timestamp_ntz": _MOMENT},
}
_PARTS: Final[Mapping[str, Mapping[str, str]]] = {
    "mysql": {"YEAR_MONTH": "(YEAR($x) * 100 + MONTH($x))"},
    "bigquery": {
        "DAYOFWEEK": "(DAYOFWEEK($x) + 1)",
        "WEEK": "CAST(STRFTIME($x, '%U') AS INTEGER)",
        "ISOWEEK": "WEEK($x)",
        "DATE": "CAST($x AS DATE)",
    },
}
_DECIMALS: Final = {"postgres": "DOUBLE", "mysql": "DECIMAL(10, 0)", "bigquery": "DECIMAL(38, 9)"}
"""What a DECIMAL without its digits is: PostgreSQL's has as many as it needs."""


def translated(node: exp.Expr, dialect: str) -> exp.Expr | None:
    """The call as DuckDB has it, None where nothing is to change. Raises Untranslatable."""
    if isinstance(node, exp.Cast) and node.to.this == exp.DType.DECIMAL and not node.to.expressions:
        return _decimal(node, dialect)
    if isinstance(node, exp.Extract):
        template = _PARTS.get(dialect, {}).get(node.this.name.upper())
        return fill(template, x=node.expression) if template else None
    if (dated := still_a_date(node, dialect)) is not None:
        return dated
    special = _POSTGRES if dialect == "postgres" else _MYSQL if dialect == "mysql" else {}
    for kind, rule in special.items():
        if isinstance(node, kind):
            return rule(node)
    if isinstance(node, exp.ToChar | exp.TimeToStr) and dialect in {"postgres", "snowflake"}:
        return written_as(node, dialect)
    if isinstance(node, exp.Format) and dialect == "bigquery":
        return printed(node.this, node.expressions)
    if isinstance(node, exp.Explode) and isinstance(node.parent, exp.Lateral | exp.TableFromRows):
        raise Untranslatable("FLATTEN has no form here: without the dialect, write UNNEST(list) AS f(value) in FROM")
    if isinstance(node, exp.ApproxQuantiles) and dialect == "bigquery":
        return _quantiles(node)
    return _from_template(node, dialect)


def _from_template(node: exp.Expr, dialect: str) -> exp.Expr | None:
    name = called(node)
    if name:
        others = _OTHERS[dialect]
        template = others.get(f"{name}/{len(node.expressions)}", others.get(name))
        parts = {f"p{place}": part for place, part in enumerate(node.expressions, 1)}
    else:
        template = _KNOWN[dialect].get(node.key)
        parts = {key: part for key, part in node.args.items() if isinstance(part, exp.Expr)}
        unit = parts.get("unit")
        if isinstance(unit, exp.Var):
            parts["unit"] = exp.Literal.string(unit.name.lower())
    try:
        return fill(template, **parts) if template else None
    except KeyError:  # called with fewer arguments than it takes: the engine says so
        return None


def _decimal(node: exp.Cast, dialect: str) -> exp.Expr | None:
    kind = _DECIMALS.get(dialect)
    if kind is None:
        return None
    return fill(f"{'TRY_CAST' if isinstance(node, exp.TryCast) else 'CAST'}($x AS {kind})", x=node.this)


def _quantiles(node: exp.Expr) -> exp.Expr | None:
    """The bounds of so many equal shares, as a list."""
    count = node.expression
    if not isinstance(count, exp.Literal) or not count.is_int or not 0 < int(count.name) <= 100:
        return None
    shares = ", ".join(repr(place / int(count.name)) for place in range(int(count.name) + 1))
    return fill(f"QUANTILE_DISC($x, [{shares}])", x=node.this)


def _mode(node: exp.Expr) -> exp.Expr | None:
    if not isinstance(node.this, exp.Mode) or not isinstance(node.expression, exp.Order):
        return None
    return fill("MODE($x)", x=node.expression.expressions[0].this)


def _matched_part(node: exp.Expr) -> exp.Expr | None:
    """`SUBSTRING(x FROM 'pattern')`: what is matched, of it the first group where there is one."""
    pattern = string(node.args.get("start"))
    if pattern is None or node.args.get("length") is not None:
        return None
    group = 1 if "(" in pattern.replace("(?:", "").replace("\\(", "") else 0
    return fill(f"NULLIF(REGEXP_EXTRACT($x, $p, {group}), '')", x=node.this, p=node.args["start"])


def _similar(node: exp.Expr) -> exp.Expr | None:
    """`SIMILAR TO` takes `%` and `_` beside a regular expression; DuckDB's knows the latter only."""
    pattern = string(node.expression)
    if pattern is None:
        return None
    signs = {"%": ".*", "_": ".", ".": r"\.", "^": r"\^", "$": r"\$"}
    wanted = "".join(signs.get(sign, sign) for sign in pattern)
    return fill("REGEXP_FULL_MATCH($x, $p)", x=node.this, p=exp.Literal.string(wanted))


def _object(node: exp.Expr) -> exp.Expr | None:
    if called(node) not in {"json_build_object", "jsonb_build_object"}:
        return _from_template(node, "postgres")
    return exp.Anonymous(this="JSON_OBJECT", expressions=[part.copy() for part in node.expressions])


def _place(node: exp.Expr) -> exp.Expr | None:
    """`FIELD`, the place of a value among others, and `MID`."""
    match called(node), node.expressions:
        case "field", [wanted, *others] if others:
            return fill("COALESCE(LIST_POSITION($list, $x), 0)", list=_array(others), x=wanted)
        case "mid", [whole, start, length]:
            part = exp.Substring(this=whole.copy(), start=start.copy(), length=length.copy())
            return _part(part) or part
    return _from_template(node, "mysql")


def _part(node: exp.Expr) -> exp.Expr | None:
    """`SUBSTRING` from place 0 is empty, as what LOCATE did not find is; DuckDB's begins at 1 then."""
    start = bare(node.args.get("start"))
    fixed = isinstance(start, exp.Literal | exp.Neg)
    if start is None or (fixed and start.sql() != "0"):
        return None
    behind = exp.Literal.number(2**31 - 1)
    changed = node.copy()
    changed.set("start", behind if fixed else fill("CASE WHEN $x = 0 THEN $end ELSE $x END", x=start, end=behind))
    return changed


def _choice(node: exp.Expr) -> exp.Expr | None:
    """`ELT`: the value at a place."""
    return fill("LIST_EXTRACT($list, $n)", list=_array(node.expressions), n=node.this)


def _array(values: list[exp.Expr]) -> exp.Expr:
    return exp.Array(expressions=[value.copy() for value in values])


_POSTGRES: Final = {
    exp.WithinGroup: _mode,
    exp.Substring: _matched_part,
    exp.SimilarTo: _similar,
    exp.Anonymous: _object,
}
_MYSQL: Final = {exp.Anonymous: _place, exp.Chr: characters, exp.Elt: _choice, exp.Substring: _part}
