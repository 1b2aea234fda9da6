"""`POST /mcp`: the SQL pool as tools of the Model Context Protocol, for any client that speaks it.

Importing this module takes most of a second, so only `compose` does, and only where MCP is switched on. Each request
stands for itself: there are no sessions, so there is nothing to run out of, and any gateway may answer the next one.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import Any

import orjson
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from mcp.shared.exceptions import MCPError
from mcp.types import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool,
    ToolAnnotations,
)
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from gateway.access import Caller
from gateway.asgi import ClientLeft, Out, read_body
from gateway.door import Door
from gateway.intake import Asked, Intake
from gateway.openai.errors import ApiError, shown
from gateway.progress import OnProgress
from gateway.question import QUESTION, TABLES, only, read_question, read_tables, read_text
from gateway.schemas import schema
from gateway.tools import DESCRIBE, EXECUTE, Desk
from gateway.verdicts import Answer
from policies.dialects import DIALECTS

LIST = "list_databases"
_log = logging.getLogger("cortex.mcp")

Context = ServerRequestContext[dict[str, Any], Request]
Arguments = Mapping[str, Any]


class McpApi:
    """The MCP endpoint. A tool's answer is text: the body that HTTP would have given, or what went wrong."""

    def __init__(self, *, intake: Intake, desk: Desk, door: Door, max_body: int) -> None:
        self._intake = intake
        self._desk = desk
        self._door = door
        self._max_body = max_body
        self._tools = {tool.name: tool for tool in _tools(desk.databases)}
        self._sessions = StreamableHTTPSessionManager(
            Server(
                "cortex",
                version=version("cortex-gateway"),
                title="Cortex SQL",
                get_tool_input_schema=self._schema_of,
                on_list_tools=self._offer,
                on_call_tool=self._call,
            ),
            stateless=True,
            # The names by which it may be asked are looked at before, for all endpoints alike.
            security_settings=TransportSecuritySettings(enable_dns_rebinding_protection=False),
            max_request_body_size=max_body,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answer requests inside the block, which is entered and left by one task, once."""
        logging.getLogger("mcp").setLevel(logging.WARNING)  # at `info` it has two lines for each request
        async with self._sessions.run():
            yield

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request of a client."""

        async def serve(out: Out) -> None:
            body = await read_body(scope, receive, most=self._max_body)
            with self._door.holding(body):
                await _Exchange(body, receive, send, out).run(self._sessions.handle_request, scope)

        await self._door("mcp", Out(send), serve)

    async def _offer(self, context: Context, _: PaginatedRequestParams | None) -> ListToolsResult:
        assert context.request is not None
        caller: Caller = context.request.scope["state"]["caller"]
        return ListToolsResult(tools=_tools(self._desk.open_to(caller)))

    def _schema_of(self, name: str) -> Mapping[str, Any] | None:
        tool = self._tools.get(name)
        return tool.input_schema if tool else None

    async def _call(self, context: Context, params: CallToolRequestParams) -> CallToolResult:
        """Run a tool. What the caller can mend comes back as a result that says so, for its model to read."""
        tools: Mapping[str, Callable[[Asked, Arguments], Awaitable[CallToolResult]]] = {
            EXECUTE: partial(self._execute, on_progress=_teller(context)),
            DESCRIBE: self._describe,
            LIST: self._list,
        }
        tool = tools.get(params.name)
        if tool is None:
            message = f"no tool named '{shown(params.name)}' (known: {', '.join(tools)})"
            raise MCPError(code=INVALID_PARAMS, message=message)
        assert context.request is not None
        try:
            asked = self._intake.asked(context.request.scope, _identity(params))
            return await tool(asked, params.arguments or {})
        except ApiError as error:
            return _failed(error.message)
        except Exception:  # noqa: BLE001 - the root of the call: logged, and told in words of ours, not the exception's
            _log.exception("tool call failed tool=%s", params.name)
            raise MCPError(code=INTERNAL_ERROR, message="something went wrong inside the gateway") from None

    async def _execute(self, asked: Asked, arguments: Arguments, *, on_progress: OnProgress | None) -> CallToolResult:
        only(arguments, QUESTION)
        answer = await self._desk.query(asked, read_question(arguments, None), on_progress=on_progress)
        return _result(asked, answer, answer.body.decode())

    async def _describe(self, asked: Asked, arguments: Arguments) -> CallToolResult:
        only(arguments, TABLES)
        database, tables = read_text(arguments, "database"), read_tables(arguments)
        answer = await schema(self._desk, asked, database=database, tables=tables)
        return _result(asked, answer, str(answer.document().get("text", "")))

    async def _list(self, asked: Asked, arguments: Arguments) -> CallToolResult:
        only(arguments, ())
        body = orjson.dumps({"databases": self._desk.open_to(asked.caller)})
        return _result(asked, Answer(status=200, body=body, fate="ok"), body.decode())


class _Exchange:
    """One request whose body was read already, and what becomes of it, as the door wants to know."""

    def __init__(self, body: bytes, receive: Receive, send: Send, out: Out) -> None:
        self._body: bytes | None = body
        self._receive = receive
        self._send = send
        self._out = out
        self._left = False
        self._whole = False

    async def run(self, answer: Callable[[Scope, Receive, Send], Awaitable[None]], scope: Scope) -> None:
        """Raises ClientLeft where the client was gone before its answer was whole."""
        await answer(scope, self._read, self._write)
        if self._left and not self._whole:
            raise ClientLeft

    async def _read(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        message = await self._receive()
        self._left |= message["type"] == "http.disconnect"
        return message

    async def _write(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._out.started, self._out.status = True, message["status"]
        else:
            self._whole |= not message.get("more_body", False)
        await self._send(message)


def _identity(params: CallToolRequestParams) -> Mapping[str, object] | None:
    """What the request itself says of its run: a client has one set of headers for all the runs that it serves."""
    said = (params.meta or {}).get("workflow")
    return None if said is None else {"workflow": said}


def _teller(context: Context) -> OnProgress | None:
    """Tells the client how far its statement is, where it has asked to be told."""
    if "progress_token" not in (context.meta or {}):
        return None

    async def tell(percent: float) -> None:
        await context.session.report_progress(percent, total=100)

    return tell


def _result(asked: Asked, answer: Answer, text: str) -> CallToolResult:
    """The answer as text alone: as structured content besides it would go to the model twice, and through as many
    Python objects as the result has values. What HTTP says in headers stands in `_meta`, by the same names."""
    if answer.status != 200:
        text = answer.complaint()
    headers = dict(asked.reply_headers(answer.start, cache=answer.cache))
    return CallToolResult(content=[TextContent(text=text)], is_error=answer.status != 200, _meta=headers)


def _failed(message: str) -> CallToolResult:
    return CallToolResult(content=[TextContent(text=message)], is_error=True)


def _tools(databases: Sequence[str]) -> list[Tool]:
    """The tools as they are offered. A database need only be named where there are several."""
    named = ["database"] if len(databases) > 1 else []
    database = {"database": {"type": "string", "enum": list(databases)}} if databases else {}
    sql = {"type": "string", "description": "one SELECT statement"}
    limit = {"type": "integer", "minimum": 1, "description": "the most rows that are wanted"}
    params = {"type": ["array", "object"], "description": "values for ? and $1 as a list, for $name as an object"}
    dialect = {"type": "string", "enum": list(DIALECTS), "description": "what the statement is written in"}
    tables = {"type": "array", "items": {"type": "string"}, "description": "only these tables; all without"}
    return [
        _tool(
            EXECUTE,
            "Run one read-only SQL statement and return its columns and rows as JSON.",
            {"sql": sql, "params": params, **database, "dialect": dialect, "limit": limit},
            ["sql", *named],
        ),
        _tool(
            DESCRIBE,
            "Return the tables of a database: columns, types, keys and comments.",
            {**database, "tables": tables},
            named,
        ),
        _tool(LIST, "Return the names of the databases that can be asked.", {}, []),
    ]


def _tool(name: str, description: str, properties: Mapping[str, object], required: Sequence[str]) -> Tool:
    return Tool(
        name=name,
        description=description,
        input_schema={
            "type": "object",
            "properties": dict(properties),
            "required": list(required),
            "additionalProperties": False,
        },
        annotations=ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False),
    )
