"""Turns the rows of a result into JSON without losing anything, by the type of each column.

| DuckDB | JSON |
|---|---|
| BOOLEAN, integers within ±2^53, VARCHAR, ENUM, JSON, BIT | as they are; JSON stays its text |
| integers beyond 2^53, DECIMAL, BIGNUM | the decimal text |
| FLOAT, DOUBLE | a number, or "NaN", "Infinity", "-Infinity" |
| DATE, TIME, TIMESTAMP of any precision | ISO 8601 with as many digits as there are; "infinity", "-infinity" |
| TIMESTAMP WITH TIME ZONE | ISO 8601 in UTC |
| INTERVAL, other types | DuckDB's text |
| BLOB | base64 |
| LIST, ARRAY, unnamed ROW | array |
| STRUCT | object |
| MAP | array of {"key", "value"} |
| UNION | the text of {"tag": value}, without the zeros that end a DECIMAL |

Python's values lose some of it: nanoseconds, the months of an interval, infinite dates, tags. A column of such a
type is cast to text *in SQL* (`Column.cast`). Infinite dates look like the last day of 9999 and are rare, so dates
are fetched as they come, and `Inexact` asks for another run with casts where one of them may be infinite.
A change here counts `backends.sql.cache.ENCODING` up.
"""

from __future__ import annotations

import base64
import datetime as dt
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from duckdb.sqltypes import DuckDBPyType

SAFE_INTEGER: Final = 2**53

Json = Any
Encode = Callable[[Any], Json]

_SMALL: Final = frozenset({"boolean", "tinyint", "utinyint", "smallint", "usmallint", "integer", "uinteger"})
_TEXT: Final = frozenset({"varchar", "enum", "bit", "null"})
_LARGE: Final = frozenset({"bigint", "ubigint", "hugeint", "uhugeint"})
_MOMENTS: Final = frozenset({"timestamp", "timestamp_s", "timestamp_ms", "timestamp_ns", "timestamp with time zone"})
_EDGES: Final = frozenset({dt.date.max, dt.date.min})


class Inexact(Exception):
    """A value may not be what the database holds: run again with `columns_of(…, exact=True)`."""


@dataclass(frozen=True, slots=True)
class Column:
    """How one type is fetched and encoded: the type to cast it to in SQL, if any, then what to do with a value.

    `encode` is never given None. Where it is None itself, values go through as they are.
    """

    cast: str | None = None
    encode: Encode | None = None


def columns_of(types: Sequence[DuckDBPyType], *, exact: bool) -> list[Column]:
    """One Column for each type. `exact` also casts dates, whose infinities a fetch cannot tell."""
    return [_column(kind, exact) for kind in types]


def type_name(kind: DuckDBPyType) -> str:
    name = str(kind)
    return "NULL" if name == '"NULL"' else name


def encode_row(columns: Sequence[Column], row: Sequence[Any]) -> list[Json]:
    """Raises Inexact."""
    return [
        value if value is None or column.encode is None else column.encode(value)
        for column, value in zip(columns, row, strict=True)
    ]


def _column(kind: DuckDBPyType, exact: bool) -> Column:
    name = kind.id
    if name in _SMALL or name in _TEXT:
        return Column()
    if name in _SCALARS:
        return Column(encode=_SCALARS[name])
    if name in _NESTED:
        return _NESTED[name](kind, exact)
    if name in {"date", "timestamp", "timestamp with time zone"} and not exact:
        return Column(encode=_date if name == "date" else _moment)
    if name == "union":
        return Column(cast="JSON")
    return Column(cast="VARCHAR", encode=_moment_text if name in _MOMENTS else None)


def _integer(value: int) -> Json:
    return value if -SAFE_INTEGER <= value <= SAFE_INTEGER else str(value)


def _float(value: float) -> Json:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _blob(value: bytes) -> Json:
    return base64.b64encode(value).decode()


def _date(value: dt.date | str) -> Json:
    if isinstance(value, str):  # beyond the year 9999
        return value
    if value in _EDGES:
        raise Inexact
    return value.isoformat()


def _moment(value: dt.datetime | str) -> Json:
    if isinstance(value, str):
        return _moment_text(value)
    if value.date() in _EDGES:
        raise Inexact
    text = value.replace(tzinfo=None).isoformat()
    if value.microsecond:
        text = text.rstrip("0")
    return text if value.tzinfo is None else f"{text}+00:00"  # workers run in UTC


def _moment_text(text: str) -> Json:
    if text.endswith("infinity"):
        return text
    moment = text.replace("(BC) ", "(BC)T") if "(BC)" in text else text.replace(" ", "T", 1)
    return f"{moment}:00" if moment.endswith("+00") else moment


def _items(kind: DuckDBPyType, exact: bool) -> Column:
    parts: Mapping[str, Any] = dict(kind.children)
    item = _column(parts["child"], exact)
    size = parts.get("size", "")
    cast = None if item.cast is None else f"{item.cast}[{size}]"
    return Column(cast, lambda values: [_value(item, value) for value in values])


def _struct(kind: DuckDBPyType, exact: bool) -> Column:
    children: Sequence[tuple[str, Any]] = kind.children
    fields = [(name, child, _column(child, exact)) for name, child in children]
    cast = None
    if any(field.cast for _, _, field in fields):
        inner = (f"{_quoted(name)} {field.cast or child}" for name, child, field in fields)
        cast = f"STRUCT({', '.join(inner)})"
    by_name = {name: field for name, _, field in fields}
    return Column(cast, lambda value: {name: _value(by_name[name], item) for name, item in value.items()})


def _tuple(kind: DuckDBPyType, exact: bool) -> Column:
    children: Sequence[tuple[str, Any]] = kind.children
    fields = [(child, _column(child, exact)) for _, child in children]
    cast = None
    if any(field.cast for _, field in fields):
        cast = f"TUPLE({', '.join(str(field.cast or child) for child, field in fields)})"
    columns = [field for _, field in fields]
    return Column(cast, lambda values: encode_row(columns, values))


def _map(kind: DuckDBPyType, exact: bool) -> Column:
    parts: Mapping[str, Any] = dict(kind.children)
    key, item = _column(parts["key"], exact), _column(parts["value"], exact)
    cast = None
    if key.cast or item.cast:
        cast = f"MAP({key.cast or parts['key']}, {item.cast or parts['value']})"
    # A map whose keys Python cannot hash is fetched as its two lists.
    as_lists = parts["key"].id in _NESTED

    def encode(value: Mapping[Any, Any]) -> Json:
        pairs = zip(value["key"], value["value"], strict=True) if as_lists else value.items()
        return [{"key": _value(key, k), "value": _value(item, v)} for k, v in pairs]

    return Column(cast, encode)


def _value(column: Column, value: Any) -> Json:
    return value if value is None or column.encode is None else column.encode(value)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


_SCALARS: Final[Mapping[str, Encode]] = {
    **dict.fromkeys(_LARGE, _integer),
    "float": _float,
    "double": _float,
    "decimal": "{:f}".format,
    "uuid": str,
    "blob": _blob,
}
_NESTED: Final[Mapping[str, Callable[[DuckDBPyType, bool], Column]]] = {
    "list": _items,
    "array": _items,
    "struct": _struct,
    "tuple": _tuple,
    "map": _map,
}
