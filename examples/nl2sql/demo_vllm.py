"""The demo on real engines: two vLLM servers compute every prompt and choose every answer, under four pool layouts.

The agent, the gateway, the database and the policies are those of the demo on emulated engines. The servers are
started once; between two layouts their prefix caches are emptied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import fmean

import httpx
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from examples.nl2sql import choices, gold, questions, servers
from examples.nl2sql.play import DATABASE, HERE, Play, Round, play_all
from examples.nl2sql.questions import Question
from examples.nl2sql.servers import NoServersError, Servers

QUESTIONS = 20
AT_ONCE = 8
KV_BLOCKS = 256
"""Of 32 tokens: the prefixes of two of the three stages, and what eight calls need besides."""


async def main(
    console: Console,
    progress: Progress,
    *,
    folder: Path,
    attach: Sequence[str],
    only: str | None,
    kv_blocks: int | None,
) -> int:
    """Play all layouts; 0 when every run came to its end. `attach` has servers that run already."""
    asked = chosen(questions.load())
    try:
        async with AsyncExitStack() as stack:
            stack.enter_context(progress)
            if attach:
                at = await servers.attached(attach)
            else:
                task = progress.add_task("starting two vLLM servers", total=None)
                at = await stack.enter_async_context(servers.started(folder, kv_blocks or KV_BLOCKS))
                progress.remove_task(task)
            rounds = await play_all(playing(at, asked), progress, only=only, before=at.forget)
    except (NoServersError, httpx.HTTPError) as error:
        trouble = str(error) if isinstance(error, NoServersError) else f"a server went away: {error}"
        console.print(f"[red]cortex demo: {trouble}[/red]", highlight=False, soft_wrap=True)
        return 2
    console.print(_table(rounds, at))
    return _verdict(rounds, console)


def chosen(asked: Sequence[Question]) -> list[Question]:
    """The questions that are asked: such as can be answered, and as many of those with mistakes as there is room."""
    answerable = [question for question in asked if not question.unrepairable]
    return sorted(answerable, key=lambda question: not question.mistakes)[:QUESTIONS]


def playing(at: Servers, asked: Sequence[Question]) -> Play:
    """The questions on these servers."""
    return Play(
        config=HERE / "demo-vllm.yaml",
        model=at.model,
        settings={
            "MODEL": at.model,
            "WRITER": at.urls[0],
            "REVIEWER": at.urls[1],
            "KV_TOKENS": str(at.kv_blocks * at.block_size),
        },
        asked=asked,
        truth=gold.answers(DATABASE, asked),
        at_once=AT_ONCE,
        speak=lambda: choices.client(asked),
    )


def _table(rounds: Mapping[str, Round], at: Servers) -> Table:
    some = next(iter(rounds.values()))
    table = Table(
        title=f"{len(some.results)} questions, {AT_ONCE} at a time; the same two vLLM servers under each layout, "
        f"{at.kv_blocks} KV blocks of {at.block_size} tokens each"
    )
    table.add_column("")
    for name in rounds:
        table.add_column(name, justify="right")
    for label, figure in _figures(at).items():
        table.add_row(label, *(figure(played) for played in rounds.values()))
    return table


def _figures(at: Servers) -> Mapping[str, Callable[[Round], str]]:
    return {
        "model calls / repairs": lambda played: (
            f"{played.engines['vllm:request_queue_time_seconds_count']:.0f} / "
            f"{sum(result.repairs for result in played.results.values())}"
        ),
        "all runs": lambda played: f"{played.seconds:.1f} s",
        "run p50": lambda played: f"{played.percentile(50):.2f} s",
        "run p95": lambda played: f"{played.percentile(95):.2f} s",
        "queue wait, mean": lambda played: played.queue_wait,
        "prefix-cache hit rate": lambda played: played.hit_rate,
        "prefill tokens computed": lambda played: (
            f"{played.engines['vllm:request_prefill_kv_computed_tokens_sum']:,.0f}"
        ),
        "KV blocks, mean / peak": lambda played: (
            f"{at.kv_blocks * fmean(played.kv):.0f} / {at.kv_blocks * max(played.kv):.0f}"
        ),
        "SQL answers from cache": lambda played: played.sql_hits,
    }


def _verdict(rounds: Mapping[str, Round], console: Console) -> int:
    for name, played in rounds.items():
        for text, error in played.errors.items():
            console.print(f"[red]{name}: no answer to “{text}”: {error}[/red]")
    console.print(
        "\nThe engines are real; what their model says is not: its weights are random, and it picks each answer by\n"
        "chance among the right one and the script's mistakes. What a run costs is measured, not how good it is.",
        highlight=False,
        soft_wrap=True,
    )
    return 1 if any(played.errors for played in rounds.values()) else 0
