"""Identity from other vendors' schemas: what each says, that one speaks at a time, and what is not believed."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.identity import NOBODY, Identity, Place, read_identity
from gateway.lineage import Lineage
from gateway.vendors import VENDORS

UUID = "5b6e0f5e-8f5e-4a4e-9d5a-0d9b5a6f7c11"
CHILD = "0198c1f0-1111-7222-8333-444455556666"
CLAUDE = {
    "accept": "application/json",
    "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14",
    "anthropic-version": "2023-06-01",
    "user-agent": "claude-cli/2.1.329 (external, cli)",
    "x-app": "cli",
    "x-stainless-lang": "js",
    "X-Claude-Code-Session-Id": UUID,
}
CLAUDE_USER = json.dumps({"device_id": "d" * 64, "account_uuid": "", "session_id": UUID})
CODEX = {
    "user-agent": "codex_exec/0.169.0 (Debian 12.0.0; x86_64) dumb",
    "originator": "codex_exec",
    "session-id": UUID,
    "thread-id": UUID,
    "x-client-request-id": UUID,
    "x-codex-window-id": f"{UUID}:0",
    "x-codex-turn-metadata": json.dumps({"turn_id": "t1", "root_turn_id": "t1", "request_kind": "turn"}),
}
SPAWNED = {
    **CODEX,
    "thread-id": CHILD,
    "x-codex-parent-thread-id": UUID,
    "x-openai-subagent": "collab_spawn",
    "x-codex-turn-metadata": json.dumps({"request_kind": "turn", "subagent_kind": "thread_spawn"}),
}
OPENCODE = {"user-agent": "opencode/1.18.33", "x-session-id": "ses_root", "x-session-affinity": "ses_root"}
CONTEXT = {
    "program_id": "task-a:researcher",
    "task_id": "task-a",
    "session_id": "session-a",
    "agent_id": "researcher",
    "parent_program_id": "task-a:lead",
    "root_program_id": "task-a:lead",
    "blocks_parent": False,
    "expected_resume": True,
    "agent_role": "subagent",
    "spawn_reason": "research",
    "request_id": "request-a",
    "step_id": 7,
    "priority": 10,
    "deadline_seconds": 30,
    "expected_output_length": 2048,
    "kv_retention_ttl_seconds": 5,
}


def read(
    headers: Mapping[str, str | bytes] | None = None, body: dict[str, Any] | None = None, **more: Any
) -> Identity:
    given = [
        (name.lower().encode(), value if isinstance(value, bytes) else value.encode())
        for name, value in (headers or {}).items()
    ]
    return read_identity(given, body, **more)


def said(identity: Identity) -> dict[str, object]:
    """What an identity says beyond nothing."""
    names = ("workflow", "run", "stage", "agent", "parent", "slo", "priority", "hints", "final", "source")
    return {
        name: value
        for name in names
        if (value := getattr(identity, name)) != getattr(Identity(), name) and value is not False
    }


@pytest.mark.parametrize(
    ("headers", "body", "expected"),
    [
        pytest.param(
            {"X-Dynamo-Session-ID": "run:a", "X-Dynamo-Parent-Session-ID": "run", "X-Dynamo-Session-Final": "true"},
            {"nvext": {"agent_hints": {"priority": 99, "strict_priority": 1, "osl": 900}}},
            {
                "run": "run",
                "agent": "run:a",
                "parent": "run",
                "priority": 8,
                "hints": {"osl": 900},
                "source": "dynamo",
            },
            id="dynamo: a sub-agent's end is not the run's",
        ),
        pytest.param(
            {"X-Dynamo-Session-ID": "run", "X-Dynamo-Session-Final": "true", "X-Dynamo-Request-Priority": "-3"},
            {"nvext": {"agent_context": {"session_id": "other"}, "agent_hints": {"priority": 5}}},
            {"run": "run", "agent": "run", "priority": -3, "final": True, "source": "dynamo"},
            id="dynamo: headers go before the body",
        ),
        pytest.param(
            {},
            {"nvext": {"agent_context": {"session_id": "s", "parent_session_id": "p", "session_final": False}}},
            {"run": "p", "agent": "s", "parent": "p", "source": "dynamo"},
            id="dynamo: body",
        ),
        pytest.param(
            {},
            {"vllm_xargs": {"agentic_context": CONTEXT}},
            {
                "run": "task-a:lead",
                "agent": "task-a:researcher",
                "parent": "task-a:lead",
                "stage": "subagent",
                "priority": 8,
                "hints": {"osl": 2048, "resume": True},
                "source": "vllm-router",
            },
            id="vllm-router",
        ),
        pytest.param(
            {},
            {"agent_hint": {"session_id": "s", "parent_session_id": "p"}},
            {"run": "p", "agent": "s", "parent": "p", "source": "vllm-router"},
            id="vllm-router: agent_hint",
        ),
        pytest.param(
            {
                "x-llm-d-inference-fairness-id": "program-1",
                "x-llm-d-inference-objective": "interactive",
                "x-llm-d-slo-ttft-ms": "200",
            },
            {},
            {"run": "program-1", "slo": "interactive", "source": "llm-d"},
            id="llm-d",
        ),
        pytest.param(
            {"x-gateway-inference-fairness-id": "program-1"}, {}, {"run": "program-1", "source": "llm-d"}, id="gie"
        ),
        pytest.param(
            CLAUDE,
            {"metadata": {"user_id": CLAUDE_USER}},
            {"workflow": "claude-code", "run": UUID, "source": "claude-code"},
            id="claude-code: main",
        ),
        pytest.param(
            {**CLAUDE, "x-claude-code-agent-id": "a1", "x-claude-code-request-class": "subagent"},
            {},
            {
                "workflow": "claude-code",
                "run": UUID,
                "agent": "a1",
                "parent": UUID,
                "stage": "subagent",
                "source": "claude-code",
            },
            id="claude-code: a sub-agent of the main agent",
        ),
        pytest.param(
            {
                **CLAUDE,
                "x-claude-code-agent-id": "a2",
                "x-claude-code-parent-agent-id": "a1",
                "x-claude-code-request-class": "subagent",
                "x-claude-code-agent-type": "Explore",
            },
            {},
            {
                "workflow": "claude-code",
                "run": UUID,
                "agent": "a2",
                "parent": "a1",
                "stage": "Explore",
                "source": "claude-code",
            },
            id="claude-code: nested",
        ),
        pytest.param(
            {**CLAUDE, "x-claude-code-request-class": "compaction", "x-claude-code-agent-type": "Explore"},
            {},
            {"workflow": "claude-code", "run": UUID, "stage": "compaction", "source": "claude-code"},
            id="claude-code: who compacts is a stage of its own",
        ),
        pytest.param(
            {},
            {"metadata": {"user_id": CLAUDE_USER}},
            {"workflow": "claude-code", "run": UUID, "source": "claude-code"},
            id="claude-code: body alone",
        ),
        pytest.param(
            {},
            {"metadata": {"user_id": f"user_{'a' * 64}_account__session_{UUID}"}},
            {"workflow": "claude-code", "run": UUID, "source": "claude-code"},
            id="claude-code: older body",
        ),
        pytest.param(
            CODEX,
            {"prompt_cache_key": UUID},
            {"workflow": "codex", "run": UUID, "agent": UUID, "stage": "turn", "source": "codex"},
            id="codex: main",
        ),
        pytest.param(
            SPAWNED,
            {"prompt_cache_key": UUID},
            {
                "workflow": "codex",
                "run": UUID,
                "agent": CHILD,
                "parent": UUID,
                "stage": "collab_spawn",
                "source": "codex",
            },
            id="codex: sub-agent",
        ),
        pytest.param(
            {**CODEX, "x-codex-turn-metadata": json.dumps({"request_kind": "compaction"})},
            {},
            {"workflow": "codex", "run": UUID, "agent": UUID, "stage": "compaction", "source": "codex"},
            id="codex: compaction",
        ),
        pytest.param(
            {"originator": "codex_vscode"},
            {"prompt_cache_key": UUID},
            {"workflow": "codex", "run": UUID, "source": "codex"},
            id="codex: the cache key is the root's session",
        ),
        pytest.param(
            OPENCODE,
            {},
            {"workflow": "opencode", "run": "ses_root", "agent": "ses_root", "source": "opencode"},
            id="opencode",
        ),
        pytest.param(
            {"x-session-id": "ses_child", "x-parent-session-id": "ses_root"},
            {},
            {
                "workflow": "opencode",
                "run": "ses_root",
                "agent": "ses_child",
                "parent": "ses_root",
                "source": "opencode",
            },
            id="opencode: sub-agent",
        ),
        pytest.param(
            {"x-litellm-session-id": "session-1", "x-litellm-agent-id": "planner", "x-litellm-priority": "3"},
            {},
            {"run": "session-1", "agent": "planner", "priority": -3, "source": "litellm"},
            id="litellm: lower is sooner",
        ),
        pytest.param(
            {}, {"litellm_session_id": "session-1"}, {"run": "session-1", "source": "litellm"}, id="litellm: body"
        ),
        pytest.param(
            {"x-nemo-relay-session-id": "relay-0001"}, {}, {"run": "relay-0001", "source": "litellm"}, id="any vendor"
        ),
        pytest.param(
            {"Helicone-Session-Id": "s1", "Helicone-Session-Name": "Book", "Helicone-Session-Path": "/plan/chapter/"},
            {},
            {"workflow": "Book", "run": "s1", "stage": "chapter", "source": "helicone"},
            id="helicone",
        ),
        pytest.param(
            {"x-smg-routing-key": "k1", "x-smg-priority": "Interactive"},
            {},
            {"run": "k1", "priority": 4, "source": "smg"},
            id="smg",
        ),
        pytest.param({"x-aibrix-session-key": "k1"}, {}, {"run": "k1", "source": "aibrix"}, id="aibrix"),
        pytest.param({"agent-session-id": "k1"}, {}, {"run": "k1", "source": "envoy"}, id="envoy"),
        pytest.param(
            {"x-portkey-trace-id": "t1", "x-portkey-span-name": "plan"},
            {},
            {"run": "t1", "stage": "plan", "source": "portkey"},
            id="portkey",
        ),
    ],
)
def test_every_vendor_is_understood(
    headers: dict[str, str | bytes], body: dict[str, Any], expected: dict[str, object]
) -> None:
    identity = read(headers, body)
    assert said(identity) == expected
    assert identity.hinted == ("stage" in expected)
    assert not identity.weak


def test_a_vendors_run_goes_on_after_the_call() -> None:
    assert not read(CLAUDE).final
    assert read({"x-claude-code-agent-type": "Explore"}).final


@pytest.mark.parametrize(
    "headers",
    [
        {"session-id": UUID, "thread-id": UUID, "user-agent": "OpenAI/Python 3.52.0"},
        {"session_id": UUID},
        {"x-openai-subagent": "review"},
    ],
)
def test_bare_sessions_are_nobodys_unless_the_client_is_codex(headers: dict[str, str | bytes]) -> None:
    assert read(headers) == NOBODY


def test_a_session_header_alone_does_not_make_a_client_opencode() -> None:
    identity = read({"x-session-id": "s", "user-agent": "python-httpx2/2.16"})
    assert said(identity) == {"run": "s", "source": "session"}


def test_our_own_channels_go_before_a_vendor_field_by_field() -> None:
    identity = read(
        {**SPAWNED, "X-Workflow-Stage": "fix", "X-Workflow-Priority": "2"},
        {"workflow": {"agent": "me"}},
        path=Place("nl2sql"),
    )
    assert said(identity) == {
        "workflow": "nl2sql",
        "run": UUID,
        "stage": "fix",
        "agent": "me",
        "parent": UUID,
        "priority": 2,
        "source": "path",
    }
    assert not identity.hinted


def test_a_run_of_our_own_keeps_the_vendors_other_fields() -> None:
    identity = read({**CLAUDE, "X-Workflow-Id": "mine"})
    assert said(identity) == {"workflow": "claude-code", "run": "mine", "source": "claude-code"}


def test_only_the_first_vendor_that_names_a_session_speaks() -> None:
    everybody: dict[str, str | bytes] = {
        "X-Dynamo-Session-ID": "dynamo",
        "x-llm-d-inference-fairness-id": "llm-d",
        "x-llm-d-inference-objective": "batch",
        **CLAUDE,
        "x-claude-code-agent-type": "Plan",
        **OPENCODE,
        "x-parent-session-id": "ses_parent",
        "x-litellm-session-id": "litellm-session",
        "x-litellm-agent-id": "litellm-agent",
        "Helicone-Session-Id": "helicone",
        "Helicone-Session-Name": "helicone",
        "x-smg-routing-key": "smg",
        "x-aibrix-session-key": "aibrix",
        "agent-session-id": "envoy",
        "x-portkey-trace-id": "portkey",
        "originator": "codex",
        "session-id": "codex",
    }
    body = {"vllm_xargs": {"agentic_context": {"program_id": "vllm-router"}}}
    order = [vendor.name for vendor in VENDORS]
    spoken = []
    while (identity := read(everybody, body)).source in order:
        spoken.append(identity.source)
        vendor = next(vendor for vendor in VENDORS if vendor.name == identity.source)
        if vendor.name == "dynamo":
            assert said(identity) == {"run": "dynamo", "agent": "dynamo", "source": "dynamo"}
        for spot in (spot for spots in vendor.fields.values() for spot in spots):
            everybody = {name: value for name, value in everybody.items() if name.lower() != spot.name.lower()}
            body.pop(spot.name, None)
    assert spoken == order


def test_a_schema_that_names_no_session_yields_to_one_that_does() -> None:
    hints = {"nvext": {"agent_hints": {"priority": 3, "osl": 12}}}
    assert said(read(CLAUDE, hints)) == {"workflow": "claude-code", "run": UUID, "source": "claude-code"}
    assert said(read({}, hints)) == {"priority": 3, "hints": {"osl": 12}, "final": True}
    assert said(read({"Helicone-Session-Path": "/plan", **{"x-smg-priority": "bulk"}})) == {
        "stage": "plan",
        "source": "helicone",
        "final": True,
    }


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"X-Dynamo-Session-ID": "x" * 257}, {}),
        ({"X-Dynamo-Session-ID": ""}, {}),
        ({"X-Claude-Code-Session-Id": "a\x07b"}, {}),
        ({"X-Claude-Code-Session-Id": b"a\xffb"}, {}),
        ({"X-Claude-Code-Session-Id": "a\u202eb"}, {}),
        ({"X-Dynamo-Request-Priority": "soon"}, {}),
        ({"x-smg-priority": "7"}, {}),
        ({"x-litellm-session-id": "short"}, {}),
        ({"x-litellm-session-id": "has spaces in it"}, {}),
        ({"x-litellm-priority": "9" * 5000}, {}),
        ({"x-my-parent-session-id": "parent-0001"}, {}),
        ({"x-openai-subagent": "review", "x-codex-turn-metadata": "[" * 8000}, {}),
        ({"Helicone-Session-Path": "///"}, {}),
        ({}, {"metadata": {"user_id": "someone"}}),
        ({}, {"metadata": {"user_id": '{"session_id": 7}'}}),
        ({}, {"metadata": {"user_id": '{"session_id":' * 1000}}),
        ({}, {"metadata": {"user_id": '{"a":[' + "0," * 9000 + f'0],"session_id":"{UUID}"}}'}}),
        ({}, {"metadata": {"user_id": {"session_id": ["s"]}}}),
        ({}, {"metadata": {"user_id": "{\ud800}"}}),
        ({}, {"metadata": "session"}),
        ({}, {"nvext": [1], "vllm_xargs": "x", "agent_hint": None, "prompt_cache_key": 7, "litellm_session_id": 1}),
        ({}, {"nvext": {"agent_context": {"session_id": True}, "agent_hints": {"osl": 0, "priority": 1.5}}}),
    ],
)
def test_what_does_not_fit_was_not_meant_for_us(headers: dict[str, str | bytes], body: dict[str, Any]) -> None:
    began = time.process_time()
    identity = read(headers, body)
    assert time.process_time() - began < 1
    assert said(identity) in ({"final": True}, {"final": True, "stage": "review", "source": "codex"})


def test_a_header_given_twice_is_nobodys_but_ours_is_an_error() -> None:
    twice = [(b"x-claude-code-session-id", b"a"), (b"x-claude-code-session-id", b"b")]
    assert read_identity(twice) == NOBODY
    assert read_identity([*twice, (b"x-claude-code-session-id", b"c")]) == NOBODY


def test_an_ill_formed_spot_leaves_its_field_to_the_next() -> None:
    identity = read({**CLAUDE, "X-Claude-Code-Session-Id": "x" * 300}, {"metadata": {"user_id": CLAUDE_USER}})
    assert identity.run == UUID


def test_sub_agents_of_sub_agents_belong_to_the_run_at_the_root() -> None:
    lineage = Lineage()

    def call(tenant: str, own: str, parent: str = "") -> str:
        headers: dict[str, str | bytes] = {**OPENCODE, "x-session-id": own}
        if parent:
            headers["x-parent-session-id"] = parent
        return read(headers, tenant=tenant, lineage=lineage).run

    assert call("a", "root") == "root"
    assert call("a", "child", "root") == "root"
    assert call("a", "grandchild", "child") == "root"
    assert call("a", "grandchild") == "root"
    assert call("b", "grandchild", "child") == "child", "another tenant's sessions are no kin"
    assert call("b", "child") == "child"


def test_the_end_of_a_sub_agent_that_no_longer_names_its_parent_is_not_the_runs() -> None:
    lineage = Lineage()
    read({"X-Dynamo-Session-ID": "child", "X-Dynamo-Parent-Session-ID": "root"}, lineage=lineage)
    over: dict[str, str | bytes] = {"X-Dynamo-Session-ID": "child", "X-Dynamo-Session-Final": "true"}
    identity = read(over, lineage=lineage)
    assert (identity.run, identity.final) == ("root", False)


def test_lineage_is_bounded_by_tenant_and_forgets_the_oldest() -> None:
    lineage = Lineage(most=2)
    for name in ("c1", "c2", "c3"):
        assert lineage.root("a", name, "r") == "r"
    lineage.root("b", "c1", "q")
    assert len(lineage) == 3
    assert [lineage.root("a", name) for name in ("c1", "c2", "c3")] == ["c1", "r", "r"]
    assert lineage.root("b", "c1") == "q"
    assert lineage.root("c", "c1") == "c1"


def test_sessions_that_each_claim_the_other_as_parent_end_somewhere() -> None:
    lineage = Lineage()
    assert lineage.root("a", "x", "x") == "x"
    assert lineage.root("a", "x", "y") == "y"
    assert lineage.root("a", "y", "x") == "y"
    assert lineage.root("a", "x", "y") == "y"


@pytest.mark.parametrize(
    ("given", "strip", "replaced"),
    [
        ({"agentic_context": CONTEXT}, ("vllm_xargs",), {}),
        ({"agentic_context": CONTEXT, "top": [1, 2]}, (), {"vllm_xargs": {"top": [1, 2]}}),
        ({"agentic_context": None}, ("vllm_xargs",), {}),
        ({"session_id": "s"}, (), {}),
        ("text", (), {}),
    ],
)
def test_what_is_for_another_router_does_not_reach_vllm(
    given: object, strip: tuple[str, ...], replaced: dict[str, object]
) -> None:
    identity = read({}, {"model": "m", "vllm_xargs": given})
    assert (identity.body_keys_to_strip, identity.body_replaced) == (strip, replaced)


def test_our_object_and_another_routers_are_both_taken_out() -> None:
    identity = read({}, {"workflow": {"id": "r"}, "vllm_xargs": {"agentic_context": CONTEXT}})
    assert identity.body_keys_to_strip == ("workflow", "vllm_xargs")
    assert identity.run == "r"


VALUES = st.one_of(
    st.text(max_size=300),
    st.integers(),
    st.none(),
    st.booleans(),
    st.dictionaries(st.sampled_from(["session_id", "agent_context", "user_id", "id"]), st.text(max_size=9)),
)


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(sorted({spot.key for v in VENDORS for spots in v.fields.values() for spot in spots})),
            st.binary(max_size=300),
        ),
        max_size=6,
    ),
    st.dictionaries(
        st.sampled_from(["metadata", "nvext", "vllm_xargs", "agent_hint", "prompt_cache_key", "conversation"]),
        st.one_of(VALUES, st.dictionaries(st.sampled_from(["user_id", "session_id", "agent_context"]), VALUES)),
    ),
)
def test_nothing_that_is_foreign_is_ever_an_error(
    headers: list[tuple[bytes, bytes]], body: dict[str, object]
) -> None:
    identity = read_identity(headers, body, lineage=Lineage())
    for text in (identity.run, identity.agent, identity.parent, identity.stage, identity.workflow, identity.slo):
        assert len(text.encode()) <= 256
        assert text.isprintable()
    assert -8 <= identity.priority <= 8
