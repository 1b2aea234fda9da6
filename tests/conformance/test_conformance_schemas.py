"""The check of answers finds what is wrong with them: it would be of no use if it could not fail."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.conformance.schemas import (
    check_chat,
    check_embeddings,
    check_error,
    check_event,
    check_message,
    check_message_error,
    check_response,
    check_stream,
    read_stream,
)

CHAT = {
    "id": "1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "yes"}}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}
RESPONSE: dict[str, Any] = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1,
    "model": "m",
    "output": [],
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
    "status": "completed",
}
MESSAGE = {
    "id": "1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [{"type": "text", "text": "yes"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 1, "output_tokens": 1},
}


def changed(document: Any, path: str, value: object) -> Any:
    """A copy with another value at the path; `...` takes the member away."""
    copy = json.loads(json.dumps(document))
    *steps, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    place = copy
    for step in steps:
        place = place[step]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return copy


@pytest.mark.parametrize(
    ("check", "document", "path", "value", "message"),
    [
        (check_chat, CHAT, "created", ..., "created"),
        (check_chat, CHAT, "created", "1", "created"),
        (check_chat, CHAT, "usage.total_tokens", 2.0, "total_tokens"),
        (check_chat, CHAT, "choices.0.finish_reason", None, "finish_reason"),
        (check_chat, CHAT, "choices.0.message.mood", 1, r"\.choices\[0\]\.message\.mood"),
        (check_response, RESPONSE, "output", None, "output"),
        (check_response, RESPONSE, "status", "done", "status"),
        (check_response, RESPONSE, "kv", None, r"\.kv"),
        (check_message, MESSAGE, "usage.input_tokens", ..., "input_tokens"),
        (check_message, MESSAGE, "content.0.type", "words", "content"),
        (check_message, MESSAGE, "content.0.index", 0, r"\.content\[0\]\.index"),
    ],
)
def test_one_wrong_member_is_found(
    check: Callable[[Any], None], document: Any, path: str, value: object, message: str
) -> None:
    check(document)
    with pytest.raises(AssertionError, match=message):
        check(changed(document, path, value))


def test_vectors_in_base64_are_right_and_wrong_ones_are_found() -> None:
    entry = {"object": "embedding", "index": 0, "embedding": "AAAA"}
    document = {"object": "list", "model": "m", "data": [entry], "usage": {"prompt_tokens": 1, "total_tokens": 1}}
    check_embeddings(document)
    with pytest.raises(AssertionError, match="embedding"):
        check_embeddings(changed(document, "data.0.embedding", [None]))


def test_errors_of_one_surface_are_wrong_on_the_other() -> None:
    openai = {"error": {"message": "no", "type": "BadRequestError", "param": None, "code": 400}}
    anthropic = {"type": "error", "error": {"type": "invalid_request_error", "message": "no"}}
    check_error(openai)
    check_message_error(anthropic)
    check_message_error(changed(anthropic, "error.type", "BadRequestError"), vllm=True)
    for wrong in (openai, changed(anthropic, "error.type", "BadRequestError")):
        with pytest.raises(AssertionError):
            check_message_error(wrong)
    for wrong in (anthropic, changed(openai, "error.param", ...)):
        with pytest.raises(AssertionError):
            check_error(wrong)


CHUNK = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
START = {"type": "message_start", "message": changed(MESSAGE, "content", [])}
BLOCK = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
STOP = {"type": "content_block_stop", "index": 0}
LAST: list[dict[str, Any]] = [
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1}},
    {"type": "message_stop"},
]


def sent(*events: dict[str, Any]) -> bytes:
    """Events as they are on the wire, with their names where they have a type."""
    return b"".join(
        (f"event: {event['type']}\n" if "type" in event else "").encode() + f"data: {json.dumps(event)}\n\n".encode()
        for event in events
    )


def choice(reason: str | None) -> dict[str, Any]:
    return {**CHUNK, "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}


def test_a_stream_of_chunks_ends_once_and_with_done() -> None:
    done = b"data: [DONE]\n\n"
    assert len(check_stream("chat", b": wait\n\n" + sent(choice(None), choice("stop")) + done)) == 2
    for wrong in (
        sent(choice(None)) + done,
        sent(choice("stop"), choice("stop")) + done,
        sent(choice("stop")),
        sent(choice("stop"), {**choice(None), "id": "2"}) + done,
        done + b"data: {",
    ):
        with pytest.raises(AssertionError):
            check_stream("chat", wrong)


def test_a_stream_of_blocks_opens_and_closes_them_in_order() -> None:
    assert len(check_stream("messages", sent(START, {"type": "ping"}, BLOCK, STOP, *LAST))) == 6
    for wrong in (
        sent(BLOCK, STOP, *LAST),
        sent(START, BLOCK, *LAST),
        sent(START, BLOCK, BLOCK, STOP, *LAST),
        sent(START, STOP, *LAST),
        sent(START, {**BLOCK, "index": 1}, {**STOP, "index": 1}, *LAST),
        sent(START, BLOCK, STOP, LAST[0]),
        sent(START, BLOCK, STOP, *LAST).replace(b"event: message_stop", b"event: stop"),
    ):
        with pytest.raises(AssertionError):
            check_stream("messages", wrong)


def response_events() -> list[dict[str, Any]]:
    text = {"type": "output_text", "text": "yes", "annotations": []}
    item = {"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": [text]}
    at = {"item_id": "m", "output_index": 0, "content_index": 0}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": RESPONSE},
        {"type": "response.in_progress", "response": RESPONSE},
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        {"type": "response.output_text.delta", **at, "delta": "yes", "logprobs": []},
        {"type": "response.output_text.done", **at, "text": "yes", "logprobs": []},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": {**RESPONSE, "output": [item]}},
    ]
    return [{**event, "sequence_number": number} for number, event in enumerate(events)]


def test_a_stream_of_items_builds_the_response_that_it_ends_with() -> None:
    assert len(check_stream("responses", sent(*response_events()))) == 7
    for path, wrong in (
        ("3.delta", "no"),
        ("3.sequence_number", 4),
        ("5.output_index", 1),
        ("6.response.output", []),
        ("6.response.id", "resp_2"),
        ("6.type", "response.in_progress"),
        ("1.type", "response.created"),
    ):
        with pytest.raises(AssertionError):
            check_stream("responses", sent(*changed(response_events(), path, wrong)))


def test_an_event_of_another_surface_is_wrong() -> None:
    check_event("messages", STOP)
    with pytest.raises(AssertionError):
        check_event("responses", STOP)
    with pytest.raises(AssertionError):
        read_stream("completions", sent(STOP))
