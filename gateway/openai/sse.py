"""Server-sent events as OpenAI streams them: cut out of bytes, understood, put together, and written.

An event is kept as the bytes it came in, with the blank line that ends it: what is only passed on stays as it was.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from gateway.openai.errors import interrupted

EVENT_BYTES_MOST = 1024 * 1024
DONE = b"data: [DONE]\n\n"
OPENING = frozenset(
    (
        "",  # a chunk of a chat has no type
        *("response.created", "response.queued", "response.in_progress"),
        *("response.output_item.added", "response.content_part.added"),
        *("message_start", "content_block_start", "ping"),
    )
)
"""Types of the events of Responses and Messages that come before there is anything to read."""
ENDING = frozenset(("response.completed", "response.incomplete", "response.failed", "message_stop"))
"""Types of the events that end a stream of theirs."""

Json = dict[str, Any]

# Two line ends in a row. Atomic, or a lone \r\n would count as two.
_BLANK_LINE = re.compile(rb"(?>\r\n|\r|\n){2}")
_LINE_END = re.compile(rb"\r\n|\r|\n")


class Events:
    """Cuts a stream of bytes into events, wherever the chunks end."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        """The events that this chunk completes. Raises ApiError when one is longer than EVENT_BYTES_MOST."""
        text = self._rest + chunk if self._rest else chunk
        if b"\r" not in text:
            *events, self._rest = text.split(b"\n\n")
            events = [event + b"\n\n" for event in events]
        else:
            events = self._cut(text)
        if len(text) > EVENT_BYTES_MOST and max(map(len, [*events, self._rest])) > EVENT_BYTES_MOST:
            raise interrupted(f"the engine sent an event of more than {EVENT_BYTES_MOST} bytes")
        return events

    def rest(self) -> bytes:
        """What is left when the stream has ended: nothing, or an event that lacks its end."""
        rest, self._rest = self._rest, b""
        return rest

    def _cut(self, text: bytes) -> list[bytes]:
        events = []
        at = 0
        for match in _BLANK_LINE.finditer(text):
            # A \r at the very end may be half of a \r\n.
            if match.end() == len(text) and text.endswith(b"\r"):
                break
            events.append(text[at : match.end()])
            at = match.end()
        self._rest = text[at:]
        return events


def data(event: bytes) -> bytes | None:
    """The data of an event, its lines joined; None for comments and blank lines."""
    if event.startswith(b"data: ") and event.find(b"\n") == len(event) - 2 and b"\r" not in event:
        return event[6:-2]
    lines = [line[5:].removeprefix(b" ") for line in _LINE_END.split(event) if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


def chunk_of(event: bytes) -> Json | None:
    """The JSON object that an event carries; None for comments and for `[DONE]`.

    Raises ApiError for anything else.
    """
    text = data(event)
    if text is None or text == b"[DONE]":
        return None
    try:
        chunk = orjson.loads(text)
    except orjson.JSONDecodeError:
        chunk = None
    if not isinstance(chunk, dict):
        raise interrupted("the engine sent an event that is not a JSON object")
    return chunk


def carries_content(event: bytes) -> bool:
    """Whether a client would miss this event: any text, reasoning or tool call, an end, an error.

    Comments, and chunks that only name the role, are no content: until the first content another engine can still
    take over. Raises ApiError for data that is not JSON.
    """
    chunk = chunk_of(event)
    if chunk is None:
        return data(event) is not None
    kind = chunk.get("type", "")
    if "error" in chunk or not isinstance(kind, str) or kind not in OPENING:
        return True
    for choice in _objects(chunk.get("choices")):
        if choice.get("text") or choice.get("finish_reason"):
            return True
        delta = choice.get("delta")
        if isinstance(delta, dict) and any(value for key, value in delta.items() if key != "role"):
            return True
    return False


class Assembler:
    """Folds the chunks of a chat stream into one message: the first choice, whatever came of it so far.

    `done` once `[DONE]` was seen; a stream without it, or without a `finish_reason`, was cut.
    """

    def __init__(self) -> None:
        self.id: str | None = None
        self.model: str | None = None
        self.finish_reason: str | None = None
        self.usage: Json | None = None
        self.error: object = None
        self.done = False
        self._texts: dict[str, list[str]] = {}
        self._calls: dict[int, _ToolCall] = {}

    def add(self, event: bytes) -> None:
        """Take in one event. Raises ApiError for data that is not JSON."""
        chunk = chunk_of(event)
        if chunk is None:
            self.done = self.done or data(event) is not None
            return
        self.id = self.id or _text(chunk.get("id"))
        self.model = self.model or _text(chunk.get("model"))
        usage = chunk.get("usage")
        self.usage = usage if isinstance(usage, dict) else self.usage
        self.error = chunk.get("error") or self.error
        for choice in _objects(chunk.get("choices")):
            if choice.get("index", 0) == 0:
                self.finish_reason = _text(choice.get("finish_reason")) or self.finish_reason
                self._add_delta(choice.get("delta"))

    def tool_calls(self) -> list[Json]:
        """The tool calls in the order of their indexes, as a message has them; `arguments` null if not all text."""
        return [self._calls[index].whole() for index in sorted(self._calls)]

    def message(self) -> Json:
        """The assistant's message; `content` is null where there was none."""
        texts = {key: "".join(pieces) for key, pieces in self._texts.items()}
        message: Json = {"role": "assistant", "content": None, **texts}
        calls = self.tool_calls()
        return {**message, "tool_calls": calls} if calls else message

    def _add_delta(self, delta: object) -> None:
        if not isinstance(delta, dict):
            return
        for key, value in delta.items():
            # content, and what vendors call reasoning
            if key != "role" and isinstance(value, str) and value:
                self._texts.setdefault(key, []).append(value)
        pieces = delta.get("tool_calls")
        # What is no piece of a call makes a call all the same, one without a name that nobody can run.
        for position, piece in enumerate(pieces if isinstance(pieces, list) else [pieces] if pieces else ()):
            known = piece if isinstance(piece, dict) else {}
            index = known.get("index")
            call = self._calls.setdefault(index if isinstance(index, int) else position, _ToolCall())
            call.add(known)


class _ToolCall:
    """One tool call as its pieces come in: id and name once, the arguments bit by bit."""

    def __init__(self) -> None:
        self.id = ""
        self.name = ""
        self.arguments: list[str] = []
        self.unfit = False

    def add(self, piece: Json) -> None:
        function = piece.get("function")
        if not isinstance(function, dict):
            function = {}
        self.id = self.id or _text(piece.get("id")) or ""
        self.name = self.name or _text(function.get("name")) or ""
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            self.arguments.append(arguments)
        elif arguments is not None:
            self.unfit = True

    def whole(self) -> Json:
        arguments = "".join(self.arguments) if self.arguments and not self.unfit else None
        function = {"name": self.name, "arguments": arguments}
        return {"id": self.id, "type": "function", "function": function}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunks:
    """Writes the events of an answer that the gateway gives itself. `created` in whole seconds since 1970.

    In order: `role()`, `content(…)` as often as needed, `finish(…)`, `usage(…)` if the client asked, `DONE`.
    """

    id: str
    model: str
    created: int

    def role(self) -> bytes:
        return self._choice({"role": "assistant", "content": ""})

    def content(self, text: str) -> bytes:
        return self._choice({"content": text})

    def finish(self, reason: str = "stop") -> bytes:
        return self._choice({}, reason)

    def usage(self, usage: Mapping[str, object]) -> bytes:
        return self._event([], usage=usage)

    def _choice(self, delta: Json, finish_reason: str | None = None) -> bytes:
        return self._event([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}])

    def _event(self, choices: list[Json], **more: object) -> bytes:
        head = {"id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.model}
        return b"data: " + orjson.dumps({**head, "choices": choices, **more}) + b"\n\n"


def _objects(value: object) -> list[Json]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
