"""Runs named in passing: which field comes first, what each must look like, and what a trace is worth."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.identity import NOBODY, Identity, Place, read_identity
from gateway.sessions import SESSIONS, SessionSource

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


class Kept:
    """Responses of one tenant."""

    def run_of(self, tenant: str, response: str) -> str:
        return "run-9" if (tenant, response) == ("a", "resp_1") else ""


def read(headers: dict[str, str] | None = None, body: dict[str, Any] | None = None, **more: Any) -> Identity:
    given = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    return read_identity(given, body, **more)


@pytest.mark.parametrize(
    ("headers", "body", "run", "source"),
    [
        ({"X-Session-ID": "s1"}, {}, "s1", "session"),
        ({"X-Session-Affinity": "s1"}, {}, "s1", "session"),
        ({"X-Conversation-ID": "c1"}, {}, "c1", "conversation"),
        ({}, {"conversation": "conv_1"}, "conv_1", "conversation"),
        ({}, {"conversation": {"id": "conv_1"}}, "conv_1", "conversation"),
        ({}, {"previous_response_id": "resp_1"}, "run-9", "conversation"),
        ({}, {"metadata": {"session_id": "m1", "other": "x"}}, "m1", "session"),
        ({}, {"session_id": "v1"}, "v1", "session"),
        ({}, {"vllm_xargs": {"session_id": "v1"}}, "v1", "session"),
        ({}, {"prompt_cache_key": "k1"}, "k1", "prompt-cache-key"),
        ({"baggage": "userId=al,session.id=b%201;prop=2,x=y"}, {}, "b 1", "baggage"),
        ({"traceparent": TRACEPARENT}, {}, f"trace-{TRACE}", "trace"),
        ({"traceparent": f"01-{TRACE}-00f067aa0ba902b7-00-more"}, {}, f"trace-{TRACE}", "trace"),
    ],
)
def test_every_field_names_the_run_and_nothing_else(
    headers: dict[str, str], body: dict[str, Any], run: str, source: SessionSource
) -> None:
    identity = read(headers, body, tenant="a", responses=Kept())
    assert identity == Identity(run=run, source=source, weak=source == "trace")


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"X-Session-ID": ""}, {}),
        ({"X-Session-ID": "x" * 257}, {}),
        ({}, {"conversation": {"id": 7}}),
        ({}, {"conversation": ["conv_1"]}),
        ({}, {"conversation": None, "prompt_cache_key": ""}),
        ({}, {"previous_response_id": "resp_2"}),
        ({}, {"previous_response_id": {"id": "resp_1"}}),
        ({"baggage": "session.idx=1, a.session.id=2,session.id=,session.id"}, {}),
        ({"traceparent": "00-" + "0" * 32 + "-00f067aa0ba902b7-01"}, {}),
        ({"traceparent": "ff" + TRACEPARENT[2:]}, {}),
        ({"traceparent": TRACEPARENT.upper()}, {}),
        ({"traceparent": "00-ab-cd-01"}, {}),
    ],
)
def test_what_does_not_fit_names_nothing(headers: dict[str, str], body: dict[str, Any]) -> None:
    assert read(headers, body, tenant="a", responses=Kept()) == NOBODY


def test_the_first_field_that_is_there_wins() -> None:
    headers = {"X-Session-ID": "s1", "baggage": "session.id=b1", "traceparent": TRACEPARENT}
    headers |= {"X-Session-Affinity": "", "X-Conversation-ID": "c1"}
    body: dict[str, Any] = {
        "conversation": "conv_1",
        "previous_response_id": "resp_1",
        "metadata": {"session_id": "m1"},
        "session_id": "v1",
        "prompt_cache_key": "k1",
    }
    runs = []
    for row in SESSIONS:
        runs.append(read(headers, body, tenant="a", responses=Kept()).run)
        headers = {name: value for name, value in headers.items() if name.lower() != row.spot.name.lower()}
        body.pop(row.spot.name, None)
    known = ["s1", "c1", "conv_1", "run-9", "m1", "v1", "k1", "b1", f"trace-{TRACE}"]
    assert list(dict.fromkeys(runs)) == known
    assert read(headers, body) == NOBODY


def test_an_earlier_response_is_known_to_its_own_tenant_alone() -> None:
    body = {"previous_response_id": "resp_1"}
    assert read({}, body, tenant="a", responses=Kept()).run == "run-9"
    assert read({}, body, tenant="b", responses=Kept()) == NOBODY
    assert read({}, body, tenant="a") == NOBODY


def test_a_run_that_another_channel_names_stays() -> None:
    sessions = {"X-Session-ID": "s1", "traceparent": TRACEPARENT}
    ours = read({**sessions, "X-Workflow-Id": "mine"})
    assert (ours.run, ours.source, ours.weak) == ("mine", "header", False)
    theirs = read({**sessions, "x-litellm-session-id": "litellm-1"})
    assert (theirs.run, theirs.source, theirs.weak) == ("litellm-1", "litellm", False)


def test_the_source_is_what_named_the_workflow_before_what_named_the_run() -> None:
    identity = read({"traceparent": TRACEPARENT}, path=Place("nl2sql", "fix"))
    assert (identity.run, identity.source, identity.weak) == (f"trace-{TRACE}", "path", True)
    assert not identity.final
    assert read({"X-Workflow-Agent": "me"}).source == "none"


def test_two_baggages_or_traces_are_nobodys() -> None:
    twice = [(b"traceparent", TRACEPARENT.encode())] * 2 + [(b"baggage", b"session.id=1")] * 2
    assert read_identity(twice) == NOBODY
