"""What a hosted model owes, with LiteLLM or with what stands in for it: tests for whoever has a fixture `hosted`.

The provider is an emulated server.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import orjson
import pytest

from backends.base import BackendError, Engine
from backends.emulated.options import EmulatedOptions
from backends.emulated.script import Rule, Script, ToolCall, TurnRule
from backends.emulated.server import EmulatedServer
from tests.backends.contract import ask, asks

CHAT, TEXT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
HELLO = [{"role": "user", "content": "hello"}]
LOOK = {"name": "look", "parameters": {"type": "object", "properties": {"at": {"type": "string"}}}}
CALL = Rule(calls=(ToolCall(name="look", arguments={"at": "orders"}),))
SCRIPT = Script(turns=(TurnRule(user=re.compile("look it up"), results=0, reply=CALL),))
OPTIONS = EmulatedOptions(faults=True)
ASKED = {
    CHAT: {"messages": HELLO, "max_tokens": 4},
    TEXT: {"prompt": "hello", "max_tokens": 4},
    RESPONSES: {"input": "hello", "max_output_tokens": 20},
    MESSAGES: {"messages": HELLO, "max_tokens": 20},
}
LONG = {
    CHAT: {"messages": HELLO, "max_tokens": 9000},
    TEXT: {"prompt": "hello", "max_tokens": 9000},
    RESPONSES: {"input": "hello", "max_output_tokens": 9000},
    MESSAGES: {"messages": HELLO, "max_tokens": 9000},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosted:
    """A model at an emulated provider, and how to have another account there with arguments of its own."""

    engine: Engine
    server: EmulatedServer
    another: Callable[[dict[str, object]], Awaitable[Engine]]

    async def faulty(self, fault: str) -> Engine:
        """An account whose every request fails in this way."""
        return await self.another({"extra_headers": {"x-emulated-fault": fault}})


async def said(engine: Engine, path: str, **members: object) -> Any:
    """The document of a whole answer."""
    status, headers, body = await ask(engine, asks(path, **members))
    assert (status, headers["content-type"].partition(";")[0]) == (200, "application/json")
    return orjson.loads(body)


async def streamed(engine: Engine, path: str, **members: object) -> list[tuple[str, Any]]:
    """The events of a stream by their names; data that is not JSON is a text."""
    status, headers, body = await ask(engine, asks(path, stream=True, **members))
    assert (status, headers["content-type"].partition(";")[0]) == (200, "text/event-stream")
    events = []
    for event in body.decode().strip().split("\n\n"):
        name, _, data = event.rpartition("data: ")
        events.append((name.strip().removeprefix("event: "), "[DONE]" if data == "[DONE]" else orjson.loads(data)))
    return events


async def test_a_chat_is_answered_whole_with_its_usage(hosted: Hosted) -> None:
    answer = await said(hosted.engine, CHAT, **ASKED[CHAT])
    choice = answer["choices"][0]
    assert answer["object"] == "chat.completion"
    assert (choice["finish_reason"], choice["message"]["role"]) == ("length", "assistant")
    assert choice["message"]["content"]
    assert answer["usage"]["completion_tokens"] == 4


async def test_a_stream_has_its_usage_on_the_last_chunk_where_nobody_asked_for_more(hosted: Hosted) -> None:
    for path in (CHAT, TEXT):
        *chunks, last, done = [data for _, data in await streamed(hosted.engine, path, **ASKED[path])]
        assert done == "[DONE]"
        assert chunks
        assert not any("usage" in chunk for chunk in chunks)
        assert (last["choices"][0]["finish_reason"], last["usage"]["completion_tokens"]) == ("length", 4)


async def test_a_stream_has_an_event_of_its_own_for_the_usage_that_was_asked_for(hosted: Hosted) -> None:
    asked = ASKED[CHAT] | {"stream_options": {"include_usage": True}}
    *chunks, last, done = [data for _, data in await streamed(hosted.engine, CHAT, **asked)]
    assert done == "[DONE]"
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 4)
    assert not any("usage" in chunk for chunk in chunks)


async def test_a_tool_is_called_whole_and_streamed(hosted: Hosted) -> None:
    asked = {
        "messages": [{"role": "user", "content": "look it up"}],
        "tools": [{"type": "function", "function": LOOK}],
    }
    choice = (await said(hosted.engine, CHAT, **asked))["choices"][0]
    function = choice["message"]["tool_calls"][0]["function"]
    assert choice["finish_reason"] == "tool_calls"
    assert (function["name"], orjson.loads(function["arguments"])) == ("look", {"at": "orders"})
    chunks = [data for _, data in await streamed(hosted.engine, CHAT, **asked) if data != "[DONE]"]
    deltas = [call for chunk in chunks for call in chunk["choices"][0]["delta"].get("tool_calls", [])]
    assert deltas[0]["function"]["name"] == "look"
    arguments = "".join(delta["function"].get("arguments") or "" for delta in deltas)
    assert orjson.loads(arguments) == {"at": "orders"}


async def test_responses_are_answered_whole_and_in_numbered_events(hosted: Hosted) -> None:
    answer = await said(hosted.engine, RESPONSES, **ASKED[RESPONSES])
    assert answer["object"] == "response"
    assert answer["output"][0]["content"][0]["text"]
    assert answer["usage"]["output_tokens"] > 0
    events = await streamed(hosted.engine, RESPONSES, **ASKED[RESPONSES])
    assert all(name == data["type"] for name, data in events)
    assert [data["sequence_number"] for _, data in events] == list(range(len(events)))
    assert events[0][0] == "response.created"
    assert events[-1][0] in {"response.completed", "response.incomplete"}
    assert any(name == "response.output_text.delta" for name, _ in events)


async def test_messages_are_answered_whole_and_in_events(hosted: Hosted) -> None:
    answer = await said(hosted.engine, MESSAGES, **ASKED[MESSAGES])
    assert (answer["type"], answer["role"]) == ("message", "assistant")
    assert answer["content"][0]["text"]
    assert answer["usage"]["output_tokens"] > 0
    events = await streamed(hosted.engine, MESSAGES, **ASKED[MESSAGES])
    assert all(name == data["type"] for name, data in events)
    assert (events[0][0], events[-1][0]) == ("message_start", "message_stop")
    assert any(name == "content_block_delta" and data["delta"]["text"] for name, data in events)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("path", LONG)
async def test_whoever_leaves_stops_the_provider(hosted: Hosted, path: str, stream: bool) -> None:
    asking = asyncio.create_task(ask(hosted.engine, asks(path, stream=stream, **LONG[path])))
    engine = hosted.server.engine
    began = time.monotonic()
    while not engine.running:
        assert not asking.done(), asking
        assert time.monotonic() - began < 30
        await asyncio.sleep(0.005)
    asking.cancel()
    left = time.monotonic()
    while engine.running:
        await asyncio.sleep(0.005)
        assert time.monotonic() - left < 5, "it would have gone on for a minute and a half"


@pytest.mark.parametrize(
    ("fault", "status"), [("status=400", 400), ("status=401", 401), ("status=404", 404), ("status=500", 500)]
)
async def test_what_a_provider_says_of_a_request_is_said_with_its_status(
    hosted: Hosted, fault: str, status: int
) -> None:
    engine = await hosted.faulty(fault)
    for stream in (False, True):
        found, _, body = await ask(engine, asks(CHAT, stream=stream, **ASKED[CHAT]))
        assert found == status
        assert "asked for this fault" in orjson.loads(body)["error"]["message"]


async def test_a_providers_429_keeps_its_retry_after(hosted: Hosted) -> None:
    engine = await hosted.faulty("status=429;retry_after=7")
    status, headers, _ = await ask(engine, asks(CHAT, **ASKED[CHAT]))
    assert (status, headers["retry-after"]) == (429, "7")


async def test_an_overload_is_503_whatever_the_provider_calls_it(hosted: Hosted) -> None:
    engine = await hosted.faulty("status=529")
    assert (await ask(engine, asks(CHAT, **ASKED[CHAT])))[0] == 503


async def test_an_error_in_messages_has_the_shape_of_messages(hosted: Hosted) -> None:
    engine = await hosted.faulty("status=400")
    status, _, body = await ask(engine, asks(MESSAGES, **ASKED[MESSAGES]))
    assert status == 400
    assert orjson.loads(body)["type"] == "error"


async def test_a_provider_that_breaks_off_breaks_the_stream_off(hosted: Hosted) -> None:
    engine = await hosted.faulty("die_after=3")
    with pytest.raises(BackendError) as caught:
        await ask(engine, asks(CHAT, stream=True, messages=HELLO, max_tokens=8))
    assert (caught.value.trouble, caught.value.retryable) == ("broken", True)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_provider_that_hangs_up_first_may_be_tried_elsewhere(hosted: Hosted, stream: bool) -> None:
    engine = await hosted.faulty("die_before")
    with pytest.raises(BackendError) as caught:
        await ask(engine, asks(CHAT, stream=stream, **ASKED[CHAT]))
    assert (caught.value.trouble, caught.value.retryable) == ("broken", True)


async def test_a_provider_that_is_not_there_refuses(hosted: Hosted) -> None:
    engine = await hosted.another({"api_base": "http://127.0.0.1:1/v1"})
    with pytest.raises(BackendError) as caught:
        await ask(engine, asks(CHAT, **ASKED[CHAT]))
    assert (caught.value.trouble, caught.value.retryable) == ("refused", True)
    assert "127.0.0.1" not in str(caught.value)


async def test_a_client_reaches_no_argument_but_those_of_its_request(hosted: Hosted) -> None:
    evil = {
        **{"api_base": "http://127.0.0.1:1", "base_url": "http://127.0.0.1:1", "api_key": "x", "model": "openai/x"},
        **{"mock_response": "made up", "fallbacks": ["openai/y"], "custom_llm_provider": "azure", "num_retries": 9},
        **{"extra_headers": {"x-emulated-fault": "status=418"}, "extra_body": {"model": "x"}, "timeout": 0.001},
        **{"metadata": {"a": "b"}, "cache": {"no-cache": True}, "callbacks": ["x"], "mock_timeout": True},
        **{"aws_access_key_id": "x", "vertex_project": "x", "azure_ad_token": "x", "api_version": "x"},
    }
    answer = await said(hosted.engine, CHAT, **(evil | ASKED[CHAT]))
    assert answer["choices"][0]["message"]["content"] != "made up"
    assert answer["model"] == hosted.server.model


async def test_a_tool_that_would_run_elsewhere_is_refused(hosted: Hosted) -> None:
    tools = [{"type": "mcp", "server_url": "litellm_proxy/mcp/x", "server_label": "x"}]
    status, _, body = await ask(hosted.engine, asks(RESPONSES, input="hello", tools=tools))
    assert status == 400
    assert orjson.loads(body)["error"]["param"] == "tools[0].type"


async def test_a_surface_that_hosted_models_lack_is_not_found(hosted: Hosted) -> None:
    status, _, body = await ask(hosted.engine, asks("/v1/score", text_1="a", text_2="b"))
    assert (status, bool(orjson.loads(body)["error"]["message"])) == (404, True)
