"""What inference hears of a call: its conversation as it comes in, and its answer as it goes out, on any surface."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

import orjson

from gateway.openai import sse
from gateway.openai.payload import Json, Payload
from gateway.openai.prompt import prompt_view, text_of
from policies.conversation import Conversation, Turn, plain, spoken

ANSWER_MOST = 1024 * 1024
"""Characters of an answer that are heard."""

TOOL_CHARS = 128
"""Characters of a tool's name that are looked at."""
HANDLES_MOST = 64
"""Ids of a request, or of an answer, that are looked at."""

_SYSTEM = ("system", "developer")
_THOUGHTS = frozenset(("thinking", "redacted_thinking", "reasoning"))
_ENDS = (b"response.completed", b"response.incomplete")
_IDS = ("call_id", "tool_call_id", "tool_use_id", "id")
_HEAD = 96
"""Bytes of an event within which its type stands."""


def conversation(payload: Payload, *, tenant: str, call: str, run: str = "") -> Conversation:
    """A request as a conversation; `run` where its client names it."""
    system, turns = _turns(payload)
    return Conversation(
        tenant=tenant,
        call=call,
        run=run,
        system=system,
        tools=tuple(name[:TOOL_CHARS] for name in payload.tools),
        turns=turns,
        handles=list(islice(_handles(payload.document), HANDLES_MOST)),
    )


def _handles(document: Json) -> Iterator[str]:
    """The ids that a request gives back, the latest first: of tool calls and results, and of Responses' items."""
    given = document.get("messages") or document.get("input")
    for item in reversed(_dicts(given)):
        yield from _ids(item)
        for inner in (item.get("tool_calls"), item.get("content")):
            for part in reversed(_dicts(inner)):
                yield from _ids(part)


def _ids(item: Json) -> Iterator[str]:
    for name in _IDS:
        handle = item.get(name)
        if type(handle) is str and handle:
            yield handle


def _turns(payload: Payload) -> tuple[str, Sequence[Turn]]:
    prompt = payload.prompt
    if isinstance(prompt, str):
        return "", (Turn("user", prompt),)
    if prompt is not None:
        if type(prompt[0]) is str:
            return "", [Turn("user", text) for text in prompt]
        # Ids of tokens: as bytes, one prompt still begins with another where its ids do.
        return "", (Turn("user", prompt_view(payload).text_bytes.decode("latin-1")),)
    system: list[str] = []
    turns: list[Turn] = []
    for message in payload.messages:
        role = message["role"]
        text = _text(message.get("content"))
        if role in _SYSTEM and not turns:
            system.append(text)
        elif role == "assistant":
            turns.append(Turn(role, spoken(text, _calls(message))))
        else:
            turns.append(Turn(role, plain(text)))
    return "\n".join(system), turns


def _text(content: object) -> str:
    """The text of a message without its reasoning, which clients drop."""
    if type(content) is list:
        content = [part for part in content if not (type(part) is dict and str(part.get("type")) in _THOUGHTS)]
    return text_of(content)


def _calls(message: Json) -> Iterator[tuple[str, str]]:
    calls = message.get("tool_calls")
    old = message.get("function_call")
    for call in calls if type(calls) is list else ():
        function = call.get("function") if type(call) is dict else None
        if type(function) is dict:
            yield _call(function.get("name"), function.get("arguments"))
    if type(old) is dict:
        yield _call(old.get("name"), old.get("arguments"))


def _call(name: object, arguments: object) -> tuple[str, str]:
    """A tool call, its arguments written in one way: clients parse them, and write them anew."""
    if type(arguments) is str:
        with suppress(orjson.JSONDecodeError):
            arguments = orjson.loads(arguments)
    if type(arguments) is not str:
        arguments = orjson.dumps(arguments).decode()
    return name if type(name) is str else "", "" if arguments in ("{}", "null") else arguments


class Answer:
    """Hears one answer, whole or event by event: Chat Completions, Completions, Responses, Messages.

    Of several choices the first counts. What is no answer, or none of these shapes, is passed over, and what comes
    after some `most` characters.
    """

    def __init__(self, most: float = ANSWER_MOST) -> None:
        self._most = most
        self.handles: list[str] = []
        self._texts: list[str] = []
        self._calls: dict[int, tuple[str, list[str]]] = {}
        self._size = 0

    @property
    def said(self) -> str:
        """The text so far, without what was called."""
        return "".join(self._texts)

    def text(self) -> str:
        """What was said so far, as `spoken` writes it."""
        calls = (_call(name, "".join(pieces)) for name, pieces in self._calls.values())
        return spoken(self.said, calls)

    def whole(self, document: object) -> None:
        """Hear the body of a reply."""
        match document:
            case {"choices": [{**choice}, *_]}:
                message = choice.get("message")
                self._say(choice.get("text"))
                self._message(message if isinstance(message, dict) else {})
            case {"output": [*items]}:
                self._output(items)
            case {"type": "message", "content": [*blocks]}:
                for index, block in enumerate(blocks):
                    self._block(index, block)

    def event(self, event: bytes) -> None:
        """Hear an event of a stream."""
        data = sse.data(event)
        if data is None:
            return
        try:
            self.chunk(orjson.loads(data))
        except orjson.JSONDecodeError:
            return

    def chunk(self, chunk: object) -> None:
        """Hear what an event holds. Of Responses only the last one, which has all, is looked into."""
        if type(chunk) is not dict or self._size > self._most:
            return
        choices = chunk.get("choices")
        if type(choices) is list:  # a chat's: by far the most, so that this must be quick
            choice = choices[0] if choices else None
            if type(choice) is dict and not choice.get("index"):
                delta = choice.get("delta")
                self._say(choice.get("text"))
                if type(delta) is dict:
                    self._delta(delta)
            return
        match chunk:
            case {"type": "content_block_start", "index": int(index), "content_block": block}:
                self._block(index, block)
            case {"type": "content_block_delta", "index": int(index), "delta": {**piece}}:
                self._say(piece.get("text"))
                self._piece(index, "", piece.get("partial_json"))
            case {"type": "response.completed" | "response.incomplete", "response": {"output": [*items]}}:
                self._output(items)

    def _hand(self, item: Json) -> None:
        if len(self.handles) < HANDLES_MOST:
            self.handles += _ids(item)

    def _say(self, text: object) -> None:
        if type(text) is str and text:
            self._texts.append(text)
            self._size += len(text)

    def _delta(self, delta: Json) -> None:
        content = delta.get("content")
        if type(content) is str:
            if content:
                self._texts.append(content)
                self._size += len(content)
            if "tool_calls" not in delta:
                return
            delta = {**delta, "content": None}
        self._message(delta)

    def _message(self, message: Json) -> None:
        content = message.get("content")
        if content:
            self._say(_text(content))
        for position, call in enumerate(_dicts(message.get("tool_calls"))):
            function = call.get("function")
            self._hand(call)
            if type(function) is dict:
                index = call.get("index")
                self._piece(
                    index if type(index) is int else position, function.get("name"), function.get("arguments")
                )

    def _block(self, index: int, block: object) -> None:
        if type(block) is not dict:
            return
        if block.get("type") == "text":
            self._say(block.get("text"))
        elif block.get("type") == "tool_use":
            self._hand(block)
            # A stream begins with an empty input, and has its pieces after that.
            self._piece(index, *_call(block.get("name"), block.get("input")))

    def _output(self, items: Iterable[object]) -> None:
        for index, item in enumerate(_dicts(items)):
            self._hand(item)
            if item.get("type") == "message":
                self._say(_text(item.get("content")))
            elif item.get("type") == "function_call":
                self._piece(index, *_call(item.get("name"), item.get("arguments")))

    def _piece(self, index: int, name: object, arguments: object) -> None:
        if index not in self._calls:
            if not name:
                return
            self._calls[index] = (str(name), [])
        if type(arguments) is str and self._size <= self._most:
            self._calls[index][1].append(arguments)
            self._size += len(arguments)


def _dicts(items: Any) -> list[Json]:
    return [item for item in items if type(item) is dict] if isinstance(items, list) else []
