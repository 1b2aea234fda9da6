"""What an engine's answer used and how it ended: counted from its events or its body, and reported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import orjson

from backends.base import BackendError
from gateway.attempts import Attempt
from gateway.judging import Judge
from gateway.linking import Listener
from gateway.openai import sse
from gateway.openai.errors import ApiError, broken, interrupted
from policies.calls import Fate

Json = dict[str, Any]

TOKENS_MOST = 100_000_000
"""No engine reads or writes more in one call."""


@dataclass(slots=True)
class Tokens:
    """An answer's tokens, from its usage where the engine sends it, else one for each event with content."""

    events: int = 0
    prompt: int = 0
    output: int = 0
    cached: int | None = None
    done: bool = False

    def count(self, event: bytes) -> Json | None:
        """Take in one event of a stream, and say what it holds. Raises ApiError for what is no event of an answer."""
        chunk = sse.chunk_of(event)
        if chunk is None:
            self.done = self.done or sse.data(event) is not None
            return None
        kind = chunk.get("type")
        if isinstance(kind, str):
            self._named(kind, chunk)
        elif chunk.get("error"):
            raise interrupted("the engine reported an error in the middle of its answer")
        else:
            self.events += 1
        self.read(chunk.get("usage"))
        return chunk

    def _named(self, kind: str, event: Json) -> None:
        """Take in an event of Responses or of Messages."""
        if kind == "error":
            raise interrupted("the engine reported an error in the middle of its answer")
        self.done = self.done or kind in sse.ENDING
        self.events += isinstance(event.get("delta"), str | dict)
        for name in ("response", "message"):  # where a whole answer, or its beginning, is told
            if isinstance(event.get(name), dict):
                self.read(event[name].get("usage"))

    def read(self, usage: object) -> None:
        """Take in a `usage` object, whatever it holds."""
        if not isinstance(usage, dict):
            return
        if "input_tokens" in usage or "output_tokens" in usage:
            self._read_other(usage)
            return
        self.prompt = _int(usage.get("prompt_tokens"))
        self.output = _int(usage.get("completion_tokens"))
        self._read_cached(usage.get("prompt_tokens_details"), "cached_tokens")

    def _read_other(self, usage: Json) -> None:
        """As Responses and Messages have it. Messages tells of the prompt at first and of the output in the end, and
        does not count among the prompt what was cached of it."""
        self.output = _int(usage.get("output_tokens")) or self.output
        prompt = _int(usage.get("input_tokens"))
        if "input_tokens_details" in usage:
            self._read_cached(usage["input_tokens_details"], "cached_tokens")
        else:
            self._read_cached(usage, "cache_read_input_tokens")
            prompt += _int(usage.get("cache_read_input_tokens")) + _int(usage.get("cache_creation_input_tokens"))
        self.prompt = prompt or self.prompt

    def _read_cached(self, details: object, name: str) -> None:
        if isinstance(details, dict) and type(details.get(name)) is int:
            self.cached = _int(details[name])

    def add(self, other: Tokens) -> None:
        """Add the usage of another answer to this one's."""
        self.prompt += other.prompt
        self.output += other.output
        self.cached = (self.cached or 0) + (other.cached or 0)

    def usage(self) -> Json:
        """The `usage` of a reply that the gateway puts together."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.output,
            "total_tokens": self.prompt + self.output,
            "prompt_tokens_details": {"cached_tokens": self.cached or 0},
        }


def finished(attempt: Attempt, tokens: Tokens, fate: Fate = "ok", *, verdict: Fate | None = None) -> None:
    """Report the end of an attempt that came to one."""
    outcome = attempt.outcome(
        attempt.ticket.runtime.now(),
        fate=fate,
        prompt=tokens.prompt,
        output=tokens.output or tokens.events,
        cached=tokens.cached,
        verdict=verdict,
    )
    attempt.ticket.finished(attempt.start.attempt, outcome)


@contextmanager
def cut_short(attempt: Attempt) -> Iterator[None]:
    """Report an attempt that breaks off inside the block, and raise what the client is told (ApiError)."""
    try:
        yield
    except BackendError as error:
        attempt.ticket.failed(attempt.start.attempt, error.trouble, final=True)
        raise interrupted(str(error)) from error
    except ApiError:
        attempt.ticket.failed(attempt.start.attempt, "broken", final=True)
        raise


def whole_answer(
    attempt: Attempt, judge: Judge | None = None, listener: Listener | None = None
) -> tuple[Tokens, Fate | None]:
    """Report the end of an attempt whose body is there, and say what it used, and meant if there is a judge.

    Raises ApiError 502 for no JSON.
    """
    tokens, verdict = Tokens(), None
    if attempt.status == 200:
        try:
            document = orjson.loads(attempt.body)
        except orjson.JSONDecodeError:
            attempt.ticket.failed(attempt.start.attempt, "broken", final=True)
            raise broken("the engine's answer is not valid JSON") from None
        tokens.read(document.get("usage") if isinstance(document, dict) else None)
        verdict = judge.whole(document) if judge is not None else None
        if listener is not None:
            listener.whole(document)
    finished(attempt, tokens, "ok" if attempt.status == 200 else "error", verdict=verdict)
    return tokens, verdict


def message_of(body: bytes) -> Json:
    """The message in a whole chat reply; its tool calls, if any, are a list of whatever. Raises ApiError 502."""
    document = orjson.loads(body)
    try:
        message = document["choices"][0]["message"]
    except (KeyError, IndexError, TypeError):
        message = None
    if not isinstance(message, dict):
        raise broken("the engine's answer holds no message")
    if not isinstance(message.get("tool_calls"), list | None):
        raise broken("the tool calls in the engine's answer are no list")
    return message


def refusal_of(body: bytes) -> str:
    """What an engine says in a reply that is an error; in its words, or that it said nothing."""
    try:
        message = orjson.loads(body)["error"]["message"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        message = ""
    return message if isinstance(message, str) and message else "it did not say why"


def as_event(chunk: Json) -> bytes:
    """A chunk as an event of a stream."""
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


def _int(value: object) -> int:
    """A count of tokens; 0 for what can be none."""
    return value if type(value) is int and 0 <= value <= TOKENS_MOST else 0
