"""Comments that keep a connection alive while a call waits: between events, and only until there is one."""

from __future__ import annotations

import asyncio
import json
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Message

from backends.emulated.options import EmulatedOptions
from gateway.asgi import Out
from gateway.keepalive import kept_alive
from tests.gateway.recorder import CHUNKS, JSON, WHOLE, Answer, Exchange, Recorder, recording
from tests.gateway.shop import RIGHT, TOOLS, shop
from tests.gateway.support import CHAT, Running, attached, chat, error_of, events, running, settled, until, written

OFTEN = {"port": 0, "keep_alive": "20ms"}
AT_GENERATE = {"x-workflow-type": "shop", "x-workflow-stage": "generate"}
COMMENT = ": keep-alive\n\n"


class Slow:
    """An engine that answers when it is told to."""

    def __init__(self, answer: Answer) -> None:
        self.go = asyncio.Event()
        self._answer = answer

    async def __call__(self, exchange: Exchange) -> None:
        await self.go.wait()
        await self._answer(exchange)


def gateway(engine: Recorder, folder: Path, server: dict[str, Any] = OFTEN) -> AbstractAsyncContextManager[Running]:
    return running(folder, written({"default": attached(engine.url)}, server=server))


async def chunks(exchange: Exchange) -> None:
    await exchange.pieces(CHUNKS)


async def whole(exchange: Exchange) -> None:
    await exchange.whole(WHOLE)


async def refusal(exchange: Exchange) -> None:
    await exchange.whole(b'{"error": {"message": "too long"}}', status=400, headers=JSON)


async def asked(up: Running, slow: Slow, **more: Any) -> tuple[httpx.Response, str]:
    """A stream whose engine begins once three comments have come."""
    async with up.http.stream("POST", CHAT, json=chat(stream=True, **more)) as reply:
        text = ""
        async for piece in reply.aiter_text():
            text += piece
            if text.count(COMMENT) == 3:
                slow.go.set()
    return reply, text


async def test_comments_come_before_the_answer_and_not_in_it(tmp_path: Path) -> None:
    slow = Slow(chunks)
    async with recording(slow) as engine, gateway(engine, tmp_path) as up:
        reply, text = await asked(up, slow)
        assert text.startswith(3 * COMMENT)
        assert text.replace(COMMENT, "").encode() == b"".join(CHUNKS)
        assert reply.headers["x-workflow-id"]
        await settled(up.gateway)


async def test_comments_come_while_an_answer_pauses_and_stand_between_its_events(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def pausing(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.write(CHUNKS[0])
        await go_on.wait()
        await exchange.write(CHUNKS[1][:9])
        await asyncio.sleep(0.1)
        await exchange.pieces([CHUNKS[1][9:], *CHUNKS[2:]], started=True)

    async with recording(pausing) as engine, gateway(engine, tmp_path) as up:
        async with up.http.stream("POST", CHAT, json=chat(stream=True)) as reply:
            text = ""
            async for piece in reply.aiter_text():
                text += piece
                if text.count(COMMENT) == 3:
                    go_on.set()
        assert text.count(COMMENT) > 3
        assert text.replace(COMMENT, "").encode() == b"".join(CHUNKS)
        await settled(up.gateway)


@pytest.mark.parametrize(
    ("ask", "headers"),
    [
        (chat(RIGHT, model="workflow/shop"), {}),
        (chat(f"TASK generate\nQuestion: {RIGHT}\n", tools=TOOLS), AT_GENERATE),
    ],
    ids=["walked", "intercepted"],
)
async def test_comments_come_while_a_workflow_is_walked_or_its_tools_are_run(
    tmp_path: Path, ask: dict[str, Any], headers: dict[str, str]
) -> None:
    async with shop(tmp_path, tools="intercept", server=OFTEN, options=EmulatedOptions(time_scale=0.5)) as site:
        text = (await site.up.http.post(CHAT, json={**ask, "stream": True}, headers=headers)).text
        chunks = [json.loads(event) for event in events(text)[:-1] if not event.startswith(":")]
        told = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
        assert text.count(COMMENT) > 3
        assert told.endswith(("| 4 |\n", "There are four."))


async def test_a_whole_answer_to_a_stream_that_has_begun_is_an_error_in_it(tmp_path: Path) -> None:
    slow = Slow(whole)
    async with recording(slow) as engine, gateway(engine, tmp_path) as up:
        _, text = await asked(up, slow)
        assert "did not answer with a stream" in events(text)[-1]
        await settled(up.gateway)


async def test_an_answer_of_a_known_size_has_nothing_else_in_it() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    out = Out(send)
    async with kept_alive(out, 0.01):
        await out.begin(200, [("content-length", "2")])
        await asyncio.sleep(0.05)
    await out.end(b"{}")
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]


async def test_a_refusal_after_the_first_comment_is_told_in_the_stream(tmp_path: Path) -> None:
    slow = Slow(refusal)
    async with recording(slow) as engine, gateway(engine, tmp_path) as up:
        reply, text = await asked(up, slow)
        assert reply.status_code == 200
        assert "too long" in events(text)[-1]
        assert "[DONE]" not in text
        await settled(up.gateway)


async def test_a_client_that_leaves_while_it_is_kept_waiting_gives_its_place_back(tmp_path: Path) -> None:
    left = asyncio.Event()

    async def silent(exchange: Exchange) -> None:
        await exchange.left()
        left.set()

    async with recording(silent) as engine, gateway(engine, tmp_path) as up:
        async with up.http.stream("POST", CHAT, json=chat(stream=True)) as reply:
            await anext(reply.aiter_text())
        await settled(up.gateway)
        await asyncio.wait_for(left.wait(), 10)


@pytest.mark.parametrize("server", [OFTEN, {"port": 0}])
async def test_whole_answers_and_gateways_that_are_not_told_to_know_no_comments(
    tmp_path: Path, server: dict[str, Any]
) -> None:
    slow = Slow(refusal)
    stream = server is not OFTEN
    async with recording(slow) as engine, gateway(engine, tmp_path, server) as up:
        asking = asyncio.create_task(up.http.post(CHAT, json=chat(stream=stream)))
        await until(lambda: bool(engine.seen), "the call to be there")
        asyncio.get_running_loop().call_later(0.1, slow.go.set)
        reply = await asking
        assert (reply.status_code, error_of(reply)["message"]) == (400, "too long")
        await settled(up.gateway)
