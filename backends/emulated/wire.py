"""Answers as bytes: the JSON bodies and server-sent events of chat and text completions, as vLLM writes them.

Events are put together from a part that is the same for a whole answer and the token's own few bytes, because an
engine writes one for each token of each client.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import orjson

from backends.emulated.answers import Answer, Piece

DONE = b"data: [DONE]\n\n"


def usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


class Wire(Protocol):
    """How one answer is written; `opening`, `piece` and `closing` are events, `whole` is a body."""

    def opening(self) -> bytes: ...
    def piece(self, piece: Piece) -> bytes: ...
    def closing(self, finish: str) -> bytes: ...
    def usage(self, counts: dict[str, Any]) -> bytes: ...
    def whole(self, answer: Answer, counts: dict[str, Any]) -> bytes: ...


class _Frame:
    """The members that all events of an answer share."""

    def __init__(self, answer_id: str, kind: str, model: str, created: int) -> None:
        self._members = {"id": answer_id, "object": kind, "created": created, "model": model}
        self._start = b"data: " + orjson.dumps(self._members)[:-1] + b',"choices":['

    def choice(self, choice: bytes) -> bytes:
        return self._start + choice + b"]}\n\n"

    def usage(self, counts: dict[str, Any]) -> bytes:
        return self._start + b'],"usage":' + orjson.dumps(counts) + b"}\n\n"

    def body(self, kind: str, choice: dict[str, Any], counts: dict[str, Any]) -> bytes:
        return orjson.dumps({**self._members, "object": kind, "choices": [choice], "usage": counts})


class ChatWire:
    """The answer to /v1/chat/completions. `answer_id` is unique, and so is the id of its tool call."""

    def __init__(self, answer_id: str, model: str, created: int) -> None:
        self._frame = _Frame(f"chatcmpl-{answer_id}", "chat.completion.chunk", model, created)
        self._call_id = f"chatcmpl-tool-{answer_id}"

    def opening(self) -> bytes:
        return self._event(b'{"role":"assistant","content":""}')

    def piece(self, piece: Piece) -> bytes:
        if piece.kind == "content":
            return self._event(b'{"content":' + orjson.dumps(piece.text) + b"}")
        call: dict[str, Any] = {"index": 0, "function": {"arguments": piece.text}}
        if piece.kind == "call":
            call = {"id": self._call_id, "type": "function", "index": 0, "function": {"name": piece.text}}
        return self._event(orjson.dumps({"tool_calls": [call]}))

    def closing(self, finish: str) -> bytes:
        return self._event(b"{}", orjson.dumps(finish))

    def usage(self, counts: dict[str, Any]) -> bytes:
        return self._frame.usage(counts)

    def whole(self, answer: Answer, counts: dict[str, Any]) -> bytes:
        name, arguments = joined(answer.pieces, "call"), joined(answer.pieces, "arguments")
        function = {"name": name, "arguments": arguments}
        message = {
            "role": "assistant",
            "content": joined(answer.pieces, "content") or (None if name else ""),
            "tool_calls": [{"id": self._call_id, "type": "function", "function": function}] if name else [],
        }
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish}
        return self._frame.body("chat.completion", choice, counts)

    def _event(self, delta: bytes, finish: bytes = b"null") -> bytes:
        return self._frame.choice(
            b'{"index":0,"delta":' + delta + b',"logprobs":null,"finish_reason":' + finish + b"}"
        )


class TextWire:
    """The answer to /v1/completions, which has neither roles nor tool calls."""

    def __init__(self, answer_id: str, model: str, created: int) -> None:
        self._frame = _Frame(f"cmpl-{answer_id}", "text_completion", model, created)

    def opening(self) -> bytes:
        return b""

    def piece(self, piece: Piece) -> bytes:
        return self._event(orjson.dumps(piece.text))

    def closing(self, finish: str) -> bytes:
        return self._event(b'""', orjson.dumps(finish))

    def usage(self, counts: dict[str, Any]) -> bytes:
        return self._frame.usage(counts)

    def whole(self, answer: Answer, counts: dict[str, Any]) -> bytes:
        text = joined(answer.pieces, "content")
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": answer.finish, "stop_reason": None}
        return self._frame.body("text_completion", choice, counts)

    def _event(self, text: bytes, finish: bytes = b"null") -> bytes:
        return self._frame.choice(b'{"index":0,"text":' + text + b',"logprobs":null,"finish_reason":' + finish + b"}")


def joined(pieces: Sequence[Piece | None], kind: str) -> str:
    """The text of all pieces of one kind."""
    return "".join(piece.text for piece in pieces if piece and piece.kind == kind)
