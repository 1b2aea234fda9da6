"""`POST /v1/sql` and `GET /v1/databases/…`: the SQL pool for clients that run their tools themselves."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson
from starlette.types import Receive, Scope, Send

from gateway.asgi import JSON, Out, read_body, while_present
from gateway.door import Door
from gateway.intake import Asked, Intake
from gateway.openai.errors import ill_formed, missing
from gateway.openai.payload import object_of
from gateway.tools import Answer, Desk

LIMIT_MOST = 1_000_000


class SqlApi:
    """The SQL endpoints."""

    def __init__(self, *, intake: Intake, desk: Desk, door: Door, max_body: int) -> None:
        self._intake = intake
        self._desk = desk
        self._door = door
        self._max_body = max_body

    async def query(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`{"sql", "database"?, "limit"?}` → typed columns and rows."""

        async def serve(out: Out) -> None:
            document = object_of(await read_body(scope, receive, most=self._max_body))
            sql, database, limit = _sql(document), _database(document), _limit(document)
            asked = self._intake.asked(scope, document)
            out.said = asked.reply_headers()
            async with while_present(receive):
                answer = await self._desk.query(asked, sql, database=database, limit=limit)
            await self._send(out, asked, answer)

        await self._door("sql", Out(send), serve)

    async def schema(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The tables of one database, as text for a prompt and as data."""
        database = scope["path_params"]["database"]
        await self._get(scope, receive, send, lambda asked: self._desk.describe(asked, database=database))

    async def databases(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The names of the databases."""

        async def names(asked: Asked) -> Answer:
            return Answer(status=200, body=orjson.dumps({"databases": self._desk.databases}), fate="ok")

        await self._get(scope, receive, send, names)

    async def _get(
        self, scope: Scope, receive: Receive, send: Send, answer: Callable[[Asked], Awaitable[Answer]]
    ) -> None:
        async def serve(out: Out) -> None:
            await read_body(scope, receive, most=self._max_body)
            asked = self._intake.asked(scope, None)
            out.said = asked.reply_headers()
            async with while_present(receive):
                found = await answer(asked)
            await self._send(out, asked, found)

        await self._door("databases", Out(send), serve)

    async def _send(self, out: Out, asked: Asked, answer: Answer) -> None:
        headers = [JSON, *asked.reply_headers(answer.start, cache=answer.cache)]
        if answer.status == 200:
            await out.whole(200, headers, answer.body)
            return
        error = answer.document()["error"]
        kind = "timeout_error" if answer.fate == "timeout" else "invalid_request_error"
        whole = {"message": error["message"], "type": kind, "param": "sql", "code": error["code"]}
        await out.whole(answer.status, headers, orjson.dumps({"error": whole}))


def _sql(document: Mapping[str, Any]) -> str:
    sql = document.get("sql")
    if sql is None:
        raise missing("sql")
    if not isinstance(sql, str) or not sql.strip():
        raise ill_formed("sql", "must be one SQL statement as text")
    return sql


def _database(document: Mapping[str, Any]) -> str | None:
    database = document.get("database")
    if database is not None and not isinstance(database, str):
        raise ill_formed("database", "must be a string")
    return database


def _limit(document: Mapping[str, Any]) -> int | None:
    limit = document.get("limit")
    if limit is not None and (type(limit) is not int or not 0 < limit <= LIMIT_MOST):
        raise ill_formed("limit", f"must be a whole number from 1 to {LIMIT_MOST}")
    return limit
