"""Every route against everything that a gateway likes to break: bytes, headers, refusals, and clients that leave.

The table: each route, with a body as a client may send it, what an engine answers to it whole, and as a stream.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from gateway.openai.payload import DENIED
from tests.gateway.recorder import CHUNKS, JSON, WHOLE, Exchange, Recorder, recording
from tests.gateway.support import MODEL, Running, attached, running, settled, until, written

SOON = 0.25
"""Seconds within which the one side has heard that the other has gone."""
TRIES = 5
"""The machine may be busy with something else just then."""


@dataclass(frozen=True, slots=True)
class Row:
    """One route. `asks` is the inside of its body, `stream` what an engine streams, nothing where it cannot."""

    path: str
    asks: bytes
    whole: bytes = WHOLE
    stream: tuple[bytes, ...] = ()
    queued: bool = True

    def body(self, *, stream: bool = False) -> bytes:
        """A body that no writer of JSON would write again as it is."""
        asked = b', "stream" :true' if stream else b""
        return b'{ "model":"%s",%s,  %s%s}\n' % (MODEL.encode(), self.asks, ODD, asked)


ODD = (
    b'"unknown": {"b": 1.50, "a": [1e2, 12345678901234567890123, "\\u00e9\\/"]},\t'
    b'"nvext": {"annotations": ["x"], "deep": {"er": [null, true]}}, "guided_\\u0064ecoding_backend" : "x"'
)
MESSAGES = b'"messages" :[{"role":"user","content":"hi \\ud83d\\ude00"}], "max_tokens": 5'
RESPONSE = b'{"id": "resp_1", "object":"response","output": [],  "usage":{"input_tokens":3,"output_tokens":1.0}}'
RESPONSES = (
    b'event: response.created\ndata: {"type":"response.created", "response":{"id":"resp_1"},"sequence_number":0}\n\n',
    b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"Hi","odd":1.50}\n\n',
    b'event: response.completed\ndata: {"type":"response.completed","response":{"id":"resp_1"}}\n\n',
)
MESSAGE = b'{"type" :"message","content":[{"type":"text","text":"Hi"}], "usage":{"input_tokens":3,"output_tokens":1}}'
EVENTS = (
    b'event: message_start\ndata: {"type":"message_start","message":{"usage":{"input_tokens":3}}}\n\n',
    b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"type":"text_delta","text":"Hi"}}\n\n',
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
)
ROWS = (
    Row("/v1/chat/completions", MESSAGES, WHOLE, CHUNKS),
    Row("/v1/completions", b'"prompt":"hi"', WHOLE, CHUNKS),
    Row("/v1/responses", b'"input":"hi", "store" : false', RESPONSE, RESPONSES),
    Row("/v1/messages", MESSAGES, MESSAGE, EVENTS),
    Row("/v1/embeddings", b'"input": ["a","b"]', b'{"data": [{"embedding": [0.10, -0.0]}]}'),
    Row("/v1/rerank", b'"query":"a", "documents":["b"]', b'{"results": [{"index":0,"relevance_score":0.50}]}'),
    Row("/v1/score", b'"text_1":"a", "text_2":["b"]', b'{"data": [{"score":0.50}]}'),
    Row("/v1/messages/count_tokens", MESSAGES, b'{"input_tokens" :3}', queued=False),
    Row("/tokenize", b'"prompt":"hi"', b'{"tokens": [1],"count" :1}', queued=False),
    Row("/detokenize", b'"tokens":[1]', b'{"prompt" :"hi"}', queued=False),
)
STREAMING = [row for row in ROWS if row.stream]
by_path = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.path)

IDENTITY = {
    "x-dynamo-session-id": "session-of-dynamo",
    "x-claude-code-session-id": "session-of-claude",
    "x-claude-code-agent-id": "agent-of-claude",
    "session-id": "session-of-codex",
    "thread-id": "thread-of-codex",
    "x-codex-turn-metadata": '{"turn_id": "1"}',
    "x-session-affinity": "session-of-opencode",
    "x-parent-session-id": "parent-of-opencode",
    "x-litellm-session-id": "session-of-litellm",
    "helicone-session-id": "session-of-helicone",
    "helicone-session-path": "/parent/child",
    "x-smg-routing-key": "key-of-smg",
    "x-aibrix-session-key": "key-of-aibrix",
    "x-portkey-trace-id": "trace-of-portkey",
    "x-conversation-id": "conversation",
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "tracestate": "vendor=opaque",
    "baggage": "session.id=one,other=two",
    "x-request-id": "request-of-the-client",
    "anthropic-version": "2023-06-01",
    "anthropic-beta": "one-2025-01-01,two-2025-02-02",
    "openai-organization": "org",
    "x-stainless-lang": "python",
    "user-agent": "agent/1.0 (odd)",
    "x-foo": "bar",
}
OURS = {"x-workflow-type": "a", "x-workflow-stage": "b", "x-workflow-agent": "c"}
SECRETS = {"cookie": "a=b", "api-key": "k"}


@asynccontextmanager
async def one_engine(folder: Path) -> AsyncIterator[tuple[Running, Recorder]]:
    async with recording() as engine:
        pools = {"default": attached(engine.url)}
        async with running(folder, written(pools), report_every=60) as up:
            yield up, engine
            await settled(up.gateway)


async def ask(
    up: Running, row: Row, headers: Mapping[str, str] | None = None, *, stream: bool = False
) -> httpx.Response:
    return await up.http.post(row.path, content=row.body(stream=stream), headers={**dict(JSON), **(headers or {})})


@by_path
async def test_bytes_go_through_untouched_both_ways(tmp_path: Path, row: Row) -> None:
    async with one_engine(tmp_path) as (up, engine):

        async def answer(exchange: Exchange) -> None:
            if b'"stream" :true' in exchange.seen.body:
                await exchange.pieces(row.stream, headers=[("content-type", "text/event-stream"), ("x-own", "1")])
            else:
                await exchange.whole(row.whole, headers=[*JSON, ("x-own", "1")])

        engine.answer = answer
        for stream in (False, True) if row.stream else (False,):
            reply = await ask(up, row, stream=stream)
            assert (reply.status_code, reply.content) == (200, b"".join(row.stream) if stream else row.whole)
            assert reply.headers["x-own"] == "1"
            assert (engine.last.path, engine.last.body) == (row.path, row.body(stream=stream))


@by_path
async def test_headers_are_forwarded_but_for_ours_and_secrets(tmp_path: Path, row: Row) -> None:
    async with one_engine(tmp_path) as (up, engine):

        async def answer(exchange: Exchange) -> None:
            more = [("x-ratelimit-remaining", "7"), ("openai-processing-ms", "5"), ("anthropic-organization-id", "o")]
            await exchange.whole(row.whole, headers=[*JSON, *more])

        engine.answer = answer
        reply = await ask(up, row, {**IDENTITY, **OURS, **SECRETS})
        assert reply.status_code == 200, reply.text
        got = {name: engine.last.header(name) for name in IDENTITY}
        assert {name: value for name, value in got.items() if value != IDENTITY[name]} == {}
        assert [name for name in (*OURS, *SECRETS, "authorization") if engine.last.header(name)] == []
        assert reply.headers["x-ratelimit-remaining"] == "7"
        assert reply.headers["openai-processing-ms"] == "5"
        assert reply.headers["anthropic-organization-id"] == "o"
        assert reply.headers["x-request-id"] == "request-of-the-client"


@by_path
async def test_what_would_reconfigure_an_engine_reaches_none(tmp_path: Path, row: Row) -> None:
    names = [denied.name for denied in DENIED]
    body = json.loads(row.body())
    async with one_engine(tmp_path) as (up, engine):

        async def answer(exchange: Exchange) -> None:
            await exchange.whole(row.whole)

        engine.answer = answer
        workflow = {"workflow": {"stage": "any"}}
        sent = json.dumps({**dict.fromkeys(names, "x"), **body, **workflow})
        assert (await up.http.post(row.path, content=sent)).status_code == 200
        assert engine.last.document == body


REFUSALS: list[tuple[int, dict[str, str]]] = [
    (400, {}),
    (404, {"x-of-the-engine": "yes"}),
    (422, {}),
    (429, {"retry-after": "7"}),
    (500, {}),
    (503, {"retry-after": "9"}),
]


@by_path
@pytest.mark.parametrize(("status", "headers"), REFUSALS, ids=[str(status) for status, _ in REFUSALS])
async def test_a_refusal_is_the_engines_own_and_is_asked_for_once(
    tmp_path: Path, row: Row, status: int, headers: dict[str, str]
) -> None:
    words = b'{"error" : {"message":"no \\u2014 %d", "odd": 1.50}}' % status
    async with one_engine(tmp_path) as (up, engine):

        async def answer(exchange: Exchange) -> None:
            await exchange.whole(words, status=status, headers=[*JSON, *headers.items()])

        engine.answer = answer
        for stream in (False, True) if row.stream and "retry-after" not in headers else (False,):
            reply = await ask(up, row, stream=stream)
            assert (reply.status_code, reply.content) == (status, words)
            assert {name: reply.headers[name] for name in headers} == headers
        asked = len(engine.seen)
        assert asked == 1 + bool(row.stream and "retry-after" not in headers)
        if row.queued and "retry-after" in headers:
            again = asyncio.create_task(ask(up, row))
            [state] = up.gateway.runtime.dispatcher.fleet
            await until(lambda: up.gateway.runtime.dispatcher.calls == 1, "another call")
            left = state.ejected_until - up.gateway.runtime.now()
            assert float(headers["retry-after"]) - 5 < left <= float(headers["retry-after"])
            assert len(engine.seen) == asked, "it was asked again before it wanted to be"
            again.cancel()
            await asyncio.gather(again, return_exceptions=True)


@by_path
async def test_a_client_that_leaves_ends_the_work_at_once(tmp_path: Path, row: Row) -> None:
    async with one_engine(tmp_path) as (up, engine):
        for begin in (0, 2) if row.stream else (0,):
            took = []
            for _ in range(TRIES):
                took.append(await until_it_is_heard(up, engine, row, begin))
                if took[-1] < SOON:
                    break
            assert min(took) < SOON, f"{begin} events: {took}"


async def until_it_is_heard(up: Running, engine: Recorder, row: Row, begin: int) -> float:
    """Seconds from a client's leaving, after so many pieces of its answer, until the engine's client leaves too."""
    begun, heard = asyncio.Event(), asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        if begin:
            await exchange.head()
            for piece in row.stream[:begin]:
                await exchange.write(piece)
        begun.set()
        await exchange.left()
        heard.set()

    engine.answer = answer
    async with httpx.AsyncClient(base_url=up.url, trust_env=False, timeout=30) as http:
        headers = {"content-type": "application/json"}
        request = http.build_request("POST", row.path, content=row.body(stream=begin > 0), headers=headers)
        asking = asyncio.create_task(http.send(request, stream=True))
        await begun.wait()
        if begin:
            reply = await asking
            await anext(reply.aiter_raw())
            left = time.monotonic()
            await reply.aclose()
        else:
            left = time.monotonic()
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
    await asyncio.wait_for(heard.wait(), 30)
    return time.monotonic() - left


@pytest.mark.parametrize("row", STREAMING, ids=lambda row: row.path)
async def test_an_engine_that_breaks_off_ends_its_clients_stream_at_once(tmp_path: Path, row: Row) -> None:
    async with one_engine(tmp_path) as (up, engine):
        cut = 0.0

        async def answer(exchange: Exchange) -> None:
            nonlocal cut
            await exchange.pieces(row.stream[:2])
            cut = time.monotonic()

        engine.answer = answer
        took = []
        for _ in range(TRIES):
            reply = await ask(up, row, stream=True)
            took.append(time.monotonic() - cut)
            assert reply.content.startswith(b"".join(row.stream[:2]))
            last = json.loads(reply.text.strip().splitlines()[-1].removeprefix("data: "))
            assert "error" in (last, last.get("type")) or "error" in last
            if took[-1] < SOON:
                break
        assert min(took) < SOON, took
