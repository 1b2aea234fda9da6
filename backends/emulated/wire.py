"""Answers as bytes: the JSON bodies and server-sent events of chat and text completions, as vLLM writes them.

Events are put together from a part that is the same for a whole answer and the token's own few bytes, because an
engine writes one for each token of each client.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import orjson

from backends.emulated.answers import Answer, Piece
from backends.emulated.asks import Ask

DONE = b"data: [DONE]\n\n"


class Counts(NamedTuple):
    """The tokens of an exchange; `cached` are those of the prompt that the engine had."""

    prompt: int
    completion: int
    cached: int


class Wire(Protocol):
    """How one answer is written: `whole` as a body, the others as the events of a stream. It writes only one.

    The greeting is sent as soon as the request is taken, the opening with the first token. `tokens` are those of the
    answer so far, with this piece.
    """

    def greeting(self) -> list[bytes]: ...
    def opening(self) -> list[bytes]: ...
    def piece(self, piece: Piece, tokens: int) -> list[bytes]: ...
    def closing(self, answer: Answer, counts: Counts) -> list[bytes]: ...
    def whole(self, answer: Answer, counts: Counts) -> bytes: ...


class _Frame:
    """The members that all events of an answer share, and the usage where the client wants it."""

    def __init__(self, answer_id: str, kind: str, model: str, created: int, ask: Ask) -> None:
        self._members = {"id": answer_id, "object": kind, "created": created, "model": model}
        self._start = b"data: " + orjson.dumps(self._members)[:-1] + b',"choices":['
        self._ask = ask

    def choice(self, choice: bytes, tokens: int) -> bytes:
        if not self._ask.continuous_usage:
            return self._start + choice + b"]}\n\n"
        usage = {
            "prompt_tokens": self._ask.prompt.tokens,
            "total_tokens": self._ask.prompt.tokens + tokens,
            "completion_tokens": tokens,
        }
        return self._start + choice + b'],"usage":' + orjson.dumps(usage) + b"}\n\n"

    def end(self, counts: Counts) -> list[bytes]:
        if not self._ask.include_usage:
            return [DONE]
        return [self._start + b'],"usage":' + orjson.dumps(_usage(counts)) + b"}\n\n", DONE]

    def body(self, kind: str, choice: dict[str, Any], counts: Counts) -> bytes:
        return orjson.dumps({**self._members, "object": kind, "choices": [choice], "usage": _usage(counts)})


class ChatWire:
    """The answer to /v1/chat/completions. `answer_id` is unique, and so are the ids of its tool calls."""

    def __init__(self, answer_id: str, model: str, created: int, ask: Ask) -> None:
        self._frame = _Frame(f"chatcmpl-{answer_id}", "chat.completion.chunk", model, created, ask)
        self._id = answer_id
        self._calls = 0

    def greeting(self) -> list[bytes]:
        return []

    def opening(self) -> list[bytes]:
        return [self._event(b'{"role":"assistant","content":""}', 0)]

    def piece(self, piece: Piece, tokens: int) -> list[bytes]:
        if piece.kind == "content":
            return [self._event(b'{"content":' + orjson.dumps(piece.text) + b"}", tokens)]
        if piece.kind == "call":
            call = _call(self._id, self._calls) | {"index": self._calls, "function": {"name": piece.text}}
            self._calls += 1
        else:
            call = {"index": self._calls - 1, "function": {"arguments": piece.text}}
        return [self._event(orjson.dumps({"tool_calls": [call]}), tokens)]

    def closing(self, answer: Answer, counts: Counts) -> list[bytes]:
        return [self._event(b"{}", counts.completion, answer), *self._frame.end(counts)]

    def whole(self, answer: Answer, counts: Counts) -> bytes:
        parts = answer.parts()
        calls = [
            _call(self._id, part.number) | {"function": {"name": part.name, "arguments": part.text}}
            for part in parts
            if part.name is not None
        ]
        text = "".join(part.text for part in parts if part.name is None)
        message = {"role": "assistant", "content": text or (None if calls else ""), "tool_calls": calls}
        choice = {"index": 0, "message": message, "logprobs": None, **_finish(answer)}
        return self._frame.body("chat.completion", choice, counts)

    def _event(self, delta: bytes, tokens: int, answer: Answer | None = None) -> bytes:
        return self._frame.choice(b'{"index":0,"delta":' + delta + b',"logprobs":null,' + _tail(answer), tokens)


class TextWire:
    """The answer to /v1/completions, which has neither roles nor tool calls."""

    def __init__(self, answer_id: str, model: str, created: int, ask: Ask) -> None:
        self._frame = _Frame(f"cmpl-{answer_id}", "text_completion", model, created, ask)

    def greeting(self) -> list[bytes]:
        return []

    def opening(self) -> list[bytes]:
        return []

    def piece(self, piece: Piece, tokens: int) -> list[bytes]:
        return [self._event(orjson.dumps(piece.text), tokens)]

    def closing(self, answer: Answer, counts: Counts) -> list[bytes]:
        return [self._event(b'""', counts.completion, answer), *self._frame.end(counts)]

    def whole(self, answer: Answer, counts: Counts) -> bytes:
        text = "".join(part.text for part in answer.parts())
        choice = {"index": 0, "text": text, "logprobs": None, **_finish(answer)}
        return self._frame.body("text_completion", choice, counts)

    def _event(self, text: bytes, tokens: int, answer: Answer | None = None) -> bytes:
        return self._frame.choice(b'{"index":0,"text":' + text + b',"logprobs":null,' + _tail(answer), tokens)


def _finish(answer: Answer) -> dict[str, Any]:
    """vLLM's `stop_reason` is the stop text that was met."""
    return {"finish_reason": answer.finish, "stop_reason": answer.stop}


def _tail(answer: Answer | None) -> bytes:
    """The end of a choice in a stream, of which the last one alone has a reason to be it."""
    return b'"finish_reason":null}' if answer is None else orjson.dumps(_finish(answer))[1:]


def _call(answer_id: str, index: int) -> dict[str, Any]:
    return {"id": call_id(answer_id, index), "type": "function"}


def call_id(answer_id: str, index: int) -> str:
    """The id of an answer's tool call."""
    return f"chatcmpl-tool-{answer_id}" + (f"-{index}" if index else "")


def _usage(counts: Counts) -> dict[str, Any]:
    return {
        "prompt_tokens": counts.prompt,
        "total_tokens": counts.prompt + counts.completion,
        "completion_tokens": counts.completion,
        "prompt_tokens_details": {"cached_tokens": counts.cached},
    }
