"""Anthropic's Messages as vLLM serves them: bodies read as a chat, answers written as content blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from backends.emulated.answers import Answer, Part, Piece
from backends.emulated.asks import Ask, ask, conversation, named_tool
from backends.emulated.fields import bad, count, is_object, is_text, missing, objects, texts, value
from backends.emulated.tokens import Prompt
from backends.emulated.wire import Counts, call_id

BILLING = "x-anthropic-billing-header"  # a system block of Claude Code's that changes each time; vLLM drops it too
ROLES = ("user", "assistant", "system")
STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


def read_message(document: Mapping[str, Any], priority: str | None) -> Ask:
    """A body of /v1/messages; `priority` is the header X-Vllm-Priority: of the body vLLM does not read it here."""
    messages, tools = _chat(document)
    limit = count(document, "max_tokens")
    if limit is None:
        raise missing("max_tokens", "must be there")
    return ask(
        {**document, "priority": None},
        priority,
        **conversation(messages, tools),
        tools=_callable(document),
        max_tokens=limit,
        stop=texts(document, "stop_sequences"),
    )


def read_counted(document: Mapping[str, Any]) -> Prompt:
    """A body of /v1/messages/count_tokens."""
    prompt: Prompt = conversation(*_chat(document))["prompt"]
    return prompt


def _chat(document: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The messages and the tools of a chat that says the same."""
    if not is_text(document.get("model")):
        raise missing("model", "must be there")
    given = objects(document, "messages")
    if not given:
        raise missing("messages", "must be a list that is not empty")
    messages: list[dict[str, Any]] = []
    if system := _system(document.get("system"), "system"):
        messages.append({"role": "system", "content": system})
    for index, message in enumerate(given):
        place = f"messages[{index}]"
        if message.get("role") not in ROLES:
            raise bad(f"{place}.role", f"must be one of {', '.join(ROLES)}")
        if message["role"] == "system":
            messages.append({"role": "system", "content": _system(message.get("content"), f"{place}.content")})
        else:
            messages += _said(message, place)
    return messages, [_tool(tool, index) for index, tool in enumerate(objects(document, "tools"))]


def _system(given: object, place: str) -> str:
    if isinstance(given, str | None):
        return given or ""
    said = [block.get("text") for block in _blocks(given, place) if block["type"] == "text"]
    return "".join(text for text in said if isinstance(text, str) and not text.startswith(BILLING))


def _said(message: Mapping[str, Any], place: str) -> list[dict[str, Any]]:
    """The results of tools first, each as a message of its own, as vLLM orders them."""
    role, content = message["role"], message.get("content")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    results, parts, calls = [], [], []
    for block in _blocks(content, f"{place}.content"):
        match block["type"]:
            case "tool_result" if role == "user":
                results.append({"role": "tool", "content": _result(block.get("content"))})
            case "tool_use":
                arguments = orjson.dumps(block.get("input") or {}).decode()
                calls.append({"function": {"name": str(block.get("name", "")), "arguments": arguments}})
            case "thinking" | "redacted_thinking":
                pass
            case _:
                parts.append(block)
    said = {"role": role, "content": parts, **({"tool_calls": calls} if calls else {})}
    return [*results, said] if parts or calls else results


def _result(content: object) -> object:
    return content if isinstance(content, str | list) else ""


def _blocks(content: object, place: str) -> list[dict[str, Any]]:
    if not isinstance(content, list):
        raise bad(place, "must be a text or a list of blocks")
    for index, block in enumerate(content):
        if not isinstance(block, dict) or not is_text(block.get("type")):
            raise bad(f"{place}[{index}]", "must be a block with a type")
    return content


def _tool(tool: dict[str, Any], index: int) -> dict[str, Any]:
    """One of the client's own as a function; what Anthropic's servers run stays as it is, never called."""
    if not is_text(tool.get("name")):
        raise bad(f"tools[{index}].name", "must be a text")
    if not _own(tool):
        return tool
    if not isinstance(tool.get("input_schema"), dict):
        raise bad(f"tools[{index}].input_schema", "must be an object")
    described = {"description": tool["description"]} if "description" in tool else {}
    return {"type": "function", "function": {"name": tool["name"], **described, "parameters": tool["input_schema"]}}


def _own(tool: Mapping[str, Any]) -> bool:
    return tool.get("type") in (None, "custom")


def _callable(document: Mapping[str, Any]) -> frozenset[str]:
    names = frozenset(tool["name"] for tool in objects(document, "tools") if _own(tool))
    choice = value(document, "tool_choice", {"type": "auto"}, is_object, "an object")
    if choice.get("type") not in ("auto", "any", "tool", "none"):
        raise bad("tool_choice.type", "must be auto, any, tool or none")
    if choice["type"] == "none":
        return frozenset()
    return named_tool(choice.get("name"), names) if choice["type"] == "tool" else names


class MessageWire:
    """The answer to /v1/messages."""

    def __init__(self, answer_id: str, model: str, created: int, ask: Ask) -> None:
        self._id = answer_id
        self._model = model
        self._prompt = ask.prompt.tokens
        self._index = -1
        self._calls = 0
        self._open = False

    def greeting(self) -> list[bytes]:
        return []

    def opening(self) -> list[bytes]:
        usage = {"input_tokens": self._prompt, "output_tokens": 0}
        message = self._message([], usage, None, None)
        return [_event("message_start", message=message), _event("ping")]

    def piece(self, piece: Piece, tokens: int) -> list[bytes]:
        if piece.kind == "call":
            block = self._block(Part(piece.text, "", self._calls))
            self._calls += 1
            return self._begin(block)
        if piece.kind == "arguments":
            return [self._delta("input_json_delta", partial_json=piece.text)]
        started = [] if self._open else self._begin(self._block(Part(None, "")))
        return [*started, self._delta("text_delta", text=piece.text)]

    def closing(self, answer: Answer, counts: Counts) -> list[bytes]:
        delta = {"stop_reason": _stop_reason(answer), "stop_sequence": answer.stop}
        return [*self._end(), _event("message_delta", delta=delta, usage=_usage(counts)), _event("message_stop")]

    def whole(self, answer: Answer, counts: Counts) -> bytes:
        content = [self._block(part) for part in answer.parts() or [Part(None, "")]]
        return orjson.dumps(self._message(content, _usage(counts), _stop_reason(answer), answer.stop))

    def _begin(self, block: dict[str, Any]) -> list[bytes]:
        ended = self._end()
        self._index, self._open = self._index + 1, True
        return [*ended, _event("content_block_start", index=self._index, content_block=block)]

    def _end(self) -> list[bytes]:
        if not self._open:
            return []
        self._open = False
        return [_event("content_block_stop", index=self._index)]

    def _delta(self, kind: str, **more: str) -> bytes:
        return _event("content_block_delta", index=self._index, delta={"type": kind, **more})

    def _block(self, part: Part) -> dict[str, Any]:
        if part.name is None:
            return {"type": "text", "text": part.text}
        try:
            arguments = orjson.loads(part.text)
        except orjson.JSONDecodeError:
            arguments = {}  # it has only begun, or was cut
        return {"type": "tool_use", "id": call_id(self._id, part.number), "name": part.name, "input": arguments}

    def _message(
        self, content: list[dict[str, Any]], usage: dict[str, int], reason: str | None, stop: str | None
    ) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{self._id}",
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": stop,
            "usage": usage,
        }


def _stop_reason(answer: Answer) -> str | None:
    """None for an answer that the engine aborted."""
    return "stop_sequence" if answer.stop is not None else STOP_REASONS.get(answer.finish)


def _usage(counts: Counts) -> dict[str, int]:
    """Anthropic counts what was cached apart from the rest of the input."""
    return {
        "input_tokens": counts.prompt - counts.cached,
        "cache_read_input_tokens": counts.cached,
        "output_tokens": counts.completion,
    }


def _event(kind: str, **members: object) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + orjson.dumps({"type": kind, **members}) + b"\n\n"
