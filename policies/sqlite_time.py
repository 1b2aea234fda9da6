"""SQLite's date and time functions in DuckDB's terms.

SQLite keeps moments as text and its functions give text, so the translation does too; `moment` is the timestamp in
between. A time value that SQLite cannot read is NULL. The server's zone is UTC, so `utc` and `localtime` are nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from sqlglot import exp

from policies.rewriting import Untranslatable, bare, called, fill, string

NOW: Final = "CAST(NOW() AT TIME ZONE 'UTC' AS TIMESTAMP)"
_FORMATS: Final = {"date": "%Y-%m-%d", "time": "%H:%M:%S", "datetime": "%Y-%m-%d %H:%M:%S"}
_TEXTS: Final = frozenset({*_FORMATS, "strftime"})
_FUNCTIONS: Final = frozenset({*_TEXTS, "julianday", "unixepoch"})
_CURRENT: Final = {exp.CurrentDate: "date", exp.CurrentTime: "time", exp.CurrentTimestamp: "datetime"}
_MODIFIERS_MOST: Final = 8

_SHIFT: Final = re.compile(r"([+-]?\d{1,9}(?:\.\d{1,9})?)\s*(second|minute|hour|day|month|year)s?")
_CLOCK: Final = re.compile(r"([+-])(\d\d):(\d\d)(?::(\d\d))?")
_START: Final = re.compile(r"start of (day|month|year)")
_WEEKDAY: Final = re.compile(r"weekday ([0-6])")
_NOTHING: Final = frozenset({"utc", "localtime", "subsec", "subsecond"})
_TIME_ONLY: Final = re.compile(r"\d\d:\d\d(:\d\d(\.\d+)?)?")
_SECONDS: Final = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}

# What DuckDB's strftime writes otherwise, or not at all.
_PIECES: Final = re.compile(r"%[sJ]|(?:%[^sJ]|[^%])+")
_SAME: Final = {"%f": "%S.%g", "%F": "%Y-%m-%d", "%R": "%H:%M", "%T": "%H:%M:%S", "%e": "%_d", "%P": "%p"}
_KNOWN: Final = frozenset("%" + sign for sign in "dGgHIjmMpSuUVwWY%")


def call_of(node: exp.Expr) -> tuple[str, list[exp.Expr]] | None:
    """Name and arguments of a date or time function as SQLite writes them, None for anything else."""
    name = called(node)
    if name in _FUNCTIONS:
        return name, list(node.expressions)
    if isinstance(node, exp.TimeToStr) and isinstance(node.this, exp.TsOrDsToTimestamp):
        return "strftime", [node.args["format"], node.this.this]
    if isinstance(node, exp.Date):
        return "date", [node.this, *node.expressions] if node.this is not None else []
    return next(((name, []) for kind, name in _CURRENT.items() if type(node) is kind), None)


def gives_moment_text(node: exp.Expr | None) -> bool:
    """Is it a call whose text begins with a date or is a time of day, as columns of dates are compared with?"""
    inner = bare(node)
    call = call_of(inner) if inner is not None else None
    if call is None:
        return False
    name, arguments = call
    return name in _FORMATS or (name == "strftime" and (string(arguments[0]) or "").startswith(("%Y-%m", "%F")))


def is_modifier(text: str) -> bool:
    """Could the text stand as an argument of a time function, and not as a column?"""
    low = text.lower()
    shapes = (_SHIFT, _CLOCK, _START, _WEEKDAY)
    return low in {"now", "unixepoch", "julianday", "auto"} | _NOTHING or any(
        shape.fullmatch(low) for shape in shapes
    )


def translated(node: exp.Expr) -> exp.Expr | None:
    """The call for DuckDB, None where it is none of a time function. Raises Untranslatable."""
    call = call_of(node)
    if call is None:
        return None
    name, arguments = call
    pattern = arguments.pop(0) if name == "strftime" and arguments else None
    when = _moment(arguments)
    if name == "julianday":
        return fill("(JULIAN($t) - 0.5)", t=when)
    if name == "unixepoch":
        return fill("CAST(FLOOR(EPOCH($t)) AS BIGINT)", t=when)
    if pattern is None:
        if name == "strftime":
            raise Untranslatable("strftime() needs a format")
        return fill("STRFTIME($t, $f)", t=when, f=exp.Literal.string(_FORMATS[name]))
    fixed = string(pattern)
    return fill("STRFTIME($t, $f)", t=when, f=pattern) if fixed is None else _written(when, fixed)


def _written(when: exp.Expr, pattern: str) -> exp.Expr:
    """The moment in a format of SQLite's."""
    parts: list[exp.Expr] = []
    for piece in _PIECES.findall(pattern) or [""]:
        if piece == "%s":
            parts.append(fill("CAST(CAST(FLOOR(EPOCH($t)) AS BIGINT) AS TEXT)", t=when))
        elif piece == "%J":
            parts.append(fill("CAST(JULIAN($t) - 0.5 AS TEXT)", t=when))
        else:
            parts.append(fill("STRFTIME($t, $f)", t=when, f=exp.Literal.string(re.sub("%.?", _sign, piece))))
    whole = parts[0]
    for part in parts[1:]:
        whole = exp.DPipe(this=whole, expression=part, safe=True)
    return exp.paren(whole) if len(parts) > 1 else whole


def _sign(match: re.Match[str]) -> str:
    sign = match[0]
    if sign in _SAME:
        return _SAME[sign]
    if sign not in _KNOWN:
        raise Untranslatable(f"strftime() has no {sign} here")
    return sign


def _moment(arguments: Sequence[exp.Expr]) -> exp.Expr:
    """The timestamp that a time value and its modifiers stand for."""
    if len(arguments) > _MODIFIERS_MOST:
        raise Untranslatable(f"a date function takes at most {_MODIFIERS_MOST - 1} modifiers")
    first, *modifiers = arguments or [exp.Literal.string("now")]
    said = [(string(modifier) or "").lower().strip() for modifier in modifiers]
    if said[:1] == ["unixepoch"]:
        when = fill("MAKE_TIMESTAMP(CAST(FLOOR(TRY_CAST($x AS DOUBLE) * 1000000) AS BIGINT))", x=first)
    elif _is_number(first) or said[:1] == ["julianday"]:
        days = "(TRY_CAST($x AS DOUBLE) - 2440587.5)"
        when = fill(f"MAKE_TIMESTAMP(CAST(ROUND({days} * 86400000) AS BIGINT) * 1000)", x=first)
    else:
        when = _read(first)
    for place, (text, modifier) in enumerate(zip(said, modifiers, strict=True)):
        if place or text not in {"unixepoch", "julianday"}:
            when = _modified(when, text, modifier)
    return when


def _is_number(node: exp.Expr) -> bool:
    inner = bare(node)
    return isinstance(inner, exp.Literal) and not inner.is_string


def _read(value: exp.Expr) -> exp.Expr:
    text = string(value)
    if text is not None and text.strip().lower() == "now":
        return fill(NOW)
    if text is not None and _TIME_ONLY.fullmatch(text):
        value = exp.Literal.string(f"2000-01-01 {text}")
    return fill("TRY_CAST($x AS TIMESTAMP)", x=value)


def _modified(when: exp.Expr, text: str, modifier: exp.Expr) -> exp.Expr:
    if text in _NOTHING:
        return when
    if start := _START.fullmatch(text):
        return fill("DATE_TRUNC($unit, $t)", unit=exp.Literal.string(start[1]), t=when)
    if weekday := _WEEKDAY.fullmatch(text):
        return fill(f"($t + TO_DAYS(CAST(({weekday[1]} + 7 - DAYOFWEEK($t)) % 7 AS INTEGER)))", t=when)
    if clock := _CLOCK.fullmatch(text):
        seconds = int(clock[2]) * 3600 + int(clock[3]) * 60 + int(clock[4] or 0)
        return fill(f"($t + TO_SECONDS({clock[1]}{seconds}))", t=when)
    if shift := _SHIFT.fullmatch(text):
        return _shifted(when, shift[1], shift[2])
    if string(modifier) is None:
        return fill("($t + CAST($by AS INTERVAL))", t=when, by=modifier)
    raise Untranslatable(f"the modifier {text[:40]!r} of a date function is not known here")


def _shifted(when: exp.Expr, amount: str, unit: str) -> exp.Expr:
    if unit in _SECONDS:
        return fill(f"($t + TO_SECONDS({float(amount) * _SECONDS[unit]!r}))", t=when)
    months = int(float(amount)) * (12 if unit == "year" else 1)
    if isinstance(when, exp.TimestampTrunc | exp.DateTrunc):
        return fill(f"($t + INTERVAL ({months}) MONTH)", t=when)
    # SQLite counts on past the end of a shorter month, where DuckDB stops at its last day.
    start = "DATE_TRUNC('month', $t)"
    return fill(f"({start} + INTERVAL ({months}) MONTH + ($t - {start}))", t=when)
