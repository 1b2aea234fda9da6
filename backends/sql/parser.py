"""Reads statements in a helper process: a hostile text can hold a core for seconds or exhaust the C stack."""

from __future__ import annotations

import asyncio
import signal
from typing import Final

import orjson

from backends.base import BackendError
from backends.sql.process import Child
from backends.sql.serving import Part, Service, serve
from policies.dialects import Known, Schema
from policies.sql import SqlRefused, Statement, check_text, read_statement

WAITING_MOST: Final = 512
"""Texts that wait to be read. An honest one takes 1 to 5 ms, so the last of them waits for a second or two."""

_START: Final = 20.0
_BUSY: Final = 10


class Parser:
    """`policies.sql.read_statement`, one text at a time, off the event loop. Starts its process when first used.

    Honest texts of the greatest length take up to a quarter of a second; `timeout` is for the others. It counts the
    process's own time, so that a busy machine refuses nobody; by the clock a read may take `_BUSY` times as long.
    """

    def __init__(self, *, timeout: float = 0.5) -> None:
        self._timeout = timeout
        self._turn = asyncio.Lock()
        self._taught: dict[str, int] = {}  # the version of each database's schema that the process has
        self._child: Child | None = None
        self._reading: asyncio.Task[bytes] | None = None
        self._waiting = 0
        self._closed = False

    @property
    def pid(self) -> int | None:
        """The helper process, None while there is none."""
        return self._child.pid if self._child is not None else None

    async def start(self) -> None:
        """Start the process now, so that the first text does not wait for it. Raises BackendError."""
        async with self._turn:
            await self._ready()

    async def read(
        self, text: str, dialect: str = "duckdb", parameters: bool = False, known: Known | None = None
    ) -> Statement:
        """Raises SqlRefused; BackendError `overloaded` when too many wait, else when there is no helper process.

        A schema goes to the process once for each of its versions.
        """
        check_text(text)
        await self._line_up()
        # The read goes on when its caller leaves: it is short, and its answer must not meet the next question.
        self._reading = asyncio.create_task(self._ask(text, dialect, parameters, known))
        self._reading.add_done_callback(self._read)
        answer = orjson.loads(await asyncio.shield(self._reading))
        if "refused" in answer:
            raise SqlRefused(answer["refused"], answer["code"])
        return Statement(
            canonical=answer["canonical"],
            tables=frozenset(answer["tables"]),
            deterministic=answer["deterministic"],
            unlimited=answer["unlimited"],
            parameters=tuple(answer["parameters"]),
        )

    async def aclose(self) -> None:
        """End the process. Idempotent."""
        self._closed = True
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        await self._drop()

    async def _line_up(self) -> None:
        """Wait for the turn, in the caller's own task: whoever leaves is out of the line. Raises BackendError."""
        if self._waiting >= WAITING_MOST:
            raise BackendError(
                "too many statements wait to be read", trouble="overloaded", retryable=True, retry_after=1.0
            )
        self._waiting += 1
        try:
            await self._turn.acquire()
        finally:
            self._waiting -= 1

    def _read(self, reading: asyncio.Task[bytes]) -> None:
        """The next in line may go. Takes note of a failure that may have nobody to wait for it any more."""
        self._turn.release()
        if not reading.cancelled():
            reading.exception()

    async def _ask(self, text: str, dialect: str, parameters: bool, known: Known | None) -> bytes:
        child = await self._ready()
        request: list[object] = [text, dialect, parameters]
        if known is not None:
            taught = self._taught.get(known.database) == known.version
            request += [known.database, None if taught else known.schema]
        try:
            answer = await child.ask(orjson.dumps(request), _BUSY * self._timeout)
        except BackendError:
            await self._drop()
            raise SqlRefused("the statement is too complex to be read", "too_complex") from None
        if known is not None:
            self._taught[known.database] = known.version
        return answer

    async def _ready(self) -> Child:
        if self._closed:
            raise BackendError("the reader of SQL is closed", trouble="refused", retryable=False)
        if self._child is not None and not self._child.alive:
            await self._drop()
        if self._child is None:
            self._child = await Child.spawn(__name__, b"%f" % self._timeout, timeout=_START)
        return self._child

    async def _drop(self) -> None:
        child, self._child = self._child, None
        self._taught.clear()
        if child is not None:
            await child.kill()


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

    def interrupt(self) -> None:
        """Nothing: a read is short, and the parent kills what is not."""


def start(configuration: bytes) -> Service:
    return Reading(float(configuration))


if __name__ == "__main__":
    serve(start)
