"""What a model's answer means for what comes next, where its stage says how that is told (`outcomes`).

The client of such a stage decides by the answer, and need not tell: the gateway reads it too, and knows at once that
a run has come to its end, or that a repair is due.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from gateway.openai import sse
from gateway.openai.prompt import text_of
from policies.calls import Fate

Outcomes = Mapping[Literal["ok", "error", "empty", "timeout"], re.Pattern[str]]


def judged(content: str, outcomes: Outcomes) -> Fate:
    """The first outcome whose pattern is found; `ok` where none is."""
    return next((fate for fate, pattern in outcomes.items() if pattern.search(content)), "ok")


class Judge:
    """Hears one answer, whole or event by event. Of several choices the first counts."""

    def __init__(self, outcomes: Outcomes) -> None:
        self._outcomes = outcomes
        self._said: list[str] = []

    @property
    def verdict(self) -> Fate:
        return judged("".join(self._said), self._outcomes)

    def whole(self, document: object) -> Fate:
        """Hear the body of a reply."""
        self._hear(document, "message")
        if isinstance(document, dict) and "choices" not in document:
            self._said.append(spoken(document))
        return self.verdict

    def chunk(self, chunk: object) -> None:
        """Hear what an event of a stream holds."""
        self._hear(chunk, "delta")

    def events(self, events: Iterable[bytes]) -> Fate:
        """Hear the events of a whole stream."""
        for event in events:
            self.chunk(sse.chunk_of(event))
        return self.verdict

    def _hear(self, document: object, part: str) -> None:
        match document:
            case {"choices": [{**choice}, *_]} if choice.get("index", 0) == 0:
                said = choice.get(part)
                text = text_of(said.get("content")) if isinstance(said, dict) else choice.get("text")
                if isinstance(text, str):
                    self._said.append(text)
            case {"type": "response.output_text.delta", "delta": str(text)}:
                self._said.append(text)
            case {"type": "content_block_delta", "delta": {"type": "text_delta", "text": str(text)}}:
                self._said.append(text)


def spoken(document: Mapping[str, Any]) -> str:
    """The text of a whole answer of Responses or of Messages."""
    items = document.get("output") or [document]
    parts = [
        part
        for item in (items if isinstance(items, list) else ())
        if isinstance(item, dict) and isinstance(item.get("content"), list)
        for part in item["content"]
    ]
    return "".join(part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str))
