"""What went wrong when LiteLLM was asked, as the status, the headers and the body of an answer.

LiteLLM raises one of its own errors, whose causes lead down to the HTTP client's. Where a provider has answered, its
answer hangs there, and goes on in its own words; where it has not, the kind of the lowest error says why.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

from backends.provider_members import Unfit

Json = dict[str, Any]

TROUBLE: Final = "X-Provider-Trouble"
"""The header that says how a provider failed to answer: `refused`, `broken` or `timeout`."""
CAUSES_MOST: Final = 20
_TROUBLES: Final = (
    ("refused", {"ConnectError", "ConnectTimeout", "ClientConnectorError", "ConnectionRefusedError"}),
    ("timeout", {"TimeoutException", "TimeoutError"}),
    ("broken", {"TransportError", "ClientConnectionError", "ClientPayloadError"}),
)
_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
}
_MOVED: Final = {408: 504, 529: 503}
"""Statuses that say the same in words that whoever speaks HTTP knows: Anthropic's 529 is an overload."""
_PREFIX = re.compile(r"(litellm\.)?(\w+Error: |\w+Exception - )")


class _Response(Protocol):
    """A provider's answer, as every HTTP client under LiteLLM has it."""

    status_code: int
    headers: Any
    content: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An answer that says what went wrong."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


def failure_of(error: BaseException, surface: str) -> Failure:
    """The answer to a request that LiteLLM has not answered but with this error."""
    if isinstance(error, Unfit):
        return Failure(status=400, body=_written(surface, 400, {"message": str(error), "param": error.param}))
    causes = tuple(_causes(error))
    response = _answer(causes)
    if response is None and (trouble := _trouble(causes)):
        body = _written(surface, 502, {"message": "the provider did not answer"})
        return Failure(status=502, body=body, headers=((TROUBLE, trouble),))
    status = getattr(error, "status_code", None)
    status = status if isinstance(status, int) and 400 <= status < 600 else 500
    if response is not None and status == 500:  # what LiteLLM says of any status that it does not know
        status = max(response.status_code, 400)
    if response is None and status == 500:  # LiteLLM's own mishap, whose words may tell what nobody else should know
        return Failure(status=500, body=_written(surface, 500, {"message": "the provider could not be asked"}))
    said = _said(response) if response is not None and response.status_code == status else None
    body = _passed_on(surface, status, said or {}) or _written(surface, status, {"message": _plain(str(error))})
    after = _retry_after(response) if response is not None else None
    headers = (("Retry-After", str(after)),) if after is not None else ()
    return Failure(status=_MOVED.get(status, status), body=body, headers=headers)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that led to it, the first one last."""
    for _ in range(CAUSES_MOST):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


def _names(error: BaseException) -> set[str]:
    """By name: which HTTP client raised it depends on the provider, and on LiteLLM's version."""
    return {kind.__name__ for kind in type(error).__mro__}


def _answer(causes: Sequence[BaseException]) -> _Response | None:
    """The provider's. LiteLLM's own errors have one that is made up."""
    for error in reversed(causes):
        if "HTTPStatusError" in _names(error):
            return cast(_Response, getattr(error, "response", None))
    return None


def _trouble(causes: Sequence[BaseException]) -> str:
    names = set[str]().union(*map(_names, causes))
    return next((trouble for trouble, known in _TROUBLES if names & known), "")


def _said(response: _Response) -> Json | None:
    """A provider's words. Those of a stream may not have been read."""
    try:
        document = json.loads(response.content)
    except (ValueError, RuntimeError):
        return None
    return document if isinstance(document, dict) else None


def _passed_on(surface: str, status: int, said: Json) -> bytes | None:
    """A provider's words in the surface's shape, as they are where they have it already."""
    error = said.get("error")
    messages = said.get("type") == "error"
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        if messages == (surface == "messages"):
            return json.dumps(said).encode()
        return _written(surface, status, error)
    told = next((said[name] for name in ("message", "detail", "error") if isinstance(said.get(name), str)), None)
    return _written(surface, status, {"message": told}) if told is not None else None


def _written(surface: str, status: int, error: Json) -> bytes:
    kind = _TYPES.get(status, "api_error")
    message = error["message"]
    if surface == "messages":
        return json.dumps({"type": "error", "error": {"type": kind, "message": message}}).encode()
    told = {"type": error.get("type") or kind, "param": error.get("param"), "code": error.get("code")}
    return json.dumps({"error": {"message": message, **told}}).encode()


def _plain(message: str) -> str:
    """A message without the names that LiteLLM puts before it."""
    while found := _PREFIX.match(message):
        message = message[found.end() :]
    return message


def _retry_after(response: _Response) -> int | None:
    """In whole seconds, not fewer than the provider asks for."""
    try:
        seconds = float(response.headers.get("retry-after", ""))
    except ValueError:
        return None
    return math.ceil(seconds) if 0 <= seconds < math.inf else None
