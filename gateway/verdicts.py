"""What a SQL worker said of a statement, as an answer: status and body as HTTP has them, and how it went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import orjson

from gateway.attempts import Attempt
from policies.calls import Fate
from policies.events import Start
from policies.repair import placed

NO_ROWS = "The statement ran but returned no rows."
FATES: Mapping[str, Fate] = MappingProxyType({"ok": "ok", "empty": "empty", "error": "error", "timeout": "timeout"})
_STATUS: Mapping[Fate, int] = MappingProxyType({"ok": 200, "empty": 200, "error": 400, "timeout": 504})


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a tool answered: `status` and `body` as HTTP has them, and the outcome in the workflow's terms."""

    status: int
    body: bytes
    fate: Fate
    cache: str = ""
    start: Start | None = None
    seconds: float = 0.0
    """What it took an engine."""
    volatile: bool = False
    """The same data may give another answer next time."""

    def document(self) -> dict[str, Any]:
        """The body as an object: columns and rows, or an error."""
        document: dict[str, Any] = orjson.loads(self.body)
        return document

    def complaint(self) -> str:
        """What went wrong, in words that a model can repair its statement by; empty where nothing did."""
        if self.fate == "empty":
            return NO_ROWS
        return str(self.document()["error"]["message"]) if self.status != 200 else ""

    @property
    def code(self) -> str:
        """The code of an error, of those that SQL has; empty where there is none."""
        return str(self.document()["error"]["code"]) if self.status != 200 else ""

    def placed(self, written: str) -> Answer:
        """The same, an error with its place in the text that was written."""
        if self.status != 400:
            return self
        said = self.document()["error"]
        body = orjson.dumps({"error": {**said, "message": placed(said["message"], written)}})
        return replace(self, body=body)

    def overdue(self, limit: float, setting: str) -> Answer:
        """The same, one that took too long with how long it may take by which setting, in seconds."""
        if self.fate != "timeout":
            return self
        said = self.document()["error"]
        message = f"the statement took longer than {limit:g} s ({setting}): read fewer rows, or filter earlier"
        return replace(self, body=orjson.dumps({"error": {**said, "message": message}}))

    def error(self) -> bytes:
        """The body of an error as OpenAI shapes it."""
        said = self.document()["error"]
        kind = "timeout_error" if self.fate == "timeout" else "invalid_request_error"
        whole = {"message": said["message"], "type": kind, "param": said.get("param", "sql"), "code": said["code"]}
        return orjson.dumps({"error": whole})


def refusal(message: str, code: str, *, param: str | None = "sql") -> Answer:
    """The answer to what never reached a worker."""
    body = orjson.dumps({"error": {"message": message, "code": code, "param": param}})
    return Answer(status=400, body=body, fate="error")


def whole(attempt: Attempt) -> Answer:
    """The answer of a worker that gave it in one. Reports the attempt's end."""
    return _answer(attempt, dict(attempt.headers)["x-sql-outcome"], attempt.body)


def last(attempt: Attempt, piece: bytes) -> Answer:
    """The answer of a worker as it comes behind its pieces. Reports the attempt's end."""
    words, _, body = piece.partition(b"\n")
    return _answer(attempt, words.decode(), body)


def _answer(attempt: Attempt, words: str, body: bytes) -> Answer:
    """`words` as `x-sql-outcome` has them."""
    word, _, more = words.partition(" ")
    fate = FATES[word]
    outcome = attempt.outcome(attempt.ticket.runtime.now(), fate=fate, prompt=0, output=0, cached=None)
    attempt.ticket.finished(attempt.start.attempt, outcome)
    start, seconds = attempt.start, outcome.total
    return Answer(
        status=_STATUS[fate],
        body=body,
        fate=fate,
        cache="miss",
        start=start,
        seconds=seconds,
        volatile=more == "volatile",
    )
