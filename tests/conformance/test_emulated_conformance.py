"""What the emulated engine says on every surface is as the published types have it, to the letter."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from backends.emulated.options import EmulatedOptions
from tests.backends.emulated import speaking
from tests.conformance.schemas import (
    Surface,
    check_chat,
    check_completion,
    check_embeddings,
    check_error,
    check_input_items,
    check_message,
    check_message_error,
    check_model,
    check_models,
    check_response,
    check_stream,
    check_token_count,
)

FAST = EmulatedOptions(time_scale=1000.0, dev_mode=True)
CITIES = ({"city": "Paris"}, {"city": "Rom – größte"})
SCRIPT = {
    "turns": [
        {
            "user": "weather",
            "results": 0,
            "say": "Let me look.",
            "calls": [{"name": "look", "arguments": city} for city in CITIES],
        },
        {"user": "just call", "call": {"name": "look", "arguments": CITIES[0]}, "tokens": 30},
        {"user": "speak", "say": "one two three"},
    ]
}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS: Mapping[Surface, Any] = {
    "chat": [{"type": "function", "function": {"name": "look", "parameters": PARAMETERS}}],
    "completions": [],
    "responses": [
        {"type": "function", "name": "look", "parameters": PARAMETERS, "strict": False},
        {"type": "web_search"},
        {"type": "custom", "name": "apply_patch"},
    ],
    "messages": [
        {"name": "look", "input_schema": PARAMETERS},
        {"type": "web_search_20250305", "name": "web_search"},
    ],
}
PATHS: Mapping[Surface, str] = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages?beta=true",
}
WHOLE: Mapping[Surface, Callable[[Any], None]] = {
    "chat": check_chat,
    "completions": check_completion,
    "responses": check_response,
    "messages": check_message,
}
SURFACES = tuple(PATHS)


class Client(speaking.Client):
    async def whole(self, surface: Surface, said: str, **more: Any) -> Any:
        document = await self.json(PATHS[surface], asking(surface, said, **more))
        WHOLE[surface](document)
        return document

    async def stream(self, surface: Surface, said: str, **more: Any) -> list[Any]:
        status, read = await self.send(PATHS[surface], asking(surface, said, **more) | {"stream": True})
        assert status == 200, read
        return check_stream(surface, read)


@asynccontextmanager
async def client(options: EmulatedOptions = FAST) -> AsyncIterator[Client]:
    async with speaking.speaking(options, SCRIPT) as c:
        yield Client(c.server, c.session)


def asking(surface: Surface, said: str, *, limit: int = 400, stop: str | None = None, **more: Any) -> dict[str, Any]:
    """A request with a limit and tools, in the surface's own words."""
    names = {"responses": ("input", "max_output_tokens"), "completions": ("prompt", "max_tokens")}
    given, most = names.get(surface, ("messages", "max_tokens"))
    asked = said if given != "messages" else [{"role": "user", "content": said}]
    stops = {"stop_sequences" if surface == "messages" else "stop": [stop]} if stop else {}
    tools = {"tools": TOOLS[surface]} if TOOLS[surface] else {}
    return {"model": "cortex-emulated", given: asked, most: limit, **tools, **stops, **more}


@pytest.mark.parametrize("surface", SURFACES)
async def test_texts_calls_and_cut_answers_are_as_published(surface: Surface) -> None:
    async with client() as c:
        for said, more in (
            ("weather?", {}),
            ("just call", {}),
            ("speak", {}),
            ("speak", {"stop": " two"}),
            ("speak", {"stop": "one"}),
            ("anything", {"limit": 9}),
            ("weather?", {"limit": 12}),
        ):
            await c.whole(surface, said, **more)
            await c.stream(surface, said, **more)


@pytest.mark.parametrize("surface", SURFACES)
async def test_an_answer_that_the_engine_aborts_is_as_published_but_for_vllms_reason(surface: Surface) -> None:
    async with client(EmulatedOptions(dev_mode=True)) as c:
        asked = [asking(surface, "long", limit=20000) | {"stream": stream} for stream in (False, True)]
        answers = [asyncio.create_task(c.send(PATHS[surface], body)) for body in asked]
        while c.server.engine.running < 2:
            await c.send("/health", method="GET")
        await c.send("/sleep?level=1")
        (_, whole), (_, stream) = [await answer for answer in answers]
    if surface in ("chat", "completions"):
        # The reason is vLLM's own, and no client's package knows it.
        whole, stream = (body.replace(b'"abort"', b'"length"') for body in (whole, stream))
    WHOLE[surface](json.loads(whole))
    check_stream(surface, stream)


async def test_a_function_of_a_namespace_is_called_by_its_own_name_with_the_namespace_beside_it() -> None:
    own = {"type": "function", "name": "look", "parameters": PARAMETERS, "strict": False}
    tools = [{"type": "namespace", "name": "windows", "description": "all windows", "tools": [own]}]
    async with client() as c:
        whole = await c.whole("responses", "just call", tools=tools)
        events = await c.stream("responses", "just call", tools=tools)
    call = whole["output"][0]
    assert (call["name"], call["namespace"], json.loads(call["arguments"])) == ("look", "windows", CITIES[0])
    assert events[-1]["response"]["output"][0]["namespace"] == "windows"


@pytest.mark.parametrize("surface", ["chat", "completions"])
async def test_usage_in_streams_is_as_published_at_the_end_and_continuously(surface: Surface) -> None:
    async with client() as c:
        last = await c.stream(surface, "speak", stream_options={"include_usage": True})
        each = await c.stream(
            surface, "speak", stream_options={"include_usage": True, "continuous_usage_stats": True}
        )
    assert [event for event in last if "usage" in event] == [last[-1]]
    told = [event["usage"]["completion_tokens"] for event in each]
    assert told == sorted(told)
    assert told[-1] == last[-1]["usage"]["completion_tokens"] == 4


async def test_embeddings_are_as_published_and_equal_texts_have_equal_unit_vectors() -> None:
    async with client() as c:
        words = {"input": ["the red house", "the red house", "a blue boat"]}
        told = await c.json("/v1/embeddings", words)
        packed = await c.json("/v1/embeddings", words | {"encoding_format": "base64"})
        ids = (await c.json("/tokenize", {"prompt": "the red house"}))["tokens"]
        listed = await c.json("/v1/embeddings", {"input": ids, "dimensions": 256})
        small = await c.json("/v1/embeddings", {"input": [ids, ids], "dimensions": 8})
    for document in (told, packed, listed, small):
        check_embeddings(document)
    one, same, other = (entry["embedding"] for entry in told["data"])
    assert one == same == listed["data"][0]["embedding"]
    assert one != other
    assert sum(part * part for part in one) == pytest.approx(1)
    assert len(small["data"][1]["embedding"]) == 8
    unpacked = struct.unpack("<256f", base64.b64decode(packed["data"][0]["embedding"]))
    assert unpacked == pytest.approx(one, abs=1e-6)
    assert told["usage"] == {"prompt_tokens": 11, "total_tokens": 11}


async def test_a_stored_response_is_as_published_at_every_time_of_its_life() -> None:
    async with client(EmulatedOptions(max_num_seqs=1)) as c:
        running = await c.json("/v1/responses", asking("responses", "long", limit=20000, background=True))
        queued = await c.json("/v1/responses", asking("responses", "long", limit=20000, background=True))
        check_response(queued)
        path = f"/v1/responses/{running['id']}"
        while (found := await c.json(path, method="GET"))["status"] == "queued":
            check_response(found)
        check_response(found)
        cancelled = await c.json(f"{path}/cancel")
        check_response(cancelled)
        check_input_items(await c.json(f"{path}/input_items", method="GET"))
    assert [running["status"], queued["status"], found["status"]] == ["queued", "queued", "in_progress"]
    assert cancelled["status"] == "cancelled"


async def test_models_and_counts_are_as_published() -> None:
    async with client() as c:
        models = await c.json("/v1/models", method="GET")
        counted = asking("messages", "how long?")
        del counted["max_tokens"]
        check_token_count(await c.json("/v1/messages/count_tokens", counted))
    check_models(models)
    check_model(models["data"][0])


async def test_errors_have_the_shape_of_their_surface() -> None:
    async with client() as c:
        for surface in SURFACES:
            for wrong, status in (({"model": "gone"}, 404), ({"stream": 1}, 400), ({"tools": 3}, 400)):
                if surface == "completions" and "tools" in wrong:
                    continue
                error = await c.json(PATHS[surface], asking(surface, "speak") | wrong, status=status)
                if surface == "messages":
                    check_message_error(error, vllm=True)
                else:
                    check_error(error)
