"""Bodies, events and answers of no sound shape on every surface: refused by name, or passed on, never believed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.recorder import JSON, Answer, Exchange, Headers, Recorder, politely, recording
from tests.gateway.support import MODEL, Running, attached, running, settled, written
from tests.gateway.test_surfaces import ADMIN, ASK, COMPARE, of_run


@asynccontextmanager
async def before(folder: Path, *answers: Answer) -> AsyncIterator[tuple[Running, Sequence[Recorder]]]:
    """A gateway before engines that answer so."""
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(recording(answer)) for answer in answers]
        text = written({"default": attached(*(engine.url for engine in engines))}, admin=ADMIN)
        secret = {"ADMIN": "secret-of-the-admin"}
        up = await stack.enter_async_context(running(folder, text, secret, report_every=60))
        yield up, engines
        await settled(up.gateway)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/responses", {"input": [{"type": [], "role": "user", "content": "x"}]}, 400),
        ("/v1/messages", {"messages": [{"role": "user", "content": [{"type": {}, "text": "x"}]}]}, 200),
        (
            "/v1/messages",
            {"messages": [{"role": "user", "content": "x"}], "system": [{"type": [1], "text": "y"}]},
            200,
        ),
        ("/v1/rerank", {"query": "x", "documents": [1] * 20_000}, 200),
        ("/v1/rerank", {"query": "x", "documents": ["y"] * 20_000}, 400),
    ],
)
async def test_a_body_of_any_shape_is_read_or_refused(
    tmp_path: Path, path: str, body: dict[str, Any], status: int
) -> None:
    async with before(tmp_path, politely) as (up, _):
        reply = await up.http.post(path, json={"model": MODEL, **body})
        assert reply.status_code == status, reply.text


USAGE = [{"input_tokens": 10**17, "output_tokens": -5}, {"input_tokens": True, "output_tokens": "7"}, [1], 5]


@pytest.mark.parametrize("usage", USAGE)
async def test_usage_that_cannot_be_is_not_believed(tmp_path: Path, usage: object) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.whole(json.dumps({"output": [], "usage": usage}).encode())

    async with before(tmp_path, answer) as (up, _):
        reply = await up.http.post("/v1/responses", json={"model": MODEL, "input": "x"})
        assert reply.status_code == 200
        [run] = await of_run(up, reply)
        assert (run["trace"][0]["prompt_tokens"], run["trace"][0]["output_tokens"]) == (0, 0)


@pytest.mark.parametrize("kind", ["[]", "{}", "5", "null"])
@pytest.mark.parametrize("path", ASK)
async def test_an_event_of_any_type_is_passed_on_or_breaks_its_stream_alone(
    tmp_path: Path, path: str, kind: str
) -> None:
    async def answer(exchange: Exchange) -> None:
        odd = b'data: {"type": %s, "choices": [{"delta": {"content": "x"}}]}\n\n' % kind.encode()
        await exchange.pieces([odd, odd, b"data: [DONE]\n\n"])

    async with before(tmp_path, answer) as (up, _):
        reply = await up.http.post(path, json={"model": MODEL, "stream": True, **ASK[path]})
        assert (reply.status_code, "internal_error" in reply.text) == (200, False)


@pytest.mark.parametrize("path", ["/tokenize", "/v1/messages/count_tokens"])
@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ((401, JSON, b'{"error": {"message": "bad key sk-123"}}'), 502),
        ((302, JSON, b""), 502),
        ((200, [("content-type", "text/html")], b"<html>"), 502),
        ((429, [*JSON, ("retry-after", "7")], b'{"error": {"message": "busy"}}'), 429),
        ((400, JSON, b'{"error": {"message": "no"}}'), 400),
    ],
)
async def test_an_errand_that_fails_is_told_as_a_call_is(
    tmp_path: Path, path: str, said: tuple[int, Headers, bytes], expected: int
) -> None:
    status, headers, body = said

    async def answer(exchange: Exchange) -> None:
        await exchange.whole(body, status=status, headers=headers)

    async with before(tmp_path, answer, answer) as (up, engines):
        ask = {"model": MODEL, "messages": [{"role": "user", "content": "x"}]}
        reply = await up.http.post(path, json=ask)
        assert (reply.status_code, "sk-123" in reply.text) == (expected, False)
        assert sum(len(engine.seen) for engine in engines) == (1 if status == 400 else 2)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/rerank", "/v1/score"])
async def test_a_stream_of_what_cannot_be_streamed_is_no_fault_of_the_engine(tmp_path: Path, path: str) -> None:
    async with before(tmp_path, politely_whole) as (up, engines):
        for _ in range(4):
            reply = await up.http.post(path, json={"model": MODEL, "stream": True, **COMPARE[path]})
            assert reply.status_code == 200
        assert engines[0].last.document["stream"] is True
        assert [engine.failures for engine in up.gateway.runtime.dispatcher.fleet] == [0]


async def politely_whole(exchange: Exchange) -> None:
    await exchange.whole(b'{"data": []}')
