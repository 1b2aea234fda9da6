"""The agents of `examples/clients` as flows: what ten frameworks sent, recorded by `tests/clients/record.py`."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any

import orjson

from bench.inference_overlay import Call, Flow
from gateway.inference import Answer, conversation
from gateway.openai import sse
from gateway.openai.payload import Endpoint, parse

RECORDED = Path(__file__).parents[1] / "tests" / "clients" / "recorded"
DIFFERENT = 30
"""So many questions of each example nobody else asks. Then come one that was asked 4 times, with other results of the
tools each time, and one that was asked 4 times with the same."""
_ENDPOINTS: Mapping[str, Endpoint] = MappingProxyType(
    {"chat/completions": "chat", "responses": "responses", "messages": "messages"}
)

Line = dict[str, Any]


def recordings(folder: Path = RECORDED) -> dict[str, Sequence[Sequence[Line]]]:
    """The runs of each example, each as its calls. Raises OSError where the folder cannot be read."""
    found: dict[str, Sequence[Sequence[Line]]] = {}
    for path in sorted(folder.glob("*.jsonl.gz")):
        lines = [orjson.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
        runs = groupby(sorted(lines, key=lambda line: (line["run"], line["at"])), key=lambda line: line["run"])
        found[path.name.partition(".")[0]] = [list(calls) for _, calls in runs]
    return found


def flow(lines: Sequence[Line], rng: Random) -> Flow:
    """One run. Its times are drawn: the engines that answered were quicker than models are."""
    return list(_timed(lines, rng))


def _timed(lines: Sequence[Line], rng: Random) -> Iterator[Call]:
    now = 0.0
    for line in lines:
        body = parse(orjson.dumps(line["body"]), endpoint=_ENDPOINTS[line["endpoint"]])
        said, heard, took = conversation(body, tenant="", call=""), answer(line), rng.uniform(0.5, 3.0)
        yield Call(
            at=now,
            took=took,
            stage=line["stage"],
            turns=tuple(said.turns),
            answer=heard.text(),
            system=said.system,
            tools=tuple(said.tools),
            handles=tuple(said.handles),
            handed=tuple(heard.handles),
        )
        now += took + rng.uniform(0.02, 1.5)


def answer(line: Line) -> Answer:
    """What the model said, streamed or whole."""
    heard, text = Answer(), line["reply"].encode()
    if line["streamed"]:
        for event in sse.Events().feed(text):
            heard.event(event)
    else:
        heard.whole(orjson.loads(text))
    return heard
