"""What inference hears of calls and answers, whichever surface they come on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import orjson
import pytest

from gateway.inference import ANSWER_MOST, Answer, conversation
from gateway.openai.payload import parse
from policies.conversation import Conversation, Turn, spoken

ARGUMENTS = '{"sql":"SELECT \\"é\\"","limit":3}'
SAID = spoken("I look.", [("execute_sql", ARGUMENTS)])


def chat(*messages: dict[str, Any], **more: object) -> Conversation:
    body = orjson.dumps({"model": "m", "messages": messages, **more})
    return conversation(parse(body, endpoint="chat"), tenant="one", call="c")


def completion(prompt: object) -> Conversation:
    return conversation(
        parse(orjson.dumps({"model": "m", "prompt": prompt}), endpoint="completions"), tenant="one", call="c"
    )


def call(arguments: object, **more: object) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "execute_sql", "arguments": arguments}, **more}


def streamed(*chunks: object) -> str:
    answer = Answer()
    for chunk in chunks:
        answer.event(b"data: " + (chunk if isinstance(chunk, bytes) else orjson.dumps(chunk)) + b"\n\n")
    return answer.text()


def whole(document: object) -> str:
    answer = Answer()
    answer.whole(document)
    return answer.text()


def named(kind: str, **members: object) -> bytes:
    """The data of an event that begins with its type, as every server writes it."""
    return orjson.dumps({"type": kind, **members})


def test_a_chat_is_its_system_prompt_its_tools_and_its_turns() -> None:
    tools = [{"type": "function", "function": {"name": "execute_sql"}}]
    asked = chat(
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": [{"type": "text", "text": "No lists."}]},
        {"role": "user", "content": "How many?"},
        {"role": "system", "content": "Hurry."},
        {"role": "tool", "tool_call_id": "x", "content": " 412\n"},
        tools=tools,
    )
    assert (asked.tenant, asked.call, asked.run) == ("one", "c", "")
    assert (asked.system, asked.tools) == ("Be brief.\nNo lists.", ("execute_sql",))
    assert asked.turns == [Turn("user", "How many?"), Turn("system", "Hurry."), Turn("tool", "412")]


@pytest.mark.parametrize(
    "message",
    [
        {"content": "I look.", "tool_calls": [call(ARGUMENTS, id="call-1")]},
        {"content": "<think>Hm.</think>I look. ", "tool_calls": [call(json.dumps(json.loads(ARGUMENTS), indent=1))]},
        {"content": [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "I look."}],
         "tool_calls": [call(ARGUMENTS)]},
        {"content": "I look.", "tool_calls": [call(json.loads(ARGUMENTS))]},
        {"content": "I look.", "function_call": {"name": "execute_sql", "arguments": ARGUMENTS}},
    ],
)  # fmt: skip
def test_an_answer_that_comes_back_is_the_same_however_its_client_writes_it(message: dict[str, Any]) -> None:
    assert chat({"role": "assistant", **message}).turns == [Turn("assistant", SAID)]


@pytest.mark.parametrize(
    "message", [{"content": None}, {"content": ""}, {}, {"content": [], "tool_calls": ["?", {}]}]
)
def test_no_text_is_no_text(message: dict[str, Any]) -> None:
    assert chat({"role": "assistant", **message}).turns == [Turn("assistant", "")]


def test_no_arguments_are_no_arguments() -> None:
    calls: Sequence[object] = ("{}", "", None, {}, "null")
    turns = {chat({"role": "assistant", "content": None, "tool_calls": [call(none)]}).turns[0] for none in calls}
    assert turns == {Turn("assistant", spoken("", [("execute_sql", "")]))}


def test_arguments_that_are_no_json_are_kept() -> None:
    assert chat({"role": "assistant", "tool_calls": [call("{nonsense")]}).turns[0].text.endswith("{nonsense")


def test_a_prompt_is_one_turn_and_several_are_several() -> None:
    assert completion("Question:").turns == (Turn("user", "Question:"),)
    assert completion(["a", "b"]).turns == [Turn("user", "a"), Turn("user", "b")]


def test_a_prompt_of_tokens_begins_as_its_tokens_do() -> None:
    (one,), (more,) = completion([1, 2, 300]).turns, completion([1, 2, 300, 4]).turns
    assert more.text.startswith(one.text)
    assert not completion([1, 2, 301, 4]).turns[0].text.startswith(one.text)


def test_a_named_run_is_told() -> None:
    payload = parse(orjson.dumps({"model": "m", "prompt": "a"}), endpoint="completions")
    assert conversation(payload, tenant="one", call="c", run="mine").run == "mine"


@pytest.mark.parametrize(
    "document",
    [
        {"choices": [{"message": {"content": "I look.", "tool_calls": [call(ARGUMENTS)]}}]},
        {"type": "message", "content": [
            {"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "t", "name": "execute_sql", "input": json.loads(ARGUMENTS)}, "?"]},
        {"output": [
            {"type": "reasoning", "summary": []},
            {"type": "message", "content": [{"type": "output_text", "text": "I look."}]},
            {"type": "function_call", "name": "execute_sql", "arguments": ARGUMENTS, "call_id": "c"}]},
    ],
)  # fmt: skip
def test_a_whole_answer_is_heard_on_every_surface(document: object) -> None:
    assert whole(document) == SAID


@pytest.mark.parametrize(
    "document", [None, [], {}, {"choices": []}, {"choices": [{"message": None}]}, {"content": "a"}]
)
def test_what_is_no_answer_says_nothing(document: object) -> None:
    assert whole(document) == ""


def test_a_completion_is_heard() -> None:
    assert whole({"choices": [{"text": " 412"}]}) == "412"
    assert streamed({"choices": [{"index": 0, "text": "4"}]}, {"choices": [{"text": "12"}]}, b"[DONE]") == "412"


def test_the_chunks_of_a_chat_are_heard() -> None:
    pieces = [ARGUMENTS[:9], ARGUMENTS[9:]]
    said = streamed(
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]},
        {"choices": [{"index": 0, "delta": {"content": "I "}}]},
        {"choices": [{"index": 1, "delta": {"content": "another choice"}}]},
        {"choices": [{"index": 0, "delta": {"content": "look."}}]},
        {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, **call("")}]}}]},
        *(
            {"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}}]}
            for piece in pieces
        ),
        {"choices": [], "usage": {}},
        b"[DONE]",
    )
    assert said == SAID


def test_the_events_of_messages_are_heard() -> None:
    pieces = [ARGUMENTS[:9], ARGUMENTS[9:]]
    said = streamed(
        named("message_start", message={"type": "message", "content": []}),
        named("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        named("content_block_delta", index=0, delta={"type": "text_delta", "text": "I look."}),
        named("content_block_start", index=1, content_block={"type": "tool_use", "name": "execute_sql", "input": {}}),
        *(
            named("content_block_delta", index=1, delta={"type": "input_json_delta", "partial_json": p})
            for p in pieces
        ),
        named("content_block_delta", index=7, delta={"type": "input_json_delta", "partial_json": "stray"}),
        named("message_stop"),
    )
    assert said == SAID


@pytest.mark.parametrize("end", ["response.completed", "response.incomplete"])
def test_the_last_event_of_responses_is_heard(end: str) -> None:
    output = [
        {"type": "message", "content": [{"type": "output_text", "text": "I look."}]},
        {"type": "function_call", "name": "execute_sql", "arguments": ARGUMENTS},
    ]
    answer = Answer()
    for event in (
        named("response.output_text.delta", delta="I look."),
        named(end, sequence_number=9, response={"id": "r", "output": output}),
    ):
        kind = orjson.loads(event)["type"].encode()
        answer.event(b"event: " + kind + b"\ndata: " + event + b"\n\n")
    assert answer.text() == SAID


@pytest.mark.parametrize("event", [b": keep-alive\n\n", b"data: {not json\n\n", b"data: 3\n\n", b"\n"])
def test_what_is_no_event_is_passed_over(event: bytes) -> None:
    answer = Answer()
    answer.event(event)
    assert answer.text() == ""


def test_an_answer_without_end_is_heard_up_to_a_bound() -> None:
    answer = Answer()
    chunk = b"data: " + orjson.dumps({"choices": [{"delta": {"content": "word " * 20_000}}]}) + b"\n\n"
    for _ in range(30):
        answer.event(chunk)
    assert ANSWER_MOST - 1 <= len(answer.text()) < ANSWER_MOST + 2 * len(chunk)


def test_the_ids_that_a_request_gives_back_are_kept_the_latest_first() -> None:
    first = {"role": "assistant", "content": None, "tool_calls": [call("{}", id="call-1"), call("{}", id="call-2")]}
    second = {"role": "tool", "tool_call_id": "call-2", "content": "412"}
    asked = chat({"role": "user", "content": "How many?", "id": 3}, first, second)
    assert asked.handles == ["call-2", "call-2", "call-1"]

    blocks = [{"type": "tool_result", "tool_use_id": "toolu-2", "content": "412"}, {"type": "text", "text": "And?"}]
    body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": blocks}]}
    asked = conversation(parse(orjson.dumps(body), endpoint="messages"), tenant="one", call="c")
    assert asked.handles == ["toolu-2"]

    items = [
        {"role": "user", "content": "How many?"},
        {"type": "function_call", "id": "fc-1", "call_id": "call-1", "name": "execute_sql", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call-1", "output": "412"},
    ]
    asked = conversation(
        parse(orjson.dumps({"model": "m", "input": items}), endpoint="responses"), tenant="one", call="c"
    )
    assert asked.handles == ["call-1", "call-1", "fc-1"]
    assert completion("How many?").handles == []


def test_of_endless_ids_a_bounded_number_is_kept() -> None:
    calls = [call("{}", id=f"call-{number}") for number in range(500)]
    assert len(chat({"role": "user", "content": "?"}, {"role": "assistant", "tool_calls": calls}).handles) == 64
    answer = Answer()
    answer.whole({"choices": [{"message": {"tool_calls": calls}}]})
    assert len(answer.handles) == 64


@pytest.mark.parametrize(
    ("document", "handles"),
    [
        ({"choices": [{"message": {"content": None, "tool_calls": [call("{}", id="call-1")]}}]}, ["call-1"]),
        (
            {"type": "message", "content": [{"type": "tool_use", "id": "toolu-1", "name": "f", "input": {}}]},
            ["toolu-1"],
        ),
        ({"output": [{"type": "function_call", "id": "fc-1", "call_id": "c-1", "name": "f"}]}, ["c-1", "fc-1"]),
        ({"choices": [{"message": {"content": "412"}}]}, []),
    ],
)
def test_the_ids_of_an_answer_are_heard(document: dict[str, Any], handles: list[str]) -> None:
    answer = Answer()
    answer.whole(document)
    assert answer.handles == handles


def test_the_ids_of_a_streamed_answer_are_heard() -> None:
    answer = Answer()
    for piece in (call("", index=0, id="call-1"), {"index": 0, "function": {"arguments": "{}"}}):
        answer.event(b"data: " + orjson.dumps({"choices": [{"delta": {"tool_calls": [piece]}}]}) + b"\n\n")
    assert answer.handles == ["call-1"]
