"""A small shop to ask questions about: its database, a workflow over it, and engines that know the questions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from backends.emulated.options import EmulatedOptions
from backends.emulated.script import Script, read_script
from backends.emulated.server import EmulatedServer, serve
from tests.gateway.support import MODEL, Running, attached, running, settled, written

STAGES = ("generate", "fix", "verify")
RIGHT = "How many orders are there?"
REPAIRED = "What is the revenue of each region?"
JUDGED = "What is the largest order?"
EMPTY = "Which orders are from nowhere?"
HOPELESS = "What is the meaning of it all?"
SPEECHLESS = "Will you write any SQL?"

COUNT = "SELECT count(*) AS n FROM orders"
REVENUE = "SELECT region, sum(amount) AS revenue FROM orders GROUP BY region ORDER BY region"
MISSPELT = REVENUE.replace("amount", "amuont")
FAST = EmulatedOptions(time_scale=1000.0, faults=True)
TOOLS = [{"type": "function", "function": {"name": "execute_sql", "parameters": {"type": "object"}}}]


def _calls(task: str, sql: str, *quotes: str, **more: object) -> dict[str, object]:
    return {"task": task, "quotes": list(quotes), "call": {"name": "execute_sql", "arguments": {"sql": sql}}, **more}


def _says(task: str, text: str, *quotes: str) -> dict[str, object]:
    return {"task": task, "quotes": list(quotes), "say": text}


SCRIPT: Mapping[str, object] = {
    "tasks": {stage: f"TASK {stage}" for stage in STAGES},
    "marker": "Question:",
    "entries": {
        RIGHT: [
            _says("generate", "There are four.", '"row_count":1,'),
            _calls("generate", COUNT, say="Let me count. "),
            _says("verify", "OK"),
        ],
        REPAIRED: [
            _says("generate", "North leads.", '"row_count":2,'),
            _calls("generate", REVENUE, "amuont"),
            _calls("generate", MISSPELT),
            _calls("fix", REVENUE, 'Referenced column "amuont"'),
            _says("verify", "OK"),
        ],
        JUDGED: [
            _calls("generate", "SELECT min(amount) AS amount FROM orders"),
            _says("verify", "WRONG: min is not the largest", "min(amount)"),
            _says("verify", "OK"),
            _calls("fix", "SELECT max(amount) AS amount FROM orders", "min is not the largest"),
        ],
        EMPTY: [
            _calls("generate", "SELECT id FROM orders WHERE region = 'nowhere'"),
            _calls("fix", COUNT, "returned no rows"),
            _says("verify", "OK"),
        ],
        HOPELESS: [
            _calls("generate", "SELECT meaning FROM everything"),
            _calls("fix", "SELECT meaning FROM everything"),
        ],
        SPEECHLESS: [_says("generate", "I would rather not."), _says("fix", "Still not.")],
    },
}
PROMPTS = {
    "generate": "TASK generate\n{{schema}}\nQuestion: {{question}}\n",
    "fix": "TASK fix\n{{schema}}\n{{sql}}\n{{error}}\nQuestion: {{question}}\n",
    "verify": "TASK verify\n{{sql}}\n{{rows}}\nQuestion: {{question}}\n",
    "answer": "{{row_count}} row(s) of {{columns}} by {{sql}}\n\n{{rows}}\n",
}
EDGES: Sequence[Mapping[str, object]] = (
    {"from": "start", "to": "retrieve"},
    {"from": "retrieve", "to": "generate"},
    {"from": ["generate", "fix"], "to": "execute"},
    {"from": "execute", "on": "ok", "to": "verify"},
    {"from": "execute", "on": ["error", "empty", "timeout"], "to": "fix"},
    {"from": "verify", "on": "ok", "to": "answer"},
    {"from": "verify", "on": "error", "to": "fix"},
)


@dataclass(frozen=True, slots=True)
class Shop:
    """A gateway before the shop, and the engine of each stage."""

    up: Running
    engines: Mapping[str, EmulatedServer]

    def read(self) -> dict[str, int]:
        """The prompt tokens that each stage's engine has been given so far."""
        return {stage: server.engine.prompt_tokens for stage, server in self.engines.items()}


def knowing() -> Script:
    """What the shop's engines say."""
    return read_script(SCRIPT)


def database(path: Path) -> Path:
    """The shop's database: four orders."""
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE orders (id INTEGER, region VARCHAR, amount INTEGER)")
        connection.execute("INSERT INTO orders VALUES (1,'north',50), (2,'south',20), (3,'north',5), (4,'south',7)")
    return path


def sections(folder: Path, *, tools: str = "pass", visits: int = 3, recall: str | None = None) -> dict[str, Any]:
    """The workflow `shop`, its prompts written to the folder; its LLM stages recall for so long."""
    for name, text in PROMPTS.items():
        (folder / f"{name}.md").write_text(text)
    llm = {stage: {"pool": stage, "prompt": f"{stage}.md", "visits": visits, "recall": recall} for stage in STAGES}
    offered: dict[str, Any] = {"tools": ["execute_sql"], "sampling": {"temperature": 0, "max_tokens": 200}}
    stages: dict[str, Any] = {
        "retrieve": {"pool": "warehouse", "tool": "describe_tables"},
        "generate": llm["generate"] | offered,
        "execute": {"pool": "warehouse", "tool": "execute_sql", "visits": visits + 1},
        "verify": llm["verify"] | {"outcomes": {"error": "^WRONG"}},
        "fix": llm["fix"] | offered,
        "answer": {"render": "answer.md"},
    }
    flow = {"slo": {"deadline": "60s"}, "tools": {"execute_sql": tools}, "stages": stages, "edges": list(EDGES)}
    return {"workflows": {"shop": flow}}


def warehouse(folder: Path, *, workers: int = 1, **more: object) -> dict[str, object]:
    """A SQL pool over the shop's database, which is made if it is not there."""
    path = folder / "shop.duckdb"
    if not path.exists():
        database(path)
    backend = {"name": "duckdb", "databases": {"shop": str(path)}, "timeout": "10s", **more}
    return {"backend": backend, "engines": {"min": workers, "max": workers}}


@asynccontextmanager
async def shop(
    folder: Path,
    *,
    tools: str = "pass",
    visits: int = 3,
    recall: str | None = None,
    options: EmulatedOptions = FAST,
    **more: Any,
) -> AsyncIterator[Shop]:
    """Three engines, one SQL worker and the gateway before them; at the end nothing may still be held.

    Each stage keeps to its own engine, unless `policies` says otherwise: that is what tests tell stages apart by.
    """
    more["policies"] = {"layout": "isolated", **more.get("policies", {})}
    async with AsyncExitStack() as stack:
        engines = {
            stage: await stack.enter_async_context(serve(options, script=knowing(), model=MODEL)) for stage in STAGES
        }
        pools = {stage: attached(server.url) for stage, server in engines.items()}
        text = written(
            {**pools, "warehouse": warehouse(folder)},
            **sections(folder, tools=tools, visits=visits, recall=recall),
            **more,
        )
        up = await stack.enter_async_context(running(folder, text))
        for server in engines.values():  # what it was asked when it came up is not counted
            server.engine.prompt_tokens = server.engine.generation_tokens = 0
        yield Shop(up, engines)
        await settled(up.gateway, *engines.values())
