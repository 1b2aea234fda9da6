"""The load of the demo, and beside it whatever else can happen to a gateway, so that all of its metrics move.

`python -m tests.dashboards.load --seconds 60 --out docs/dashboards` draws the boards' pictures under it.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
from openai import AsyncOpenAI, OpenAIError

from backends.vllm import HttpEngine
from dashboards.pictures import draw
from dashboards.series import Span
from examples.nl2sql import agent, database, questions
from examples.nl2sql.play import DATABASE, HERE
from gateway.yamlfile import read
from tests.dashboards.monitoring import prometheus
from tests.gateway.support import CHAT, Running, chat, children, running

TOKEN = {"Authorization": "Bearer load"}
DEAD = "127.0.0.1:9"
SLOW = "SELECT sum(a.range * b.range) FROM range(1000000) a, range(1000000) b WHERE a.range % 7 = "


COUNTING = "How many sales are there? Say it with "


def counted(number: int) -> str:
    """A statement that nobody has asked for yet."""
    return f"SELECT count(*) AS sales, {number} AS mark FROM sales WHERE net_amount > {number}"


@dataclass(slots=True)
class Load:
    """Everything that goes on at once, until it is cancelled. `at_once` questions are under way; from one trouble to
    the next of its kind it takes `calm` times as long as it may."""

    up: Running
    at_once: int
    calm: float

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            asked = itertools.cycle(questions.load())
            for number in range(self.at_once):
                group.create_task(self._ask(asked, hurried=number % 4 == 0))
            for pause, happens in (
                (0.5, self._leave),
                (0.7, self._misspell),
                (0.5, self._fail),
                (0.9, self._ask_nobody),
                (2.0, self._run_too_long),
                (0.8, self._walk),
                (0.8, self._call_ahead),
                (4.0, self._fail_often),
                (1.0, self._listen),
                (0.6, self._publish),
                (6.0, self._scale),
                (7.0, self._crash),
            ):
                group.create_task(self._again(pause, happens))

    async def _again(self, pause: float, happens: Callable[[int], Awaitable[object]]) -> None:
        for turn in itertools.count():
            with suppress(httpx.HTTPError):  # what is broken on purpose may break in any way
                await happens(turn)
            await asyncio.sleep(pause * self.calm)  # the pace of the load; nothing is waited for

    async def _ask(self, asked: itertools.cycle[questions.Question], *, hurried: bool) -> None:
        """The agent of the demo, one question after the other; some are in more of a hurry than they can be."""
        prompts = {path.stem: path.read_text(encoding="utf-8") for path in (HERE / "prompts").glob("*.md")}
        headers = {"X-Workflow-Deadline-Ms": "800"} if hurried else {}
        async with AsyncOpenAI(base_url=f"{self.up.url}/v1", api_key="none", default_headers=headers) as client:
            for question in asked:
                with suppress(OpenAIError):
                    await agent.ask(client, question.text, prompts=prompts)

    async def _leave(self, turn: int) -> None:
        body = chat(f"tell me a long story, number {turn}", stream=True, max_tokens=400)
        async with self.up.http.stream("POST", CHAT, json=body) as reply:
            pieces = reply.aiter_raw()
            for _ in range(12):
                await anext(pieces, None)

    async def _misspell(self, turn: int) -> None:
        await self.up.http.post(CHAT, content=b'{"model": ')
        await self.up.http.post("/v1/sql", json={"sql": "SELECT * FROM nowhere", "database": "sales"})

    async def _fail(self, turn: int) -> None:
        """An engine that fails before its first byte, and one that breaks off."""
        fault = "die_before" if turn % 2 else "die_after=2"
        await self.up.http.post(
            CHAT, json=chat(f"fail {turn}", stream=True, max_tokens=20), headers={"X-Emulated-Fault": fault}
        )

    async def _fail_often(self, turn: int) -> None:
        """Several failures of one engine after the other, so that it is left out for a while."""
        fails = (
            self.up.http.post(CHAT, json=chat(f"{turn} {number}"), headers={"X-Emulated-Fault": "die_before"})
            for number in range(12)
        )
        await asyncio.gather(*fails)

    async def _ask_nobody(self, turn: int) -> None:
        await self.up.http.post(CHAT, json=chat("are you there?") | {"model": "nobody"})

    async def _run_too_long(self, turn: int) -> None:
        await self.up.http.post("/v1/sql", json={"sql": f"{SLOW}{turn % 7}", "database": "sales"})

    async def _walk(self, turn: int) -> None:
        """The whole workflow as a model: its statements run ahead of their calls, its verdicts are recalled."""
        question = questions.load()[turn % 4]
        message = {"role": "user", "content": question.text}
        headers = {"X-Workflow-Id": f"walk-{turn}"}
        body = {"model": "workflow/nl2sql", "messages": [message], "stream": True}
        await self.up.http.post(CHAT, json=body, headers=headers)

    async def _call_ahead(self, turn: int) -> None:
        """A tool call whose statement begins while the model still writes what follows it."""
        place = {"X-Workflow-Type": "nl2sql", "X-Workflow-Id": f"ahead-{turn}"}
        headers = {**place, "X-Workflow-Stage": "generate", "X-Workflow-Tools": "ahead"}
        body = chat(f"# Task: write the query\n\nQuestion: {COUNTING}{turn}", stream=True, tools=[agent.TOOL])
        await self.up.http.post(CHAT, json=body, headers=headers)
        statement = {"sql": counted(turn), "database": "sales"}
        last = {**place, "X-Workflow-Stage": "execute", "X-Workflow-Final": "true"}
        await self.up.http.post("/v1/sql", json=statement, headers=last)

    async def _listen(self, turn: int) -> None:
        """Read the events of a topic for a while, until the next one comes."""
        async with self.up.http.stream("GET", "/v1/state/load/events") as reply:
            await anext(reply.aiter_raw(), None)

    async def _publish(self, turn: int) -> None:
        await self.up.http.post("/v1/state/load", json={"key": f"k{turn % 5}", "value": "v" * 200})
        await self.up.http.get(f"/v1/state/load/k{turn % 7}")

    async def _scale(self, turn: int) -> None:
        """One more engine, then one less."""
        body = {"engines": 1 + turn % 2}
        await self.up.http.post("/admin/pools/sql-fixer/scale", json=body, headers=TOKEN)

    async def _crash(self, turn: int) -> None:
        """An engine's process and a worker's end without a word."""
        for words in ("backends.emulated", "backends.sql.worker"):
            if found := sorted(children(words)):
                os.kill(found[turn % len(found)], signal.SIGKILL)


def configuration(folder: Path) -> str:
    """The demo's, with everything switched on that is off, and something behind some pools that does not work."""
    shutil.copytree(HERE / "prompts", folder / "prompts", dirs_exist_ok=True)
    (folder / "script.json").write_text(json.dumps(_script()))
    environ = {"DEMO_KV_BLOCKS": "", "DEMO_DATABASE": str(DATABASE), "DEMO_LAYOUT": "adaptive"}
    document: Any = read(HERE / "demo.yaml", environ).tree
    for pool in document["pools"].values():
        if pool["backend"]["name"] == "emulated":
            pool["backend"] |= {"num_gpu_blocks": 512, "faults": True, "kv_events": True}
            pool["engines"]["max"] = 3
    document["pools"]["warehouse"] |= {"engines": {"min": 1, "start": 3, "max": 3}}
    document["pools"]["warehouse"]["backend"] |= {"timeout": "400ms"}
    document["pools"]["nobody"] = {"model": "nobody", "backend": {"name": "vllm", "attach": [f"http://{DEAD}"]}}
    workflow = document["workflows"]["nl2sql"]
    workflow["slo"] = {"deadline": "6s", "target": 0.9}
    workflow["stages"]["verify"] |= {"recall": "1h"}
    document["policies"]["scorers"] = [{"name": "least_delay"}]
    document |= {
        "admin": {"token": "load"},
        "limits": {"run_idle": "2s"},  # the agent does not say which verdict is its last
        "state": {"redis": f"redis://{DEAD}/0", "memory": "64kB"},
        "server": document["server"] | {"journal": str(folder / "journal.jsonl"), "log_level": "error"},
    }
    return json.dumps(document)


def _script() -> dict[str, Any]:
    """The demo's, with questions whose statements differ each time."""
    script: dict[str, Any] = json.loads((HERE / "script.json").read_text())
    for number in range(500):
        call = {"name": "execute_sql", "arguments": {"sql": counted(number)}}
        script["entries"][f"{COUNTING}{number}"] = [{"task": "generate", "call": call}]
    return script


@asynccontextmanager
async def busy(folder: Path, *, at_once: int, calm: float = 1.0) -> AsyncIterator[httpx.AsyncClient]:
    """A gateway under load, and a Prometheus that looks at it and at its engines; gives a client for that."""
    database.make(DATABASE)
    # No connection is kept: httpcore, cancelled while it closes several that have expired, forgets the rest of them.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    headers = {"X-Workflow-Deadline-Ms": "5000"}  # a call that is in no hurry would wait until the end
    async with (
        running(folder, configuration(folder)) as up,
        httpx.AsyncClient(base_url=up.url, timeout=30, trust_env=False, limits=limits, headers=headers) as asking,
    ):
        engines = [engine.url for engine in up.gateway.runtime.engines.values() if isinstance(engine, HttpEngine)]
        jobs = {"cortex": [up.url], "engines": [url for url in engines if DEAD not in url]}
        jobs = {job: [url.removeprefix("http://") for url in urls] for job, urls in jobs.items()}
        async with prometheus(folder, jobs) as http:
            load = asyncio.create_task(Load(replace(up, http=asking), at_once, calm).run())
            try:
                yield http
                if load.done():
                    load.result()
            finally:
                load.cancel()
                await asyncio.wait([load])


async def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.dashboards.load", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--at-once", type=int, default=16, metavar="N", help="questions under way (16)")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        async with busy(Path(folder), at_once=options.at_once, calm=3.0) as http:
            await asyncio.sleep(options.seconds)
            now = time.time()
            await draw(http, Span(start=now - options.seconds + 15, end=now), options.out)


if __name__ == "__main__":
    asyncio.run(main())
