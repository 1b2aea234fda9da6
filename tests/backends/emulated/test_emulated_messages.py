"""Anthropic's Messages on the emulated engine."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.backends.emulated.speaking import FAST, Client, speaking

PATH = "/v1/messages"
LOOK = {"name": "look", "description": "look out", "input_schema": {"type": "object"}}
SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 5}
CALL = {"call": {"name": "look", "arguments": {"far": True}}}


def body(content: object, **more: Any) -> dict[str, Any]:
    return {"model": "cortex-emulated", "max_tokens": 50, "messages": [{"role": "user", "content": content}], **more}


async def reason(client: Client, content: object, **more: Any) -> tuple[str, str | None]:
    told = await client.json(PATH, body(content, **more))
    return told["stop_reason"], told["stop_sequence"]


async def test_the_reason_of_the_end_is_told_in_anthropics_words() -> None:
    async with speaking(script={"turns": [{"user": "look", **CALL}, {"user": "speak", "say": "one two"}]}) as client:
        assert await reason(client, "speak") == ("end_turn", None)
        assert await reason(client, "else", max_tokens=5) == ("max_tokens", None)
        assert await reason(client, "speak", stop_sequences=["x", " two"]) == ("stop_sequence", " two")
        assert await reason(client, "look", tools=[LOOK]) == ("tool_use", None)


async def test_a_call_that_is_cut_has_no_input_yet() -> None:
    async with speaking(script={"turns": [CALL]}) as client:
        cut = await client.json(PATH, body("look", tools=[LOOK], max_tokens=12))
    assert (cut["content"][0]["name"], cut["content"][0]["input"]) == ("look", {})
    assert cut["stop_reason"] == "max_tokens"


async def test_an_answer_without_a_word_is_one_empty_block() -> None:
    async with speaking() as client:
        told = await client.json(PATH, body("<<echo:stop>>", stop_sequences=["stop"]))
    assert told["content"] == [{"type": "text", "text": ""}]


async def test_blocks_of_every_kind_are_taken_and_a_changing_first_one_spares_the_cache() -> None:
    long = {"type": "text", "text": "mind the gap " * 30}
    content = [
        {"type": "text", "text": "<<echo:fine>>"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
    ]
    before = [
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": [{"type": "redacted_thinking", "data": "x"}, {"type": "tool_use", "id": "t", "name": "look"}],
        },
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "t", "content": [long], "is_error": True}],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t"}]},
        {"role": "system", "content": "mind"},
        {"role": "system", "content": [long]},
    ]
    async with speaking() as client:
        for version in ("1", "2"):
            billing = {"type": "text", "text": f"x-anthropic-billing-header: cc_version={version}"}
            asked = body(content, system=[billing, long], tools=[LOOK, SEARCH])
            asked["messages"] = before + asked["messages"]
            told = await client.json(PATH, asked)
    assert told["content"][0]["text"] == "fine" * 50  # as many tokens as it may have
    assert told["usage"]["cache_read_input_tokens"] > 100
    assert told["usage"]["input_tokens"] < 32


async def test_tokens_are_counted_as_the_prompt_has_them() -> None:
    asked = body("how long is this?", system="be brief", tools=[LOOK])
    async with speaking() as client:
        counted = await client.json(f"{PATH}/count_tokens", {k: v for k, v in asked.items() if k != "max_tokens"})
        told = await client.json(f"{PATH}?beta=true", asked)
    assert counted["input_tokens"] == told["usage"]["input_tokens"]
    assert counted["context_management"] == {"original_input_tokens": counted["input_tokens"]}


async def test_a_salt_parts_prefixes_and_a_priority_in_the_body_is_passed_over() -> None:
    long = body("word " * 100, system="mind the gap " * 30)
    async with speaking() as client:
        told = [
            await client.json(PATH, long | {"cache_salt": salt, "priority": "passed over"})
            for salt in ("one", "one", "two")
        ]
    cached = [one["usage"]["cache_read_input_tokens"] for one in told]
    assert cached[1] > 100
    assert (cached[0], cached[2]) == (0, 0)


@pytest.mark.parametrize(
    ("choice", "calls"),
    [
        ({"type": "auto", "disable_parallel_tool_use": True}, True),
        ({"type": "any"}, True),
        ({"type": "none"}, False),
        ({"type": "tool", "name": "look"}, True),
        ({"type": "tool", "name": "other"}, False),
    ],
)
async def test_a_choice_of_tools_can_forbid_a_call(choice: object, calls: bool) -> None:
    async with speaking(script={"turns": [CALL, {"say": "no"}]}) as client:
        told = await client.json(PATH, body("x", tools=[LOOK, LOOK | {"name": "other"}], tool_choice=choice))
    assert (told["content"][0]["type"] == "tool_use") == calls


async def test_a_tool_that_others_run_is_never_called() -> None:
    script = {"turns": [{"call": {"name": "web_search", "arguments": {}}}, {"say": "no"}]}
    async with speaking(script=script) as client:
        told = await client.json(PATH, body("x", tools=[SEARCH]))
    assert told["content"] == [{"type": "text", "text": "no"}]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"model": None}, "model: must be there"),
    ({"max_tokens": None}, "max_tokens: must be there"),
    ({"max_tokens": 0}, "max_tokens: must be a positive integer"),
    ({"messages": []}, "messages: must be a list that is not empty"),
    ({"messages": ["hi"]}, "messages[0]: must be an object"),
    ({"messages": [{"role": "tool", "content": ""}]}, "messages[0].role: must be one of user, assistant, system"),
    ({"messages": [{"role": "user"}]}, "messages[0].content: must be a text or a list of blocks"),
    ({"messages": [{"role": "user", "content": [{}]}]}, "messages[0].content[0]: must be a block with a type"),
    ({"system": 1}, "system: must be a text or a list of blocks"),
    ({"tools": [{}]}, "tools[0].name: must be a text"),
    ({"tools": [{"name": "look"}]}, "tools[0].input_schema: must be an object"),
    ({"tool_choice": "auto"}, "tool_choice: must be an object"),
    ({"tool_choice": {"type": "function"}}, "tool_choice.type: must be auto, any, tool or none"),
    ({"tool_choice": {"type": "tool", "name": "look"}}, "tool_choice: must name one of the tools"),
    ({"stop_sequences": 1}, "stop_sequences: must be a text or a list of texts"),
]


async def test_a_bad_request_names_the_field_in_anthropics_shape() -> None:
    async with speaking() as client:
        for wrong, message in WRONG:
            told = await client.json(PATH, body("x") | wrong, status=400)
            assert (told["type"], told["error"]["message"]) == ("error", message)


async def test_a_fault_has_anthropics_shape_too() -> None:
    async with speaking(replace(FAST, faults=True)) as client:
        url, headers = client.server.url + PATH, {"X-Emulated-Fault": "status=429;retry_after=7"}
        async with client.session.post(url, json=body("x"), headers=headers) as reply:
            assert (reply.status, reply.headers["retry-after"]) == (429, "7")
            assert json.loads(await reply.read())["type"] == "error"
        status, told = await client.send(
            PATH, body("x", stream=True), headers={"X-Emulated-Fault": "garbage_after=3"}
        )
    assert status == 200
    assert b"garb\n\n" in told
