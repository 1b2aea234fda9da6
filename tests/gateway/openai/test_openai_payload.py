"""Reading a body: what is taken, what is refused and by which name."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.openai.errors import ApiError
from gateway.openai.payload import (
    CONTAINERS_MOST,
    DENIED,
    ITEMS_MOST,
    MAX_DEPTH,
    MEMBERS_MOST,
    Endpoint,
    denied,
    parse,
)

USER = {"role": "user", "content": "hi"}
CHAT: dict[str, Any] = {"model": "m", "messages": [USER]}


def encoded(document: object) -> bytes:
    return json.dumps(document).encode()


def refusal(body: bytes, endpoint: Endpoint = "chat") -> ApiError:
    with pytest.raises(ApiError) as raised:
        parse(body, endpoint=endpoint)
    assert raised.value.status == 400
    return raised.value


def test_a_chat_is_read_whole() -> None:
    document = {
        "model": "m",
        "messages": [{"role": "system", "content": "s"}, USER],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 5,
        "max_completion_tokens": 7,
        "n": 2,
        "tools": [
            {"type": "function", "function": {"name": "execute_sql"}},
            {"type": "custom", "custom": {"name": "c"}},
            {"type": "function", "function": {"name": 5}},
        ],
        "tool_choice": "auto",
        "temperature": 0,
        "seed": 3,
        "metadata": {"k": "v"},
        "workflow": {},
        "unknown": {"kept": [1]},
    }
    body = encoded(document)
    payload = parse(body, endpoint="chat")
    assert (payload.model, payload.stream, payload.include_usage) == ("m", True, True)
    assert (payload.max_tokens, payload.n, payload.temperature, payload.seed) == (7, 2, 0, 3)
    assert payload.messages == document["messages"]
    assert payload.prompt is None
    assert payload.tools == ("execute_sql",)
    assert payload.document == document
    assert payload.body is body
    assert payload.endpoint == "chat"


CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("endpoint", "param", "wide"),
    [
        ("chat", "messages", lambda n: {"messages": [USER] * n}),
        ("chat", "messages", lambda n: {"messages": [{"role": "user", "content": ["x"] * (n - 1)}]}),
        ("chat", "messages", lambda n: {"messages": [{"role": "assistant", "tool_calls": [CALL] * (n - 1)}]}),
        ("chat", "tools", lambda n: {"messages": [USER], "tools": [TOOL] * (n - 1)}),
        ("chat", "messages", lambda n: {"messages": [USER] * (n - n // 3), "tools": [TOOL] * (n // 3)}),
        ("completions", "prompt", lambda n: {"prompt": ["x"] * n}),
        ("completions", "prompt", lambda n: {"prompt": [[1]] * n}),
    ],
)
def test_a_body_holds_so_many_items_and_no_more(
    endpoint: Endpoint, param: str, wide: Callable[[int], dict[str, object]]
) -> None:
    parse(encoded({"model": "m", **wide(ITEMS_MOST)}), endpoint=endpoint)
    error = refusal(encoded({"model": "m", **wide(ITEMS_MOST + 1)}), endpoint)
    assert error.param == param
    assert str(ITEMS_MOST) in error.message


def test_a_body_holds_so_many_objects_and_lists_and_no_more() -> None:
    known = 2  # the list of messages and its one message
    parse(encoded({**CHAT, "x": [[]] * (CONTAINERS_MOST - known - 1)}), endpoint="chat")
    assert str(CONTAINERS_MOST) in refusal(encoded({**CHAT, "x": [[]] * (CONTAINERS_MOST - known)})).message


def test_a_body_holds_so_many_members_and_no_more() -> None:
    fitting = CHAT | {f"x{number}": number for number in range(MEMBERS_MOST - len(CHAT))}
    parse(encoded(fitting), endpoint="chat")
    assert str(MEMBERS_MOST) in refusal(encoded({**fitting, "more": 1})).message


@pytest.mark.parametrize(
    ("body", "choices"),
    [
        (CHAT, 1),
        (CHAT | {"n": 3}, 3),
        ({"prompt": "one"}, 1),
        ({"prompt": [1, 2, 3], "n": 2}, 2),
        ({"prompt": ["one", "two"], "n": 2}, 4),
        ({"prompt": [[1, 2], [3], [4]]}, 3),
    ],
)
def test_as_many_choices_are_asked_for_as_it_says_for_each_prompt(body: dict[str, object], choices: int) -> None:
    endpoint: Endpoint = "chat" if "messages" in body else "completions"
    assert parse(encoded({"model": "m", **body}), endpoint=endpoint).choices == choices


def test_a_prompt_of_token_ids_may_be_longer() -> None:
    ids = [1] * (ITEMS_MOST + 1)
    assert parse(encoded({"model": "m", "prompt": ids}), endpoint="completions").prompt == ids


def test_what_is_absent_or_null_has_its_default() -> None:
    fields = ["stream", "stream_options", "max_tokens", "max_completion_tokens", "n", "temperature", "seed"]
    fields += ["tools", "tool_choice", "metadata", "workflow"]
    for document in (CHAT, {**CHAT, **dict.fromkeys(fields)}):
        payload = parse(encoded(document), endpoint="chat")
        assert (payload.stream, payload.include_usage, payload.max_tokens, payload.n) == (False, False, None, 1)
        assert (payload.tools, payload.temperature, payload.seed) == ((), None, None)


def test_a_usage_option_other_than_true_asks_for_none() -> None:
    body = encoded({**CHAT, "stream_options": {"include_usage": "yes"}})
    assert not parse(body, endpoint="chat").include_usage


@pytest.mark.parametrize("prompt", ["", "text", ["a", "b"], [1, 2, 3], [[1, 2], [3]]])
def test_a_completion_takes_text_texts_and_tokens(prompt: object) -> None:
    payload = parse(encoded({"model": "m", "prompt": prompt}), endpoint="completions")
    assert payload.prompt == prompt
    assert payload.messages == ()


@pytest.mark.parametrize(
    "prompt", [5, {}, [], [None], ["a", 1], [1, True], [-1], [2**31], [[]], [[1], "a"], [[1], ["a"]], [[-1]], [1.5]]
)
def test_any_other_prompt_is_refused(prompt: object) -> None:
    error = refusal(encoded({"model": "m", "prompt": prompt}), "completions")
    assert error.message == "prompt: must be a string, a list of strings, or lists of token ids"
    assert error.param == "prompt"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": 5}, "model: must be a string of 1 to 256 characters"),
        ({"model": ""}, "model: must be a string of 1 to 256 characters"),
        ({"model": "m" * 257}, "model: must be a string of 1 to 256 characters"),
        ({"messages": []}, "messages: must be a list with at least one message"),
        ({"messages": {"role": "user"}}, "messages: must be a list with at least one message"),
        ({"messages": "hi"}, "messages: must be a list with at least one message"),
        ({"messages": [USER, "hi"]}, "messages[1]: must be an object"),
        ({"messages": [USER, USER, {"role": 5}]}, "messages[2].role: must be a string"),
        ({"messages": [{"content": "x"}]}, "messages[0].role: must be a string"),
        ({"stream": "true"}, "stream: must be true or false"),
        ({"stream": 1}, "stream: must be true or false"),
        ({"stream_options": []}, "stream_options: must be an object"),
        ({"max_tokens": 0}, "max_tokens: must be a positive integer"),
        ({"max_tokens": 1.5}, "max_tokens: must be a positive integer"),
        ({"max_tokens": True}, "max_tokens: must be a positive integer"),
        ({"max_tokens": 10**30}, "max_tokens: must be a positive integer"),
        ({"max_completion_tokens": "9"}, "max_completion_tokens: must be a positive integer"),
        ({"n": 0}, "n: must be a positive integer"),
        ({"temperature": "hot"}, "temperature: must be a number"),
        ({"temperature": False}, "temperature: must be a number"),
        ({"seed": 0.5}, "seed: must be an integer"),
        ({"tools": {}}, "tools: must be a list"),
        ({"tools": [{}, "execute_sql"]}, "tools[1]: must be an object"),
        ({"tool_choice": 1}, "tool_choice: must be a string or an object"),
        ({"metadata": "m"}, "metadata: must be an object"),
        ({"workflow": "nl2sql"}, "workflow: must be an object"),
    ],
)
def test_a_wrong_type_is_refused_by_the_members_name(change: dict[str, object], message: str) -> None:
    error = refusal(encoded({**CHAT, **change}))
    assert error.message == message
    assert error.param == message.partition(":")[0]
    assert error.code == "invalid_value"


@pytest.mark.parametrize(
    ("document", "endpoint", "param"),
    [
        ({"messages": [USER]}, "chat", "model"),
        ({"model": "m"}, "chat", "messages"),
        ({"model": "m", "prompt": "x"}, "chat", "messages"),
        ({"model": "m", "messages": [USER]}, "completions", "prompt"),
    ],
)
def test_a_missing_member_is_named(document: dict[str, object], endpoint: Endpoint, param: str) -> None:
    error = refusal(encoded(document), endpoint)
    assert (error.param, error.code) == (param, "missing_required_parameter")
    assert error.message == f"{param}: is required"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"x"',
        b"{}{}",
        b'{"model": NaN}',
        b'{"model": 1e999}',
        b"{'model': 1}",
        b'{"model": "\xff"}',
        b'{"model": "\\ud800"}',
        b'{"model": "a\nb"}',
        b"\xef\xbb\xbf{}",
        '{"model": "m"}'.encode("utf-16"),
    ],
)
def test_what_is_not_one_strict_json_object_is_refused(body: bytes) -> None:
    assert refusal(body).code == "invalid_json"


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
@pytest.mark.parametrize("wide", [False, True])
def test_nesting_is_taken_to_the_bound_and_no_further(opening: str, closing: str, wide: bool) -> None:
    def nested(depth: int) -> bytes:
        inside = opening * (depth - 1) + "1" + closing * (depth - 1)
        more = ', "more": [' + ", ".join(["[[1]]"] * 100) + "]" if wide else ""
        return f'{{"model": "m", "messages": [{{"role": "user"}}], "x": {inside}{more}}}'.encode()

    parse(nested(MAX_DEPTH), endpoint="chat")
    for depth in (MAX_DEPTH + 1, 1000, 1100, 200_000):
        error = refusal(nested(depth))
        assert error.code == "invalid_json"
    assert refusal(nested(MAX_DEPTH + 1)).message == "the body is nested deeper than 64 levels"


def test_the_last_of_two_equal_keys_counts() -> None:
    body = b'{"model": "a", "messages": [{"role": "user"}], "model": "b"}'
    assert parse(body, endpoint="chat").model == "b"


def test_what_would_reconfigure_an_engine_is_denied_and_each_has_its_reason() -> None:
    names = [row.name for row in DENIED]
    assert len(set(names)) == len(names)
    assert all(row.reason for row in DENIED)
    document = dict.fromkeys([*names, "chat_template_kwargs", "top_k", "cache_salt"])
    assert denied(document, ordering=True) == tuple(names)
    assert set(names) - set(denied(document, ordering=False)) == {"priority"}
    assert denied(CHAT, ordering=True) == ()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=15,
)


@given(
    st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(("model", "messages", "prompt", "tools", "stream_options", "max_tokens"), JSON),
    ),
    st.sampled_from(["chat", "completions"]),
)
def test_whatever_comes_is_read_or_refused_by_name(document: dict[str, object], endpoint: Endpoint) -> None:
    refused = None
    try:
        payload = parse(encoded(document), endpoint=endpoint)
    except ApiError as error:
        refused = error
    if refused is None:
        assert payload.model
    else:
        assert refused.status == 400
        assert refused.param or refused.code == "invalid_json"
