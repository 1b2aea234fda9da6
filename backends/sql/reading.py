"""The process in which `backends.sql.parser` has texts read. It imports little, to be back soon after its end."""

from __future__ import annotations

import signal
from typing import Final

import orjson

from backends.sql.serving import Part, Service, serve
from policies.dialects import Schema
from policies.sql import SqlRefused, read_statement

_WARMING: Final = "SELECT a.b, count(*) FROM t AS a JOIN s USING (c) WHERE d = 'e' GROUP BY 1 ORDER BY 2 LIMIT 3"
"""Read before the first text, which would take thirty times as long as the second otherwise."""


class Reading:
    """What the helper process does. A text that takes more of its time than `timeout` seconds ends it."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._schemas: dict[str, Schema] = {}

    def handle(self, request: bytes, _part: Part = lambda _part: None) -> bytes:
        text, dialect, parameters, *more = orjson.loads(request)
        schema = self._schema(*more) if more else None
        signal.setitimer(signal.ITIMER_PROF, self._timeout)
        try:
            statement = read_statement(text, dialect=dialect, parameters=parameters, schema=schema)
        except SqlRefused as refusal:
            return orjson.dumps({"refused": str(refusal), "code": refusal.code})
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0.0)
        return orjson.dumps(
            {
                "canonical": statement.canonical,
                "tables": sorted(statement.tables),
                "deterministic": statement.deterministic,
                "unlimited": statement.unlimited,
                "parameters": statement.parameters,
            }
        )

    def _schema(self, database: str, schema: Schema | None) -> Schema:
        """That of a database, which is sent when it is another than before."""
        if schema is not None:
            self._schemas[database] = schema
        return self._schemas[database]

    def begin(self) -> None:
        """Nothing is left of the request before."""

    def interrupt(self) -> None:
        """Nothing: a read is short, and the parent kills what is not."""


def start(configuration: bytes) -> Service:
    reading = Reading(float(configuration))
    read_statement(_WARMING)
    return reading


if __name__ == "__main__":
    serve(start)
