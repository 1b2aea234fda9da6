"""The tokens of prompts are asked for once, waited for briefly, and given up where an engine has no use for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest
from aiohttp import web

from backends.vllm import HttpEngine, connections
from gateway.openai.payload import Payload, parse
from gateway.tokens import ENTRY_BYTES, WRONG_MOST, Prompts, asked
from policies.calls import Call

CALL = Call(id="c", pool="p", run="r", arrived=0.0)


def chat(content: object = "hello", **more: object) -> Payload:
    body = {"model": "m", "messages": [{"role": "user", "content": content}], **more}
    return parse(orjson.dumps(body), endpoint="chat")


def completion(prompt: object, **more: object) -> Payload:
    return parse(orjson.dumps({"model": "m", "prompt": prompt, **more}), endpoint="completions")


def question(payload: Payload) -> Any:
    text = asked(payload)
    return None if text is None else orjson.loads(text)


@dataclass
class Tokenizer:
    """A server that has one page, and answers when it is let."""

    answer: Callable[[], web.Response] = lambda: web.json_response({"tokens": [1, 2, 3]})
    free: asyncio.Event = field(default_factory=asyncio.Event)
    asked: int = 0

    async def serve(self, request: web.Request) -> web.Response:
        assert request.path == "/tokenize"
        self.asked += 1
        await self.free.wait()
        return self.answer()


@asynccontextmanager
async def tokenizing(server: Tokenizer, patience: float = 10.0) -> AsyncIterator[Prompts]:
    app = web.Application()
    app.router.add_post("/{path:.*}", server.serve)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with connections(1.0) as session:
        engine = HttpEngine(f"http://127.0.0.1:{runner.addresses[0][1]}", session)
        others = {"q/0": engine}
        prompts = Prompts(engines=lambda: {"p/0": engine, **others}, patience={"p": patience, "nobody": 1.0})
        try:
            yield prompts
        finally:
            await prompts.aclose()
            server.free.set()
            await runner.cleanup()


async def tokens(prompts: Prompts, payload: Payload) -> list[int] | None:
    found = await prompts.tokens(CALL, payload)
    return None if found is None else list(found)


async def test_a_prompt_is_asked_for_once_however_many_calls_have_it() -> None:
    server = Tokenizer()
    async with tokenizing(server) as prompts:
        waiting = [asyncio.create_task(tokens(prompts, chat())) for _ in range(5)]
        server.free.set()
        assert await asyncio.gather(*waiting) == [[1, 2, 3]] * 5
        assert await tokens(prompts, chat(temperature=0.5)) == [1, 2, 3]
        assert server.asked == 1
        await tokens(prompts, chat("something else"))
        assert server.asked == 2


async def test_a_call_waits_no_longer_than_it_has_patience_and_the_next_one_finds_the_tokens() -> None:
    server = Tokenizer()
    async with tokenizing(server, patience=0.01) as prompts:
        assert await tokens(prompts, chat()) is None
        server.free.set()
        async with asyncio.timeout(10):
            while await tokens(prompts, chat()) != [1, 2, 3]:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0)
        assert server.asked == 1


async def test_a_server_without_the_page_is_asked_once() -> None:
    server = Tokenizer(lambda: web.Response(status=404))
    server.free.set()
    async with tokenizing(server) as prompts:
        for number in range(3):
            assert await tokens(prompts, chat(f"{number}")) is None
        assert server.asked == 1


@pytest.mark.parametrize(
    "answer",
    [
        lambda: web.Response(text="what?"),
        lambda: web.json_response({"tokens": "many"}),
        lambda: web.json_response({"tokens": [-1]}),
        lambda: web.json_response([1, 2]),
        lambda: web.json_response({"error": "no such role"}, status=400),
    ],
)
async def test_an_answer_that_is_none_is_no_tokens(answer: Callable[[], web.Response]) -> None:
    server = Tokenizer(answer)
    server.free.set()
    async with tokenizing(server) as prompts:
        assert await tokens(prompts, chat()) is None
        assert await tokens(prompts, chat()) is None
        assert server.asked == 2


async def test_a_call_that_leaves_takes_nobody_elses_tokens_with_it() -> None:
    server = Tokenizer()
    async with tokenizing(server) as prompts:
        leaving, staying = (asyncio.create_task(tokens(prompts, chat())) for _ in range(2))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        server.free.set()
        assert await staying == [1, 2, 3]


async def test_tokens_that_engines_count_otherwise_are_asked_for_no_more(caplog: pytest.LogCaptureFixture) -> None:
    server = Tokenizer()
    server.free.set()
    async with tokenizing(server) as prompts:
        for _ in range(WRONG_MOST - 1):
            prompts.counted("p", 3, 4)
        prompts.counted("p", 3, 3)
        assert await tokens(prompts, chat()) == [1, 2, 3]
        for _ in range(WRONG_MOST):
            prompts.counted("p", 3, 4)
        assert await tokens(prompts, chat()) is None
        assert caplog.text.count("take other tokens") == 1


async def test_old_texts_make_room_for_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.tokens.KEPT_BYTES", 2 * (ENTRY_BYTES + 12))
    server = Tokenizer()
    server.free.set()
    async with tokenizing(server) as prompts:
        for text in ("a", "b", "a", "c", "a", "b"):
            await tokens(prompts, chat(text))
        assert server.asked == 4


async def test_token_ids_are_their_own_answer_and_several_prompts_have_none() -> None:
    async with tokenizing(Tokenizer()) as prompts:
        assert await tokens(prompts, completion([5, 6])) == [5, 6]
        assert await tokens(prompts, completion(["a", "b"])) is None
        assert await tokens(prompts, completion([[5], [6]])) is None


async def test_a_pool_without_engines_has_nobody_to_ask() -> None:
    async with tokenizing(Tokenizer()) as prompts:
        elsewhere = Call(id="c", pool="nobody", run="r", arrived=0.0)
        assert await prompts.tokens(elsewhere, chat()) is None


async def test_so_many_questions_at_once_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.tokens.UNDER_WAY_MOST", 1)
    server = Tokenizer()
    async with tokenizing(server) as prompts:
        first = asyncio.create_task(tokens(prompts, chat()))
        await asyncio.sleep(0)
        assert await tokens(prompts, chat("another")) is None
        server.free.set()
        assert await first == [1, 2, 3]


def test_the_question_has_what_the_template_sees_and_nothing_else() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert question(chat("hi", tools=tools, temperature=1)) == {
        "messages": [{"role": "user", "content": "hi"}],
        "tools": tools,
    }
    more = question(
        chat("hi", reasoning_effort="low", chat_template_kwargs={"style": "brief"}, add_generation_prompt=False)
    )
    assert more["chat_template_kwargs"] == {"style": "brief", "reasoning_effort": "low", "enable_thinking": True}
    assert more["add_generation_prompt"] is False
    chosen = question(chat("hi", reasoning_effort="none", chat_template_kwargs={"enable_thinking": True}))
    assert chosen["chat_template_kwargs"] == {"enable_thinking": True, "reasoning_effort": "none"}
    assert question(completion("hi")) == {"prompt": "hi", "add_special_tokens": True}


@pytest.mark.parametrize(
    "payload",
    [
        chat([{"type": "text", "text": "what is this?"}, {"type": "image_url", "image_url": {"url": "u"}}]),
        chat(truncate_prompt_tokens=5),
        chat(prompt_logprobs=1),
        completion("hi", echo=True),
    ],
)
def test_what_would_be_other_tokens_is_not_asked(payload: Payload) -> None:
    assert question(payload) is None


def test_parts_that_are_text_alone_are_asked_for() -> None:
    assert question(chat([{"type": "text", "text": "hi"}])) is not None
