"""Real vLLM servers tell what they hold, and the gateway foretells by it what they find of a prompt."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import orjson
import pytest

from backends.base import Request
from backends.launcher import KV_EVENTS
from backends.vllm import HttpEngine
from gateway.journal import blueprint_of, recorded, replay
from gateway.openai.payload import parse
from gateway.tokens import asked
from policies.calls import Call
from policies.events import Finished, Start
from policies.routing.residency import Retold
from tests.gateway.support import CHAT, Running, running, until
from tests.vllm.conftest import BLOCK, BLOCKS, MODEL, Pair, options

LONG = "a question that goes on and on, and then on again "
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def speaking(model: Path) -> Iterator[Pair]:
    """Two servers that publish."""
    made = Pair(options(model, "--kv-events-config", KV_EVENTS))
    made.start()
    yield made
    made.stop()


def chat(text: str, **more: object) -> dict[str, object]:
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 4, "temperature": 0}
    return {**body, **more}


def config(folder: Path, pair: Pair) -> str:
    backend = {"name": "vllm", "attach": pair.urls, "kv_events": True, "tokenize": "10s"}
    pool = {"model": MODEL, "backend": backend, "engines": {"min": 2, "start": 2, "max": 2}}
    server = {"port": 0, "journal": str(folder / "journal")}
    return json.dumps({"server": server, "insecure": True, "pools": {"p": pool}})


def resident(up: Running) -> dict[str, int]:
    assert up.gateway.residence is not None
    return dict(up.gateway.residence.resident())


async def test_what_is_expected_of_an_engine_is_what_it_finds(speaking: Pair, tmp_path: Path) -> None:
    texts = [f"{number % 5} {LONG * (4 + number % 3 * 8)}" for number in range(30)]
    async with running(tmp_path, config(tmp_path, speaking)) as up:
        await until(lambda: len(resident(up)) == 2, within=30)
        for three in zip(*[iter(texts)] * 3, strict=True):
            replies = await asyncio.gather(*(up.http.post(CHAT, json=chat(text), timeout=60) for text in three))
            assert [reply.status_code for reply in replies] == [200] * 3
        assert all(0 < blocks <= BLOCKS for blocks in resident(up).values())
    journal = tmp_path / "journal"
    expected: dict[int, int] = {}
    errors = []
    for step in recorded(journal):
        expected |= {one.attempt: one.expected_cached for one in step.actions if isinstance(one, Start)}
        if isinstance(step.event, Finished) and step.event.attempt is not None:
            found = step.event.outcome.cached_tokens
            assert found is not None
            errors.append(abs(expected[step.event.attempt] - found) // BLOCK)
    assert len(errors) == 30
    assert sorted(errors)[27] <= 1
    held = Retold()
    assert replay(journal, blueprint_of(journal).dispatcher(held), held) is None


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"tools": [TOOL]},
        {"add_generation_prompt": False},
        {"reasoning_effort": "low"},
        {"chat_template_kwargs": {"enable_thinking": False}},
    ],
)
async def test_the_tokens_of_a_prompt_are_those_that_its_call_has(
    speaking: Pair, session: aiohttp.ClientSession, more: dict[str, object]
) -> None:
    engine = HttpEngine(speaking.urls[0], session)
    body = orjson.dumps(chat("héllo 你好 " * 20, **more))
    question = asked(parse(body, endpoint="chat"))
    assert question is not None
    call = Call(id="c", pool="p", run="r", arrived=0.0)
    headers = (("content-type", "application/json"),)
    answers = []
    for path, content in (("/tokenize", question), (CHAT, body)):
        async with engine.open(Request(call=call, path=path, body=content, headers=headers)) as reply:
            assert reply.status == 200
            answers.append(orjson.loads(b"".join([chunk async for chunk in reply.chunks])))
    tokens, answer = answers
    assert tokens["count"] == len(tokens["tokens"]) == answer["usage"]["prompt_tokens"]
