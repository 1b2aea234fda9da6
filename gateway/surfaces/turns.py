"""What a body says, in the shape of chat messages, whichever surface it was written for.

Placing, ordering and telling runs apart look at prompts as messages: `role`, `content`, and the `tool_calls` of an
assistant. The bodies themselves go on as they came.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import orjson

from gateway.openai.errors import ApiError, ill_formed, missing

Json = dict[str, Any]

_CALLS = frozenset(("function_call", "custom_tool_call"))
# What vLLM calls the two sides, by the order in which it came to do so.
_PAIRS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "rerank": (("query", "documents"),),
    "score": (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2")),
}


def responses_turns(document: Mapping[str, Any]) -> list[Json]:
    """The `instructions` and the `input` of a body for Responses. Raises ApiError that names what is wrong."""
    turns: list[Json] = []
    instructions = document.get("instructions")
    if isinstance(instructions, str):
        turns.append({"role": "system", "content": instructions})
    elif instructions is not None:
        raise ill_formed("instructions", "must be a string")
    given = document.get("input")
    if isinstance(given, str):
        return [*turns, {"role": "user", "content": given}]
    if given is None:
        raise missing("input")
    if not isinstance(given, list):
        raise ill_formed("input", "must be a string or a list of items")
    for index, item in enumerate(given):
        if not isinstance(item, dict):
            raise ill_formed(f"input[{index}]", "must be an object")
        _add_item(turns, item, f"input[{index}]")
    return turns


def _add_item(turns: list[Json], item: Json, where: str) -> None:
    kind = item.get("type", "message")
    if not isinstance(kind, str):
        raise ill_formed(f"{where}.type", "must be a string")
    if kind == "message":
        if not isinstance(item.get("role"), str):
            raise ill_formed(f"{where}.role", "must be a string")
        turns.append({"role": item["role"], "content": item.get("content")})
    elif kind in _CALLS:
        arguments = item.get("arguments", item.get("input"))
        _add_call(turns, item.get("name"), arguments)
    elif kind == "reasoning":
        pass  # clients may send it back or not: a conversation is the same with and without it
    elif kind.endswith("_output"):
        turns.append({"role": "tool", "content": item.get("output")})
    else:
        turns.append({"role": "assistant", "content": [item]})


def messages_turns(document: Mapping[str, Any]) -> list[Json]:
    """The `system` and the `messages` of a body for Messages. Raises ApiError that names what is wrong."""
    if document.get("thread") is not None:
        raise _no_threads()
    turns: list[Json] = []
    system = document.get("system")
    if system is not None:
        if not isinstance(system, str | list):
            raise ill_formed("system", "must be a string or a list of blocks")
        turns.append({"role": "system", "content": system})
    messages = document.get("messages")
    if messages is None:
        raise missing("messages")
    if not isinstance(messages, list) or not messages:
        raise ill_formed("messages", "must be a list with at least one message")
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise ill_formed(f"messages[{index}]", "must be an object")
        if not isinstance(message.get("role"), str):
            raise ill_formed(f"messages[{index}].role", "must be a string")
        _add_message(turns, message["role"], message.get("content"))
    return turns


def _no_threads() -> ApiError:
    """No engine keeps a thread: one that passes over the member would answer to the last message alone. Anthropic's
    clients send the whole conversation when they are told in these words."""
    unsupported = {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
    return ApiError(
        "thread: is not supported here: send the whole conversation",
        code="invalid_value",
        param="thread",
        details=unsupported,
    )


def _add_message(turns: list[Json], role: str, content: object) -> None:
    if not isinstance(content, list):
        turns.append({"role": role, "content": content})
        return
    said: list[object] = []
    calls: list[Json] = []
    for block in content:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "tool_use":
            calls.append(block)
        elif kind == "tool_result":
            turns.append({"role": "tool", "content": block.get("content")})
        elif kind not in ("thinking", "redacted_thinking"):
            said.append(block)
    if said:
        turns.append({"role": role, "content": said})
    for call in calls:
        _add_call(turns, call.get("name"), orjson.dumps(call.get("input")).decode())


def _add_call(turns: list[Json], name: object, arguments: object) -> None:
    """A call belongs to what the assistant has said right before it."""
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    if turns and turns[-1]["role"] == "assistant":
        turns[-1].setdefault("tool_calls", []).append(call)
    else:
        turns.append({"role": "assistant", "content": None, "tool_calls": [call]})


def compared(document: Mapping[str, Any], endpoint: Literal["rerank", "score"]) -> str:
    """The texts that a body for `rerank` or `score` wants held against each other. Raises ApiError."""
    given = next((pair for pair in _PAIRS[endpoint] if document.get(pair[0]) is not None), _PAIRS[endpoint][0])
    for name in given:
        if document.get(name) is None:
            raise missing(name)
    return "\n".join(text for name in given for text in _texts(document[name]))


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and set(map(type, value)) == {str}:
        return value
    return [orjson.dumps(value).decode()]
