"""The table of errors, and the shape in which each reaches a client."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial

import pytest

from gateway.openai import errors
from gateway.openai.errors import ERRORS, ApiError

MADE: list[tuple[Callable[[], ApiError], int, str, str]] = [
    (lambda: errors.bad_request("m"), 400, "invalid_request_error", "invalid_value"),
    (lambda: errors.bad_request("m", code="invalid_json"), 400, "invalid_request_error", "invalid_json"),
    (lambda: errors.ill_formed("n", "must be 1"), 400, "invalid_request_error", "invalid_value"),
    (lambda: errors.missing("model"), 400, "invalid_request_error", "missing_required_parameter"),
    (errors.unauthorized, 401, "authentication_error", "invalid_api_key"),
    (errors.forbidden, 403, "permission_error", "permission_denied"),
    (lambda: errors.not_found("route", "/x"), 404, "invalid_request_error", "not_found"),
    (lambda: errors.not_found("model", "m"), 404, "invalid_request_error", "model_not_found"),
    (lambda: errors.not_found("workflow", "w"), 404, "invalid_request_error", "workflow_not_found"),
    (lambda: errors.not_found("stage", "s"), 404, "invalid_request_error", "stage_not_found"),
    (lambda: errors.not_found("pool", "p"), 404, "invalid_request_error", "pool_not_found"),
    (lambda: errors.not_found("engine", "e"), 404, "invalid_request_error", "engine_not_found"),
    (lambda: errors.not_found("database", "d"), 404, "invalid_request_error", "database_not_found"),
    (lambda: errors.wrong_method("PUT", ["POST"]), 405, "invalid_request_error", "method_not_allowed"),
    (lambda: errors.timeout("m", code="request_timeout"), 408, "timeout_error", "request_timeout"),
    (lambda: errors.too_large(10), 413, "invalid_request_error", "request_too_large"),
    (lambda: errors.misdirected("m"), 421, "invalid_request_error", "misdirected_request"),
    (lambda: errors.refused("m", retry_after=1), 429, "rate_limit_error", "rate_limit_exceeded"),
    *(
        (partial(errors.unauthorized, code=code), 401, "authentication_error", code)
        for code in ("expired_api_key", "conflicting_api_keys")
    ),
    *(
        (partial(errors.forbidden, "m", code=code), 403, "permission_error", code)
        for code in ("model_not_allowed", "pool_not_allowed")
    ),
    *(
        (partial(errors.refused, "m", retry_after=1, code=code), 429, "rate_limit_error", code)
        for code in ("request_quota_exceeded", "token_quota_exceeded", "concurrency_quota_exceeded")
    ),
    (errors.headers_too_large, 431, "invalid_request_error", "headers_too_large"),
    (errors.internal, 500, "server_error", "internal_error"),
    (errors.broken, 502, "upstream_error", "engine_broke"),
    (errors.interrupted, 502, "upstream_error", "stream_interrupted"),
    (lambda: errors.unavailable(retry_after=1), 503, "server_error", "pool_unavailable"),
    (lambda: errors.timeout("m", code="deadline_exceeded"), 504, "timeout_error", "deadline_exceeded"),
    (lambda: errors.timeout("m"), 504, "timeout_error", "engine_timeout"),
]


@pytest.mark.parametrize(("make", "status", "kind", "code"), MADE, ids=[row[3] for row in MADE])
def test_each_error_has_its_status_and_openais_body(
    make: Callable[[], ApiError], status: int, kind: str, code: str
) -> None:
    error = make()
    assert error.status == status
    document = json.loads(error.body())
    assert document == {
        "error": {"message": str(error), "type": kind, "param": error.param, "code": code},
    }
    assert document["error"]["message"]


def test_every_code_of_the_table_can_be_met() -> None:
    assert {code for *_, code in MADE} == set(ERRORS)


def test_a_code_that_is_not_in_the_table_is_a_programming_error() -> None:
    with pytest.raises(KeyError):
        ApiError("m", code="made_up")


def test_an_error_in_a_stream_is_one_event() -> None:
    event = errors.interrupted("two\nlines").sse()
    assert event.startswith(b"data: {")
    assert event.endswith(b"}\n\n")
    assert event.count(b"\n") == 2
    assert json.loads(event[6:])["error"]["message"] == "two\nlines"


@pytest.mark.parametrize(
    ("seconds", "header"),
    [(0.0, "1"), (-3, "1"), (1.0, "1"), (1.01, "2"), (90, "90"), (float("inf"), "3600"), (float("nan"), "1")],
)
def test_retry_after_is_in_whole_seconds_from_one(seconds: float, header: str) -> None:
    assert errors.refused("later", retry_after=seconds).headers == (("Retry-After", header),)
    assert errors.unavailable(retry_after=seconds).headers == (("Retry-After", header),)


def test_who_lacks_a_key_and_who_uses_the_wrong_method_are_told_what_would_do() -> None:
    assert errors.unauthorized().headers == (("WWW-Authenticate", "Bearer"),)
    assert errors.wrong_method("PUT", ["POST", "GET"]).headers == (("Allow", "GET, POST"),)


def test_an_unknown_name_is_shown_with_the_known_ones() -> None:
    error = errors.not_found("model", "gpt", known={"b", "a"})
    assert error.message == "no model named 'gpt' (known: a, b)"
    assert error.param == "model"
    many = errors.not_found("model", "gpt", known=[f"m{index:02}" for index in range(30)])
    assert many.message.endswith("m19, …)")
    assert errors.not_found("file", "x").param is None


@pytest.mark.parametrize(
    ("name", "as_shown"),
    [
        ("plain – ü", "plain – ü"),
        ("a\r\nb\x00c", "a\\r\\nb\\x00c"),
        ("a\u202eb", "a\\u202eb"),
        ("a\ud800b", "a\\ud800b"),
        ("x" * 129, "x" * 128 + "…"),
        ("x" * 128, "x" * 128),
    ],
)
def test_names_from_outside_are_cut_and_kept_on_one_line(name: str, as_shown: str) -> None:
    assert errors.shown(name) == as_shown
    assert as_shown in errors.not_found("model", name, known=[name]).message
