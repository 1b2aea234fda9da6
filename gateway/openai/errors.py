"""Every error that a client can meet: one table, and OpenAI's shape for all of them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType

import orjson

from policies.repair import closest

NAME_SHOWN = 128
KNOWN_SHOWN = 20
RETRY_AFTER_MOST = 3600

# code -> (HTTP status, type)
ERRORS: Mapping[str, tuple[int, str]] = MappingProxyType(
    {
        "invalid_json": (400, "invalid_request_error"),
        "invalid_value": (400, "invalid_request_error"),
        "missing_required_parameter": (400, "invalid_request_error"),
        "invalid_api_key": (401, "authentication_error"),
        "expired_api_key": (401, "authentication_error"),
        "conflicting_api_keys": (401, "authentication_error"),
        "permission_denied": (403, "permission_error"),
        "model_not_allowed": (403, "permission_error"),
        "pool_not_allowed": (403, "permission_error"),
        "not_found": (404, "invalid_request_error"),
        "model_not_found": (404, "invalid_request_error"),
        "workflow_not_found": (404, "invalid_request_error"),
        "stage_not_found": (404, "invalid_request_error"),
        "pool_not_found": (404, "invalid_request_error"),
        "engine_not_found": (404, "invalid_request_error"),
        "database_not_found": (404, "invalid_request_error"),
        "method_not_allowed": (405, "invalid_request_error"),
        "request_timeout": (408, "timeout_error"),
        "request_too_large": (413, "invalid_request_error"),
        "rate_limit_exceeded": (429, "rate_limit_error"),
        "request_quota_exceeded": (429, "rate_limit_error"),
        "token_quota_exceeded": (429, "rate_limit_error"),
        "concurrency_quota_exceeded": (429, "rate_limit_error"),
        "misdirected_request": (421, "invalid_request_error"),
        "headers_too_large": (431, "invalid_request_error"),
        "internal_error": (500, "server_error"),
        "engine_broke": (502, "upstream_error"),
        "stream_interrupted": (502, "upstream_error"),
        "pool_unavailable": (503, "server_error"),
        "deadline_exceeded": (504, "timeout_error"),
        "engine_timeout": (504, "timeout_error"),
    }
)

_CODES: Mapping[int, str] = MappingProxyType({429: "rate_limit_exceeded", 503: "pool_unavailable"})
"""Of what an engine says itself."""
FINAL = frozenset({"deadline_exceeded"})
"""Codes of what was given all its time: to try it again would only take as long again."""
NO_RETRY = ("X-Should-Retry", "false")


class ApiError(Exception):
    """An error as the client will see it; `code` must be one of ERRORS.

    `param` names the header, the member of the body or the path at fault. `headers` go with the reply, and `details`
    where the client's surface has a place for them. The message
    is written for the client: no address and no path of an engine may be in it.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: Iterable[tuple[str, str]] = (),
        details: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.type = ERRORS[code]
        self.code = code
        self.message = message
        self.param = param
        self.details = details
        self.headers = (*headers, *((NO_RETRY,) if code in FINAL else ()))

    def body(self) -> bytes:
        """The JSON document of a reply that has not begun."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return orjson.dumps({"error": error})

    def sse(self) -> bytes:
        """The last event of a stream that has: its status is gone, and no `[DONE]` follows."""
        return b"data: " + self.body() + b"\n\n"


class EngineSaid(ApiError):
    """What an engine said itself when it would not answer: status, headers and body go on as they came.

    `message` is for a stream that has begun, where the body holds none.
    """

    def __init__(self, message: str, status: int, headers: Iterable[tuple[str, str]], body: bytes) -> None:
        super().__init__(_words_of(body) or message, code=_CODES.get(status, "engine_broke"), headers=headers)
        self.status = status
        self.raw = body


def _words_of(body: bytes) -> str:
    """The message in a body that is an error of OpenAI's or of Anthropic's shape; empty where there is none."""
    try:
        message = orjson.loads(body)["error"]["message"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        message = None
    return message if isinstance(message, str) else ""


def shown(name: str) -> str:
    """A name that came from outside, fit for a message or a log line: cut, and on one line."""
    cut = name if len(name) <= NAME_SHOWN else name[:NAME_SHOWN] + "…"
    if cut.isprintable():
        return cut
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in cut)


def bad_request(message: str, *, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """400."""
    return ApiError(message, code=code, param=param)


def ill_formed(where: str, must: str) -> ApiError:
    """400 for one value: `ill_formed("messages[2].role", "must be a string")`."""
    return ApiError(f"{where}: {must}", code="invalid_value", param=where)


def missing(where: str) -> ApiError:
    """400 for a value that is not there."""
    return ApiError(f"{where}: is required", code="missing_required_parameter", param=where)


def unknown_member(name: str, known: Sequence[str], *, within: str = "") -> ApiError:
    """400 for a member that means nothing here, with what it may be meant for; `within` is the object around it."""
    near = closest(name, known)
    meant = f"; did you mean {near[0]}?" if near else ""
    return ill_formed(within + shown(name), f"is not known here{meant} (known: {', '.join(known) or 'none'})")


def unauthorized(
    message: str = "a valid API key is needed, as `Authorization: Bearer KEY`", *, code: str = "invalid_api_key"
) -> ApiError:
    """401, also for `expired_api_key` and `conflicting_api_keys`."""
    return ApiError(message, code=code, headers=[("WWW-Authenticate", "Bearer")])


def forbidden(
    message: str = "this API key may not do that", *, code: str = "permission_denied", param: str | None = None
) -> ApiError:
    """403, also for `model_not_allowed` and `pool_not_allowed`."""
    return ApiError(message, code=code, param=param)


def misdirected(message: str) -> ApiError:
    """421, for a host that this gateway is not."""
    return ApiError(message, code="misdirected_request", param="Host")


def not_found(what: str, name: str, known: Collection[str] = ()) -> ApiError:
    """404 for a `what` (model, workflow, stage, pool, engine, database; else a plain `not_found`) of this name.

    `known` are the names to offer instead; leave it empty where a client has no business with them.
    """
    offer = ", ".join(shown(other) for other in sorted(known)[:KNOWN_SHOWN])
    more = ", …" if len(known) > KNOWN_SHOWN else ""
    code = f"{what}_not_found"
    return ApiError(
        f"no {what} named '{shown(name)}'" + (f" (known: {offer}{more})" if offer else ""),
        code=code if code in ERRORS else "not_found",
        param=what if code in ERRORS else None,
    )


def wrong_method(method: str, allowed: Iterable[str]) -> ApiError:
    """405."""
    allow = ", ".join(sorted(allowed))
    return ApiError(
        f"{shown(method)} is not possible here (allowed: {allow})",
        code="method_not_allowed",
        headers=[("Allow", allow)],
    )


def too_large(most_bytes: int) -> ApiError:
    """413."""
    return ApiError(f"the body is larger than {most_bytes} bytes", code="request_too_large")


def headers_too_large(message: str = "the headers are too many or too large") -> ApiError:
    """431."""
    return ApiError(message, code="headers_too_large")


def refused(message: str, *, retry_after: float, code: str = "rate_limit_exceeded") -> ApiError:
    """429, by admission, or by one of a key's quotas, which have codes of their own; `retry_after` in seconds."""
    return ApiError(message, code=code, headers=[_retry_after(retry_after)])


def broken(message: str = "the engine broke off before its answer began", *, again: bool = True) -> ApiError:
    """502 before the first byte; for what happens after it, see `interrupted`. `again`: another try may go better."""
    return ApiError(message, code="engine_broke", headers=() if again else (NO_RETRY,))


def interrupted(message: str = "the engine broke off in the middle of its answer") -> ApiError:
    """A stream that cannot go on, for `sse()`."""
    return ApiError(message, code="stream_interrupted")


def unavailable(message: str = "no engine is ready for this call", *, retry_after: float) -> ApiError:
    """503; `retry_after` in seconds."""
    return ApiError(message, code="pool_unavailable", headers=[_retry_after(retry_after)])


def timeout(message: str, *, code: str = "engine_timeout") -> ApiError:
    """504 for `engine_timeout` and `deadline_exceeded`; 408 for `request_timeout`, a body that never came."""
    return ApiError(message, code=code)


def internal() -> ApiError:
    """500. Says nothing on purpose: what happened stands in the log."""
    return ApiError("something went wrong inside the gateway", code="internal_error")


def _retry_after(seconds: float) -> tuple[str, str]:
    # Whole seconds, because clients parse no other. In this order the bounds also catch NaN and infinity.
    return "Retry-After", str(math.ceil(min(RETRY_AFTER_MOST, max(1, seconds))))
