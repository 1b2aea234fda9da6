"""SQL ahead of its call: begun while the model still writes, and in nobody's way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from backends.emulated.options import EmulatedOptions
from gateway.ahead import CALLS_MOST
from policies.runs import Run
from tests.gateway.rawhttp import connected, request
from tests.gateway.recorder import Exchange, recording
from tests.gateway.shop import COUNT, MISSPELT, REVENUE, RIGHT, TOOLS, database, sections, shop, warehouse
from tests.gateway.support import CHAT, MODEL, Running, attached, metric, running, settled, until, written

AT_GENERATE = {"X-Workflow-Type": "shop", "X-Workflow-Stage": "generate"}
ENDLESS = "SELECT count(*) FROM range(100000000) AS a, range(100000) AS b"
SLOW = "SELECT sum(a.i * b.i) AS total FROM range(8000) AS a(i), range(8000) AS b(i)"
"""Takes a good quarter of a second."""
DONE = b"data: [DONE]\n\n"
KEYS = {"keys": [{"key": "a", "tenant": "one"}, {"key": "b", "tenant": "two"}]}


def conversation(**more: Any) -> dict[str, Any]:
    content = f"TASK generate\nQuestion: {RIGHT}\n"
    body = {"model": MODEL, "messages": [{"role": "user", "content": content}], "tools": TOOLS, "stream": True}
    return {**body, **more}


def event(delta: dict[str, Any], end: str | None = None, index: int = 0) -> bytes:
    choice = {"index": index, "delta": delta, "finish_reason": end}
    return b"data: " + json.dumps({"id": "own", "choices": [choice]}).encode() + b"\n\n"


def head(number: int = 0, name: str = "execute_sql") -> bytes:
    function = {"name": name, "arguments": ""}
    return event(
        {"tool_calls": [{"index": number, "id": f"call-{number}", "type": "function", "function": function}]}
    )


def more(arguments: str, number: int = 0, choice: int = 0) -> bytes:
    return event({"tool_calls": [{"index": number, "function": {"arguments": arguments}}]}, index=choice)


def pieces(arguments: str, number: int = 0, size: int = 4) -> list[bytes]:
    """A tool call with these arguments, in pieces."""
    cut = [arguments[at : at + size] for at in range(0, len(arguments), size)]
    return [head(number), *(more(piece, number) for piece in cut)]


def calling(sql: str, **rest: Any) -> str:
    """Arguments up to the closing quote of their statement."""
    return json.dumps({**rest, "sql": sql})[:-1]


END = [more("}"), event({}, "tool_calls"), DONE]


@dataclass(slots=True)
class Model:
    """An engine that writes a turn up to a point, waits there until it may `go_on`, and then writes the rest.

    To all but its first call it says that it is done.
    """

    before: list[bytes]
    after: list[bytes] = field(default_factory=lambda: list(END))
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    asked: int = 0

    async def __call__(self, exchange: Exchange) -> None:
        self.asked += 1
        if self.asked > 1:
            await exchange.pieces([event({"content": "That is all."}), event({}, "stop"), DONE])
            return
        await exchange.head()
        for piece in self.before:
            await exchange.write(piece)
        await self.go_on.wait()
        await exchange.pieces(self.after, started=True)


@dataclass(slots=True)
class Site:
    up: Running
    model: Model

    def count(self, fate: str) -> float:
        return metric(self.up.gateway, "cortex_sql_ahead_total", fate=fate)

    @property
    def sent(self) -> float:
        """Statements that were sent to a worker."""
        return metric(self.up.gateway, "cortex_attempts_total", pool="warehouse")

    @property
    def ahead(self) -> int:
        """Statements that run ahead, or are about to."""
        return sum(task.get_name() == "sql ahead" for task in asyncio.all_tasks())

    @property
    def busy(self) -> int:
        engines = self.up.gateway.runtime.dispatcher.fleet.of("warehouse")
        return sum(len(engine.slots) for engine in engines)

    def ask(self, headers: dict[str, str] | None = None, **body: Any) -> asyncio.Task[httpx.Response]:
        """Let the client call the model, in the workflow unless another model is named."""
        wanted = headers if "model" in body else {**AT_GENERATE, **(headers or {})}
        return asyncio.create_task(self.up.http.post(CHAT, json=conversation(**body), headers=wanted))

    async def sql(self, sql: str, key: str = "a", **body: Any) -> httpx.Response:
        return await self.up.http.post(
            "/v1/sql", json={"sql": sql, **body}, headers={"Authorization": f"Bearer {key}"}
        )

    async def rest(self, asked: asyncio.Task[httpx.Response]) -> str:
        """Let the model end its turn; what the client got then."""
        self.model.go_on.set()
        reply = await asked
        assert reply.status_code == 200, reply.text
        return reply.text

    async def over(self, fate: str, times: int = 1) -> None:
        await until(lambda: self.count(fate) == times, f"{times} {fate}")


@asynccontextmanager
async def site(
    folder: Path,
    model: Model,
    *,
    tools: str = "ahead",
    workers: int = 1,
    sections_: dict[str, Any] | None = None,
    **pool: Any,
) -> AsyncIterator[Site]:
    """The shop with this engine for all its stages; at the end nothing may still be held."""
    async with recording(model) as engine:
        pools: dict[str, Any] = {stage: attached(engine.url) for stage in ("generate", "fix", "verify")}
        pools["warehouse"] = warehouse(folder, workers=workers, **pool)
        text = written(pools, **{**sections(folder, tools=tools), **(sections_ or {})})
        async with running(folder, text, report_every=60) as up:
            try:
                yield Site(up, model)
            finally:
                model.go_on.set()
            await settled(up.gateway)


# --- it begins early, and is used ------------------------------------------------------------------------------


async def test_a_statement_runs_before_its_turn_has_ended_and_the_clients_own_call_finds_the_result(
    tmp_path: Path,
) -> None:
    async with site(tmp_path, Model(pieces(calling(COUNT)))) as shop:
        asked = shop.ask()
        await until(lambda: shop.sent == 1 and shop.busy == 0, "the statement's end")
        assert not asked.done()
        text = await shop.rest(asked)
        assert text.endswith("data: [DONE]\n\n")
        reply = await shop.sql(COUNT)
        assert (reply.headers["x-workflow-cache"], reply.json()["rows"]) == ("hit", [[4]])
        assert (shop.sent, shop.count("started"), shop.count("hit"), shop.count("wasted")) == (1, 1, 1, 0)
        assert metric(shop.up.gateway, "cortex_sql_ahead_saved_seconds_total") > 0


async def test_the_stream_is_passed_as_it_would_be_without(tmp_path: Path) -> None:
    model = Model(pieces(calling(COUNT)))
    async with site(tmp_path, model) as shop:
        assert await shop.rest(shop.ask()) == b"".join([*model.before, *model.after]).decode()


async def test_a_call_that_comes_while_the_statement_runs_joins_it(tmp_path: Path) -> None:
    async with site(tmp_path, Model(pieces(calling(SLOW)))) as shop:
        asked = shop.ask()
        await until(lambda: shop.busy == 1, "the statement")
        await shop.rest(asked)
        reply = await shop.sql(SLOW)
        assert reply.headers["x-workflow-cache"] == "joined"
        assert (shop.sent, shop.count("joined")) == (1, 1)


async def test_what_is_intercepted_runs_ahead_without_being_asked_for(tmp_path: Path) -> None:
    async with site(tmp_path, Model(pieces(calling(COUNT))), tools="intercept") as shop:
        ended = list[Run]()
        shop.up.gateway.runtime.dispatcher.runs.watch(ended.append)
        asked = shop.ask({"X-Workflow-Id": "mine", "X-Workflow-Final": "false"})
        await until(lambda: shop.sent == 1 and shop.busy == 0, "the statement's end")
        assert not asked.done()
        assert "That is all." in await shop.rest(asked)
        assert (shop.sent, shop.count("started"), shop.count("hit")) == (1, 1, 1)
        (run,) = (one for one in ended if one.workflow == "shop")
        assert [stage for stage, _ in run.history] == ["generate", "execute", "verify"], "it is in the run once"


@pytest.mark.parametrize("tools", ["ahead", "intercept"])
async def test_an_engine_that_streams_token_by_token_has_its_statement_run(tmp_path: Path, tools: str) -> None:
    options = EmulatedOptions(decode_step=0.02, time_scale=4.0)
    async with shop(tmp_path, tools=tools, options=options) as up:
        asked = await up.up.http.post(CHAT, json=conversation(), headers=AT_GENERATE)
        assert asked.status_code == 200
        gateway = up.up.gateway
        if tools == "ahead":
            reply = await up.up.http.post("/v1/sql", json={"sql": COUNT})
            assert reply.headers["x-workflow-cache"] in ("hit", "joined")
        used = [metric(gateway, "cortex_sql_ahead_total", fate=fate) for fate in ("hit", "joined")]
        assert sum(used) == 1
        assert metric(gateway, "cortex_attempts_total", pool="warehouse") == 1


async def test_the_run_that_asked_does_not_move_by_it(tmp_path: Path) -> None:
    async with site(tmp_path, Model(pieces(calling(COUNT)))) as shop:
        await shop.rest(shop.ask({"X-Workflow-Id": "mine", "X-Workflow-Final": "false"}))
        await until(lambda: shop.sent == 1 and shop.busy == 0, "the statement's end")
        (run,) = shop.up.gateway.runtime.dispatcher.runs
        assert [stage for stage, _ in run.history] == ["generate"]


async def test_another_tenant_finds_nothing_of_it(tmp_path: Path) -> None:
    async with site(tmp_path, Model(pieces(calling(COUNT))), sections_={"auth": KEYS}) as shop:
        await shop.rest(shop.ask({"Authorization": "Bearer a"}))
        await until(lambda: shop.sent == 1 and shop.busy == 0, "the statement's end")
        assert (await shop.sql(COUNT, key="b")).headers["x-workflow-cache"] == "miss"
        assert (await shop.sql(COUNT, key="a")).headers["x-workflow-cache"] == "hit"
        assert shop.count("hit") == 1


# --- when it is begun ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tools", "headers", "pool"),
    [
        ("pass", {}, {}),
        ("ahead", {"X-Workflow-Tools": "pass"}, {}),
        ("ahead", {}, {"ahead": 0}),
        ("intercept", {}, {"ahead": 0}),
        ("ahead", {}, {"cache": 0}),
    ],
)
async def test_nothing_runs_ahead_where_it_is_not_configured(
    tmp_path: Path, tools: str, headers: dict[str, str], pool: dict[str, Any]
) -> None:
    async with site(tmp_path, Model(pieces(calling(COUNT))), tools=tools, **pool) as shop:
        await shop.rest(shop.ask(headers))
        assert shop.sent == (tools == "intercept")
        assert shop.count("started") == shop.count("skipped") == 0


async def test_one_call_can_ask_for_it(tmp_path: Path) -> None:
    async with site(tmp_path, Model(pieces(calling(COUNT))), tools="pass") as shop:
        await shop.rest(shop.ask({"X-Workflow-Tools": "ahead"}))
        await shop.over("started")


async def test_a_tool_that_was_not_offered_or_has_another_name_is_none_of_ours(tmp_path: Path) -> None:
    model = Model([head(0, "send_mail"), more(calling(COUNT))])
    async with site(tmp_path, model) as shop:
        await shop.rest(shop.ask())
        model.asked, model.before = 0, pieces(calling(COUNT))
        await shop.rest(shop.ask(tools=[]))
        assert shop.sent == shop.count("skipped") == 0


async def test_a_statement_without_its_closing_quote_does_not_run(tmp_path: Path) -> None:
    model = Model([*pieces(calling(COUNT)[:-1])], [event({}, "length"), DONE])
    async with site(tmp_path, model) as shop:
        await shop.rest(shop.ask())
        assert shop.sent == shop.count("skipped") == 0


async def test_what_may_not_run_or_could_not_be_kept_does_not_run_ahead(tmp_path: Path) -> None:
    statements = ["SELECT random() AS r", "DROP TABLE orders", "SELEC " + "x" * 15_000]
    before = [piece for number, sql in enumerate(statements) for piece in pieces(calling(sql), number, size=1000)]
    async with site(tmp_path, Model(before)) as shop:
        asked = shop.ask()
        await shop.over("skipped", len(statements))
        await shop.rest(asked)
        assert shop.sent == shop.count("started") == 0


@pytest.mark.parametrize("database_first", [True, False])
async def test_with_several_databases_it_waits_for_the_one_that_is_meant(
    tmp_path: Path, database_first: bool
) -> None:
    paths = {name: str(database(tmp_path / f"{name}.duckdb")) for name in ("here", "there")}
    before = json.dumps({"database": "there"})[:-1] + "," if database_first else "{"
    after = "}" if database_first else ', "database": "there"}'
    model = Model(pieces(before + calling(COUNT)[1:]), [])
    stages = sections(tmp_path)
    for stage in ("retrieve", "execute"):
        stages["workflows"]["shop"]["stages"][stage]["database"] = "here"
    async with site(tmp_path, model, sections_=stages, databases=paths) as shop:
        asked = shop.ask({"X-Workflow-Tools": "ahead"}, model="generate")
        if database_first:
            await shop.over("started")
        model.after += [more(after), event({}, "tool_calls"), DONE]
        await shop.rest(asked)
        await shop.over("started")
        await until(lambda: shop.busy == 0, "the statement's end")
        assert (await shop.sql(COUNT, database="here")).headers["x-workflow-cache"] == "miss"
        assert (await shop.sql(COUNT, database="there")).headers["x-workflow-cache"] == "hit"


@pytest.mark.parametrize(
    ("before", "after", "asked"),
    [
        ({"params": ["north"]}, {}, {"params": ["north"]}),
        ({}, {"params": {"1": "north"}}, {"params": ["north"]}),
        (
            {"params": ["north"], "limit": 1},
            {"dialect": "sqlite"},
            {"params": ["north"], "limit": 1, "dialect": "sqlite"},
        ),
        (
            {"dialect": "sqlite"},
            {"params": ["north"], "limit": 1},
            {"params": ["north"], "limit": 1, "dialect": "sqlite"},
        ),
    ],
)
async def test_it_is_the_very_question_of_the_call_that_runs_ahead(
    tmp_path: Path, before: dict[str, Any], after: dict[str, Any], asked: dict[str, Any]
) -> None:
    sql = "SELECT id FROM orders WHERE region = $1 ORDER BY id"
    rest = json.dumps(after)[1:] if after else "}"
    model = Model(pieces(calling(sql, **before)), [more(("," if after else "") + rest), *END[1:]])
    async with site(tmp_path, model, workers=2) as shop:
        await shop.rest(shop.ask())
        await until(lambda: shop.count("started") >= 1 and not shop.ahead, "the statement's end")
        reply = await shop.sql(sql, **asked)
        assert reply.headers["x-workflow-cache"] == "hit"
        assert reply.json()["rows"] == ([[1]] if "limit" in asked else [[1], [3]])
        assert shop.count("hit") == 1


async def test_a_statement_whose_values_never_come_does_not_run(tmp_path: Path) -> None:
    async with site(tmp_path, Model(pieces(calling("SELECT $1 AS v")))) as shop:
        asked = shop.ask()
        await shop.rest(asked)
        await shop.over("skipped")
        assert shop.sent == shop.count("started") == 0


@pytest.mark.parametrize("rest", [', "limit": 0}', ', "dialect": "klingon"}', ', "params": [[]]}'])
async def test_what_the_call_will_be_refused_for_ends_what_ran_ahead(tmp_path: Path, rest: str) -> None:
    async with site(tmp_path, Model(pieces(calling(ENDLESS)), [more(rest), *END[1:]]), timeout="60s") as shop:
        asked = shop.ask()
        await until(lambda: shop.busy == 1, "the statement")
        await shop.rest(asked)
        await shop.over("wasted")
        await until(lambda: shop.busy == 0, "the worker")


async def test_of_several_databases_none_is_guessed(tmp_path: Path) -> None:
    paths = {name: str(database(tmp_path / f"{name}.duckdb")) for name in ("here", "there")}
    stages = sections(tmp_path)
    for stage in ("retrieve", "execute"):
        stages["workflows"]["shop"]["stages"][stage]["database"] = "here"
    async with site(tmp_path, Model(pieces(calling(COUNT))), sections_=stages, databases=paths) as shop:
        await shop.rest(shop.ask({"X-Workflow-Tools": "ahead", "X-Workflow-Type": "another"}))
        await shop.over("skipped")
        assert shop.sent == 0


async def test_a_database_that_does_not_exist_is_left_to_the_call(tmp_path: Path) -> None:
    async with site(tmp_path, Model(pieces(calling(COUNT, database="nowhere")))) as shop:
        await shop.rest(shop.ask())
        assert shop.sent == shop.count("skipped") == 0


ODD: list[Any] = [
    5,
    [5],
    [{"index": "0"}],
    [{"index": 0}],
    [{"index": 1, "function": {"name": 5, "arguments": calling(COUNT)}}],
    [{"index": 2, "function": {"name": "execute_sql", "arguments": {"sql": COUNT}}}],
    [{"index": 3, "function": {"name": "execute_sql", "arguments": '["sql", "x"]'}}],
]


@pytest.mark.parametrize("tools", ["ahead", "intercept"])
async def test_odd_pieces_of_calls_do_the_stream_no_harm(tmp_path: Path, tools: str) -> None:
    model = Model([event({"tool_calls": odd}) for odd in ODD], END[1:])
    async with site(tmp_path, model, tools=tools) as shop:
        assert (await shop.rest(shop.ask())).endswith("data: [DONE]\n\n")
        assert shop.count("started") == shop.count("skipped") == 0


async def test_only_the_first_of_several_answers_is_looked_at(tmp_path: Path) -> None:
    model = Model([head(), more(calling(COUNT), choice=1)])
    async with site(tmp_path, model) as shop:
        await shop.rest(shop.ask(n=2))
        assert shop.sent == shop.count("skipped") == 0


# --- it is dropped ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tools", ["ahead", "intercept"])
async def test_a_client_that_leaves_takes_the_statement_with_it(tmp_path: Path, tools: str) -> None:
    async with site(tmp_path, Model(pieces(calling(ENDLESS))), tools=tools, timeout="60s") as shop:
        async with connected(shop.up.url) as raw:
            await raw.send(request(conversation(), "X-Workflow-Type: shop", "X-Workflow-Stage: generate"))
            await until(lambda: shop.busy == 1, "the statement")
            raw.leave()
            await shop.over("wasted")
        await until(lambda: shop.busy == 0, "the worker")


async def test_a_client_that_leaves_while_its_call_is_run_leaves_nothing_running(tmp_path: Path) -> None:
    model = Model(pieces(calling(ENDLESS)))
    async with site(tmp_path, model, tools="intercept", timeout="60s") as shop, connected(shop.up.url) as raw:
        await raw.send(request(conversation(), "X-Workflow-Type: shop", "X-Workflow-Stage: generate"))
        await until(lambda: shop.busy == 1, "the statement")
        model.go_on.set()
        await shop.over("joined")
        raw.leave()
        await until(lambda: shop.busy == 0, "the worker")


async def test_a_stream_that_breaks_takes_the_statement_with_it(tmp_path: Path) -> None:
    async with site(tmp_path, Model(pieces(calling(ENDLESS)), []), timeout="60s") as shop:
        asked = shop.ask()
        await until(lambda: shop.busy == 1, "the statement")
        assert "stream_interrupted" in await shop.rest(asked)
        await shop.over("wasted")
        await until(lambda: shop.busy == 0, "the worker")


@pytest.mark.parametrize("end", [[event({}, "length"), DONE], [more("]"), event({}, "tool_calls"), DONE]])
async def test_a_turn_whose_call_never_became_whole_drops_it(tmp_path: Path, end: list[bytes]) -> None:
    async with site(tmp_path, Model(pieces(calling(ENDLESS)), end), timeout="60s") as shop:
        asked = shop.ask()
        await until(lambda: shop.busy == 1, "the statement")
        await shop.rest(asked)
        await shop.over("wasted")
        await until(lambda: shop.busy == 0, "the worker")


async def test_an_intercepted_turn_that_passes_unexecuted_drops_it(tmp_path: Path) -> None:
    foreign = {"type": "function", "function": {"name": "send_mail", "parameters": {"type": "object"}}}
    model = Model(pieces(calling(ENDLESS)), [more("}"), *pieces("{}", 1), event({}, "tool_calls"), DONE])
    for at, piece in enumerate(model.after):
        model.after[at] = piece.replace(b'"execute_sql"', b'"send_mail"')
    async with site(tmp_path, model, tools="intercept", timeout="60s") as shop:
        asked = shop.ask(tools=[*TOOLS, foreign])
        await until(lambda: shop.busy == 1, "the statement")
        assert "send_mail" in await shop.rest(asked)
        await shop.over("wasted")
        await until(lambda: shop.busy == 0, "the worker")


async def test_arguments_that_say_otherwise_later_drop_what_they_said_before(tmp_path: Path) -> None:
    model = Model(pieces(calling(ENDLESS)), [more(f', "sql": {json.dumps(COUNT)}'), *END])
    async with site(tmp_path, model, workers=2, timeout="60s") as shop:
        asked = shop.ask()
        await until(lambda: shop.busy == 1, "the statement")
        await shop.rest(asked)
        await shop.over("wasted")
        await until(lambda: shop.sent == 2 and shop.busy == 0, "the other statement's end")
        assert (await shop.sql(COUNT)).headers["x-workflow-cache"] == "hit"


async def test_a_call_that_changes_its_mind_all_the_time_is_followed_twice(tmp_path: Path) -> None:
    changes = ", ".join(f'"sql": "SELECT {number} AS n"' for number in range(50))
    model = Model([head(), *(more(piece) for piece in ("{" + changes + "}").split(" "))])
    async with site(tmp_path, model) as shop:
        await shop.rest(shop.ask())
        await until(lambda: shop.busy == 0, "the statements' end")
        assert shop.count("started") + shop.count("skipped") <= 2


# --- and it is in nobody's way ---------------------------------------------------------------------------------


async def test_a_statement_ahead_gives_its_worker_to_a_call_that_would_wait(tmp_path: Path) -> None:
    async with site(tmp_path, Model(pieces(calling(ENDLESS))), timeout="60s") as shop:
        asked = shop.ask()
        await until(lambda: shop.busy == 1, "the statement")
        async with asyncio.timeout(20):
            reply = await shop.sql(COUNT)
        assert reply.json()["rows"] == [[4]]
        assert (shop.count("started"), shop.count("wasted")) == (1, 1)
        await shop.rest(asked)


async def test_it_does_not_give_way_once_somebody_waits_for_it(tmp_path: Path) -> None:
    async with site(tmp_path, Model(pieces(calling(SLOW)))) as shop:
        asked = shop.ask()
        await until(lambda: shop.busy == 1, "the statement")
        joining = asyncio.create_task(shop.sql(SLOW))
        await shop.over("joined")
        other = await shop.sql(COUNT)
        assert other.headers["x-workflow-cache"] == "miss"
        assert (await joining).headers["x-workflow-cache"] == "joined"
        assert (shop.sent, shop.count("wasted")) == (2, 0)
        await shop.rest(asked)


async def test_nothing_begins_where_no_worker_stands_idle(tmp_path: Path) -> None:
    async with site(tmp_path, Model(pieces(calling(COUNT))), timeout="60s") as shop:
        working = asyncio.create_task(shop.sql(ENDLESS))
        await until(lambda: shop.busy == 1, "the statement")
        asked = shop.ask()
        await shop.over("skipped")
        assert shop.sent == 1
        await shop.rest(asked)
        working.cancel()


async def test_a_pool_runs_no_more_ahead_than_it_may(tmp_path: Path) -> None:
    statements = [ENDLESS, ENDLESS.replace("a,", "c,")]
    before = [piece for number, sql in enumerate(statements) for piece in pieces(calling(sql), number)]
    async with site(tmp_path, Model(before, []), workers=3, ahead=1, timeout="60s") as shop:
        asked = shop.ask()
        await shop.over("skipped")
        await until(lambda: shop.busy == 1, "the other statement")
        await shop.rest(asked)
        assert shop.sent == 1


async def test_a_turn_of_many_calls_runs_few_of_them_ahead(tmp_path: Path) -> None:
    statements = [f"SELECT {number} AS n" for number in range(CALLS_MOST + 4)]
    before = [piece for number, sql in enumerate(statements) for piece in pieces(calling(sql), number)]
    async with site(tmp_path, Model(before), workers=1) as shop:
        await shop.rest(shop.ask())
        await until(lambda: shop.busy == 0, "the statements' end")
        assert shop.count("started") + shop.count("skipped") <= CALLS_MOST


async def test_the_same_statement_in_two_streams_runs_once(tmp_path: Path) -> None:
    async with site(tmp_path, Model(pieces(calling(SLOW))), workers=2) as shop:
        first = shop.ask()
        await until(lambda: shop.busy == 1, "the statement")
        shop.model.asked = 0
        second = shop.ask()
        await until(lambda: shop.model.asked == 1)
        await asyncio.gather(shop.rest(first), second)
        await until(lambda: shop.busy == 0, "the statement's end")
        assert (shop.sent, shop.count("started")) == (1, 1)


async def test_a_statement_that_fails_ahead_fails_for_its_call_as_it_would_have(tmp_path: Path) -> None:
    async with site(tmp_path, Model(pieces(calling(MISSPELT)))) as shop:
        await shop.rest(shop.ask())
        await shop.over("wasted")
        reply = await shop.sql(MISSPELT)
        assert (reply.status_code, reply.headers["x-workflow-cache"]) == (400, "miss")


async def test_a_worker_that_dies_under_it_harms_nobody(tmp_path: Path) -> None:
    async with site(tmp_path, Model(pieces(calling(ENDLESS))), timeout="60s") as shop:
        asked = shop.ask()
        await until(lambda: shop.busy == 1, "the statement")
        await asyncio.gather(*(shop.up.gateway.runtime.engines[name].aclose() for name in ["warehouse/0"]))
        await shop.over("wasted")
        assert (await shop.rest(asked)).endswith("data: [DONE]\n\n")


async def test_a_gateway_that_stops_ends_what_runs_ahead(tmp_path: Path) -> None:
    async with recording(Model(pieces(calling(ENDLESS)))) as engine:
        pools = {stage: attached(engine.url) for stage in ("generate", "fix", "verify")}
        text = written(
            {**pools, "warehouse": warehouse(tmp_path, timeout="60s")}, **sections(tmp_path, tools="ahead")
        )
        async with running(tmp_path, text, report_every=60) as up:
            model = engine.answer
            assert isinstance(model, Model)
            model.go_on.set()
            await up.http.post(CHAT, json=conversation(), headers=AT_GENERATE)
            fleet = up.gateway.runtime.dispatcher.fleet
            await until(lambda: any(one.slots for one in fleet.of("warehouse")), "the statement")
        assert not [task for task in asyncio.all_tasks() if task.get_name() == "sql ahead"]


async def test_a_revenue_by_escapes_is_the_revenue(tmp_path: Path) -> None:
    escaped = "".join(f"\\u{ord(character):04x}" for character in REVENUE)
    async with site(tmp_path, Model(pieces('{"sql": "' + escaped + '"', size=1))) as shop:
        await shop.rest(shop.ask())
        await until(lambda: shop.sent == 1 and shop.busy == 0, "the statement's end")
        assert (await shop.sql(REVENUE)).headers["x-workflow-cache"] == "hit"
