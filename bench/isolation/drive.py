"""One measurement: a gateway with a contender's configuration over two engines, and clients that call through it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from bench.isolation.cells import BLOCK, CLIENTS, FAILED, FIX, GENERATE, SEQUENCES, STAGES, WORKFLOW, Cell, Trial
from bench.isolation.flows import OUTPUT, Ask, Flow
from bench.isolation.watch import Seen, Watch
from bench.site import CHAT, gateway
from policies.catalog import Named
from simulator.lineup import Contender

PATIENCE = aiohttp.ClientTimeout(total=300.0)


class BrokenTrial(Exception):
    """A call was not answered as it should be: what was measured says nothing."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A call as its client saw it: times in seconds, lengths in tokens, `pool` whose engine answered."""

    run: str
    pool: str
    prompt: int
    cached: int
    output: int
    first: float
    total: float

    @property
    def computed(self) -> int:
        """Tokens of the prompt that no cache had."""
        return self.prompt - self.cached


@dataclass(slots=True)
class Measured:
    """What a trial gave: its calls, the seconds of each run, those of all together, and what the engines showed."""

    calls: list[Answered] = field(default_factory=list)
    runs: list[float] = field(default_factory=list)
    wall: float = 0.0
    seen: Seen = field(default_factory=Seen)


async def measure(
    trial: Trial, flows: Sequence[Flow], *, watch: Watch, model: str, journal: Path | None = None
) -> Measured:
    """Carry out one trial on engines that are cold. Raises BrokenTrial."""
    measured = Measured()
    more = configuration(trial.contender, trial.cell, journal)
    async with (
        gateway(pools(watch.urls, trial.cell, model), more=more) as site,
        _clients() as session,
        watch.watching() as seen,
    ):
        began, waiting = time.perf_counter(), iter(flows)
        await asyncio.gather(*(_client(session, site.url, model, waiting, measured) for _ in range(CLIENTS)))
        measured.wall = time.perf_counter() - began
    measured.seen = seen
    return measured


def pools(urls: Sequence[str], cell: Cell, model: str) -> dict[str, object]:
    """An engine for each stage."""
    return {
        stage: {
            "model": model,
            "backend": {"name": "vllm", "attach": [url]},
            "concurrency": {"sequences": SEQUENCES, "kv_tokens": cell.blocks * BLOCK},
        }
        for stage, url in zip(STAGES, urls, strict=True)
    }


def configuration(contender: Contender, cell: Cell, journal: Path | None = None) -> dict[str, object]:
    """What a gateway's file says besides its pools, so that it does as the contender."""
    chosen = contender.policies
    policies: dict[str, object] = {
        "layout": contender.layout,
        "priority": _spec(chosen.priority),
        "admission": _spec(chosen.admission),
        "filters": [_spec(named) for named in chosen.filters],
        "scorers": [_spec(named) | {"weight": named.weight} for named in chosen.scorers],
        "picker": _spec(chosen.picker),
        "budget": _spec(chosen.budget),
        "gate": _spec(contender.gate),
    }
    if contender.layout == "adaptive" and chosen.borrowing.params:
        policies["borrowing"] = _spec(chosen.borrowing)
    edges: list[dict[str, object]] = [{"from": "start", "to": GENERATE}, {"from": GENERATE, "to": FIX}]
    if cell.repairs > 1:
        edges.append({"from": FIX, "to": FIX, "on": [*FAILED], "chance": 1 - 1 / cell.repairs})
    stages = {stage: {"pool": stage, "visits": cell.visits(stage)} for stage in STAGES}
    more: dict[str, object] = {"workflows": {WORKFLOW: {"stages": stages, "edges": edges}}, "policies": policies}
    if journal is not None:
        more["server"] = {"port": 0, "journal": str(journal)}
    return more


def messages(ask: Ask) -> list[dict[str, str]]:
    return [{"role": "system", "content": ask.system}, {"role": "user", "content": ask.user}]


def body(ask: Ask, model: str) -> bytes:
    """A streamed call whose answer has OUTPUT tokens, whatever the model would say."""
    return json.dumps(
        {
            "model": model,
            "messages": messages(ask),
            "max_tokens": OUTPUT,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()


async def _client(
    session: aiohttp.ClientSession, url: str, model: str, waiting: Iterator[Flow], measured: Measured
) -> None:
    for flow in waiting:
        began = time.perf_counter()
        for index, ask in enumerate(flow.calls):
            final = index == len(flow.calls) - 1
            measured.calls.append(await _call(session, url, body(ask, model), _headers(flow, ask, final)))
        measured.runs.append(time.perf_counter() - began)


def _headers(flow: Flow, ask: Ask, final: bool) -> dict[str, str]:
    named = {"X-Workflow-Type": WORKFLOW, "X-Workflow-Id": flow.id, "X-Workflow-Stage": ask.stage}
    return {**named, "Content-Type": "application/json", **({"X-Workflow-Final": "true"} if final else {})}


async def _call(session: aiohttp.ClientSession, url: str, sent: bytes, headers: Mapping[str, str]) -> Answered:
    began = time.perf_counter()
    first: float | None = None
    usage: dict[str, Any] | None = None
    async with session.post(url + CHAT, data=sent, headers=headers) as response:
        if response.status != 200:
            raise BrokenTrial(f"status {response.status}: {(await response.text())[:300]}")
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[len(b"data: ") :])
            if "error" in event:
                raise BrokenTrial(f"an answer broke off: {event['error']}")
            if event["choices"] and first is None:  # random tokens may have no text
                first = time.perf_counter() - began
            usage = event.get("usage") or usage
        engine = response.headers["X-Workflow-Engine"]
    total = time.perf_counter() - began
    if usage is None:
        raise BrokenTrial("an answer without its usage")
    return Answered(
        run=headers["X-Workflow-Id"],
        pool=engine.partition("/")[0],
        prompt=usage["prompt_tokens"],
        cached=(usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
        output=usage["completion_tokens"],
        first=total if first is None else first,
        total=total,
    )


def _spec(named: Named) -> dict[str, object]:
    return {"name": named.name, **dict(named.params)}


@asynccontextmanager
async def _clients() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=PATIENCE, connector=aiohttp.TCPConnector(limit=0)) as session:
        yield session
