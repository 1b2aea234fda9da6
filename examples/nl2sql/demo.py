"""The demo: 60 questions through an NL2SQL agent, under four pool layouts over the same engines.

Every figure about engines is read from the engines' own metrics, and every answer is compared with the rows that
DuckDB gives for the gold SQL over a connection that does not go through the gateway.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles

import httpx
from openai import AsyncOpenAI, OpenAIError
from rich.console import Console, Group, RenderableType
from rich.markdown import Markdown
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from backends.vllm import HttpEngine
from examples.nl2sql import agent, database, gold, questions
from examples.nl2sql.questions import Question
from gateway.cli import read_config
from gateway.compose import compose
from gateway.listening import listening

HERE = Path(__file__).parent
DATABASE = Path("data/sales.duckdb").absolute()
AT_ONCE = 24
"""Questions that are under way at the same time."""
RIGHT_LEAST, REPAIRED_LEAST = 57, 15
SERIES = re.compile(r"^([\w:]+)(\{[^}]*\})? (\S+)$", re.MULTILINE)

LAYOUTS: Mapping[str, Mapping[str, str]] = {
    "shared round-robin": {"LAYOUT": "shared", "TURNS": "1"},
    "shared balanced affinity": {"LAYOUT": "shared", "AFFINITY": "2", "BALANCE": "1"},
    "isolated stage pools": {"LAYOUT": "isolated", "AFFINITY": "2", "BALANCE": "1"},
    "adaptive": {"LAYOUT": "adaptive", "DELAY": "1"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one layout did: results by question, what was wrong with some, and the metrics as sums by name."""

    results: Mapping[str, agent.Result]
    wrong: Mapping[str, str]
    engines: Mapping[str, float]
    gateway: Mapping[str, float]
    whole: str

    @property
    def repaired(self) -> int:
        return sum(result.repairs > 0 for text, result in self.results.items() if text not in self.wrong)

    def percentile(self, share: int) -> float:
        """Seconds within which this share of the runs (in percent) ended."""
        return quantiles((result.seconds for result in self.results.values()), n=100, method="inclusive")[share - 1]


async def main(arguments: Sequence[str] = ()) -> int:
    """Run the demo; 0 when the answers are as they should be."""
    parser = argparse.ArgumentParser(prog="cortex demo", description=__doc__)
    parser.add_argument("--layout", choices=list(LAYOUTS), help="only this layout")
    parser.add_argument("--kv-blocks", default="256", metavar="N", help="KV blocks of 16 tokens an engine (256)")
    options = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 110)
    database.make(DATABASE)
    asked = questions.load()
    truth = gold.answers(DATABASE, asked)
    rounds: dict[str, Round] = {}
    bar = (TextColumn("{task.description:26}"), BarColumn(40), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*bar, console=console) as progress:
        for name, layout in LAYOUTS.items():
            if options.layout in (None, name):
                settings = {**layout, "KV_BLOCKS": options.kv_blocks}
                rounds[name] = await play(name, settings, asked, truth, progress)
    last = list(rounds.values())[-1]
    for question in _telling(asked, last):
        console.print(_shown(question, last.results[question.text]))
    console.print(
        Panel(Markdown(last.whole), title="model: workflow/nl2sql (the gateway walks the graph)", title_align="left")
    )
    console.print(_table(rounds))
    return _verdict(rounds, asked, console)


async def play(
    name: str,
    layout: Mapping[str, str],
    asked: Sequence[Question],
    truth: Mapping[str, list[gold.Row]],
    progress: Progress,
) -> Round:
    """All questions under one layout, on fresh engines."""
    environ = {f"DEMO_{key}": value for key, value in layout.items()} | {"DEMO_DATABASE": str(DATABASE)}
    task = progress.add_task(name, total=len(asked))
    gateway = await compose(read_config(HERE / "demo.yaml", environ), seed=7, report_every=0.5)
    async with (
        listening(gateway) as address,
        AsyncOpenAI(base_url=f"{address}/v1", api_key="none") as client,
        httpx.AsyncClient(trust_env=False) as http,
    ):
        results, errors = await _ask_all(client, asked, lambda: progress.advance(task))
        urls = [engine.url for engine in gateway.runtime.engines.values() if isinstance(engine, HttpEngine)]
        engines = _sums([(await http.get(f"{url}/metrics")).text for url in urls])
        own = _sums([(await http.get(f"{address}/metrics")).text])
        whole = await _whole_workflow(client, asked)
    wrong = errors | {
        text: result.failure or "the rows differ from the gold rows"
        for text, result in results.items()
        if result.failure or not gold.same(result.rows, truth[text])
    }
    return Round(results=results, wrong=wrong, engines=engines, gateway=own, whole=whole)


async def _ask_all(
    client: AsyncOpenAI, asked: Sequence[Question], done: Callable[[], None]
) -> tuple[dict[str, agent.Result], dict[str, str]]:
    """The agent's result for each question, and what went wrong with those that have none."""
    prompts = {path.stem: path.read_text(encoding="utf-8") for path in (HERE / "prompts").glob("*.md")}
    turn = asyncio.Semaphore(AT_ONCE)
    results: dict[str, agent.Result] = {}
    errors: dict[str, str] = {}

    async def one(question: Question) -> None:
        async with turn:
            try:
                results[question.text] = await agent.ask(client, question.text, prompts=prompts)
            except OpenAIError as error:
                errors[question.text] = str(error)
            done()

    await asyncio.gather(*map(one, asked))
    return results, errors


async def _whole_workflow(client: AsyncOpenAI, asked: Sequence[Question]) -> str:
    """One question that needs a repair, asked of the workflow as if it were a model, streamed."""
    question = next(one for one in asked if one.mistakes and not one.unrepairable)
    stream = await client.chat.completions.create(
        model="workflow/nl2sql",
        messages=[{"role": "user", "content": question.text}],
        stream=True,
        extra_headers={"X-Workflow-Id": str(uuid.uuid4())},
    )
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])


def _sums(texts: Iterable[str]) -> dict[str, float]:
    """Each metric of several `/metrics` added up, by name, and by name with labels."""
    sums: dict[str, float] = {}
    for text in texts:
        for name, labels, value in SERIES.findall(text):
            for key in {name, name + labels}:
                sums[key] = sums.get(key, 0.0) + float(value)
    return sums


def _telling(asked: Sequence[Question], played: Round) -> list[Question]:
    """A few questions worth showing: one right at first, one repaired, one beyond repair."""
    kinds: dict[tuple[bool, bool], Question] = {}
    for question in asked:
        if question.text in played.results:
            kinds.setdefault((bool(question.mistakes), bool(question.unrepairable)), question)
    return list(kinds.values())


def _shown(question: Question, result: agent.Result) -> Panel:
    parts: list[RenderableType] = []
    for sql, trouble in result.attempts[:2]:
        parts.append(Syntax(sql, "sql", theme="ansi_dark", word_wrap=True, background_color="default"))
        if trouble:
            parts.append(Text(f"✗ {trouble.splitlines()[0]}", style="red"))
    if len(result.attempts) > 2:
        parts.append(Text(f"… and {len(result.attempts) - 2} more attempts", style="dim"))
    if result.failure is None:
        rows = Table(*(column["name"] for column in result.columns), box=None, header_style="bold")
        for row in result.rows[:3]:
            rows.add_row(*map(str, row))
        parts += [rows, Text(f"✓ {len(result.rows)} row(s), {result.repairs} repair(s)", style="green")]
    else:
        parts.append(
            Text(
                f"given up after {result.repairs} repairs: {question.unrepairable or result.failure}", style="yellow"
            )
        )
    return Panel(Group(*parts), title=question.text, title_align="left")


def _table(rounds: Mapping[str, Round]) -> Table:
    table = Table(title=f"60 questions, {AT_ONCE} at a time; the same four engines and KV memory under each layout")
    table.add_column("")
    for name in rounds:
        table.add_column(name, justify="right")
    for label, figure in FIGURES.items():
        table.add_row(label, *(figure(played) for played in rounds.values()))
    return table


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _queue_wait(played: Round) -> str:
    """Mean seconds that an LLM call waited, in the gateway's queues and in the engines' together."""
    own = sum(
        value
        for key, value in played.gateway.items()
        if key.startswith("cortex_queue_seconds_sum{") and "warehouse" not in key
    )
    calls = played.engines["vllm:request_queue_time_seconds_count"]
    return f"{(own + played.engines['vllm:request_queue_time_seconds_sum']) / calls:.3f} s"


def _sql_hits(played: Round) -> str:
    by = {
        kind: played.gateway.get(f'cortex_sql_answers_total{{cache="{kind}"}}', 0)
        for kind in ("hit", "joined", "miss")
    }
    return f"{by['hit'] + by['joined']:.0f} of {sum(by.values()):.0f}"


FIGURES: Mapping[str, Callable[[Round], str]] = {
    "answers right": lambda played: f"{len(played.results) - sum(t in played.results for t in played.wrong)} of 60",
    "after a repair": lambda played: str(played.repaired),
    "run p50": lambda played: f"{played.percentile(50):.2f} s",
    "run p95": lambda played: f"{played.percentile(95):.2f} s",
    "queue wait, mean": _queue_wait,
    "prefix-cache hit rate": lambda played: _share(
        played.engines["vllm:prefix_cache_hits_total"], played.engines["vllm:prefix_cache_queries_total"]
    ),
    "prefill tokens computed": lambda played: f"{played.engines['emulated:prefill_tokens_computed_total']:,.0f}",
    "peak KV blocks, sum": lambda played: f"{played.engines['emulated:kv_blocks_peak']:.0f}",
    "SQL answers from cache": _sql_hits,
}


def _verdict(rounds: Mapping[str, Round], asked: Sequence[Question], console: Console) -> int:
    """Say what failed and why; 1 unless only the questions that are beyond repair did, under every layout."""
    beyond = {question.text: question.unrepairable for question in asked if question.unrepairable}
    status = 0
    for name, played in rounds.items():
        unexpected = played.wrong.keys() - beyond.keys()
        for text in unexpected:
            console.print(f"[red]{name}: wrong answer to “{text}”: {played.wrong[text]}[/red]")
        right = len(asked) - len(played.wrong)
        if unexpected or right < RIGHT_LEAST or played.repaired < REPAIRED_LEAST:
            status = 1
    console.print("\nNot answered, as they should not be:")
    for text, why in beyond.items():
        console.print(f"  • {text} — {why}", highlight=False)
    console.print(
        "\nThe engines are emulated (docs/emulated.md): the counts are real, the seconds are those of its model."
    )
    return status


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:])))
