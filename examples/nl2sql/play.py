"""Plays the questions under each layout: a gateway, the agent at many of them at once, the engines' own metrics."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import quantiles

import httpx
from openai import AsyncOpenAI, DefaultAsyncHttpxClient, OpenAIError
from rich.progress import Progress

from backends.vllm import HttpEngine
from examples.nl2sql import agent, gold
from examples.nl2sql.questions import Question
from gateway.cli import read_config
from gateway.compose import compose
from gateway.gateway import Gateway
from gateway.listening import listening

HERE = Path(__file__).parent
DATABASE = Path("data/sales.duckdb").absolute()
SAMPLE_EVERY = 0.25
SERIES = re.compile(r"^([\w:]+)(\{[^}]*\})? (\S+)$", re.MULTILINE)

LAYOUTS: Mapping[str, Mapping[str, str]] = {
    "shared round-robin": {"LAYOUT": "shared", "TURNS": "1"},
    "shared balanced affinity": {"LAYOUT": "shared", "AFFINITY": "2", "BALANCE": "1"},
    "isolated stage pools": {"LAYOUT": "isolated", "AFFINITY": "2", "BALANCE": "1"},
    "adaptive": {"LAYOUT": "adaptive", "DELAY": "1"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Play:
    """What is played on which gateway: the questions with their gold rows, so many at a time.

    `speak` makes what the agent's client speaks HTTP with; `walk` asks one question of the workflow as a model, too.
    """

    config: Path
    model: str
    settings: Mapping[str, str]
    asked: Sequence[Question]
    truth: Mapping[str, list[gold.Row]]
    at_once: int
    prompts: Mapping[str, str] = field(default_factory=lambda: dict(_prompts()))
    speak: Callable[[], DefaultAsyncHttpxClient] = DefaultAsyncHttpxClient
    walk: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one layout did: results by question, what was wrong with some, and the metrics as sums by name.

    The engines' metrics are what the round added to them. `kv` has samples of their KV use, as a share of one
    engine's memory, added up over the engines. `whole` is what the workflow said as a model.
    """

    results: Mapping[str, agent.Result]
    wrong: Mapping[str, str]
    errors: Mapping[str, str]
    engines: Mapping[str, float]
    gateway: Mapping[str, float]
    kv: Sequence[float]
    seconds: float
    whole: str

    @property
    def repaired(self) -> int:
        return sum(result.repairs > 0 for text, result in self.results.items() if text not in self.wrong)

    def percentile(self, share: int) -> float:
        """Seconds within which this share of the runs (in percent) ended."""
        return quantiles((result.seconds for result in self.results.values()), n=100, method="inclusive")[share - 1]

    @property
    def hit_rate(self) -> str:
        return share(self.engines["vllm:prefix_cache_hits_total"], self.engines["vllm:prefix_cache_queries_total"])

    @property
    def queue_wait(self) -> str:
        """Mean seconds that an LLM call waited, in the gateway's queues and in the engines' together."""
        own = sum(
            value
            for key, value in self.gateway.items()
            if key.startswith("cortex_queue_seconds_sum{") and "warehouse" not in key
        )
        calls = self.engines["vllm:request_queue_time_seconds_count"]
        return f"{(own + self.engines['vllm:request_queue_time_seconds_sum']) / calls:.3f} s"

    @property
    def sql_hits(self) -> str:
        by = {
            kind: self.gateway.get(f'cortex_sql_answers_total{{cache="{kind}"}}', 0)
            for kind in ("hit", "joined", "miss")
        }
        return f"{by['hit'] + by['joined']:.0f} of {sum(by.values()):.0f}"


def share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


async def play_all(
    what: Play, progress: Progress, *, only: str | None = None, before: Callable[[], Awaitable[object]] | None = None
) -> dict[str, Round]:
    """A round of each layout, or of one; `before` is done before each."""
    rounds: dict[str, Round] = {}
    for name, layout in LAYOUTS.items():
        if only in (None, name):
            if before is not None:
                await before()
            task = progress.add_task(name, total=len(what.asked))
            rounds[name] = await play(what, layout, partial(progress.advance, task))
    return rounds


async def play(what: Play, layout: Mapping[str, str], done: Callable[[], object]) -> Round:
    """All questions under one layout; `done` hears of each that is over."""
    environ = {f"DEMO_{key}": value for key, value in {**what.settings, **layout}.items()}
    environ["DEMO_DATABASE"] = str(DATABASE)
    gateway = await compose(read_config(what.config, environ), seed=7, report_every=0.5)
    async with (
        listening(gateway) as address,
        AsyncOpenAI(base_url=f"{address}/v1", api_key="none", http_client=what.speak()) as client,
        httpx.AsyncClient(trust_env=False) as http,
    ):
        engines = _Engines(http, gateway)
        before, begun = await engines.sums(), time.monotonic()
        async with engines.watched() as kv:
            results, errors = await _ask_all(what, client, done)
        seconds = time.monotonic() - begun
        after = await engines.sums()
        own = _sums([(await http.get(f"{address}/metrics")).text])
        whole = await _whole_workflow(client, what.asked) if what.walk else ""
    wrong = errors | {
        text: result.failure or "the rows differ from the gold rows"
        for text, result in results.items()
        if result.failure or not gold.same(result.rows, what.truth[text])
    }
    return Round(
        results=results,
        wrong=wrong,
        errors=errors,
        engines={name: value - before.get(name, 0.0) for name, value in after.items()},
        gateway=own,
        kv=kv,
        seconds=seconds,
        whole=whole,
    )


def _prompts() -> Iterator[tuple[str, str]]:
    for path in (HERE / "prompts").glob("*.md"):
        yield path.stem, path.read_text(encoding="utf-8")


@dataclass(slots=True)
class _Engines:
    """The language engines of a gateway, by their metrics."""

    http: httpx.AsyncClient
    gateway: Gateway
    urls: list[str] = field(init=False)

    def __post_init__(self) -> None:
        engines = self.gateway.runtime.engines.values()
        self.urls = [engine.url for engine in engines if isinstance(engine, HttpEngine)]

    async def sums(self) -> dict[str, float]:
        return _sums([(await self.http.get(f"{url}/metrics")).text for url in self.urls])

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[list[float]]:
        """Samples of their KV use, for as long as the block lasts."""
        kv: list[float] = []

        async def watch() -> None:
            while True:
                with suppress(httpx.HTTPError):  # it is the runs that tell of an engine that went away
                    kv.append((await self.sums())["vllm:kv_cache_usage_perc"])
                await asyncio.sleep(SAMPLE_EVERY)

        async with asyncio.TaskGroup() as group:
            task = group.create_task(watch())
            yield kv
            task.cancel()


async def _ask_all(
    what: Play, client: AsyncOpenAI, done: Callable[[], object]
) -> tuple[dict[str, agent.Result], dict[str, str]]:
    """The agent's result for each question, and what went wrong with those that have none."""
    turn = asyncio.Semaphore(what.at_once)
    results: dict[str, agent.Result] = {}
    errors: dict[str, str] = {}

    async def one(question: Question) -> None:
        async with turn:
            try:
                results[question.text] = await agent.ask(
                    client, question.text, prompts=what.prompts, model=what.model
                )
            except OpenAIError as error:
                errors[question.text] = str(error)
            done()

    await asyncio.gather(*map(one, what.asked))
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
