"""LiteLLM's answers as the bytes of each surface: a JSON body, or the events of a stream."""

from __future__ import annotations

import json
from typing import Any, Final, Protocol

from backends.provider_members import Surface

Json = dict[str, Any]

DONE: Final = b"data: [DONE]\n\n"


class Model(Protocol):
    """One of the objects that LiteLLM answers with; some of its answers are plain mappings instead."""

    def model_dump(self, *, mode: str, exclude_none: bool, exclude_unset: bool) -> Json: ...


def whole(surface: Surface, answer: Model | Json) -> bytes:
    """An answer that came at once."""
    document = _document(surface, answer)
    if surface.name == "chat":
        for choice in document.get("choices", ()):
            _lighten(choice)
            choice.get("message", {}).setdefault("content", None)
    return json.dumps(document).encode()


class Events:
    """Writes a stream. Usage that the client has not asked for rides on the last chunk of its answer: the gateway
    counts by it, and no client takes it for a choice."""

    def __init__(self, surface: Surface, *, usage: bool) -> None:
        self._surface = surface
        self._usage = usage
        self._last: Json | None = None
        self._number = 0

    def add(self, item: Model | Json | bytes) -> bytes:
        """The bytes of what LiteLLM has come up with next; none yet for what waits for the usage."""
        if isinstance(item, bytes):
            return item
        document = _document(self._surface, item)
        if self._surface.counts:
            return self._chunk(document)
        if self._surface.name == "responses":
            self._complete(document)
        return b"event: %b\n%b" % (str(document.get("type")).encode(), _event(document))

    def end(self) -> bytes:
        """What is left, and the sign that it was all."""
        return self._flushed() + (DONE if self._surface.counts else b"")

    def _complete(self, event: Json) -> None:
        """Add what clients of Responses count on, and LiteLLM leaves out where it makes up the events itself."""
        event["sequence_number"] = self._number
        self._number += 1
        if event.get("type") in ("response.output_text.delta", "response.output_text.done"):
            event.setdefault("logprobs", [])

    def _chunk(self, chunk: Json) -> bytes:
        choices = chunk.get("choices", [])
        for choice in choices:
            _lighten(choice)
            choice.setdefault("finish_reason", None)
            if self._surface.name == "completions":
                choice.setdefault("text", "")
        usage = chunk.pop("usage", None)
        if not any(map(_says_something, choices)):
            return self._counted(chunk, usage) if usage else b""
        before = self._flushed()
        if usage and self._usage:
            return before + _event(chunk) + self._counted(chunk, usage)
        if usage:
            chunk["usage"] = usage
        if any(choice["finish_reason"] for choice in choices):
            self._last = chunk
            return before
        return before + _event(chunk)

    def _counted(self, chunk: Json, usage: Json) -> bytes:
        if self._usage:
            return self._flushed() + _event({**chunk, "choices": [], "usage": usage})
        if self._last is not None:
            self._last["usage"] = usage
        return b""

    def _flushed(self) -> bytes:
        last, self._last = self._last, None
        return _event(last) if last is not None else b""


def _document(surface: Surface, answer: Model | Json) -> Json:
    """As the provider put it. Only in Responses does it matter that a member is there and null."""
    if isinstance(answer, dict):
        return answer
    return answer.model_dump(mode="json", exclude_none=surface.name != "responses", exclude_unset=True)


def _says_something(choice: Json) -> bool:
    return bool(choice["finish_reason"] or choice.get("text") or choice.get("delta"))


def _lighten(choice: Json) -> None:
    """Leave out what LiteLLM adds for callers in Python, where it is empty."""
    for part in (choice, choice.get("delta"), choice.get("message")):
        if isinstance(part, dict):
            added = part.pop("provider_specific_fields", None) or {}
            if known := {name: value for name, value in added.items() if value is not None}:
                part["provider_specific_fields"] = known


def _event(document: Json) -> bytes:
    return b"data: %b\n\n" % json.dumps(document).encode()
