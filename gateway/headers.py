"""Every header with a meaning of its own here, in one table, and which of the others pass through.

Not in the table is what HTTP itself asks for (`Content-Type`, `Allow`, `WWW-Authenticate`). Headers by which other
gateways and agents name their runs are in `vendors.py` and `sessions.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Direction = Literal["in", "upstream", "reply"]


@dataclass(frozen=True, slots=True)
class Header:
    """One name in one direction: read from the client, written to the engine, or written in the reply."""

    name: str
    direction: Direction
    field: str
    meaning: str


TABLE: tuple[Header, ...] = (
    Header("Authorization", "in", "key", "`Bearer KEY`: the API key; never sent on"),
    Header("X-Api-Key", "in", "key_anthropic", "the API key, as Anthropic's clients send it; never sent on"),
    Header("Api-Key", "in", "key_azure", "the API key, as Azure's clients send it; never sent on"),
    Header("X-Request-Id", "in", "request", "an id for this one call; made up when absent"),
    Header("X-Workflow-Type", "in", "workflow", "the workflow, by name: `nl2sql`"),
    Header("X-Workflow-Id", "in", "run", "the run: one id for all calls of one execution, at most 256 bytes"),
    Header("X-Workflow-Stage", "in", "stage", "the stage of the workflow that makes this call: `fix`"),
    Header("X-Workflow-Agent", "in", "agent", "the agent that makes this call"),
    Header("X-Workflow-Parent", "in", "parent", "the agent or run that started this one"),
    Header("X-Workflow-Step", "in", "step", "which visit to the stage this is, from 1; counted when absent"),
    Header("X-Workflow-Deadline-Ms", "in", "deadline_ms", "time for the *whole run*, from its first call, in ms"),
    Header("X-Workflow-Slo", "in", "slo", "the class of service: `interactive`"),
    Header("X-Workflow-Priority", "in", "priority", "−8…8, higher is sooner; shifts the call in its queue"),
    Header("X-Workflow-Hints", "in", "hints", "`osl=900` tokens expected, `resume=?1` another call follows soon"),
    Header("X-Workflow-Final", "in", "final", "`true`: the run ends with this call"),
    Header("X-Workflow-Tools", "in", "tools", "`intercept`, `ahead`, `pass`: who runs this call's SQL, and when"),
    Header("X-Request-Id", "upstream", "request", "the id of the call, for the engine's log"),
    Header("X-Session-ID", "upstream", "run", "the run, unless the client sent a session's id of its own"),
    Header(
        "X-Vllm-Priority",
        "upstream",
        "priority",
        "the order among the engine's requests, lower is sooner; older engines get it in the body",
    ),
    Header("X-Request-Id", "reply", "request", "the id of the call, the client's own where it sent one"),
    Header(
        "X-Workflow-Id",
        "reply",
        "run",
        "the run that the call was counted to, named by the client or found by what the call says",
    ),
    Header("X-Workflow-Stage", "reply", "stage", "the stage that the call was counted to"),
    Header("X-Workflow-Pool", "reply", "pool", "the pool that served it"),
    Header("X-Workflow-Engine", "reply", "engine", "the engine that served it"),
    Header("X-Workflow-Slack-Ms", "reply", "slack_ms", "time the run could still lose when the call was sent, in ms"),
    Header("X-Workflow-Queue-Ms", "reply", "queue_ms", "time the call waited for its engine, in ms"),
    Header("X-Workflow-Cache", "reply", "cache", "`hit`, `joined` or `miss`: where the answer came from"),
    Header("X-Workflow-Tools-Run", "reply", "tools_run", "how many tool calls the gateway ran for a whole reply"),
    Header("X-Workflow-Source", "reply", "source", "which channel named workflow or stage, else the run"),
    Header("X-Should-Retry", "reply", "retry", "`false` with an error that another try would only meet again"),
    Header("Retry-After", "reply", "retry_after", "with 429 and 503: whole seconds to wait before the next try"),
    Header("X-RateLimit-Limit-Requests", "reply", "requests_limit", "requests of the API key's rate"),
    Header("X-RateLimit-Remaining-Requests", "reply", "requests_remaining", "those of them that are left"),
    Header("X-RateLimit-Reset-Requests", "reply", "requests_reset", "until none of them is missing: `6m0s`"),
    Header("X-RateLimit-Limit-Tokens", "reply", "tokens_limit", "tokens of the API key's rate"),
    Header("X-RateLimit-Remaining-Tokens", "reply", "tokens_remaining", "those of them that are left"),
    Header("X-RateLimit-Reset-Tokens", "reply", "tokens_reset", "until none of them is missing: `8.64s`"),
)

READ: Mapping[bytes, Header] = MappingProxyType(
    {row.name.lower().encode(): row for row in TABLE if row.direction == "in"}
)
_WRITTEN: Mapping[Direction, Mapping[str, str]] = {
    direction: {row.field: row.name for row in TABLE if row.direction == direction}
    for direction in ("upstream", "reply")
}

_HOP_BY_HOP = frozenset(
    (
        *("connection", "http2-settings", "keep-alive", "proxy-authenticate", "proxy-authorization"),
        *("proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),
    )
)
# Bytes on the way up, because that is how ASGI has them.
_UP_PREFIXES = (b"x-workflow-", b"x-forwarded-")
_UP_DROPPED: frozenset[bytes] = frozenset(
    name.encode()
    for name in (
        *_HOP_BY_HOP,
        *("host", "content-length", "content-type", "expect"),  # of this request; the next has its own
        "accept-encoding",  # the relay reads what the engine answers, so it must not come compressed
        # The client's secrets are for the gateway, or for another one that is not there.
        *("authorization", "api-key", "x-api-key", "cookie", "x-goog-api-key"),
        *("helicone-auth", "x-litellm-api-key", "x-portkey-api-key"),
        *("forwarded", "x-real-ip", "via"),
        *("x-request-id", "x-vllm-priority"),  # ours to write
    )
)
_DOWN_DROPPED = _HOP_BY_HOP | {"content-length", "date", "server", "x-request-id"}


def written(direction: Literal["upstream", "reply"], values: Mapping[str, str]) -> list[tuple[str, str]]:
    """The headers that say these fields, but for empty ones. Raises KeyError for a field that the table lacks."""
    known = _WRITTEN[direction]
    return [(known[field], value) for field, value in values.items() if value]


def has_session(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Whether a client has a word of its own for what an engine is to keep together."""
    return any(name == b"x-session-id" for name, _ in headers)


def upstream(headers: Sequence[tuple[bytes, bytes]]) -> tuple[tuple[str, str], ...]:
    """What of a client's headers goes on to an engine: all but ours, secrets, and those of the connection.

    Values are UTF-8 to the HTTP client; a byte that is not becomes U+FFFD.
    """
    dropped = _UP_DROPPED
    for name, value in headers:
        if name == b"connection":
            dropped = dropped | {token.strip() for token in value.lower().split(b",")}
    return tuple(
        (name.decode("latin-1"), value.decode("utf-8", "replace"))
        for name, value in headers
        if name not in dropped and not name.startswith(_UP_PREFIXES)
    )


def reply(headers: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """What of an engine's headers goes back to the client; those that we write ourselves do not."""
    dropped = _DOWN_DROPPED
    for name, value in headers:
        if name.lower() == "connection":
            dropped = dropped | {token.strip() for token in value.lower().split(",")}
    return tuple(
        (name, value)
        for name, value in headers
        if (lower := name.lower()) not in dropped and not lower.startswith("x-workflow-")
    )
