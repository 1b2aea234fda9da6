"""The demo: 60 questions through an NL2SQL agent, under three pool layouts over the same engines.

Every figure about engines is read from the engines' own metrics, and every answer is compared with the rows that
DuckDB gives for the gold SQL over a connection that does not go through the gateway.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import statistics
from collections.abc import Mapping, Sequence
from contextlib import asynccontextmanager
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
from openai import AsyncOpenAI, OpenAIError
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from examples.nl2sql import agent, database, gold, questions
from gateway.cli import read_config, server
from gateway.compose import compose
from gateway.gateway import Gateway

HERE = Path(__file__).parent
LAYOUTS: Mapping[str, Mapping[str, str]] = {
    "shared round-robin": {"LAYOUT": "shared", "AFFINITY": "0", "BALANCE": "0", "TURNS": "1"},
    "shared balanced affinity": {"LAYOUT": "shared", "AFFINITY": "2", "BALANCE": "1", "TURNS": "0"},
    "isolated stage pools": {"LAYOUT": "isolated", "AFFINITY": "2", "BALANCE": "1", "TURNS": "0"},
}
AT_ONCE = 12
"""Questions that are under way at the same time."""
RIGHT_LEAST, REPAIRED_LEAST = 57, 15
SERIES = re.compile(r"^([\w:]+)(?:\{[^}]*\})? (\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one layout did: the agent's results by question, and the sums of the engines' metrics."""

    results: dict[str, agent.Result]
    wrong: dict[str, str]
    engines: Mapping[str, float]
    sql: Mapping[str, float]
    queue: float

    @property
    def seconds(self) -> list[float]:
        return sorted(result.seconds for result in self.results.values())

    @property
    def repaired(self) -> int:
        return sum(result.repairs > 0 and text not in self.wrong for text, result in self.results.items())


@asynccontextmanager
async def serving(environ: Mapping[str, str]) -> AsyncIterator[tuple[Gateway, str]]:
    """A gateway of its own with fresh engines, and its base URL."""
    gateway = await compose(read_config(HERE / "demo.yaml", environ), seed=7, report_every=0.5)
    http = server(gateway)
    task = asyncio.create_task(http.serve())
    while not http.started:
        if task.done():
            await task
            raise RuntimeError("the gateway did not start")
        await asyncio.sleep(0.02)
    try:
        port = http.servers[0].sockets[0].getsockname()[1]
        yield gateway, f"http://127.0.0.1:{port}/v1"
    finally:
        http.should_exit = True
        await task
