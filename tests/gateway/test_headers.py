"""The table of headers, its page, and what passes through in either direction."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway import headers
from gateway.headers import TABLE
from gateway.openai.errors import ApiError

PAGE = Path(__file__).parents[2] / "docs" / "headers.md"
TITLES = {"Read from the client": "in", "Written to the engine": "upstream", "Written in the reply": "reply"}


def test_the_page_and_the_table_say_the_same() -> None:
    told = []
    direction = None
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            direction = TITLES[line[3:]]
        row = re.fullmatch(r"\| `([^`]+)` \| (\w+) \| (.*) \|", line)
        if row:
            told.append((row[1], direction, row[2], row[3]))
    assert told == [(row.name, row.direction, row.field, row.meaning) for row in TABLE]


def test_no_two_rows_have_one_name_or_one_field_in_the_same_direction() -> None:
    assert len({(row.direction, row.name.lower()) for row in TABLE}) == len(TABLE)
    assert len({(row.direction, row.field) for row in TABLE}) == len(TABLE)


def test_read_gives_our_headers_by_field_and_nothing_else() -> None:
    given = [
        (b"host", b"x"),
        (b"authorization", b"Bearer k"),
        (b"x-workflow-id", b"r\xff"),
        (b"x-workflow-pool", b"p"),
    ]
    assert headers.read(given) == {"key": b"Bearer k", "run": b"r\xff"}


def test_a_header_given_twice_is_refused_by_name() -> None:
    with pytest.raises(ApiError) as raised:
        headers.read([(b"x-workflow-id", b"a"), (b"x-workflow-id", b"a")])
    assert (raised.value.status, raised.value.param) == (400, "X-Workflow-Id")
    assert raised.value.message == "X-Workflow-Id: is given twice"


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
        *("authorization", "cookie", "x-api-key", "api-key"),
        *("x-forwarded-for", "x-forwarded-proto", "forwarded", "x-real-ip", "via"),
        *("x-workflow-type", "x-workflow-anything", "x-vllm-priority", "x-session-id", "x-request-id"),
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
        ("Set-Cookie", "a=1"),
        ("Set-Cookie", "b=2"),
    ]
    assert headers.reply(given) == (
        ("Content-Type", "text/event-stream"),
        ("X-Ratelimit-Remaining", "7"),
        ("Set-Cookie", "a=1"),
        ("Set-Cookie", "b=2"),
    )
