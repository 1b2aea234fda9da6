"""Identity: four channels and a key's default, field by field, and what is refused by name."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.identity import NOBODY, Identity, Place, alias_place, read_identity, split_path
from gateway.openai.errors import ApiError

Headers = list[tuple[bytes, bytes]]

EVERY_HEADER: Headers = [
    (b"host", b"gateway"),
    (b"authorization", b"Bearer secret"),
    (b"x-request-id", b"q1"),
    (b"x-workflow-type", b"nl2sql"),
    (b"x-workflow-id", b"run-1"),
    (b"x-workflow-stage", b"fix"),
    (b"x-workflow-agent", b"a1"),
    (b"x-workflow-parent", b"p1"),
    (b"x-workflow-step", b"3"),
    (b"x-workflow-deadline-ms", b"8500"),
    (b"x-workflow-slo", b"interactive"),
    (b"x-workflow-priority", b"-8"),
    (b"x-workflow-hints", b"osl=900, resume=?1"),
    (b"x-workflow-final", b"true"),
    (b"x-workflow-tools", b"intercept"),
]
EVERYTHING = Identity(
    workflow="nl2sql",
    run="run-1",
    stage="fix",
    agent="a1",
    parent="p1",
    step=3,
    deadline=8.5,
    slo="interactive",
    priority=-8,
    hints={"osl": 900, "resume": True},
    final=True,
    last=True,
    tools="intercept",
    source="header",
)


def refusal(
    headers: Headers | None = None, body: dict[str, object] | None = None, path: Place | None = None
) -> ApiError:
    with pytest.raises(ApiError) as raised:
        read_identity(headers or [], body, path=path)
    assert (raised.value.status, raised.value.code) == (400, "invalid_value")
    return raised.value


def test_a_call_that_says_nothing_has_an_empty_identity() -> None:
    assert read_identity([(b"host", b"x")], {"model": "m"}) == NOBODY
    assert read_identity([]) == Identity(source="none", final=True)


def test_every_field_is_read_from_its_header() -> None:
    assert read_identity(EVERY_HEADER, {"model": "m"}) == EVERYTHING


def test_every_field_is_read_from_the_workflow_object_of_the_body() -> None:
    workflow = {
        "type": "nl2sql",
        "id": "run-1",
        "stage": "fix",
        "agent": "a1",
        "parent": "p1",
        "step": 3,
        "deadline_ms": 8500,
        "slo": "interactive",
        "priority": -8,
        "hints": {"osl": 900, "resume": True, "colour": "red"},
        "final": True,
        "tools": "intercept",
    }
    identity = read_identity([], {"workflow": workflow})
    assert identity == replace(EVERYTHING, source="body", body_keys_to_strip=("workflow",))


def test_every_field_but_hints_is_read_from_metadata_strings() -> None:
    metadata = {
        "workflow_type": "nl2sql",
        "workflow_id": "run-1",
        "stage": "fix",
        "agent": "a1",
        "parent": "p1",
        "step": "3",
        "deadline_ms": "8500",
        "slo": "interactive",
        "priority": "-8",
        "final": "1",
        "hints": "osl=1",
        "tools": "none of ours, here",
    }
    identity = read_identity([], {"metadata": metadata})
    assert (identity.workflow, identity.run, identity.stage) == ("nl2sql", "run-1", "fix")
    assert (identity.agent, identity.parent, identity.step) == ("a1", "p1", 3)
    assert (identity.deadline, identity.slo, identity.priority) == (8.5, "interactive", -8)
    assert identity.final
    assert identity.hints == {}
    assert identity.tools is None
    assert identity.source == "body"
    assert identity.body_keys_to_strip == ()


def test_the_first_channel_that_speaks_wins_field_by_field() -> None:
    channels: dict[str, Place] = {
        "path": Place("by-path", "s-path"),
        "alias": Place("by-alias", "s-alias"),
        "key": Place("by-key"),
    }
    headers = [(b"x-workflow-type", b"by-header"), (b"x-workflow-final", b"0")]
    body = {
        "workflow": {"type": "by-object", "stage": "s-object", "final": True, "step": 2},
        "metadata": {"workflow_type": "by-metadata", "stage": "s-metadata", "step": "9", "priority": "4"},
    }

    def read(headers: Headers, body: dict[str, object], *names: str) -> tuple[str, str, str]:
        path, alias, key = (channels[name] if name in names else None for name in ("path", "alias", "key"))
        identity = read_identity(headers, body, path=path, alias=alias, key_default=key)
        return identity.workflow, identity.stage, identity.source

    every = ("path", "alias", "key")
    assert read(headers, {**body}, *every) == ("by-header", "s-object", "header")
    assert read([], {**body}, *every) == ("by-object", "s-object", "body")
    assert read([], {"metadata": body["metadata"]}, *every) == ("by-metadata", "s-metadata", "body")
    assert read([], {}, *every) == ("by-path", "s-path", "path")
    assert read([], {}, "alias", "key") == ("by-alias", "s-alias", "alias")
    assert read([], {}, "key") == ("by-key", "", "key")
    assert read([(b"x-workflow-stage", b"s")], {}) == ("", "s", "header")
    mixed = read_identity([*headers, (b"x-workflow-id", b"r")], {**body})
    assert (mixed.final, mixed.step, mixed.priority) == (False, 2, 4)


def test_a_path_without_a_stage_leaves_it_to_the_next_channel() -> None:
    identity = read_identity([], path=Place("w"), alias=Place("v", "s"))
    assert (identity.workflow, identity.stage, identity.source) == ("w", "s", "path")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (b"x-workflow-type", b"", "X-Workflow-Type: must be 1 to 256 bytes of printable text"),
        (b"x-workflow-id", b"x" * 257, "X-Workflow-Id: must be 1 to 256 bytes of printable text"),
        (b"x-workflow-id", "ü".encode() * 129, "X-Workflow-Id: must be 1 to 256 bytes of printable text"),
        (b"x-workflow-id", b"a\x07b", "X-Workflow-Id: must be 1 to 256 bytes of printable text"),
        (b"x-workflow-id", b"a\xffb", "X-Workflow-Id: must be 1 to 256 bytes of printable text"),
        (b"x-workflow-stage", "a\u202eb".encode(), "X-Workflow-Stage: must be 1 to 256 bytes of printable text"),
        (b"x-workflow-step", b"0", "X-Workflow-Step: must be an integer from 1 to 1000000"),
        (b"x-workflow-step", b"1000001", "X-Workflow-Step: must be an integer from 1 to 1000000"),
        (b"x-workflow-step", b"1.0", "X-Workflow-Step: must be an integer from 1 to 1000000"),
        (b"x-workflow-step", "٣".encode(), "X-Workflow-Step: must be an integer from 1 to 1000000"),
        (b"x-workflow-deadline-ms", b"-5", "X-Workflow-Deadline-Ms: must be an integer from 1 to 2592000000"),
        (b"x-workflow-deadline-ms", b"9" * 5000, "X-Workflow-Deadline-Ms: must be an integer from 1 to 2592000000"),
        (b"x-workflow-deadline-ms", b"8s", "X-Workflow-Deadline-Ms: must be an integer from 1 to 2592000000"),
        (b"x-workflow-priority", b"9", "X-Workflow-Priority: must be an integer from -8 to 8"),
        (b"x-workflow-priority", b"high", "X-Workflow-Priority: must be an integer from -8 to 8"),
        (b"x-workflow-final", b"yes", "X-Workflow-Final: must be true or false"),
        (b"x-workflow-tools", b"both", "X-Workflow-Tools: must be pass, ahead or intercept"),
        (b"x-workflow-hints", b"osl=", "X-Workflow-Hints: must be a list such as `osl=900, resume=?1`"),
        (b"x-workflow-hints", b"osl=1,", "X-Workflow-Hints: must be a list such as `osl=900, resume=?1`"),
        (b"x-workflow-hints", b"OSL=1", "X-Workflow-Hints: must be a list such as `osl=900, resume=?1`"),
        (b"x-workflow-hints", b'a="b', "X-Workflow-Hints: must be a list such as `osl=900, resume=?1`"),
        (b"x-workflow-hints", b"osl=0", "X-Workflow-Hints: osl must be an integer from 1 to 10000000"),
        (b"x-workflow-hints", b"osl=9.5", "X-Workflow-Hints: osl must be an integer from 1 to 10000000"),
        (b"x-workflow-hints", b"osl", "X-Workflow-Hints: osl must be an integer from 1 to 10000000"),
        (b"x-workflow-hints", b"resume=1", "X-Workflow-Hints: resume must be a boolean"),
    ],
)
def test_an_ill_formed_header_is_refused_by_its_name(name: bytes, value: bytes, message: str) -> None:
    error = refusal([(name, value)])
    assert error.message == message
    assert error.param == message.partition(":")[0]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"workflow": "nl2sql"}, "workflow: must be an object"),
        ({"workflow": {"id": 7}}, "workflow.id: must be 1 to 256 bytes of printable text"),
        ({"workflow": {"id": ""}}, "workflow.id: must be 1 to 256 bytes of printable text"),
        ({"workflow": {"type": "a\nb"}}, "workflow.type: must be 1 to 256 bytes of printable text"),
        ({"workflow": {"step": True}}, "workflow.step: must be an integer from 1 to 1000000"),
        ({"workflow": {"step": 2.0}}, "workflow.step: must be an integer from 1 to 1000000"),
        ({"workflow": {"deadline_ms": 0}}, "workflow.deadline_ms: must be an integer from 1 to 2592000000"),
        ({"workflow": {"priority": 9}}, "workflow.priority: must be an integer from -8 to 8"),
        ({"workflow": {"final": 1}}, "workflow.final: must be true or false"),
        ({"workflow": {"tools": ["pass"]}}, "workflow.tools: must be pass, ahead or intercept"),
        ({"workflow": {"hints": [1]}}, "workflow.hints: must be an object"),
        ({"workflow": {"hints": {"osl": "many"}}}, "workflow.hints: osl must be an integer from 1 to 10000000"),
        (
            {"metadata": {"workflow_id": "r", "step": "x"}},
            "metadata.step: must be an integer from 1 to 1000000",
        ),
        (
            {"metadata": {"workflow_type": "w", "priority": "high"}},
            "metadata.priority: must be an integer from -8 to 8",
        ),
        ({"metadata": {"workflow_id": ["r"]}}, "metadata.workflow_id: must be 1 to 256 bytes of printable text"),
    ],
)
def test_an_ill_formed_body_is_refused_by_its_member(body: dict[str, object], message: str) -> None:
    error = refusal(body=body)
    assert error.message == message
    assert error.param == message.partition(":")[0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("typ", "workflow.typ: is not known here; did you mean type? (known: type, id, stage, "),
        ("deadline", "workflow.deadline: is not known here; did you mean deadline_ms? (known: "),
        ("a\nb", "workflow.a\\nb: is not known here (known: "),
    ],
)
def test_a_member_that_means_nothing_is_refused_with_what_may_be_meant(name: str, message: str) -> None:
    error = refusal(body={"workflow": {"id": "r", name: 1}})
    assert error.message.startswith(message)
    assert error.param == message.partition(":")[0]


def test_metadata_that_names_no_workflow_is_read_where_it_fits_and_never_refused() -> None:
    metadata = {"stage": {"nested": 1}, "priority": "high", "final": "soon", "agent": "planner", "step": "2"}
    identity = read_identity([], {"metadata": metadata}, path=Place("w", "s"))
    assert (identity.stage, identity.priority, identity.step) == ("s", 0, 2)
    assert (identity.agent, identity.step) == ("planner", 2)


def test_what_is_null_is_absent() -> None:
    body = {"workflow": {"id": None, "step": None, "hints": None}, "metadata": None}
    assert read_identity([], body) == Identity(body_keys_to_strip=("workflow",), final=True)
    assert read_identity([], {"workflow": None}) == Identity(body_keys_to_strip=("workflow",), final=True)


@pytest.mark.parametrize(
    ("text", "hints"),
    [
        (b"osl=1", {"osl": 1}),
        (b"resume", {"resume": True}),
        (b"resume=?0;why=x", {"resume": False}),
        (b'ttl=5,  note="a,b=\\"c\\"" , osl=12;a=1, list=(1 2), f=1.5, t=tok/en', {"osl": 12}),
        (b"osl=1, osl=2", {"osl": 2}),
        (b"", {}),
        (b"*k=?1", {}),
    ],
)
def test_hints_are_a_dictionary_of_which_the_unknown_is_passed_over(text: bytes, hints: dict[str, int]) -> None:
    assert read_identity([(b"x-workflow-hints", text)]).hints == hints


@pytest.mark.parametrize("text", [b"a;" + b" " * 30_000 + b'"', b"a" + b" " * 30_000 + b'"', b"a=(" * 10_000])
def test_hostile_hints_are_refused_at_once(text: bytes) -> None:
    began = time.process_time()
    refusal([(b"x-workflow-hints", text)])
    assert time.process_time() - began < 1


@pytest.mark.parametrize("value", [b"-8", b"0", b"8"])
def test_priorities_at_the_bounds_are_taken(value: bytes) -> None:
    assert read_identity([(b"x-workflow-priority", value)]).priority == int(value)


def test_tools_are_passed_intercepted_or_left_to_the_workflow() -> None:
    assert read_identity([(b"x-workflow-tools", b"pass")]).tools == "pass"
    assert read_identity([(b"x-workflow-tools", b"intercept")]).tools == "intercept"
    assert read_identity([], {"workflow": {"tools": "pass"}}).tools == "pass"
    assert read_identity([(b"x-workflow-tools", b"ahead")], {"workflow": {"tools": "pass"}}).tools == "ahead"
    assert read_identity([], {"workflow": {"type": "w"}}).tools is None


def test_the_longest_id_and_deadline_are_taken() -> None:
    run = "ü" * 128
    identity = read_identity(
        [(b"x-workflow-id", run.encode()), (b"x-workflow-deadline-ms", str(30 * 24 * 3600 * 1000).encode())]
    )
    assert identity.run == run
    assert identity.deadline == 30 * 24 * 3600


@pytest.mark.parametrize(
    ("path", "place", "rest"),
    [
        ("/w/nl2sql/s/fix/v1/chat/completions", Place("nl2sql", "fix"), "/v1/chat/completions"),
        ("/w/nl2sql/v1/models", Place("nl2sql"), "/v1/models"),
        ("/w/nl2sql/v1", Place("nl2sql"), "/v1"),
        ("/w/nl2sql/s/check/mcp", Place("nl2sql", "check"), "/mcp"),
        ("/w/nl2sql/mcp/x", None, "/w/nl2sql/mcp/x"),
        ("/w/s/s/s/v1/x", Place("s", "s"), "/v1/x"),
        ("/v1/chat/completions", None, "/v1/chat/completions"),
        ("/w//v1/models", None, "/w//v1/models"),
        ("/w/a/s//v1/models", None, "/w/a/s//v1/models"),
        ("/w/a/b/v1/models", None, "/w/a/b/v1/models"),
        ("/w/a/v1beta", None, "/w/a/v1beta"),
        ("/w/a", None, "/w/a"),
    ],
)
def test_the_path_of_a_base_url_names_workflow_and_stage(path: str, place: Place | None, rest: str) -> None:
    assert split_path(path) == (place, rest)


def test_ill_formed_names_in_path_and_alias_are_refused() -> None:
    place, _ = split_path("/w/a\nb/v1/models")
    assert refusal(path=place).param == "path"
    with pytest.raises(ApiError) as raised:
        read_identity([], alias=alias_place("w/" + "s" * 300, {"w"}))
    assert raised.value.param == "model"


@pytest.mark.parametrize(
    ("model", "place"),
    [
        ("nl2sql/fix", Place("nl2sql", "fix")),
        ("nl2sql/a/b", Place("nl2sql", "a/b")),
        ("nl2sql/", None),
        ("nl2sql", None),
        ("Qwen/Qwen2.5-Coder-7B-Instruct", None),
        ("/fix", None),
    ],
)
def test_a_model_is_an_alias_only_where_a_known_workflow_comes_first(model: str, place: Place | None) -> None:
    assert alias_place(model, {"nl2sql"}) == place


@given(
    st.lists(
        st.tuples(
            st.sampled_from([name for name, _ in EVERY_HEADER]),
            st.one_of(st.binary(max_size=40), st.sampled_from([value for _, value in EVERY_HEADER])),
        ),
        max_size=8,
    ),
    st.dictionaries(
        st.sampled_from(["workflow", "metadata"]),
        st.dictionaries(
            st.sampled_from(["type", "id", "workflow_id", "stage", "step", "deadline_ms", "final", "hints"]),
            st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers())),
        ),
    ),
)
def test_whatever_is_said_it_is_read_or_refused_with_a_place(
    headers: Headers, body: dict[str, dict[str, object]]
) -> None:
    refused = None
    try:
        identity = read_identity(headers, body)
    except ApiError as error:
        refused = error
    if refused is None:
        assert -8 <= identity.priority <= 8
        assert len(identity.run.encode()) <= 256
    else:
        assert refused.status == 400
        assert refused.param
