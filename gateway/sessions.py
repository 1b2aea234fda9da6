"""Sessions that a request names in passing, in fields of no one vendor: they name the run, and nothing else."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol
from urllib.parse import unquote

from gateway.spots import Body, Headers, Spot, as_text, header, member

SessionSource = Literal["session", "conversation", "prompt-cache-key", "baggage", "trace"]

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")


class Responses(Protocol):
    """Which run a response came from that the gateway has passed on."""

    def run_of(self, tenant: str, response: str) -> str:
        """The run of a tenant's response; empty where it is not known (any more)."""
        ...


class Named(NamedTuple):
    """A run, and the kind of field that named it."""

    source: SessionSource
    run: str


@dataclass(frozen=True, slots=True)
class Row:
    """One field. `response`: it names an earlier response, whose run it is."""

    source: SessionSource
    spot: Spot
    response: bool = False


def _baggage_session(text: str) -> str | None:
    for entry in text.split(",") if "session.id" in text else ():
        key, _, value = entry.partition("=")
        if key.strip() == "session.id":
            return unquote(value.partition(";")[0].strip())
    return None


def _trace_run(text: str) -> str | None:
    match = _TRACEPARENT.fullmatch(text)
    return f"trace-{match[1]}" if match else None


SESSIONS: tuple[Row, ...] = (
    Row("session", header("X-Session-ID")),
    Row("session", header("X-Session-Affinity")),
    Row("conversation", header("X-Conversation-ID")),
    Row("conversation", member("conversation")),
    Row("conversation", member("conversation.id")),
    Row("conversation", member("previous_response_id"), response=True),
    Row("session", member("metadata.session_id")),
    Row("session", member("session_id")),
    Row("session", member("vllm_xargs.session_id")),
    Row("prompt-cache-key", member("prompt_cache_key")),
    Row("baggage", Spot(name="Baggage", take=_baggage_session, note="its `session.id`")),
    Row("trace", Spot(name="Traceparent", take=_trace_run, note="its trace id, behind `trace-`")),
)
HEADERS = frozenset(row.spot.key for row in SESSIONS if not row.spot.body)
MEMBERS = frozenset(row.spot.name for row in SESSIONS if row.spot.body)


def named(headers: Headers, body: Body, *, tenant: str = "", responses: Responses | None = None) -> Named | None:
    """The run that the first of these fields names that is there and well-formed."""
    for row in SESSIONS:
        text = as_text(row.spot.value(headers, body))
        if text is not None and row.response:
            text = responses.run_of(tenant, text) if responses is not None else ""
        if text:
            return Named(row.source, text)
    return None
