"""The table of headers, its page, and what passes through in either direction."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from gateway import headers, sessions, vendors
from gateway.headers import TABLE
from gateway.sessions import SESSIONS
from gateway.spots import Spot
from gateway.vendors import VENDORS, VendorName

PAGE = Path(__file__).parents[2] / "docs" / "headers.md"
TITLES = {
    "Read from the client": "in",
    "Read from other gateways' and agents' clients": "vendors",
    "Sessions named in passing": "sessions",
    "Written to the engine": "upstream",
    "Written in the reply": "reply",
}


def rows(pattern: str) -> Iterator[tuple[str, re.Match[str]]]:
    """The lines of the page that match, each with its section."""
    section = ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            section = TITLES[line[3:]]
        elif match := re.fullmatch(pattern, line):
            yield section, match


def described(spot: Spot) -> str:
    """A spot as the page has it."""
    way = ".".join((spot.name, *spot.path)) if spot.body else spot.name
    said = f"body `{way}`" if spot.body else f"`{way}`"
    if spot.path and not spot.body:
        said += f" → `{'.'.join(spot.path)}`"
    notes = [spot.note] if spot.note else []
    notes += [f"not {', '.join(f'`{value}`' for value in spot.unless)}"] if spot.unless else []
    notes += [f"beside `{spot.beside}`"] if spot.beside else []
    return f"{said} ({'; '.join(notes)})" if notes else said


def test_the_page_and_the_table_say_the_same() -> None:
    told = [(row[1], section, row[2], row[3]) for section, row in rows(r"\| `([^`]+)` \| (\w+) \| (.*) \|")]
    assert told == [(row.name, row.direction, row.field, row.meaning) for row in TABLE]


def test_the_page_has_every_place_that_a_vendor_may_speak_in() -> None:
    found = rows(r"\| ([a-z-]+) \| (\w+) \| ((?:body )?`.*) \|")
    assert [row.groups() for section, row in found if section == "vendors"] == [
        (vendor.name, name, ", ".join(map(described, spots)))
        for vendor in VENDORS
        for name, spots in vendor.fields.items()
    ]


def test_the_page_has_every_field_that_may_name_a_session() -> None:
    found = rows(r"\| ([a-z-]+) \| ((?:body )?`.*) \|")
    assert [row.groups() for section, row in found if section == "sessions"] == [
        (row.source, described(row.spot)) for row in SESSIONS
    ]


def test_the_page_names_every_header_that_is_read() -> None:
    page = PAGE.read_text(encoding="utf-8").lower()
    read = headers.READ.keys() | vendors.HEADERS | vendors.CLIENT | sessions.HEADERS
    assert {name for name in read if f"`{name.decode()}`" not in page} == set()


def test_every_vendor_has_its_entry() -> None:
    assert tuple(vendor.name for vendor in VENDORS) == get_args(VendorName)


def test_no_two_rows_have_one_name_or_one_field_in_the_same_direction() -> None:
    assert len({(row.direction, row.name.lower()) for row in TABLE}) == len(TABLE)
    assert len({(row.direction, row.field) for row in TABLE}) == len(TABLE)


def test_written_names_the_fields_of_its_direction() -> None:
    assert headers.written("upstream", {"run": "r1", "priority": "-3"}) == [
        ("X-Session-ID", "r1"),
        ("X-Vllm-Priority", "-3"),
    ]
    assert headers.written("reply", {"run": "r1", "queue_ms": "12", "pool": ""}) == [
        ("X-Workflow-Id", "r1"),
        ("X-Workflow-Queue-Ms", "12"),
    ]
    with pytest.raises(KeyError):
        headers.written("upstream", {"pool": "p"})


@pytest.mark.parametrize(
    "name",
    [
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer"),
        *("transfer-encoding", "upgrade", "proxy-connection", "http2-settings"),
        *("host", "content-length", "accept-encoding", "expect"),
        *("authorization", "cookie", "x-api-key", "api-key", "x-goog-api-key", "x-litellm-api-key"),
        *("x-portkey-api-key", "helicone-auth"),
        *("x-forwarded-for", "x-forwarded-proto", "forwarded", "x-real-ip", "via"),
        *("x-workflow-type", "x-workflow-anything", "x-vllm-priority", "x-request-id"),
    ],
)
def test_what_is_not_for_the_engine_stays_here(name: str) -> None:
    assert headers.upstream([(name.encode(), b"1"), (b"x-foo", b"2")]) == (("x-foo", "2"),)


def test_every_other_header_goes_on_in_order_and_as_it_came() -> None:
    given = [
        (b"content-type", b"application/json"),
        (b"traceparent", b"00-abc-def-01"),
        (b"x-foo", b"one"),
        (b"x-foo", "zwei – ü".encode()),
        (b"x-bytes", b"a\xffb"),
        (b"user-agent", b"openai"),
    ]
    assert headers.upstream(given) == (
        ("traceparent", "00-abc-def-01"),
        ("x-foo", "one"),
        ("x-foo", "zwei – ü"),
        ("x-bytes", "a\ufffdb"),
        ("user-agent", "openai"),
    )


@pytest.mark.parametrize(
    "name",
    [
        *("x-session-id", "x-claude-code-session-id", "session-id", "thread-id", "x-dynamo-session-id"),
        *("traceparent", "tracestate", "baggage", "x-foo", "originator", "user-agent", "accept"),
        *("anthropic-version", "anthropic-beta", "openai-organization", "openai-project", "openai-beta"),
        *("x-stainless-lang", "x-stainless-retry-count", "x-codex-turn-metadata", "x-parent-session-id"),
        *("x-litellm-session-id", "helicone-session-path", "x-llm-d-inference-fairness-id", "x-smg-routing-key"),
    ],
)
def test_what_a_client_says_to_others_reaches_the_engine(name: str) -> None:
    assert headers.upstream([(name.encode(), b"v")]) == ((name, "v"),)


def test_every_header_that_names_a_run_for_others_goes_on_to_the_engine() -> None:
    read = vendors.HEADERS | sessions.HEADERS
    assert {name.encode() for name, _ in headers.upstream([(name, b"v") for name in read])} == read


def test_a_session_of_the_clients_own_is_seen() -> None:
    assert headers.has_session([(b"host", b"x"), (b"x-session-id", b"s")])
    assert not headers.has_session([(b"host", b"x"), (b"session-id", b"s")])


def test_headers_named_in_connection_end_here_in_both_directions() -> None:
    up = [(b"connection", b"close, X-Hop ,x-other"), (b"x-hop", b"1"), (b"x-other", b"2"), (b"x-end", b"3")]
    assert headers.upstream(up) == (("x-end", "3"),)
    down = [("Connection", "X-Hop"), ("X-Hop", "1"), ("X-End", "2")]
    assert headers.reply(down) == (("X-End", "2"),)


def test_the_reply_keeps_the_engines_headers_but_not_those_we_write() -> None:
    given = [
        ("Content-Type", "text/event-stream"),
        ("Content-Length", "12"),
        ("Transfer-Encoding", "chunked"),
        ("Date", "now"),
        ("Server", "uvicorn"),
        ("X-Request-Id", "theirs"),
        ("X-Workflow-Pool", "theirs"),
        ("X-Ratelimit-Remaining", "7"),
        ("openai-processing-ms", "12"),
        ("anthropic-ratelimit-requests-remaining", "9"),
        ("request-id", "req_1"),
        ("Set-Cookie", "a=1"),
        ("Set-Cookie", "b=2"),
    ]
    assert headers.reply(given) == (
        ("Content-Type", "text/event-stream"),
        ("X-Ratelimit-Remaining", "7"),
        ("openai-processing-ms", "12"),
        ("anthropic-ratelimit-requests-remaining", "9"),
        ("request-id", "req_1"),
        ("Set-Cookie", "a=1"),
        ("Set-Cookie", "b=2"),
    )
