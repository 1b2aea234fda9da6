"""`TO_CHAR` of PostgreSQL and Snowflake: dates and numbers in a pattern of letters, for DuckDB's own functions."""

from __future__ import annotations

import re
from typing import Final

import sqlglot
from sqlglot import exp
from sqlglot.time import format_time

from policies.rewriting import Untranslatable, fill, string

_NUMBER: Final = re.compile(r"(FM)?(?P<whole>[\$90,]+)(?:[.D](?P<part>[90]+))?", re.IGNORECASE)
_PIECES: Final = re.compile(
    r'"[^"]*"|(?:FM)?(?:YYYY|YY|IYYY|MMMM|MM|MONTH|MON|DDD|DD|DAY|DY|HH24|HH12|HH|MI|SS|MS|US|FF[369]?|AM|PM|IW|WW|ID|Q|D)|.',
    re.IGNORECASE | re.DOTALL,
)
_SIGNS: Final = {
    **{"YYYY": "%Y", "YY": "%y", "IYYY": "%G", "MM": "%m", "MON": "%b", "DD": "%d", "DDD": "%j", "DY": "%a"},
    **{
        "HH24": "%H",
        "HH12": "%I",
        "HH": "%I",
        "MI": "%M",
        "SS": "%S",
        "MS": "%g",
        "FF3": "%g",
        "US": "%f",
        "FF6": "%f",
    },
    **{"AM": "%p", "PM": "%p", "IW": "%V", "ID": "%u", "MMMM": "%B"},
}
_WITHOUT_ZERO: Final = {"MM": "%-m", "DD": "%-d", "HH24": "%-H", "HH12": "%-I", "HH": "%-I", "MI": "%-M", "SS": "%-S"}
_COUNTED: Final = {"Q": "QUARTER($x)", "D": "(DAYOFWEEK($x) + 1)", "WW": "((DAYOFYEAR($x) - 1) // 7 + 1)"}
_PADDED: Final = {"MONTH": "%B", "DAY": "%A"}


def written_as(node: exp.Expr, dialect: str) -> exp.Expr | None:
    """The value as text in the pattern; None where there is no pattern. Raises Untranslatable."""
    given = node.args.get("format")
    if given is None:
        return fill("CAST($x AS TEXT)", x=node.this) if isinstance(node, exp.ToChar) else None
    pattern = string(given)
    if pattern is None:
        raise Untranslatable("the pattern of TO_CHAR must be a text")
    if isinstance(node, exp.TimeToStr):
        # The parser has put its own signs for those of the pattern that it knows.
        known = sqlglot.Dialect.get_or_raise(dialect)
        pattern = format_time(pattern, known.INVERSE_TIME_MAPPING, known.INVERSE_TIME_TRIE) or ""
        pattern = pattern.replace("TMMonth", "FMMonth").replace("TMDay", "FMDay").replace("TMMon", "Mon")
    if number := _NUMBER.fullmatch(pattern.strip()):
        return _number(node.this, number, padded=dialect == "postgres")
    return _moment(node.this, pattern, padded=dialect == "postgres")


def _moment(value: exp.Expr, pattern: str, *, padded: bool) -> exp.Expr:
    parts: list[exp.Expr] = []
    plain = ""
    for piece in _PIECES.findall(pattern):
        sign = _plain_sign(piece)
        if sign is not None:
            plain += sign
            continue
        if plain:
            parts.append(fill("STRFTIME($x, $f)", x=value, f=exp.Literal.string(plain)))
            plain = ""
        parts.append(_made(value, piece, padded=padded))
    if plain or not parts:
        parts.append(fill("STRFTIME($x, $f)", x=value, f=exp.Literal.string(plain)))
    whole = parts[0]
    for part in parts[1:]:
        whole = exp.DPipe(this=whole, expression=part, safe=True)
    return exp.paren(whole) if len(parts) > 1 else whole


def _plain_sign(piece: str) -> str | None:
    """What strftime writes in place of the piece, None where it cannot."""
    bare = piece.upper().removeprefix("FM")
    if bare != piece.upper() and bare in _WITHOUT_ZERO:
        return _WITHOUT_ZERO[bare]
    if bare in {"MON", "DY", "AM", "PM"} and piece != bare.capitalize():
        return None
    if bare in _SIGNS:
        return _SIGNS[bare]
    if bare in _COUNTED or bare in _PADDED:
        return None
    return piece.strip('"').replace("%", "%%")


def _made(value: exp.Expr, piece: str, *, padded: bool) -> exp.Expr:
    """Names in the case of the piece, which PostgreSQL pads to the longest, and what is counted."""
    bare = piece.upper().removeprefix("FM")
    if bare in _COUNTED:
        return fill(f"CAST({_COUNTED[bare]} AS TEXT)", x=value)
    name = fill("STRFTIME($x, $f)", x=value, f=exp.Literal.string(_PADDED.get(bare) or _SIGNS[bare]))
    letters = piece[-len(bare) :]
    if padded and letters in {letters.upper(), letters.lower()}:
        name = fill("UPPER($x)" if letters.isupper() else "LOWER($x)", x=name)
    if padded and bare in _PADDED and bare == piece.upper():
        name = fill("RPAD($x, 9, ' ')", x=name)
    return name


def _number(value: exp.Expr, shape: re.Match[str], *, padded: bool) -> exp.Expr:
    whole, part = shape["whole"], shape["part"] or ""
    digits = whole.replace(",", "").replace("$", "")
    if shape[1] and "9" in part:
        raise Untranslatable("a pattern of TO_CHAR with FM and digits that may be left out: round the number instead")
    zeros = len(digits) - digits.index("0") if "0" in digits else 0
    if zeros > 1 and "," in whole:
        raise Untranslatable("a pattern of TO_CHAR with both leading zeros and groups")
    form = f"{{:{',' if ',' in whole else ''}.{len(part)}f}}"
    if zeros > 1:
        form = f"{{:0{zeros + (len(part) + 1 if part else 0)}.{len(part)}f}}"
    text = fill(f"FORMAT('{form}', CAST($x AS DOUBLE))", x=value)
    if not zeros and part:
        text = fill(r"REGEXP_REPLACE($x, '^(-?)0\.', '\1.')", x=text)
    if "$" in whole:
        text = fill("('$' || $x)", x=text)
    wide = len(whole) + (len(part) + 1 if part else 0) + 1
    return (
        text
        if shape[1] or not padded
        else fill(f"LPAD($x, CAST(GREATEST({wide}, LENGTH($x)) AS INTEGER), ' ')", x=text)
    )
