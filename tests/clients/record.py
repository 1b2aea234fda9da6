"""Records the examples as clients that name nothing: `python -m tests.clients.record`, into `tests/clients/recorded`.

Each example runs as it is against a live gateway, once for each question of `asked`: the cities are all that differs
between two runs of it. Of each call is kept what was asked and answered and when, the run that made it and the stage
that it named. Whatever names either is then taken away: headers, the path's prefix, the alias of a model.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import re
import shutil
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations, repeat
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import NamedTuple

import orjson

from bench.inference_examples import DIFFERENT, RECORDED
from bench.site import tell
from tests.clients.live import ENVIRONMENTS, Json, live
from tests.clients.relay import Exchange, relaying
from tests.clients.silent import CITIES
from tests.clients.test_clients import CLIENTS, EXAMPLES, QUIET

MODEL = "cortex-emulated"
AGAIN = "import runpy, sys\nfor path in sys.argv[1:]: runpy.run_path(path, run_name='__main__')"


class Asked(NamedTuple):
    """Two cities, and how warm it is there today."""

    cold: str
    warm: str
    least: int
    most: int

    def told(self, text: str) -> str:
        """A text of an example, or of the script that answers it, as it is of these cities."""
        text = re.sub(r"(Oslo\W+|Oslo has |against )4\b", rf"\g<1>{self.least}", text)
        text = re.sub(r"(Lima\W+|Lima has )19\b", rf"\g<1>{self.most}", text)
        return text.replace("Oslo", self.cold).replace("Lima", self.warm)


def asked() -> Mapping[str, Sequence[Asked]]:
    """What each example is asked: `DIFFERENT` questions of its own, one on 4 days of other weather, and one 4 times.

    Nothing in the last ones tells their runs apart.
    """
    rng = Random(1)
    pairs = rng.sample(list(permutations(filter(str.isalpha, CITIES), 2)), (DIFFERENT + 2) * len(CLIENTS))
    degrees = iter(lambda: (rng.randrange(-9, 15), rng.randrange(15, 40)), None)

    def some() -> Iterator[Asked]:
        for _ in range(DIFFERENT):
            yield Asked(*pairs.pop(), *next(degrees))
        changing = pairs.pop()
        yield from (Asked(*changing, least, least + 9) for least in rng.sample(range(1, 20), 4))
        yield from repeat(Asked(*pairs.pop(), *next(degrees)), 4)

    return {example: list(some()) for example in CLIENTS}


def script(questions: Sequence[Asked]) -> Json:
    """What the engines say to all of these questions. Of one question that is asked on several days, rule by rule."""
    text = (EXAMPLES / "script.json").read_text()
    document: Json = orjson.loads(text)
    days: dict[str, list[list[Json]]] = {}
    for one in dict.fromkeys(questions):
        ((question, rules),) = orjson.loads(one.told(text))["entries"].items()
        days.setdefault(question, []).append(rules)
    entries = {
        question: [rule for alike in zip(*rules, strict=True) for rule in alike] for question, rules in days.items()
    }
    return document | {"entries": entries}


def words(example: str, copies: Sequence[Path]) -> Iterator[list[str]]:
    """The command lines that run copies of an example: Python's in one process, one after another."""
    folder = ENVIRONMENTS / CLIENTS[example].environment
    if example.endswith(".mjs"):
        yield from (["node", str(copy)] for copy in copies)
    else:
        yield [str(folder / "bin" / "python"), "-c", AGAIN, *map(str, copies)]


async def run(example: str, questions: Sequence[Asked], url: str, key: str, home: Path) -> None:
    """Let an example ask its questions."""
    copies = [home / f"{number:02}-{example}" for number in range(len(questions))]
    for copy, one in zip(copies, questions, strict=True):
        copy.write_text(one.told((EXAMPLES / example).read_text()))
    environ = {"PATH": os.environ["PATH"], "HOME": str(home), "CORTEX_URL": url, "CORTEX_API_KEY": key, **QUIET}
    for line in words(example, copies):
        process = await asyncio.create_subprocess_exec(
            *line, cwd=home, env=environ, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT
        )
        said = (await process.communicate())[0].decode()
        if process.returncode:
            raise RuntimeError(f"{example}: {said}")


def lines(exchanges: Sequence[Exchange]) -> Iterator[Json]:
    """What is kept of an example's calls, the run's number in place of its name."""
    numbers: dict[str, int] = {}
    for exchange in exchanges:
        if exchange.status != 200:
            continue
        body = orjson.loads(exchange.body)
        run = numbers.setdefault(exchange.reply["x-workflow-id"], len(numbers))
        yield {
            "run": run,
            "stage": exchange.reply["x-workflow-stage"],
            "at": round(exchange.began - exchanges[0].began, 4),
            "took": round(exchange.ended - exchange.began, 4),
            "endpoint": exchange.path.rpartition("/v1/")[2],
            "body": body | {"model": MODEL},
            "streamed": exchange.reply["content-type"].startswith("text/event-stream"),
            "reply": b"".join(exchange.chunks).decode(),
        }


async def record(examples: Sequence[str]) -> None:
    """Run these examples, and write what they sent. Raises RuntimeError where one fails."""
    RECORDED.mkdir(exist_ok=True)
    questions = asked()
    with TemporaryDirectory() as name:
        folder, home = Path(name), Path(name) / "home"
        home.mkdir()
        (home / "node_modules").symlink_to(ENVIRONMENTS / "node" / "node_modules")
        shutil.copy(EXAMPLES / "gateway.yaml", folder)
        (folder / "script.json").write_text(json.dumps(script([one for some in questions.values() for one in some])))
        async with live(home, folder / "gateway.yaml") as gateway, relaying(gateway.url) as relay:
            for example in examples:
                relay.seen.clear()
                await run(example, questions[example], relay.url, gateway.key, home)
                text = b"".join(orjson.dumps(line) + b"\n" for line in lines(relay.seen))
                file = RECORDED / f"{Path(example).stem}.jsonl.gz"
                file.write_bytes(gzip.compress(text, mtime=0))
                tell(f"{file.name}: {len(relay.seen)} calls, {len(text)} bytes, {file.stat().st_size} compressed")


if __name__ == "__main__":
    asyncio.run(record(sys.argv[1:] or list(CLIENTS)))
