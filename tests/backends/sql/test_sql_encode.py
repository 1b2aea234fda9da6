"""Every type comes out of a query as exactly what the database holds."""

from __future__ import annotations

import base64
import datetime as dt
import math
from collections.abc import Callable, Iterator
from typing import Any

import duckdb
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.sql.run import NotAQuery, Query, TooLarge, run_query
from backends.sql.stream import stream_query


@pytest.fixture(scope="module")
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        yield connection


def _run(
    connection: duckdb.DuckDBPyConnection,
    sql: str,
    *,
    limit: int = 1000,
    max_bytes: int = 100_000,
    unlimited: bool = False,
) -> Any:
    query = Query(sql=sql, limit=limit, max_bytes=max_bytes, unlimited=unlimited)
    body, rows = run_query(connection, query)
    result = orjson.loads(body)
    assert len(result["rows"]) == rows
    return result


@pytest.mark.parametrize(
    ("expression", "kind", "value"),
    [
        ("NULL", "NULL", None),
        ("true", "BOOLEAN", True),
        ("42", "INTEGER", 42),
        ("9007199254740992::BIGINT", "BIGINT", 9007199254740992),
        ("9007199254740993::BIGINT", "BIGINT", "9007199254740993"),
        ("-9007199254740993::BIGINT", "BIGINT", "-9007199254740993"),
        ("170141183460469231731687303715884105727", "HUGEINT", "170141183460469231731687303715884105727"),
        ("18446744073709551615::UBIGINT", "UBIGINT", "18446744073709551615"),
        ("12345678901234567890123456789012345678901::BIGNUM", "BIGNUM", "12345678901234567890123456789012345678901"),
        ("1.10::DECIMAL(10,2)", "DECIMAL(10,2)", "1.10"),
        ("0.1::DOUBLE", "DOUBLE", 0.1),
        ("0.5::FLOAT", "FLOAT", 0.5),
        ("'nan'::DOUBLE", "DOUBLE", "NaN"),
        ("'inf'::DOUBLE", "DOUBLE", "Infinity"),
        ("'-inf'::FLOAT", "FLOAT", "-Infinity"),
        ("'ä\"\\n'", "VARCHAR", 'ä"\\n'),
        ("'\\xAA\\x00'::BLOB", "BLOB", "qgA="),
        ("'101'::BIT", "BIT", "101"),
        ("'a'::ENUM('a', 'b')", "ENUM('a', 'b')", "a"),
        ("'{\"a\": 1}'::JSON", "JSON", '{"a": 1}'),
        ("'12345678-1234-1234-1234-123456789abc'::UUID", "UUID", "12345678-1234-1234-1234-123456789abc"),
        ("DATE '2024-02-29'", "DATE", "2024-02-29"),
        ("DATE 'infinity'", "DATE", "infinity"),
        ("DATE '-infinity'", "DATE", "-infinity"),
        ("DATE '9999-12-31'", "DATE", "9999-12-31"),
        ("DATE '290000-01-01'", "DATE", "290000-01-01"),
        ("DATE '0044-03-15 (BC)'", "DATE", "0044-03-15 (BC)"),
        ("TIME '01:02:03.5'", "TIME", "01:02:03.5"),
        ("TIME '24:00:00'", "TIME", "24:00:00"),
        ("'12:00:00+01'::TIMETZ", "TIME WITH TIME ZONE", "12:00:00+01"),
        ("TIMESTAMP '2024-01-01 01:02:03'", "TIMESTAMP", "2024-01-01T01:02:03"),
        ("TIMESTAMP '2024-01-01 01:02:03.5'", "TIMESTAMP", "2024-01-01T01:02:03.5"),
        ("TIMESTAMP 'infinity'", "TIMESTAMP", "infinity"),
        ("TIMESTAMP '9999-12-31 23:59:59.999999'", "TIMESTAMP", "9999-12-31T23:59:59.999999"),
        ("TIMESTAMP '290000-01-01 00:00:00'", "TIMESTAMP", "290000-01-01T00:00:00"),
        ("TIMESTAMP '0044-03-15 (BC) 01:02:03'", "TIMESTAMP", "0044-03-15 (BC)T01:02:03"),
        ("'2024-01-01 00:00:00.123456789'::TIMESTAMP_NS", "TIMESTAMP_NS", "2024-01-01T00:00:00.123456789"),
        ("'2024-01-01 00:00:00.123'::TIMESTAMP_MS", "TIMESTAMP_MS", "2024-01-01T00:00:00.123"),
        ("'2024-01-01'::TIMESTAMP_S", "TIMESTAMP_S", "2024-01-01T00:00:00"),
        ("TIMESTAMPTZ '2024-01-01 00:00:00.5+02'", "TIMESTAMP WITH TIME ZONE", "2023-12-31T22:00:00.5+00:00"),
        ("TIMESTAMPTZ '-infinity'", "TIMESTAMP WITH TIME ZONE", "-infinity"),
        ("'290000-01-01'::TIMESTAMPTZ", "TIMESTAMP WITH TIME ZONE", "290000-01-01T00:00:00+00:00"),
        ("INTERVAL '1 month 2 days 3 hours'", "INTERVAL", "1 month 2 days 03:00:00"),
        ("[1, NULL, 9007199254740993]", "BIGINT[]", [1, None, "9007199254740993"]),
        ("[DATE 'infinity', DATE '2024-01-01']", "DATE[]", ["infinity", "2024-01-01"]),
        ("[INTERVAL 1 month]", "INTERVAL[]", ["1 month"]),
        ("ARRAY_VALUE(1.50::DECIMAL(3,2), NULL)", "DECIMAL(3,2)[2]", ["1.50", None]),
        ("ARRAY_VALUE(INTERVAL 1 month)", "INTERVAL[1]", ["1 month"]),
        ("{'A': 1, 'b c': [DATE '2024-01-01']}", 'STRUCT(A INTEGER, "b c" DATE[])', {"A": 1, "b c": ["2024-01-01"]}),
        ("{'d\"x': INTERVAL 1 month}", 'STRUCT("d""x" INTERVAL)', {'d"x': "1 month"}),
        ("ROW(1, 'nan'::DOUBLE)", "TUPLE(INTEGER, DOUBLE)", [1, "NaN"]),
        ("ROW(1, INTERVAL 1 month)", "TUPLE(INTEGER, INTERVAL)", [1, "1 month"]),
        ("[]", '"NULL"[]', []),
        ("0.0::DECIMAL(20, 10)", "DECIMAL(20,10)", "0.0000000000"),
        ("MAP {'k': 1.5::DECIMAL(2,1)}", "MAP(VARCHAR, DECIMAL(2,1))", [{"key": "k", "value": "1.5"}]),
        ("MAP {[1]: NULL}", 'MAP(INTEGER[], "NULL")', [{"key": [1], "value": None}]),
        (
            "MAP {'key': 1, 'value': 2}",
            "MAP(VARCHAR, INTEGER)",
            [{"key": "key", "value": 1}, {"key": "value", "value": 2}],
        ),
        ("MAP {1: INTERVAL 1 day}", "MAP(INTEGER, INTERVAL)", [{"key": 1, "value": "1 day"}]),
        ("UNION_VALUE(num := 2)", "UNION(num INTEGER)", '{"num":2}'),
    ],
)
def test_a_value_of_each_type_is_exact(
    connection: duckdb.DuckDBPyConnection, expression: str, kind: str, value: object
) -> None:
    result = _run(connection, f"SELECT {expression} AS x, NULL::INTEGER AS y")
    assert result["columns"][0]["name"] == "x"
    assert result["columns"][0]["type"] == kind
    assert result["rows"] == [[value, None]]


def test_columns_keep_their_names_also_when_names_repeat_and_values_are_cast(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    result = _run(connection, "SELECT INTERVAL 1 day AS a, 1 AS a, DATE 'infinity' AS \"B c\"")
    assert [column["name"] for column in result["columns"]] == ["a", "a", "B c"]
    assert result["rows"] == [["1 day", 1, "infinity"]]


def test_casting_keeps_the_order_of_rows(connection: duckdb.DuckDBPyConnection) -> None:
    sql = "SELECT i, TO_DAYS(i::INTEGER) AS d FROM RANGE(5000) r(i) ORDER BY i DESC"
    for unlimited in (True, False):
        rows = _run(connection, sql, limit=600, unlimited=unlimited)["rows"]
        assert [row[0] for row in rows] == list(range(4999, 4399, -1))


def test_the_limit_is_exact_at_its_edges(connection: duckdb.DuckDBPyConnection) -> None:
    for limit, count, truncated in [(1, 1, True), (256, 256, True), (299, 299, True), (300, 300, False)]:
        for unlimited in (True, False):
            result = _run(connection, "SELECT i FROM RANGE(300) r(i)", limit=limit, unlimited=unlimited)
            assert (result["row_count"], result["truncated"]) == (count, truncated)


def test_rows_fill_the_bytes_that_are_left_and_no_more(connection: duckdb.DuckDBPyConnection) -> None:
    row = len(orjson.dumps(["x" * 10])) + 1
    for room, count in [(row, 1), (row * 7, 7), (row * 7 + 1, 7)]:
        result = _run(connection, "SELECT REPEAT('x', 10) FROM RANGE(100)", max_bytes=room)
        assert (result["row_count"], result["truncated"]) == (count, True)
    with pytest.raises(TooLarge):
        _run(connection, "SELECT REPEAT('x', 10) FROM RANGE(100)", max_bytes=row - 1)


def test_what_the_engine_does_not_read_as_one_query_does_not_run(connection: duckdb.DuckDBPyConnection) -> None:
    for sql in ("SELECT 1; SELECT 2", "CREATE TABLE evil AS SELECT 1", "SET threads = 1", ""):
        with pytest.raises(NotAQuery):
            _run(connection, sql)
    assert connection.execute("select count(*) from duckdb_tables()").fetchone() == (0,)


@settings(max_examples=60)
@given(st.integers(-(2**127), 2**127 - 1), st.floats(allow_nan=False, allow_infinity=False), st.text())
def test_numbers_and_texts_come_back_as_they_went_in(number: int, real: float, text: str) -> None:
    text = text.replace("\0", "")
    quoted = "'" + text.replace("'", "''") + "'"
    with duckdb.connect() as connection:
        sql = f"SELECT '{number}'::HUGEINT, '{real!r}'::DOUBLE, {quoted}"
        row = _run(connection, sql)["rows"][0]
    assert int(row[0]) == number
    assert isinstance(row[0], int) == (abs(number) <= 2**53)
    assert row[1:] == [real, text]


def _whole(least: int, most: int) -> st.SearchStrategy[str]:
    return st.integers(least, most).map(str)


_FINITE = st.floats(allow_nan=False, allow_infinity=False).map(repr)
_EDGES = st.sampled_from(["infinity", "-infinity"])
_DATES = st.one_of(
    st.dates().map(str),
    _EDGES,
    st.integers(10_000, 290_000).map(lambda year: f"{year}-02-28"),
    st.integers(1, 5_000).map(lambda year: f"{year:04}-03-15 (BC)"),
)
_CLOCKS = st.times().map(str)
_NANOS = st.tuples(_CLOCKS.map(lambda time: time[:8]), st.integers(0, 999_999_999)).map(lambda t: f"{t[0]}.{t[1]:09}")
_MOMENTS = st.one_of(st.tuples(_DATES.filter(lambda date: "inf" not in date), _CLOCKS).map(" ".join), _EDGES)
_LITERALS: dict[str, st.SearchStrategy[str]] = {
    "BOOLEAN": st.sampled_from(["true", "false"]),
    "BIGINT": _whole(-(2**63), 2**63 - 1),
    "UBIGINT": _whole(0, 2**64 - 1),
    "HUGEINT": _whole(-(2**127), 2**127 - 1),
    "UHUGEINT": _whole(0, 2**128 - 1),
    "BIGNUM": _whole(-(10**60), 10**60),
    "DECIMAL(38, 10)": st.decimals(-(10**27), 10**27, places=10).map("{:f}".format),
    "DECIMAL(9, 2)": st.decimals(-(10**6), 10**6, places=2).map("{:f}".format),
    "DOUBLE": st.one_of(_FINITE, st.sampled_from(["nan", "inf", "-inf", "-0.0", "5e-324"])),
    "UUID": st.uuids().map(str),
    "BIT": st.text("01", min_size=1, max_size=70),
    "ENUM('a', 'b c', 'ü')": st.sampled_from(["a", "b c", "ü"]),
    "VARCHAR": st.text(max_size=20).map(lambda text: text.replace("\0", "")),
    "DATE": _DATES,
    "TIME": _CLOCKS,
    "TIME_NS": _NANOS,
    "TIMETZ": st.tuples(_CLOCKS, st.integers(-15, 15)).map(lambda t: f"{t[0]}{t[1]:+03}"),
    "TIMESTAMP": _MOMENTS,
    "TIMESTAMP_S": _MOMENTS,
    "TIMESTAMP_MS": _MOMENTS,
    "TIMESTAMP_NS": st.one_of(
        st.tuples(st.dates(dt.date(1700, 1, 1), dt.date(2250, 1, 1)).map(str), _NANOS).map(" ".join), _EDGES
    ),
    "TIMESTAMPTZ": _MOMENTS.map(lambda moment: moment if "inf" in moment else f"{moment}+00"),
    "INTERVAL": st.tuples(*[st.integers(-9999, 9999)] * 3).map(lambda t: f"{t[0]} months {t[1]} days {t[2]} us"),
}
_NEXT_TO: dict[str, Callable[[Any], Any]] = {  # how a value is wrapped, and where it is found in JSON
    "{}": lambda value: value,
    "[NULL, {}]": lambda value: value[1],
    "array_value({})": lambda value: value[0],
    "{{'a b': 1, 'C': {}}}": lambda value: value["C"],
    "row({}, 1, 2)": lambda value: value[0],
    "MAP {{'k': {}}}": lambda value: value[0]["value"],
    "MAP {{{}: NULL}}": lambda value: value[0]["key"],
    "[{{'a': [{}]}}]": lambda value: value[0]["a"][0],
}


def _as_the_engine_writes(kind: str, value: Any) -> str:
    """An encoded value in DuckDB's own spelling: what JSON changes is layout, never what is said."""
    if isinstance(value, bool):
        return str(value).lower()
    if kind.startswith("TIMESTAMP"):
        return str(value).replace("T", " ").removesuffix(":00" if str(value).endswith("+00:00") else "")
    return str(value)


@settings(max_examples=250)
@given(st.data())
def test_every_value_says_in_json_what_the_engine_says_of_it(
    connection: duckdb.DuckDBPyConnection, data: st.DataObject
) -> None:
    kind = data.draw(st.sampled_from(sorted(_LITERALS)))
    literal = data.draw(_LITERALS[kind]).replace("'", "''")
    wrapped = data.draw(st.sampled_from(sorted(_NEXT_TO)))
    value = f"CAST('{literal}' AS {kind})"
    (said,) = connection.execute(f"SELECT CAST({value} AS VARCHAR)").fetchone() or ("",)
    sql = f"SELECT {wrapped.format(value)} AS x"
    ((whole,),) = _run(connection, sql)["rows"]
    pieces: list[bytes] = []
    stream_query(connection, Query(sql=sql, limit=10, max_bytes=10**6), pieces.append, row_bytes=10**6)
    assert [whole] == orjson.loads(b"".join(pieces).splitlines()[1])
    found = _NEXT_TO[wrapped](whole)
    if kind == "DOUBLE":
        assert float(found) == float(said) or found == "NaN" == said.replace("nan", "NaN")
        assert math.copysign(1.0, float(found)) == math.copysign(1.0, float(said)) or found == "NaN"
    else:
        assert _as_the_engine_writes(kind, found) == said


@settings(max_examples=50)
@given(st.binary(max_size=40))
def test_bytes_come_back_as_they_went_in(connection: duckdb.DuckDBPyConnection, value: bytes) -> None:
    ((encoded,),) = _run(connection, f"SELECT FROM_HEX('{value.hex()}') AS x")["rows"]
    assert base64.b64decode(encoded, validate=True) == value


def test_what_does_not_fit_is_cut_and_said_however_large_it_would_be(connection: duckdb.DuckDBPyConnection) -> None:
    result = _run(connection, "SELECT REPEAT('x', 1000) AS x FROM RANGE(1000000)", limit=10**6, max_bytes=10**6)
    assert result["truncated"]
    assert 900 < result["row_count"] < 1000
