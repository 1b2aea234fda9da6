"""OpenAI's Responses, read: bodies as a chat, and what each response tells again of its request."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson

from backends.emulated.answers import Answer
from backends.emulated.asks import Ask, ask, conversation, named_tool
from backends.emulated.fields import (
    bad,
    count,
    flag,
    is_flag,
    is_number,
    is_text,
    missing,
    objects,
    text,
    texts,
    value,
)

MEMBERS: Mapping[str, tuple[Any, type]] = {
    "instructions": (None, str),
    "max_tool_calls": (None, int),
    "metadata": ({}, dict),
    "parallel_tool_calls": (True, bool),
    "reasoning": (None, dict),
    "service_tier": ("auto", str),
    "text": ({"format": {"type": "text"}}, dict),
    "top_logprobs": (0, int),
    "truncation": ("disabled", str),
    "user": (None, str),
}
PASSED_OVER = ("reasoning", "item_reference")

Recall = Callable[[str | None], Sequence[Mapping[str, Any]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One request, read. `messages` are its conversation without the instructions, which are for this answer only.

    `members` are those that its response has from the first event to the last.
    """

    ask: Ask
    messages: Sequence[Mapping[str, Any]]
    items: Sequence[Mapping[str, Any]]
    members: Mapping[str, Any]
    background: bool
    store: bool


def read_response(document: Mapping[str, Any], priority: str | None, recall: Recall, model: str, now: int) -> Wanted:
    """A body of /v1/responses; `recall` has the messages of the response that it goes on from."""
    items = _items(document.get("input"))
    messages = [*recall(text(document, "previous_response_id")), *_chat(items)]
    instructions = text(document, "instructions")
    first = [{"role": "system", "content": instructions}] if instructions else []
    tools = objects(document, "tools")
    store, background = bool(value(document, "store", True, is_flag, "true or false")), flag(document, "background")
    if background and not store:
        raise bad("background", "needs store")
    return Wanted(
        ask=ask(
            document,
            priority,
            **conversation([*first, *messages], [_tool(tool, index) for index, tool in enumerate(tools)]),
            tools=_callable(tools, document.get("tool_choice")),
            max_tokens=count(document, "max_output_tokens"),
            stop=texts(document, "stop"),
        ),
        messages=messages,
        items=items,
        members=_members(document, tools, model, now) | {"background": background},
        background=background,
        store=store,
    )


def listed_items(wanted: Wanted) -> dict[str, Any]:
    """The input as a list of items that all have ids, the newest first."""
    items: list[dict[str, Any]] = []
    for index, item in enumerate(wanted.items):
        listed = {"id": f"item_{wanted.members['id']}_{index}", "type": "message", **item}
        if listed["type"] == "message" and isinstance(item.get("content"), str):
            listed["content"] = [{"type": "input_text", "text": item["content"]}]
        items.insert(0, listed)
    ends = {"first_id": items[0]["id"], "last_id": items[-1]["id"], "has_more": False}
    return {"object": "list", "data": items, **ends}


def namespaces(tools: Sequence[Mapping[str, Any]]) -> Mapping[str, str]:
    """The namespace of each function that is offered in one, by the function's name."""
    return {
        member["name"]: tool["name"]
        for tool in tools
        if tool["type"] == "namespace" and is_text(tool.get("name"))
        for member in objects(tool, "tools")
        if is_text(member.get("name"))
    }


def answer_messages(answer: Answer) -> list[dict[str, Any]]:
    """The answer as the chat message that the next request's conversation has."""
    said = "".join(part.text for part in answer.parts() if part.name is None)
    calls = [_called(part.name, part.text) for part in answer.parts() if part.name is not None]
    return [{"role": "assistant", "content": said, **({"tool_calls": calls} if calls else {})}]


def _members(document: Mapping[str, Any], tools: list[dict[str, Any]], model: str, now: int) -> dict[str, Any]:
    members = {
        "id": text(document, "request_id") or f"resp_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": now,
        "model": model,
        "error": None,
        "incomplete_details": None,
        "max_output_tokens": count(document, "max_output_tokens"),
        "previous_response_id": text(document, "previous_response_id"),
        "temperature": value(document, "temperature", 1.0, is_number, "a number"),
        "top_p": value(document, "top_p", 1.0, is_number, "a number"),
        "tool_choice": document.get("tool_choice") or "auto",
        "tools": tools,
    }
    for name, (default, kind) in MEMBERS.items():
        wanted = f"of type {kind.__name__}"
        members[name] = value(document, name, default, partial(_is_a, kind), wanted)
    return members


def _is_a(kind: type, found: object) -> bool:
    return type(found) is kind


def _items(given: object) -> list[dict[str, Any]]:
    if isinstance(given, str) and given:
        return [{"type": "message", "role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise missing("input", "must be a text or a list of items, and not empty")
    for index, item in enumerate(given):
        if not isinstance(item, dict):
            raise bad(f"input[{index}]", "must be an object")
    return given


def _chat(items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for index, item in enumerate(items):
        kind = item.get("type", "message")
        if kind == "message":
            messages.append(_message(item, f"input[{index}]"))
        elif kind == "function_call":
            _add_call(messages, _called(str(item.get("name", "")), str(item.get("arguments", ""))))
        elif kind == "custom_tool_call":
            _add_call(messages, _called(str(item.get("name", "")), str(item.get("input", ""))))
        elif str(kind).endswith("_output"):
            messages.append({"role": "tool", "content": _output(item.get("output"))})
        elif kind not in PASSED_OVER:
            # What other tools did counts as the text that it is.
            messages.append({"role": str(kind), "content": orjson.dumps(item).decode()})
    return messages


def _message(item: Mapping[str, Any], place: str) -> dict[str, Any]:
    if not is_text(item.get("role")):
        raise bad(f"{place}.role", "must be a text")
    if not isinstance(item.get("content"), str | list):
        raise bad(f"{place}.content", "must be a text or a list of parts")
    return {"role": item["role"], "content": item["content"]}


def _output(given: object) -> object:
    return given if isinstance(given, str | list) else orjson.dumps(given).decode()


def _called(name: str, arguments: str) -> dict[str, Any]:
    return {"function": {"name": name, "arguments": arguments}}


def _add_call(messages: list[dict[str, Any]], call: dict[str, Any]) -> None:
    """To the message of the same answer, so that the prompt has the tokens that were generated."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    messages[-1].setdefault("tool_calls", []).append(call)


def _tool(tool: dict[str, Any], index: int) -> dict[str, Any]:
    """A function as chats have it; tools of all other kinds stay as they are, and are never called."""
    if not is_text(tool.get("type")):
        raise bad(f"tools[{index}].type", "must be a text")
    if tool["type"] != "function":
        return tool
    if not is_text(tool.get("name")):
        raise bad(f"tools[{index}].name", "must be a text")
    kept = {name: tool[name] for name in ("name", "description", "parameters") if tool.get(name) is not None}
    return {"type": "function", "function": kept}


def _callable(tools: list[dict[str, Any]], choice: object) -> frozenset[str]:
    names = frozenset(tool["name"] for tool in tools if tool["type"] == "function").union(namespaces(tools))
    if choice == "none":
        return frozenset()
    if isinstance(choice, dict):
        if choice.get("type") == "allowed_tools":
            allowed = {tool.get("name") for tool in objects(choice, "tools")}
            return names & allowed
        return named_tool(choice.get("name"), names) if choice.get("type") == "function" else frozenset()
    if not isinstance(choice, str | None):
        raise bad("tool_choice", "must be a text or an object")
    return names
