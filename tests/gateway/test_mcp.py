"""`POST /mcp`: the SQL tools, asked by the official client of the Model Context Protocol."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import duckdb
import httpx
import httpx2
import orjson
import pytest
import pytest_asyncio
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from mcp.types import INTERNAL_ERROR, INVALID_PARAMS, CallToolResult, RequestParamsMeta, TextContent

from tests.gateway.shop import COUNT, MISSPELT, database, warehouse
from tests.gateway.support import Running, metric, running, settled, until, written

ENDLESS = "SELECT count(*) FROM range(100000000) AS a, range(100000) AS b"
KEYS = {"keys": [{"key": "a", "tenant": "one"}, {"key": "b", "tenant": "two"}]}
HEADERS = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
LISTING = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}

module_loop = pytest.mark.asyncio(loop_scope="module")
both_eras = pytest.mark.parametrize("mode", ["auto", "legacy"])
"""Each request for itself, as the protocol has it now, and after a handshake, as it was before."""


@asynccontextmanager
async def store(folder: Path, **sections: Any) -> AsyncIterator[Running]:
    pools = sections.pop("pools", None) or {"warehouse": warehouse(folder, timeout="20s")}
    text = written(pools, **{"mcp": {"enabled": True}, **sections})
    async with running(folder, text, report_every=60) as up:
        yield up
        await settled(up.gateway)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    """One gateway for the tests that leave nothing behind."""
    stages = {"check": {"pool": "warehouse", "tool": "execute_sql"}}
    workflows = {"nl2sql": {"stages": stages, "edges": [{"from": "start", "to": "check"}]}}
    async with store(tmp_path_factory.mktemp("store"), workflows=workflows) as up:
        yield up


@asynccontextmanager
async def client(
    up: Running, mode: str = "auto", path: str = "/mcp", headers: Mapping[str, str] | None = None
) -> AsyncIterator[Client]:
    """The official client, with headers of its own on every request."""
    async with (
        httpx2.AsyncClient(headers=headers, trust_env=False, timeout=30) as http,
        Client(streamable_http_client(up.url + path, http_client=http), mode=mode) as found,
    ):
        yield found


def text(result: CallToolResult) -> str:
    (content,) = result.content
    assert isinstance(content, TextContent)
    return content.text


def said(result: CallToolResult, header: str) -> str | None:
    """What the answer says under the name of a reply header."""
    value: str | None = (result.meta or {}).get(header)
    return value


def naming(**fields: str) -> RequestParamsMeta:
    """What a request says of its run."""
    return cast(RequestParamsMeta, {"workflow": fields})


async def raw(up: Running, document: object, **headers: str) -> httpx.Response:
    body = document if isinstance(document, bytes) else orjson.dumps(document)
    return await up.http.post("/mcp", content=body, headers={**HEADERS, **headers})


def busy(up: Running) -> int:
    return sum(len(engine.slots) for engine in up.gateway.runtime.dispatcher.fleet)


# --- tools ----------------------------------------------------------------------------------------------------


@module_loop
@both_eras
async def test_a_client_finds_the_tools_and_what_they_take(shared: Running, mode: str) -> None:
    async with client(shared, mode) as session:
        tools = {tool.name: tool for tool in (await session.list_tools()).tools}
    assert list(tools) == ["execute_sql", "describe_tables", "list_databases"]
    schema = tools["execute_sql"].input_schema
    assert list(schema["properties"]) == ["sql", "params", "database", "dialect", "limit"]
    assert schema["properties"]["database"]["enum"] == ["shop"]
    assert schema["required"] == ["sql"]
    assert all(tool.annotations and tool.annotations.read_only_hint for tool in tools.values())


@module_loop
@both_eras
async def test_a_statement_gives_what_it_gives_over_http_and_out_of_the_same_cache(
    shared: Running, mode: str
) -> None:
    sql = f"SELECT sum(amount) AS total, '{mode}' AS era FROM orders"
    over_http = await shared.http.post("/v1/sql", json={"sql": sql})
    async with client(shared, mode) as session:
        result = await session.call_tool("execute_sql", {"sql": sql.lower(), "database": "shop", "dialect": "duckdb"})
        first = await session.call_tool("execute_sql", {"sql": f"SELECT '{mode}' AS x"})
        cut = await session.call_tool("execute_sql", {"sql": "SELECT id FROM orders ORDER BY id", "limit": 2})
    assert (result.is_error, said(result, "X-Workflow-Cache")) == (False, "hit")
    assert text(result) == over_http.text
    assert orjson.loads(text(result))["rows"] == [[82, mode]]
    assert orjson.loads(text(cut))["rows"] == [[1], [2]]
    assert (said(first, "X-Workflow-Cache"), said(first, "X-Workflow-Engine")) == ("miss", "warehouse/0")


@module_loop
@both_eras
@pytest.mark.parametrize(
    ("sql", "params", "row"),
    [
        ("SELECT ? + 1 AS x, ? AS y", [41, "it's"], [42, "it's"]),
        ("SELECT $2 || $1 AS x", ["a", "b"], ["ba"]),
        ("SELECT $Region AS x, $n AS n", {"region": None, "n": 1e20}, [None, 1e20]),
        ("SELECT CAST(? AS DECIMAL(38, 2)) AS x", ["12345678901234567890.10"], ["12345678901234567890.10"]),
        ("SELECT ? AS x", [2**64 - 1], [str(2**64 - 1)]),
        ("SELECT 1 AS x", None, [1]),
    ],
)
async def test_values_of_parameters_are_bound_and_their_results_shared_with_http(
    shared: Running, mode: str, sql: str, params: Any, row: list[Any]
) -> None:
    async with client(shared, mode) as session:
        result = await session.call_tool("execute_sql", {"sql": sql, "params": params})
    over_http = await shared.http.post("/v1/sql", json={"sql": sql, "params": params})
    assert orjson.loads(text(result))["rows"] == [row]
    assert (over_http.text, over_http.headers["X-Workflow-Cache"]) == (text(result), "hit")


@module_loop
@both_eras
@pytest.mark.parametrize(
    ("sql", "params"),
    [
        ("SELECT ? AS x", None),
        ("SELECT ? AS x", [1, 2]),
        ("SELECT $a AS x", {"b": 1}),
        ("SELECT $a AS x", {"a": 1, "A": 2}),
        ("SELECT ? AS x", "1"),
        ("SELECT ? AS x", [[1]]),
        ("SELECT ? AS x", [1] * 1001),
        ("SELECT ? AS x", [2**64]),
        ("SELECT $a AS x", {"a": -(2**63) - 1}),
    ],
)
async def test_values_that_do_not_fit_are_refused_in_the_words_of_http(
    shared: Running, mode: str, sql: str, params: Any
) -> None:
    async with client(shared, mode) as session:
        result = await session.call_tool("execute_sql", {"sql": sql, "params": params})
    over_http = await shared.http.post(
        "/v1/sql", content=json.dumps({"sql": sql, "params": params}), headers={"Content-Type": "application/json"}
    )
    assert over_http.status_code == 400
    assert (result.is_error, text(result)) == (True, over_http.json()["error"]["message"])


@module_loop
async def test_numbers_that_are_not_finite_are_no_values_though_a_client_may_write_them(shared: Running) -> None:
    arguments = '{"sql": "SELECT ? AS x", "params": [NaN]}'
    body = '{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "execute_sql", "arguments": %s}}'
    reply = await raw(shared, (body % arguments).encode())
    assert "finite" in reply.text


@module_loop
@both_eras
async def test_the_tables_are_described_in_the_words_of_the_schema_prompt(shared: Running, mode: str) -> None:
    over_http = (await shared.http.get("/v1/databases/shop/schema")).json()
    async with client(shared, mode) as session:
        whole = await session.call_tool("describe_tables")
        chosen = await session.call_tool("describe_tables", {"tables": ["ORDERS"]})
        unknown = await session.call_tool("describe_tables", {"tables": ["order"]})
        names = await session.call_tool("list_databases")
    assert text(whole) == text(chosen) == over_http["text"]
    assert (unknown.is_error, text(unknown)) == (True, "no table named 'order'; did you mean orders?")
    assert orjson.loads(text(names)) == {"databases": ["shop"]}


@module_loop
@both_eras
@pytest.mark.parametrize(
    ("tool", "arguments", "words"),
    [
        ("execute_sql", {}, "sql: is required"),
        ("execute_sql", {"sql": ""}, "sql: must be one SQL statement as text"),
        ("execute_sql", {"sql": "  \n"}, "sql: must be one SQL statement as text"),
        ("execute_sql", {"sql": ["SELECT 1"]}, "sql: must be one SQL statement as text"),
        (
            "execute_sql",
            {"sql": "SELECT 1", "query": "SELECT 2"},
            "query: is not known here (known: sql, database, params, limit, dialect)",
        ),
        ("execute_sql", {"sql": "SELECT 1", "a\nb": 1}, "a\\nb: is not known here"),
        ("execute_sql", {"sql": "SELECT 1", "database": 5}, "database: must be a string"),
        ("execute_sql", {"sql": "SELECT 1", "database": "/etc/passwd"}, "known: shop"),
        ("execute_sql", {"sql": "SELECT 1", "dialect": "klingon"}, "dialect: must be one of duckdb, sqlite"),
        ("execute_sql", {"sql": "SELECT 1", "limit": 0}, "limit: must be a whole number"),
        ("execute_sql", {"sql": "SELECT 1", "limits": 5}, "limits: is not known here; did you mean limit?"),
        ("execute_sql", {"sql": "SELECT 1; SELECT 2"}, "one"),
        ("execute_sql", {"sql": "DROP TABLE orders"}, "SELECT"),
        ("execute_sql", {"sql": "SELECT * FROM read_csv('/etc/passwd')"}, "read_csv"),
        ("execute_sql", {"sql": "SELECT '" + "x" * 30_000 + "'"}, "20,000"),
        ("execute_sql", {"sql": MISSPELT}, 'Referenced column "amuont" not found'),
        ("describe_tables", {"tables": "orders"}, "tables: must be a list"),
        ("describe_tables", {"tables": []}, "tables: must be a list"),
        ("describe_tables", {"tables": [1]}, "tables: must hold names"),
        ("describe_tables", {"database": "nowhere"}, "known: shop"),
        ("list_databases", {"database": "shop"}, "database: is not known here (known: none)"),
    ],
)
async def test_what_a_model_got_wrong_is_a_result_that_it_can_mend_its_call_by(
    shared: Running, mode: str, tool: str, arguments: dict[str, Any], words: str
) -> None:
    async with client(shared, mode) as session:
        result = await session.call_tool(tool, arguments)
    assert result.is_error
    assert words in text(result)


@module_loop
@both_eras
async def test_a_tool_that_does_not_exist_is_an_error_of_the_protocol(shared: Running, mode: str) -> None:
    async with client(shared, mode) as session:
        with pytest.raises(MCPError, match="no tool named 'drop_table'") as caught:
            await session.call_tool("drop_table", {})
    assert caught.value.code == INVALID_PARAMS


@both_eras
async def test_of_several_databases_one_must_be_named(tmp_path: Path, mode: str) -> None:
    files = {name: str(database(tmp_path / f"{name}.duckdb")) for name in ("one", "two")}
    pools = {"warehouse": {"backend": {"name": "duckdb", "databases": files}}}
    async with store(tmp_path, pools=pools) as up, client(up, mode) as session:
        (execute, describe, _) = (await session.list_tools()).tools
        assert execute.input_schema["required"] == ["sql", "database"]
        assert describe.input_schema["required"] == ["database"]
        refused = await session.call_tool("execute_sql", {"sql": COUNT})
        assert (refused.is_error, "databases: one, two" in text(refused)) == (True, True)
        result = await session.call_tool("execute_sql", {"sql": COUNT, "database": "two"})
        assert orjson.loads(text(result))["rows"] == [[4]]


@both_eras
async def test_a_client_that_asks_for_it_is_told_how_far_its_statement_is(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "numbers.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE numbers AS SELECT i FROM range(3000000) AS r(i)")
    backend = {"name": "duckdb", "databases": {"numbers": str(path)}, "timeout": "100s"}
    sql = f"SELECT count(*) FROM numbers WHERE {'md5(' * 12}i::VARCHAR{')' * 12} LIKE '%abc'"
    told: list[tuple[float, float | None]] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        told.append((progress, total))

    async with store(tmp_path, pools={"warehouse": {"backend": backend}}) as up:
        async with client(up, mode) as session:
            call = asyncio.create_task(session.call_tool("execute_sql", {"sql": sql}, progress_callback=hear))
            await until(lambda: len(told) >= 2, "news of the statement", within=30)
        with pytest.raises((MCPError, asyncio.CancelledError)):
            await call
    assert 0 < told[0][0] < told[1][0] <= 100
    assert {total for _, total in told} == {100}


async def test_where_it_is_off_the_setting_is_named(tmp_path: Path) -> None:
    async with store(tmp_path, mcp={"enabled": False}) as up:
        reply = await raw(up, LISTING)
        assert (reply.status_code, "mcp.enabled: true" in reply.text) == (404, True)


@module_loop
async def test_the_server_tells_its_version(shared: Running) -> None:
    async with client(shared, "legacy") as session:
        assert session.server_info is not None
        assert session.server_info.version == version("cortex-gateway")


# --- who asks, and for which run --------------------------------------------------------------------------------


@module_loop
@both_eras
async def test_the_run_is_told_by_headers_or_by_the_request_or_by_the_path(shared: Running, mode: str) -> None:
    headers = {"X-Workflow-Type": "nl2sql", "X-Workflow-Id": "r-1", "X-Workflow-Stage": "execute"}
    arguments = {"sql": COUNT}
    async with client(shared, mode, headers=headers) as session:
        by_header = await session.call_tool("execute_sql", arguments)
    async with client(shared, mode) as session:
        by_meta = await session.call_tool("execute_sql", arguments, meta=naming(type="nl2sql", id="r-2", stage="fix"))
        wrong = await session.call_tool("execute_sql", arguments, meta=naming(priority="urgent"))
    async with client(shared, mode, path="/w/nl2sql/s/check/mcp") as session:
        by_path = await session.call_tool("execute_sql", arguments)
    names = ("X-Workflow-Id", "X-Workflow-Stage", "X-Workflow-Source")
    assert [said(by_header, name) for name in names] == ["r-1", "execute", "header"]
    assert [said(by_meta, name) for name in names] == ["r-2", "fix", "body"]
    assert [said(by_path, name) for name in names[1:]] == ["check", "path"]
    assert (wrong.is_error, "workflow.priority" in text(wrong)) == (True, True)
    runs = {run.key[-1]: run for run in shared.gateway.runtime.dispatcher.runs}
    assert (runs["r-1"].position, runs["r-2"].position) == ("execute", "fix")


@both_eras
async def test_without_a_key_nothing_is_said_and_tenants_share_no_result(tmp_path: Path, mode: str) -> None:
    async with store(tmp_path, auth=KEYS) as up:
        for authorization in ({}, {"Authorization": "Bearer wrong"}):
            reply = await raw(up, LISTING, **authorization)
            assert (reply.status_code, reply.json()["error"]["code"]) == (401, "invalid_api_key")
        cached = []
        for key in ("a", "b", "a"):
            async with client(up, mode, headers={"Authorization": f"Bearer {key}"}) as session:
                cached.append(said(await session.call_tool("execute_sql", {"sql": COUNT}), "X-Workflow-Cache"))
        assert cached == ["miss", "miss", "hit"]
        assert (await raw(up, LISTING, Host="sql.example.org", Authorization="Bearer a")).status_code == 200


@module_loop
async def test_where_no_key_is_needed_a_page_in_a_browser_cannot_ask_by_another_name(shared: Running) -> None:
    assert (await raw(shared, LISTING, Host="attacker.example")).status_code == 421
    assert (await raw(shared, LISTING, Origin="https://attacker.example")).status_code == 403
    assert (await raw(shared, LISTING, Origin="http://localhost:3000", Host="localhost")).status_code == 200


# --- requests that are none, clients that leave -----------------------------------------------------------------


@module_loop
@pytest.mark.parametrize(
    ("document", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b"[" * 100_000, 400),
        ([LISTING, LISTING], 400),
        ({"jsonrpc": "1.0", "id": 1, "method": "tools/list"}, 400),
        ({"jsonrpc": "2.0", "id": {"a": 1}, "method": "tools/list"}, 202),
        ({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}, 202),
        ({"jsonrpc": "2.0", "id": 1, "method": "resources/list"}, 200),
        ({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": 5}}, 200),
        ({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "execute_sql", "arguments": 5}}, 200),
    ],
)
async def test_a_message_that_is_no_call_of_a_tool_is_answered_and_harms_nobody(
    shared: Running, document: object, status: int
) -> None:
    reply = await raw(shared, document)
    assert reply.status_code == status
    assert status == 202 or '"error"' in reply.text
    assert (await raw(shared, LISTING)).status_code == 200


@module_loop
async def test_only_posts_of_json_within_the_limit_are_taken(shared: Running) -> None:
    for method in ("GET", "DELETE", "PUT"):
        reply = await shared.http.request(method, "/mcp", headers={"Accept": "text/event-stream"})
        assert (reply.status_code, reply.headers["allow"]) == (405, "POST")
    assert (await raw(shared, b"x" * 10_000_001)).status_code == 413
    assert (await shared.http.post("/mcp", content=b"{}", headers={"Accept": "*/*"})).status_code == 400
    assert (await raw(shared, LISTING, Accept="text/html")).status_code == 406


@module_loop
@both_eras
async def test_a_client_that_leaves_gives_its_worker_back(shared: Running, mode: str) -> None:
    cancelled = metric(shared.gateway, "cortex_cancellations_total", endpoint="mcp")
    async with client(shared, mode) as session:
        call = asyncio.create_task(session.call_tool("execute_sql", {"sql": f"{ENDLESS} -- {mode}"}))
        await until(lambda: busy(shared) == 1, "the statement")
    with pytest.raises((MCPError, asyncio.CancelledError)):
        await call
    await until(lambda: busy(shared) == 0 and shared.gateway.door.inside == 0, "an end")
    assert metric(shared.gateway, "cortex_cancellations_total", endpoint="mcp") == cancelled + 1
    async with client(shared, mode) as session:
        assert not (await session.call_tool("execute_sql", {"sql": COUNT})).is_error


@module_loop
@both_eras
async def test_a_client_that_gives_up_one_call_keeps_its_session(shared: Running, mode: str) -> None:
    async with client(shared, mode) as session:
        with pytest.raises(MCPError):
            await session.call_tool("execute_sql", {"sql": f"{ENDLESS} -- up {mode}"}, read_timeout_seconds=0.5)
        assert not (await session.call_tool("execute_sql", {"sql": f"{COUNT} -- {mode}"})).is_error
    await until(lambda: busy(shared) == 0 and shared.gateway.door.inside == 0, "an end")


@module_loop
@both_eras
async def test_many_requests_leave_no_session_behind(shared: Running, mode: str) -> None:
    async with client(shared, mode) as session:
        await session.call_tool("list_databases")
        before = len(asyncio.all_tasks())
        for _ in range(20):
            await session.call_tool("list_databases")
        await until(lambda: len(asyncio.all_tasks()) <= before, "an end of their tasks")


@both_eras
async def test_a_gateway_that_is_told_to_stop_ends_the_calls_that_are_open(tmp_path: Path, mode: str) -> None:
    text = written(
        {"warehouse": warehouse(tmp_path, timeout="60s")},
        mcp={"enabled": True},
        server={"port": 0, "graceful_shutdown": "0.5s"},
    )
    async with AsyncExitStack() as clients:
        async with running(tmp_path, text) as up:
            session = await clients.enter_async_context(client(up, mode))
            call = asyncio.create_task(session.call_tool("execute_sql", {"sql": ENDLESS}))
            await until(lambda: busy(up) == 1, "the statement")
            began = time.monotonic()
        assert time.monotonic() - began < 10
        with pytest.raises(MCPError):
            await call


@module_loop
@both_eras
async def test_what_goes_wrong_inside_is_told_without_a_word_of_what_it_was(
    shared: Running, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise RuntimeError("/srv/secret")

    monkeypatch.setattr(type(shared.gateway.mcp), "_list", broken)
    async with client(shared, mode) as session:
        with pytest.raises(MCPError, match="inside the gateway") as caught:
            await session.call_tool("list_databases")
    assert caught.value.code == INTERNAL_ERROR
    assert "secret" not in str(caught.value)


# --- switched off -----------------------------------------------------------------------------------------------


async def test_it_is_off_unless_switched_on(tmp_path: Path) -> None:
    async with store(tmp_path, mcp={}) as up:
        assert (await raw(up, LISTING)).status_code == 404


def test_a_gateway_without_it_does_not_pay_for_its_import() -> None:
    code = "import sys, gateway.compose, gateway.listening; sys.exit('mcp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
