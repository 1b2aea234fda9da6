"""What a model's answer means for what comes next, where its stage says how that is told (`outcomes`).

The client of such a stage decides by the answer, and need not tell: the gateway reads it too, and knows at once that
a run has come to its end, or that a repair is due.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Literal

from gateway.inference import Answer
from policies.calls import Fate

Outcomes = Mapping[Literal["ok", "error", "empty", "timeout"], re.Pattern[str]]


def judged(content: str, outcomes: Outcomes) -> Fate:
    """The first outcome whose pattern is found; `ok` where none is."""
    return next((fate for fate, pattern in outcomes.items() if pattern.search(content)), "ok")


class Judge:
    """Hears one answer, whole or event by event, on any surface. Of several choices the first counts."""

    def __init__(self, outcomes: Outcomes) -> None:
        self._outcomes = outcomes
        self._answer = Answer(most=math.inf)  # a verdict may come last

    @property
    def verdict(self) -> Fate:
        return judged(self._answer.said, self._outcomes)

    def whole(self, document: object) -> Fate:
        """Hear the body of a reply."""
        self._answer.whole(document)
        return self.verdict

    def chunk(self, chunk: object) -> None:
        """Hear what an event of a stream holds."""
        self._answer.chunk(chunk)

    def events(self, events: Iterable[bytes]) -> Fate:
        """Hear the events of a whole stream."""
        for event in events:
            self._answer.event(event)
        return self.verdict
