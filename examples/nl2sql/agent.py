"""An NL2SQL agent on the official `openai` client: it writes SQL, runs it, has the rows judged, repairs mistakes."""

import json
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from openai import AsyncOpenAI, BadRequestError, BaseModel, omit
from openai.types.chat import ChatCompletionToolParam

REPAIRS = 5
SQL: dict[str, object] = {"type": "object", "properties": {"sql": {"type": "string"}}, "required": ["sql"]}
TOOL: ChatCompletionToolParam = {"type": "function", "function": {"name": "execute_sql", "parameters": SQL}}


class Schema(BaseModel):
    text: str


class Table(BaseModel):
    columns: list[dict[str, str]]
    rows: list[list[object]]


@dataclass
class Result:
    """`attempts` pairs each statement with what was wrong with it, or ""; `failure` is what was wrong at the end."""

    question: str
    sql: str
    columns: list[dict[str, str]]
    rows: list[list[object]]
    attempts: list[tuple[str, str]]
    repairs: int
    failure: str | None
    seconds: float


async def ask(
    client: AsyncOpenAI, question: str, *, prompts: Mapping[str, str], model: str = "cortex-emulated"
) -> Result:
    """Answer a question; `prompts` has a template per stage. Told to wait (429), the client does so by itself."""
    begun, attempts = time.monotonic(), []
    run = client.with_options(default_headers={"X-Workflow-Type": "nl2sql", "X-Workflow-Id": str(uuid.uuid4())})
    at_retrieve = {"X-Workflow-Stage": "retrieve"}
    schema = await run.get("/databases/sales/schema", cast_to=Schema, options={"headers": at_retrieve})
    known = {"question": question, "schema": schema.text}
    for repairs in range(REPAIRS + 1):
        stage = "fix" if repairs else "generate"
        known["sql"] = sql = await complete(run, model, stage, fill(prompts[stage], known))
        table, known["error"] = await execute(run, sql)
        if not known["error"]:
            known["rows"] = markdown(table)
            # A run may be forgotten after its final call, and only at the bound is a verdict sure to be that.
            verdict = await complete(run, model, "verify", fill(prompts["verify"], known), final=repairs == REPAIRS)
            known["error"] = verdict.removeprefix("WRONG:").strip() if verdict.startswith("WRONG:") else ""
        attempts.append((sql, known["error"]))
        if not known["error"]:
            break
    seconds = time.monotonic() - begun
    return Result(question, sql, table.columns, table.rows, attempts, repairs, known["error"] or None, seconds)


async def complete(client: AsyncOpenAI, model: str, stage: str, prompt: str, *, final: bool = False) -> str:
    """The statement that the model calls the tool with; without such a call, what it says."""
    reply = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": prompt}],
        temperature=0,
        tools=omit if stage == "verify" else [TOOL],
        extra_headers={"X-Workflow-Stage": stage, "X-Workflow-Final": str(final).lower()},
    )
    message = reply.choices[0].message
    for call in message.tool_calls or []:
        if call.type == "function":
            return str(json.loads(call.function.arguments)["sql"])
    return message.content or ""


async def execute(client: AsyncOpenAI, sql: str) -> tuple[Table, str]:
    """The rows of a statement, and what is wrong with it, or ""."""
    body, at_execute = {"sql": sql, "database": "sales"}, {"X-Workflow-Stage": "execute"}
    try:
        table = await client.post("/sql", cast_to=Table, body=body, options={"headers": at_execute})
    except BadRequestError as error:
        return Table(columns=[], rows=[]), error.body["message"] if isinstance(error.body, dict) else error.message
    return table, "" if table.rows else "The statement ran but returned no rows."


def fill(template: str, values: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda name: values[name[1]], template)


def markdown(table: Table) -> str:
    lines = [[column["name"] for column in table.columns], ["---"] * len(table.columns)]
    lines += [[str(cell) for cell in row] for row in table.rows[:20]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
