"""The demo: 60 questions through an NL2SQL agent, under four pool layouts over the same engines.

Every figure about engines is read from the engines' own metrics, and every answer is compared with the rows that
DuckDB gives for the gold SQL over a connection that does not go through the gateway.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.markdown import Markdown
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from examples.nl2sql import agent, database, demo_vllm, gold, questions
from examples.nl2sql.play import DATABASE, HERE, LAYOUTS, Play, Round, play_all
from examples.nl2sql.questions import Question

AT_ONCE = 24
"""Questions that are under way at the same time."""
RIGHT_LEAST, REPAIRED_LEAST = 57, 15


async def main(arguments: Sequence[str] = ()) -> int:
    """Run the demo; 0 when the answers are as they should be."""
    options = _options(arguments)
    console = Console(width=None if sys.stdout.isatty() else 110)
    bar = (TextColumn("{task.description:26}"), BarColumn(40), MofNCompleteColumn(), TimeElapsedColumn())
    progress = Progress(*bar, console=console)
    database.make(DATABASE)
    if options.vllm or options.attach:
        return await demo_vllm.main(
            console,
            progress,
            folder=options.vllm,
            attach=options.attach,
            only=options.layout,
            kv_blocks=options.kv_blocks,
        )
    return await emulated(console, progress, options.layout, options.kv_blocks or 256)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="cortex demo", description=__doc__)
    parser.add_argument("--layout", choices=list(LAYOUTS), help="only this layout")
    parser.add_argument("--kv-blocks", type=int, metavar="N", help="KV blocks an engine (256 of 16 tokens)")
    real = parser.add_mutually_exclusive_group()
    real.add_argument(
        "--vllm",
        type=Path,
        metavar="FOLDER",
        help="on two real vLLM servers, started by the vLLM of this environment with a small model",
    )
    real.add_argument("--attach", nargs=2, metavar="URL", help="on two vLLM servers that run already")
    return parser.parse_args(arguments)


async def emulated(console: Console, progress: Progress, only: str | None, kv_blocks: int) -> int:
    """The demo on emulated engines."""
    asked = questions.load()
    what = Play(
        config=HERE / "demo.yaml",
        model="cortex-emulated",
        settings={"KV_BLOCKS": str(kv_blocks)},
        asked=asked,
        truth=gold.answers(DATABASE, asked),
        at_once=AT_ONCE,
        walk=True,
    )
    with progress:
        rounds = await play_all(what, progress, only=only)
    last = list(rounds.values())[-1]
    for question in _telling(asked, last):
        console.print(_shown(question, last.results[question.text]))
    console.print(
        Panel(Markdown(last.whole), title="model: workflow/nl2sql (the gateway walks the graph)", title_align="left")
    )
    console.print(_table(rounds))
    return _verdict(rounds, asked, console)


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


FIGURES: Mapping[str, Callable[[Round], str]] = {
    "answers right": lambda played: f"{len(played.results) - sum(t in played.results for t in played.wrong)} of 60",
    "after a repair": lambda played: str(played.repaired),
    "run p50": lambda played: f"{played.percentile(50):.2f} s",
    "run p95": lambda played: f"{played.percentile(95):.2f} s",
    "queue wait, mean": lambda played: played.queue_wait,
    "prefix-cache hit rate": lambda played: played.hit_rate,
    "prefill tokens computed": lambda played: f"{played.engines['emulated:prefill_tokens_computed_total']:,.0f}",
    "peak KV blocks, sum": lambda played: f"{played.engines['emulated:kv_blocks_peak']:.0f}",
    "SQL answers from cache": lambda played: played.sql_hits,
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
