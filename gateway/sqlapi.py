"""`POST /v1/sql` and `GET /v1/databases/…`: the SQL pool for clients that run their tools themselves."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import orjson
from starlette.types import Receive, Scope, Send

from gateway.asgi import EVENT_STREAM, JSON, Out, read_body, while_present
from gateway.door import Door
from gateway.intake import Asked, Intake
from gateway.openai.errors import NO_RETRY
from gateway.question import Question
from gateway.rows import Rows
from gateway.schemas import schema, tables_of
from gateway.sqlquery import read_query
from gateway.tools import Desk
from gateway.verdicts import Answer

NDJSON = ("content-type", "application/x-ndjson")


class SqlApi:
    """The SQL endpoints."""

    def __init__(self, *, intake: Intake, desk: Desk, door: Door, max_body: int) -> None:
        self._intake = intake
        self._desk = desk
        self._door = door
        self._max_body = max_body

    async def query(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`{"sql", "database"?, "params"?, "limit"?, "dialect"?, "format"?}` → typed columns and rows.

        As one JSON document, as NDJSON, or as events that tell the progress before the result.
        """

        async def serve(out: Out) -> None:
            wanted = read_query(await read_body(scope, receive, most=self._max_body), scope["headers"])
            asked = self._intake.asked(scope, wanted.document)
            out.said = asked.reply_headers
            ways = {"json": self._whole, "ndjson": self._lines, "events": self._events}
            await ways[wanted.shape](out, receive, asked, wanted.question)

        await self._door("sql", Out(send), serve)

    async def _whole(self, out: Out, receive: Receive, asked: Asked, question: Question) -> None:
        answer = self._desk.at_hand(asked, question)
        if answer is None:
            async with while_present(receive):
                answer = await self._desk.query(asked, question)
        await self._send(out, asked, answer)

    async def _lines(self, out: Out, receive: Receive, asked: Asked, question: Question) -> None:
        """Rows as they come, at the client's pace. What goes wrong after the first line is told in the last one."""
        out.last_words = lambda error: error.body() + b"\n"
        async with while_present(receive), self._desk.stream(asked, question) as found:
            if isinstance(found, Rows):
                await out.begin(200, [NDJSON, *asked.reply_headers(found.start)])
                await found.write(out.write)
            answer = found.end if isinstance(found, Rows) else found
        out.reason = answer.code
        if out.started:
            await out.end((answer.body if answer.status == 200 else answer.error()) + b"\n")
        else:
            await self._send(out, asked, answer)

    async def _events(self, out: Out, receive: Receive, asked: Asked, question: Question) -> None:
        """`event: progress` with a percentage as often as there is news, then `event: result` or `event: error`.

        What fails before any news is an error reply as ever: the status is not set before there is something to say.
        """
        out.last_words = lambda error: _event("error", error.body())

        async def begin(answer: Answer | None = None) -> None:
            if not out.started:
                said = asked.reply_headers(answer.start, cache=answer.cache) if answer else asked.reply_headers()
                await out.begin(200, [EVENT_STREAM, ("cache-control", "no-cache"), *said])

        async def tell(percent: float) -> None:
            await begin()
            await out.write(_event("progress", orjson.dumps({"percent": percent})))

        async with while_present(receive):
            answer = await self._desk.query(asked, question, on_progress=tell)
        out.reason = answer.code
        if answer.status == 200:
            await begin(answer)
            await out.end(_event("result", answer.body))
        elif out.started:
            await out.end(_event("error", answer.error()))
        else:
            await self._send(out, asked, answer)

    async def schema(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The tables of one database, as text for a prompt and as data; `?tables=a,b` for these alone."""
        database = scope["path_params"]["database"]

        async def described(asked: Asked) -> Answer:
            return await schema(self._desk, asked, database=database, tables=tables_of(scope["query_string"]))

        await self._get(scope, receive, send, described)

    async def databases(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The names of the databases that the caller may ask."""

        async def names(asked: Asked) -> Answer:
            return Answer(status=200, body=orjson.dumps({"databases": self._desk.open_to(asked.caller)}), fate="ok")

        await self._get(scope, receive, send, names)

    async def _get(
        self, scope: Scope, receive: Receive, send: Send, answer: Callable[[Asked], Awaitable[Answer]]
    ) -> None:
        async def serve(out: Out) -> None:
            await read_body(scope, receive, most=self._max_body)
            asked = self._intake.asked(scope, None)
            out.said = asked.reply_headers
            async with while_present(receive):
                found = await answer(asked)
            await self._send(out, asked, found)

        await self._door("databases", Out(send), serve)

    async def _send(self, out: Out, asked: Asked, answer: Answer) -> None:
        out.reason = answer.code
        headers = [JSON, *asked.reply_headers(answer.start, cache=answer.cache)]
        if answer.status == 200:
            await out.whole(200, headers, answer.body)
            return
        if answer.fate == "timeout":
            headers.append(NO_RETRY)
        await out.whole(answer.status, headers, answer.error())


def _event(name: str, data: bytes) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data)
