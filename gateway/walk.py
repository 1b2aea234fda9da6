"""A workflow called as a model: the gateway itself walks the graph and gives one answer.

Entering a stage builds the stage's own prompt from the run's variables, byte for byte the same for the same
values, so that each stage's prefix stays whole in its pool. Edges choose the next stage by outcome; the rendering
stage writes the answer.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from gateway.answers import Tokens, message_of
from gateway.asgi import EVENT_STREAM, JSON, Out
from gateway.completions import Completions
from gateway.directory import WHOLE
from gateway.intake import Asked, Inbound, Intake
from gateway.judging import judged
from gateway.openai.errors import bad_request
from gateway.openai.payload import Payload, parse
from gateway.openai.prompt import text_of
from gateway.openai.sse import DONE, Chunks
from gateway.question import Question
from gateway.runtime import Runtime
from gateway.settings import Config, Stage
from gateway.tools import DESCRIBE, Desk
from gateway.toolspecs import offered
from gateway.verdicts import Answer
from policies.calls import Fate, Outcome
from policies.workflow import Workflow

TABLE_ROWS = 50
"""Rows of a result that are shown to a model or in an answer."""
_FENCED = re.compile(r"```(?:sql)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)

Json = dict[str, Any]


@dataclass(slots=True)
class Walk:
    """One run on its way through the graph: its variables, its visits, the tokens that it has used."""

    values: dict[str, str]
    visits: Counter[str] = field(default_factory=Counter)
    tokens: Tokens = field(default_factory=Tokens)
    path: list[tuple[str, Fate]] = field(default_factory=list)
    answer: str | None = None


class Walker:
    """Answers `model: workflow/NAME`."""

    def __init__(
        self,
        *,
        config: Config,
        runtime: Runtime,
        completions: Completions,
        intake: Intake,
        desk: Desk,
        graphs: Mapping[str, Workflow],
    ) -> None:
        self._config = config
        self._runtime = runtime
        self._completions = completions
        self._intake = intake
        self._desk = desk
        self._graphs = graphs

    async def __call__(self, inbound: Inbound, out: Out) -> bytes:
        walk = Walk({"question": _question(inbound.payload)})
        # The model's name says which workflow, whatever else does; the run ends with the walk, not with its calls.
        name = inbound.payload.model.removeprefix(WHOLE)
        asked = replace(inbound.asked, identity=replace(inbound.asked.identity, workflow=name, final=False))
        await self._go(walk, asked)
        return await self._reply(walk, inbound, out)

    async def _go(self, walk: Walk, asked: Asked) -> None:
        """Follow the edges until the run ends, by its graph or by a loop bound."""
        name = asked.identity.workflow
        graph, stages = self._graphs[name], self._config.workflows[name].stages
        stage = graph.first()
        pool = ""
        while stage is not None:
            spec = stages[stage]
            walk.visits[stage] += 1
            if walk.visits[stage] > spec.visits:
                break
            if spec.render is not None:
                walk.answer = spec.render.fill(walk.values)
                fate: Fate = "ok"
            elif spec.tool is not None:
                pool, fate = spec.pool or pool, await self._use_tool(walk, asked, stage, spec)
            else:
                pool, fate = spec.pool or pool, await self._ask_model(walk, asked, stage, spec)
            walk.path.append((stage, fate))
            stage = graph.following(stage, fate)
        last = walk.path[-1][0] if walk.path else ""
        end = Outcome(fate="ok" if walk.answer is not None else "error", source="cache")
        over = self._intake.end_of_run(asked, pool, stage=last)
        if self._runtime.dispatcher.runs.under_way(over):  # else its last call was the end of it
            self._runtime.recalled(over, end)

    async def _use_tool(self, walk: Walk, asked: Asked, stage: str, spec: Stage) -> Fate:
        database = spec.database
        if spec.tool == DESCRIBE:
            answer = await self._desk.describe(asked, database=database, stage=stage)
            document = answer.document()
            if answer.fate == "ok":
                walk.values |= {"schema": str(document["text"]), "database": database or ""}
        else:
            question = Question(sql=walk.values.get("sql", ""), database=database)
            answer = await self._desk.query(asked, question, stage=stage)
            walk.values |= result_values(answer)
        walk.values["error"] = answer.complaint()
        return answer.fate

    async def _ask_model(self, walk: Walk, asked: Asked, stage: str, spec: Stage) -> Fate:
        message = await self._complete(walk, asked, stage, spec)
        content = text_of(message.get("content"))
        walk.values["answer"] = content
        if spec.tools:
            sql = _statement(message, content)
            if sql is None:
                walk.values["error"] = "The model gave no SQL statement."
                return "error"
            walk.values["sql"] = sql
        fate = judged(content, spec.outcomes)
        if fate != "ok":
            walk.values["error"] = content.strip()
        return fate

    async def _complete(self, walk: Walk, asked: Asked, stage: str, spec: Stage) -> Json:
        """One call to the stage's pool; returns the message that came back."""
        assert spec.prompt is not None
        assert spec.pool is not None
        payload = self._payload(spec, spec.prompt.fill(walk.values))
        pool, call = spec.pool, self._intake.llm_call(asked, payload, spec.pool, stage=stage)
        body = self._intake.salted(payload.body, asked, pool)
        async with self._completions.ask(asked, call, payload, body) as found:
            walk.tokens.add(found.tokens)
            if found.status != 200:
                raise bad_request(f"the model of stage {stage!r} refused its prompt", param="model")
        return message_of(found.body)

    def _payload(self, spec: Stage, prompt: str) -> Payload:
        assert spec.pool is not None
        document: Json = {
            "model": self._config.pools[spec.pool].model,
            "messages": [{"role": "user", "content": prompt}],
            **{key: value for key, value in spec.sampling.model_dump().items() if value is not None},
        }
        if spec.tools:
            document["tools"] = offered(spec.tools)
        return parse(orjson.dumps(document), endpoint="chat")

    async def _reply(self, walk: Walk, inbound: Inbound, out: Out) -> bytes:
        asked, model = inbound.asked, inbound.payload.model
        content = walk.answer if walk.answer is not None else _gave_up(walk)
        headers = asked.reply_headers()
        identity = f"chatcmpl-{asked.request_id}"
        created = int(time.time())
        if not inbound.payload.stream:
            body = orjson.dumps(
                {
                    "id": identity,
                    "object": "chat.completion",
                    "created": created,
                    "model": model,
                    "choices": [
                        {
                            "index": 0,
                            "message": {"role": "assistant", "content": content},
                            "finish_reason": "stop",
                        }
                    ],
                    "usage": walk.tokens.usage(),
                    "workflow": self._told(walk, asked),
                }
            )
            await out.begin(200, [JSON, *headers, ("content-length", str(len(body)))])
            return body
        chunks = Chunks(id=identity, model=model, created=created)
        if not out.started:
            await out.begin(200, [EVENT_STREAM, ("cache-control", "no-cache"), *headers])
        await out.write(chunks.role())
        for line in content.splitlines(keepends=True):
            await out.write(chunks.content(line))
        last = chunks.finish()
        return last + (chunks.usage(walk.tokens.usage()) if inbound.payload.include_usage else b"") + DONE

    def _told(self, walk: Walk, asked: Asked) -> Json:
        """What the run did, for whoever wants to know: an extension of the reply that clients ignore."""
        return {
            "id": asked.run,
            "outcome": "ok" if walk.answer is not None else "error",
            "path": [{"stage": stage, "outcome": fate} for stage, fate in walk.path],
            "sql": walk.values.get("sql"),
        }


def result_values(answer: Answer) -> dict[str, str]:
    """A result as the variables of a prompt: a Markdown table of its first rows, its columns, its size."""
    if answer.status != 200:
        return {"rows": "", "columns": "", "row_count": "0"}
    document = answer.document()
    columns = [str(column["name"]) for column in document["columns"]]
    return {
        "rows": table(columns, document["rows"]),
        "columns": ", ".join(columns),
        "row_count": str(document["row_count"]),
    }


def table(columns: list[str], rows: list[list[Any]]) -> str:
    """Rows as a Markdown table, cut after TABLE_ROWS."""
    lines = [columns, ["---"] * len(columns), *rows[:TABLE_ROWS]]
    text = "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)
    more = len(rows) - TABLE_ROWS
    return f"{text}\n({more} more rows)" if more > 0 else text


def _statement(message: Json, content: str) -> str | None:
    """The SQL in a model's answer: its tool call's, else a fenced block's, else the whole of what looks like SQL."""
    for call in message.get("tool_calls") or ():
        try:
            arguments = orjson.loads(call["function"]["arguments"])
            return str(arguments["sql"])
        except (KeyError, TypeError, orjson.JSONDecodeError):
            continue
    fenced = _FENCED.search(content)
    if fenced:
        return fenced[1].strip()
    return content.strip() if re.match(r"\s*(?:select|with|values)\b", content, re.IGNORECASE) else None


def _question(payload: Payload) -> str:
    for message in reversed(payload.messages):
        if message["role"] == "user":
            question = " ".join(text_of(message.get("content")).split())
            if question:
                return question
            break
    raise bad_request("messages: the last message of role user must hold a question", param="messages")


def _gave_up(walk: Walk) -> str:
    why = walk.values.get("error") or "the loop bound was reached"
    return f"I could not answer this. The last attempt failed: {why}"


def _cell(value: object) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
    return text.replace("|", "\\|").replace("\n", " ")
