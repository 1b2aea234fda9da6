"""SQL tool calls go to the executor: read and guarded, recalled if known, else run in the SQL pool.

A statement that is refused, fails, finds nothing or takes too long is an answer like any other: it has an outcome
in the workflow's terms and a text that a model can repair its SQL by.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from backends.base import BackendError, Request
from gateway.attempts import begun
from gateway.intake import Asked, Intake
from gateway.openai.errors import bad_request, not_found, timeout, unavailable
from gateway.recall import Kept, Recall
from gateway.runtime import Runtime
from gateway.settings import DuckDb
from policies.calls import Call, Fate, Outcome, Source
from policies.events import Start
from policies.sql import SqlRefused, Statement

EXECUTE, DESCRIBE = "execute_sql", "describe_tables"
NO_ROWS = "The statement ran but returned no rows."
_FATES: Mapping[str, Fate] = {"ok": "ok", "empty": "empty", "error": "error", "timeout": "timeout"}


class Reader(Protocol):
    """Reads SQL off the event loop. Raises SqlRefused."""

    async def read(self, text: str, dialect: str) -> Statement: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a tool answered: `status` and `body` as HTTP has them, and the outcome in the workflow's terms."""

    status: int
    body: bytes
    fate: Fate
    cache: str = ""
    start: Start | None = None

    def document(self) -> dict[str, Any]:
        """The body as an object: columns and rows, or an error."""
        document: dict[str, Any] = orjson.loads(self.body)
        return document

    def complaint(self) -> str:
        """What went wrong, in words that a model can repair its statement by; empty where nothing did."""
        if self.fate == "empty":
            return NO_ROWS
        return str(self.document()["error"]["message"]) if self.status != 200 else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Warehouse:
    """One SQL pool: its settings, the reader of its statements, and what keeps its results."""

    pool: str
    settings: DuckDb
    reader: Reader
    kept: Kept[Hashable, bytes]
    key: Callable[[str, str, str, int], Hashable]
    """The key of a result: of tenant, database as it is now, canonical SQL and rows asked for."""


class _Answers:
    """Results kept as bytes, each behind its fate and a line feed, seen as answers."""

    def __init__(self, kept: Kept[Hashable, bytes]) -> None:
        self._kept = kept

    def get(self, key: Hashable) -> Answer | None:
        kept = self._kept.get(key)
        if kept is None:
            return None
        fate, _, body = kept.partition(b"\n")
        return Answer(status=200, body=body, fate=_FATES[fate.decode()])

    def put(self, key: Hashable, value: Answer) -> None:
        self._kept.put(key, value.fate.encode() + b"\n" + value.body)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What a worker is asked: the path, and the members of the body."""

    path: str
    members: Mapping[str, object]


class Desk:
    """Takes statements in for all SQL pools."""

    def __init__(
        self,
        *,
        runtime: Runtime,
        intake: Intake,
        warehouses: Mapping[str, Warehouse],
        count: Callable[[str], None],
        total: float = 600.0,
    ) -> None:
        """`total` bounds a statement with its time in the queue, in seconds."""
        self._runtime = runtime
        self._intake = intake
        self._warehouses = warehouses
        self._count = count
        self._total = total
        self._recalls = {
            name: Recall[Hashable, Answer](
                runtime=runtime, kept=_Answers(house.kept), outcome=_outcome, keep=lambda answer: answer.status == 200
            )
            for name, house in warehouses.items()
        }

    @property
    def databases(self) -> list[str]:
        """The databases that can be asked, by name."""
        return sorted({name for house in self._warehouses.values() for name in house.settings.databases})

    async def query(
        self,
        asked: Asked,
        sql: str,
        *,
        database: str | None = None,
        limit: int | None = None,
        stage: str | None = None,
        dialect: str = "duckdb",
    ) -> Answer:
        """Run one read-only statement. `limit` in rows, at most what the pool allows. Raises ApiError (404, 503)."""
        house, database = self._find(database)
        call = self._intake.sql_call(asked, house.pool, sql, stage=stage)
        try:
            statement = await house.reader.read(sql, dialect)
        except SqlRefused as refusal:
            answer = Answer(status=400, body=_error(str(refusal), refusal.code), fate="error")
            self._count("refused")
            self._runtime.recalled(call, _outcome(answer, "cache"))
            return answer
        except BackendError as error:
            raise unavailable(f"SQL cannot be read now: {error}", retry_after=error.retry_after or 1.0) from error
        rows = min(limit or house.settings.max_rows, house.settings.max_rows)
        job = _Job(
            path="/sql/query",
            members={
                "database": database,
                "sql": statement.canonical,
                "limit": rows,
                "max_bytes": house.settings.max_bytes,
                "unlimited": statement.unlimited,
            },
        )
        if not statement.deterministic:
            self._count("bypass")
            return await self._run(house, call, job)
        key = _key(house, asked.caller.tenant, database, statement.canonical, rows)
        return await self._recalled(house, key, call, job)

    async def describe(self, asked: Asked, *, database: str | None = None, stage: str | None = None) -> Answer:
        """The tables of a database: `{"database", "text", "tables"}`, the text byte-stable for prompts."""
        house, database = self._find(database)
        call = self._intake.sql_call(asked, house.pool, "", stage=stage)
        key = _key(house, "", database, DESCRIBE, 0)
        return await self._recalled(house, key, call, _Job(path="/sql/describe", members={"database": database}))

    async def call(
        self, asked: Asked, name: str, arguments: str, *, stage: str, database: str | None = None
    ) -> Answer:
        """Run a model's tool call. Arguments that are not what the tool takes are an error for the model to mend."""
        try:
            document = orjson.loads(arguments or b"{}")
        except orjson.JSONDecodeError:
            return _unfit("the arguments of the tool call are not valid JSON")
        if not isinstance(document, dict):
            return _unfit("the arguments of the tool call must be a JSON object")
        wanted = document.get("database", database)
        if wanted not in (self.databases if len(self.databases) > 1 else (None, *self.databases)):
            return _unfit(f"database: must be one of {', '.join(self.databases)}")
        if name == DESCRIBE:
            return await self.describe(asked, database=wanted, stage=stage)
        sql = document.get("sql", document.get("query"))
        if not isinstance(sql, str) or not sql.strip():
            return _unfit("sql: must be one SQL statement as text")
        return await self.query(asked, sql, database=wanted, stage=stage)

    async def _recalled(self, house: Warehouse, key: Hashable, call: Call, job: _Job) -> Answer:
        async def compute(leader: Call) -> Answer:
            return await self._run(house, leader, job)

        found = await self._recalls[house.pool].get(key, call, compute)
        self._count(found.cache)
        answer = found.value
        start = answer.start if found.cache == "miss" else None
        return Answer(status=answer.status, body=answer.body, fate=answer.fate, cache=found.cache, start=start)

    async def _run(self, house: Warehouse, call: Call, job: _Job) -> Answer:
        try:
            async with asyncio.timeout(self._total):
                return await self._attempted(house, call, job)
        except TimeoutError:
            raise timeout(f"the statement took longer than {self._total:g} s", code="deadline_exceeded") from None

    async def _attempted(self, house: Warehouse, call: Call, job: _Job) -> Answer:
        allowed = house.settings.timeout
        body = orjson.dumps({**job.members, "timeout": allowed})

        def request(start: Start) -> Request:
            # The worker holds the deadline itself; this bounds the wait for one that is being brought up again.
            return Request(call=call, path=job.path, body=body, head_timeout=2 * allowed + 5.0)

        async with (
            self._runtime.ticket(call) as ticket,
            begun(self._runtime, ticket, request, stream=False) as attempt,
        ):
            fate = _FATES[dict(attempt.headers)["x-sql-outcome"]]
            outcome = attempt.outcome(self._runtime.now(), fate=fate, prompt=0, output=0, cached=None)
            ticket.finished(attempt.start.attempt, outcome)
            return Answer(status=attempt.status, body=attempt.body, fate=fate, cache="miss", start=attempt.start)

    def _find(self, database: str | None) -> tuple[Warehouse, str]:
        if database is None:
            if len(self.databases) != 1:
                known = ", ".join(self.databases) or "none is configured"
                raise bad_request(f"database: say which (databases: {known})", param="database")
            database = self.databases[0]
        for house in self._warehouses.values():
            if database in house.settings.databases:
                return house, database
        raise not_found("database", database, self.databases)


def _key(house: Warehouse, tenant: str, database: str, canonical: str, rows: int) -> Hashable:
    try:
        return house.key(tenant, database, canonical, rows)
    except OSError as error:  # nobody can say whether what is kept still holds
        raise unavailable(f"the database {database!r} is not there now", retry_after=1.0) from error


def _unfit(message: str) -> Answer:
    return Answer(status=400, body=_error(message, "invalid_arguments"), fate="error")


def _error(message: str, code: str) -> bytes:
    return orjson.dumps({"error": {"message": message, "code": code}})


def _outcome(answer: Answer, source: Source) -> Outcome:
    return Outcome(fate=answer.fate, source=source)
