"""The example's agent, on the official client, over the real script and the real database.

Between them stands a service that does what a gateway does at its simplest: it keeps no state but the list of what it
was asked.
"""

from __future__ import annotations

import asyncio
import datetime
import json
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import duckdb
import httpx2
import pytest
from openai import AsyncOpenAI, InternalServerError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from backends.emulated.script import Script, load_script
from examples.nl2sql import agent, gold, questions, script

QUESTIONS = questions.load()
PROMPTS = {path.stem: path.read_text(encoding="utf-8") for path in script.FILE.parent.glob("prompts/*.md")}


@dataclass
class Service:
    """Answers chat completions from the script and SQL from DuckDB.

    `in_words`: the model puts its SQL into the text rather than into a tool call. `busy`: how many requests get 429
    first. `broken`: SQL ends in 500.
    """

    connection: duckdb.DuckDBPyConnection
    schema: str
    in_words: bool = False
    busy: int = 0
    broken: bool = False
    script: Script = field(default_factory=lambda: load_script(script.FILE))
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def client(self) -> AsyncOpenAI:
        app = Starlette(
            routes=[
                Route("/v1/chat/completions", self._open(self._complete), methods=["POST"]),
                Route("/v1/sql", self._open(self._execute), methods=["POST"]),
                Route("/v1/databases/sales/schema", self._open(self._describe)),
            ]
        )
        http = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app))
        return AsyncOpenAI(base_url="http://service/v1", api_key="none", http_client=http, max_retries=self.busy)

    def _open(self, answer: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            if self.busy:
                self.busy -= 1
                return JSONResponse({"error": {"message": "busy"}}, 429, {"Retry-After-Ms": "1"})
            said = {name: value for name, value in request.headers.items() if name.startswith("x-workflow-")}
            self.asked.append((request.url.path, said))
            return await answer(request)

        return endpoint

    async def _complete(self, request: Request) -> Response:
        body = await request.json()
        rule = self.script.find(body["messages"][-1]["content"])
        assert rule is not None, "the script knows each prompt"
        assert bool(rule.calls) == ("tools" in body)
        message: dict[str, object] = {"role": "assistant", "content": rule.say}
        if rule.calls and self.in_words:
            message["content"] = rule.calls[0].arguments["sql"]
        elif rule.calls:
            function = {"name": rule.calls[0].name, "arguments": json.dumps(rule.calls[0].arguments)}
            message["tool_calls"] = [{"id": "call-1", "type": "function", "function": function}]
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        return JSONResponse(
            {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [choice]}
        )

    async def _execute(self, request: Request) -> Response:
        body = await request.json()
        assert body["database"] == "sales"
        if self.broken:
            return JSONResponse({"error": {"message": "a worker died", "code": "broken"}}, 500)
        try:
            found = self.connection.execute(body["sql"])
        except duckdb.Error as error:
            return JSONResponse({"error": {"message": str(error), "type": "invalid_request_error"}}, 400)
        columns = [{"name": column[0], "type": str(column[1])} for column in found.description or []]
        rows = [[encode(value) for value in row] for row in found.fetchall()]
        return JSONResponse({"columns": columns, "rows": rows, "row_count": len(rows), "truncated": False})

    async def _describe(self, request: Request) -> Response:
        return JSONResponse({"database": "sales", "text": self.schema, "tables": []})


def encode(value: object) -> object:
    if isinstance(value, datetime.date):
        return value.isoformat()
    return str(value) if isinstance(value, Decimal) else value


@pytest.fixture
def service(connection: duckdb.DuckDBPyConnection, schema: str) -> Service:
    return Service(connection, schema)


def question_about(words: str) -> questions.Question:
    return next(question for question in QUESTIONS if words in question.text)


async def test_57_of_60_answers_are_right_and_the_rest_fail_for_their_reason(
    service: Service, warehouse: Path
) -> None:
    client, right = service.client(), gold.answers(warehouse, QUESTIONS)
    results = [await agent.ask(client, question.text, prompts=PROMPTS) for question in QUESTIONS]
    failed = []
    for question, result in zip(QUESTIONS, results, strict=True):
        if result.failure:
            failed.append(question)
            assert result.repairs == agent.REPAIRS
            expected = [question.mistakes[index % len(question.mistakes)].sql for index in range(6)]
            assert [sql for sql, _ in result.attempts] == expected
            assert all(trouble for _, trouble in result.attempts)
        else:
            assert gold.same(result.rows, right[question.text]), question.text
            assert result.sql == question.gold
            assert [sql for sql, _ in result.attempts] == [*(m.sql for m in question.mistakes), question.gold]
            assert result.repairs == len(question.mistakes)
    assert failed == [question for question in QUESTIONS if question.unrepairable]
    assert len(failed) == 3
    assert sum(result.repairs > 0 and not result.failure for result in results) == 23


async def test_the_headers_tell_whose_run_a_call_is_and_where_it_stands(service: Service) -> None:
    question = question_about("net of refunds")
    await agent.ask(service.client(), question.text, prompts=PROMPTS)
    assert len({said["x-workflow-id"] for _, said in service.asked}) == 1
    assert {said["x-workflow-type"] for _, said in service.asked} == {"nl2sql"}
    stages = [said["x-workflow-stage"] for _, said in service.asked]
    assert stages == ["retrieve", "generate", *["execute", "verify", "fix"] * 2, "execute", "verify"]
    assert [path for path, said in service.asked if said["x-workflow-stage"] == "execute"] == ["/v1/sql"] * 3


async def test_only_a_call_that_nothing_can_follow_is_called_final(service: Service) -> None:
    client = service.client()
    await asyncio.gather(*(agent.ask(client, question.text, prompts=PROMPTS) for question in QUESTIONS[:20]))
    await agent.ask(client, question_about("bought again in 2024").text, prompts=PROMPTS)
    runs: dict[str, list[str]] = defaultdict(list)
    for _, said in service.asked:
        runs[said["x-workflow-id"]].append(said.get("x-workflow-final", "false"))
    assert len(runs) == 21
    assert all(final == "false" for finals in runs.values() for final in finals[:-1])
    assert [finals[-1] for finals in runs.values()].count("true") == 1


async def test_a_model_that_answers_in_words_is_understood(service: Service) -> None:
    service.in_words = True
    result = await agent.ask(service.client(), QUESTIONS[0].text, prompts=PROMPTS)
    assert (result.rows, result.failure) == ([["19500375.69"]], None)


async def test_a_busy_service_is_asked_again_when_it_says(service: Service) -> None:
    service.busy = 2
    result = await agent.ask(service.client(), QUESTIONS[0].text, prompts=PROMPTS)
    assert result.failure is None
    assert service.busy == 0


async def test_a_broken_service_is_no_mistake_to_repair(service: Service) -> None:
    service.broken = True
    with pytest.raises(InternalServerError):
        await agent.ask(service.client(), QUESTIONS[0].text, prompts=PROMPTS)
    assert [said["x-workflow-stage"] for _, said in service.asked] == ["retrieve", "generate", "execute"]


def test_a_table_is_shown_as_markdown_and_cut() -> None:
    table = agent.Table(columns=[{"name": "a"}, {"name": "b"}], rows=[[1, None]] * 30)
    lines = agent.markdown(table).splitlines()
    assert lines[:3] == ["| a | b |", "| --- | --- |", "| 1 | None |"]
    assert len(lines) == 22


def test_a_value_that_looks_like_a_variable_is_not_filled_again() -> None:
    assert agent.fill("{{question}} {{sql}}", {"question": "{{sql}}", "sql": "1"}) == "{{sql}} 1"


def test_the_agent_stays_under_a_hundred_lines() -> None:
    assert len(Path(agent.__file__).read_text(encoding="utf-8").splitlines()) < 100
