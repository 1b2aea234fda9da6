"""What is known of the prompts that engines hold, beyond what they were sent: a question to somebody outside.

The answers come from engines that tell what their memory holds (`gateway.residency`), so a decision rests on
something that no event has carried. `Noted` keeps the answers of a step for the journal, `Retold` gives them again.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from policies.calls import Call


@dataclass(frozen=True, slots=True)
class Held:
    """An answer: of the prompt of `call`, each engine that is known exactly holds so many leading tokens."""

    call: str
    tokens: Mapping[str, int]


class Residency(Protocol):
    """Knows what engines hold."""

    def held(self, call: Call, engines: Sequence[str]) -> Mapping[str, int]:
        """How many leading tokens of the call's prompt an engine will not have to compute, for each of these engines
        that is known exactly."""
        ...

    def sent(self, call: Call, engine: str) -> None:
        """The call goes to this engine now, which will hold its prompt."""
        ...


class Noted:
    """Passes questions on, and notes the answers."""

    def __init__(self, residency: Residency) -> None:
        self._residency = residency
        self._answers: list[Held] = []

    def held(self, call: Call, engines: Sequence[str]) -> Mapping[str, int]:
        tokens = self._residency.held(call, engines)
        if tokens:
            self._answers.append(Held(call.id, tokens))
        return tokens

    def sent(self, call: Call, engine: str) -> None:
        self._residency.sent(call, engine)

    def taken(self) -> Sequence[Held]:
        """The answers since this was asked last."""
        answers, self._answers = self._answers, []
        return answers


class Retold:
    """Gives noted answers again, those of a call in their order. Of what was never asked nothing is known."""

    def __init__(self) -> None:
        self._answers: defaultdict[str, deque[Mapping[str, int]]] = defaultdict(deque)

    def tell(self, answers: Iterable[Held]) -> None:
        """The answers of the step that comes next. What is left of the one before is forgotten."""
        self._answers.clear()
        for answer in answers:
            self._answers[answer.call].append(answer.tokens)

    def held(self, call: Call, engines: Sequence[str]) -> Mapping[str, int]:
        noted = self._answers.get(call.id)
        return noted.popleft() if noted else {}

    def sent(self, call: Call, engine: str) -> None:
        """What follows from it is in the answers."""
