"""Clients that leave as soon as they have read the last event of a stream, which the engine has not closed yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.gateway.rawhttp import connected, request
from tests.gateway.recorder import CHUNKS, Exchange, recording
from tests.gateway.support import Running, attached, chat, running, settled, until, written

ADMIN = {"Authorization": "Bearer secret-of-the-admin"}
USAGE = {"input_tokens": 5, "output_tokens": 7}


def event(kind: str, **members: object) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + orjson.dumps({"type": kind, **members}) + b"\n\n"


RESPONSES = (
    event("response.created", sequence_number=0, response={"id": "resp_1", "status": "in_progress"}),
    event("response.output_text.delta", sequence_number=1, delta="Hi"),
    event("response.completed", sequence_number=2, response={"id": "resp_1", "status": "completed", "usage": USAGE}),
)
MESSAGES = (
    event("message_start", message={"id": "msg_1", "usage": {"input_tokens": 5}}),
    event("content_block_delta", index=0, delta={"type": "text_delta", "text": "Hi"}),
    event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 7}),
    event("message_stop"),
)
TURN = [{"role": "user", "content": "hello"}]
SURFACES: dict[str, tuple[tuple[bytes, ...], dict[str, Any]]] = {
    "/v1/chat/completions": (CHUNKS, {}),
    "/v1/responses": (RESPONSES, {"input": "hello", "messages": None}),
    "/v1/messages": (MESSAGES, {"messages": TURN, "max_tokens": 100}),
}


async def last_call(up: Running) -> dict[str, Any]:
    """What the gateway says of the only run's last call."""
    found = (await up.http.get("/admin/runs/the-run", headers=ADMIN)).json()["runs"]
    call: dict[str, Any] = found[0]["trace"][-1]
    return call


@pytest.mark.parametrize("path", SURFACES)
@pytest.mark.parametrize("whole", [True, False], ids=["after the last event", "before the last event"])
async def test_who_leaves_with_the_last_event_has_had_an_answer(tmp_path: Path, path: str, whole: bool) -> None:
    events, members = SURFACES[path]
    sent = events if whole else events[:-1]

    async def unclosed(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.write(b"".join(sent))
        await exchange.left()

    body = {name: value for name, value in chat(stream=True, **members).items() if value is not None}
    async with recording(unclosed) as engine:
        text = written({"default": attached(engine.url)}, admin={"token": "${ADMIN}"})
        async with running(tmp_path, text, {"ADMIN": "secret-of-the-admin"}, report_every=60) as up:
            async with connected(up.url) as raw:
                await raw.send(request(body, "X-Workflow-Id: the-run", path=path))
                await raw.reader.readuntil(sent[-1].strip())
                raw.leave()
                await until(lambda: not up.gateway.runtime.dispatcher.calls, "the call's end")
            call = await last_call(up)
            await settled(up.gateway)
    if whole:
        assert (call["end"], call["outcome"]) == ("finished", "ok")
        assert call["output_tokens"] > 0
    else:
        assert (call["end"], call["outcome"]) == ("left", None)
