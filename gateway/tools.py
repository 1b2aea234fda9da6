"""SQL tool calls go to the executor: read and guarded, recalled if known, else run in the SQL pool.

A statement that is refused, fails, finds nothing or takes too long is an answer like any other: it has an outcome
in the workflow's terms and a text that a model can repair its SQL by.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Hashable, Mapping
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Protocol

import orjson

from backends.base import BackendError, Request
from gateway.access import Caller
from gateway.answers import cut_short
from gateway.attempts import Attempt, begun
from gateway.backendspecs import DuckDb
from gateway.columns import Columns
from gateway.intake import Asked, Intake
from gateway.openai.errors import bad_request, interrupted, not_found, timeout, unavailable
from gateway.params import Misfit, Scalar, bound
from gateway.progress import OnProgress, telling
from gateway.question import Question
from gateway.recall import Recall
from gateway.rows import Bounds, Rows, streamed
from gateway.runtime import Runtime
from gateway.spare import Spare
from gateway.verdicts import FATES, Answer, last, refusal, whole
from policies.calls import Call, Outcome, Source
from policies.dialects import BY_SCHEMA, Known
from policies.events import Start
from policies.sql import SqlRefused, Statement

EXECUTE, DESCRIBE = "execute_sql", "describe_tables"


class Counts(Protocol):
    """What the metrics hear of it."""

    def answered(self, source: str, saved: float = 0.0) -> None: ...


class Reader(Protocol):
    """Reads SQL off the event loop, what is not `known` by its text. Raises SqlRefused."""

    def known(self, text: str, dialect: str, columns: Known | None) -> Statement | None: ...

    async def read(self, text: str, dialect: str, columns: Known | None, tenant: str) -> Statement: ...


class Results(Protocol):
    """Where results are kept: bounded in bytes, what saves the least first to go."""

    def get(self, key: Hashable) -> bytes | None: ...

    def put(self, key: Hashable, result: bytes, *, seconds: float) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Warehouse:
    """One SQL pool: its settings, the reader of its statements, and what keeps its results."""

    pool: str
    settings: DuckDb
    reader: Reader
    kept: Results
    key: Callable[[str, str, str, int], Hashable]
    """The key of a result: of tenant, database as it is now, canonical SQL and rows asked for."""
    current: Callable[[Hashable], bool]
    """Whether the data that a key stands for are still there."""

    def rows(self, limit: int | None) -> int:
        """How many rows of a whole result are given to who asks for so many."""
        return min(limit or self.settings.max_rows, self.settings.max_rows)


class _Answers:
    """Results kept as bytes, each behind its fate, the seconds that it took and a line feed, seen as answers."""

    def __init__(self, house: Warehouse) -> None:
        self._house = house

    def get(self, key: Hashable) -> Answer | None:
        kept = self._house.kept.get(key)
        if kept is None:
            return None
        head, _, body = kept.partition(b"\n")
        fate, seconds = head.decode().split()
        return Answer(status=200, body=body, fate=FATES[fate], cache="hit", seconds=float(seconds))

    def put(self, key: Hashable, value: Answer) -> None:
        # Replaced while the statement was under way: it may have run on the new data and must not stand for the old.
        if self._house.current(key):
            head = f"{value.fate} {value.seconds:.6f}\n"
            self._house.kept.put(key, head.encode() + value.body, seconds=value.seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What a worker is asked: the path, the members of the body, and the seconds that it has.

    `report` is told how far the statement is, in percent.
    """

    path: str
    members: Mapping[str, object]
    timeout: float
    report: Callable[[float], None] | None = None

    def request(self, call: Call, threads: Callable[[], int] = lambda: 1) -> Callable[[Start], Request]:
        """What to send to the worker that is found; `threads` are asked for then."""
        # The worker holds the deadline itself; this bounds the wait for one that is being brought up again.
        patience = 2 * self.timeout + 5.0
        said = {**self.members, "timeout": self.timeout, "progress": self.report is not None}

        def made(_: Start) -> Request:
            body = orjson.dumps({**said, "threads": threads()})
            return Request(call=call, path=self.path, body=body, head_timeout=patience)

        return made


@dataclass(frozen=True, slots=True)
class _Ready:
    """A statement that may run: as it was written, where, as which call, and with which values of its parameters."""

    written: str
    house: Warehouse
    database: str
    call: Call
    statement: Statement
    values: Mapping[str, Scalar]

    def job(self, path: str, rows: int, most: int, report: Callable[[float], None] | None = None) -> _Job:
        """What is asked for `rows` rows of `most` bytes."""
        members = {
            "database": self.database,
            "sql": self.statement.canonical,
            "tables": list(self.statement.tables),
            "params": self.values,
            "limit": rows,
            "max_bytes": most,
            "unlimited": self.statement.unlimited,
        }
        return _Job(path=path, members=members, timeout=self.house.settings.timeout, report=report)

    def told(self, answer: Answer) -> Answer:
        """The answer in words for whoever wrote this statement."""
        setting = f"pools.{self.house.pool}.backend.timeout"
        return answer.placed(self.written).overdue(self.house.settings.timeout, setting)

    def key(self, tenant: str, rows: int) -> Hashable:
        """The key of the result. Raises ApiError 503."""
        text = self.statement.canonical
        if self.values:  # no statement holds a NUL
            text += "\0" + orjson.dumps(self.values, option=orjson.OPT_SORT_KEYS).decode()
        return _key(self.house, tenant, self.database, text, rows)


class Desk:
    """Takes statements in for all SQL pools."""

    def __init__(
        self,
        *,
        runtime: Runtime,
        intake: Intake,
        warehouses: Mapping[str, Warehouse],
        spare: Spare,
        counts: Counts,
        total: float = 600.0,
    ) -> None:
        """`total` bounds a statement with its time in the queue, in seconds."""
        self._runtime = runtime
        self._intake = intake
        self._warehouses = warehouses
        self._spare = spare
        self._counts = counts
        self._total = total
        self._columns = Columns(lambda asked, database: self.describe(asked, database=database))
        self.databases = sorted({name for house in warehouses.values() for name in house.settings.databases})
        """All databases that can be asked, by name."""
        self._recalls = {
            name: Recall[Hashable, Answer](runtime=runtime, kept=_Answers(house), outcome=_outcome, keep=_may_be_kept)
            for name, house in warehouses.items()
        }

    async def query(
        self,
        asked: Asked,
        question: Question,
        *,
        stage: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> Answer:
        """Run one read-only statement. Raises ApiError (404, 503).

        `on_progress` hears how far the statement is, where the engine can tell and this call is the one that runs it.
        """
        ready = await self._ready(asked, question, stage=stage)
        if isinstance(ready, Answer):
            return ready
        async with telling(on_progress) if on_progress is not None else nullcontext() as report:
            answer = await self._answered(asked, ready, question.limit, report)
        return ready.told(answer)

    def at_hand(self, asked: Asked, question: Question) -> Answer | None:
        """As `query`, where this very text was read before and its result is kept: nothing waits. Raises ApiError."""
        house, database = self._find(asked.caller, question.database)
        dialect = question.dialect or house.settings.dialect
        columns, there = None, True
        if dialect in BY_SCHEMA:
            there, columns = self._columns.at_hand(database, _key(house, "", database, DESCRIBE, 0))
        statement = house.reader.known(question.sql, dialect, columns) if there else None
        if statement is None or not statement.deterministic:
            return None
        try:
            values = bound(question.params, statement.parameters)
        except Misfit:
            return None
        call = self._intake.sql_call(asked, house.pool, question.sql)
        ready = _Ready(question.sql, house, database, call, statement, values)
        key = ready.key(asked.caller.tenant, house.rows(question.limit))
        answer = self._recalls[house.pool].at_hand(key, call)
        if answer is not None:
            self._counts.answered("hit", answer.seconds)
        return answer

    async def _answered(
        self, asked: Asked, ready: _Ready, limit: int | None, report: Callable[[float], None] | None
    ) -> Answer:
        house = ready.house
        rows = house.rows(limit)
        job = ready.job("/sql/query", rows, house.settings.max_bytes, report)
        if not ready.statement.deterministic:
            self._counts.answered("bypass")
            return await self._run(house, ready.call, job)
        return await self._recalled(house, ready.key(asked.caller.tenant, rows), ready.call, job)

    @asynccontextmanager
    async def stream(self, asked: Asked, question: Question) -> AsyncIterator[Answer | Rows]:
        """As `query`, for the rows as they come, with limits of their own; an answer where there are none.

        Such results are not kept. Leaving the block stops the statement. Raises ApiError, also out of the block.
        """
        ready = await self._ready(asked, question)
        if isinstance(ready, Answer):
            yield ready
            return
        self._counts.answered("stream")
        settings = ready.house.settings
        most = min(question.limit or settings.max_stream_rows, settings.max_stream_rows)
        request = ready.job("/sql/stream", most, settings.max_stream_bytes).request(ready.call)
        bounds = Bounds(total=self._total, longest=settings.stream_timeout, stall=settings.stream_stall)
        async with streamed(self._runtime, ready.call, request, bounds, ready.told) as found:
            yield found

    async def _ready(self, asked: Asked, question: Question, *, stage: str | None = None) -> _Ready | Answer:
        """The statement read and its parameters bound, or why it may not run. Raises ApiError (404, 503)."""
        house, database = self._find(asked.caller, question.database)
        call = self._intake.sql_call(asked, house.pool, question.sql, stage=stage)
        try:
            statement, values = await self.read(asked, question)
        except SqlRefused as error:
            answer = refusal(str(error), error.code)
        except Misfit as error:
            answer = refusal(str(error), "invalid_params", param="params")
        except BackendError as error:
            raise unavailable(f"SQL cannot be read now: {error}", retry_after=error.retry_after or 1.0) from error
        else:
            return _Ready(question.sql, house, database, call, statement, values)
        self._counts.answered("refused")
        self._runtime.recalled(call, _outcome(answer, "cache"))
        return answer

    async def read(self, asked: Asked, question: Question) -> tuple[Statement, dict[str, Scalar]]:
        """Read a statement as `query` would, and the values of its parameters by name.

        Raises SqlRefused, Misfit, BackendError and ApiError.
        """
        house, database = self._find(asked.caller, question.database)
        dialect = question.dialect or house.settings.dialect
        columns = None
        if dialect in BY_SCHEMA:
            columns = await self._columns.of(asked, database, _key(house, "", database, DESCRIBE, 0))
        statement = await house.reader.read(question.sql, dialect, columns, asked.caller.tenant)
        return statement, bound(question.params, statement.parameters)

    async def describe(self, asked: Asked, *, database: str | None = None, stage: str | None = None) -> Answer:
        """The tables of a database: `{"database", "text", "tables"}`, the text byte-stable for prompts."""
        house, database = self._find(asked.caller, database)
        call = self._intake.sql_call(asked, house.pool, "", stage=stage)
        key = _key(house, "", database, DESCRIBE, 0)
        job = _Job(path="/sql/describe", members={"database": database}, timeout=house.settings.timeout)
        return await self._recalled(house, key, call, job)

    async def _recalled(self, house: Warehouse, key: Hashable, call: Call, job: _Job) -> Answer:
        async def compute(leader: Call) -> Answer:
            return await self._run(house, leader, job)

        found = await self._recalls[house.pool].get(key, call, compute)
        answer = found.value
        if found.cache == "miss":
            self._counts.answered("bypass" if answer.volatile else "miss")
            return replace(answer, cache="miss")
        self._counts.answered(found.cache, answer.seconds)
        return replace(answer, cache=found.cache, start=None)

    async def _run(self, house: Warehouse, call: Call, job: _Job) -> Answer:
        try:
            async with asyncio.timeout(self._total), self._runtime.ticket(call) as ticket:
                with self._spare.threads(call, house.settings.max_threads) as threads:
                    async with begun(self._runtime, ticket, job.request(call, threads), stream=False) as attempt:
                        return whole(attempt) if attempt.rest is None else await _in_the_end(attempt, job)
        except TimeoutError:
            raise timeout(f"the statement took longer than {self._total:g} s", code="deadline_exceeded") from None

    def open_to(self, caller: Caller) -> list[str]:
        """The databases that a caller may ask, by name."""
        pools = ((name, house) for name, house in self._warehouses.items() if caller.may_use(name))
        return sorted(database for _, house in pools for database in house.settings.databases)

    def _find(self, caller: Caller, database: str | None) -> tuple[Warehouse, str]:
        if database is None:
            known = self.databases if len(self.databases) == 1 else self.open_to(caller)
            if len(known) != 1:
                names = ", ".join(known) or "there is none"
                raise bad_request(f"database: say which (databases: {names})", param="database")
            database = known[0]
        for house in self._warehouses.values():
            if database in house.settings.databases:
                return house, database
        raise not_found("database", database, self.open_to(caller))


def _key(house: Warehouse, tenant: str, database: str, canonical: str, rows: int) -> Hashable:
    try:
        return house.key(tenant, database, canonical, rows)
    except OSError as error:  # nobody can say whether what is kept still holds
        raise unavailable(f"the database {database!r} is not there now", retry_after=1.0) from error


async def _in_the_end(attempt: Attempt, job: _Job) -> Answer:
    """The answer behind the news of its progress. Raises ApiError."""
    assert attempt.rest is not None
    with cut_short(attempt):
        async for pieces in attempt.rest:
            for piece in pieces:
                if not piece.startswith(b"progress\n"):
                    return last(attempt, piece)
                if job.report is not None:
                    job.report(float(piece[9:]))
    raise interrupted("the SQL worker did not answer")


def _may_be_kept(answer: Answer) -> bool:
    return answer.status == 200 and not answer.volatile


def _outcome(answer: Answer, source: Source) -> Outcome:
    return Outcome(fate=answer.fate, source=source)
