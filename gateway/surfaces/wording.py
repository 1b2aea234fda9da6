"""How an error is put to the clients of each surface: as a reply, or as the last event of a stream that has begun."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

import orjson

from gateway.openai.errors import ApiError, EngineSaid

_ANTHROPIC_TYPES: Mapping[int, str] = MappingProxyType(
    {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        405: "invalid_request_error",
        408: "timeout_error",
        413: "request_too_large",
        421: "invalid_request_error",
        429: "rate_limit_error",
        431: "invalid_request_error",
        400: "invalid_request_error",
        503: "overloaded_error",
        504: "timeout_error",
    }
)


class Wording(Protocol):
    """The words of one surface. What an engine has said itself stays as it is in a reply."""

    def body(self, error: ApiError) -> bytes:
        """The body of a reply."""
        ...

    def event(self, error: ApiError, number: int) -> bytes:
        """The last event of a stream in which so many came before it."""
        ...


class OpenAi:
    """Chat completions, completions, embeddings, and whatever else has OpenAI's shape."""

    def body(self, error: ApiError) -> bytes:
        return error.raw if isinstance(error, EngineSaid) else error.body()

    def event(self, error: ApiError, number: int) -> bytes:
        return error.sse()


class Responses(OpenAi):
    """OpenAI's Responses, whose events have names and numbers."""

    def event(self, error: ApiError, number: int) -> bytes:
        said = {"code": error.code, "message": error.message, "param": error.param, "sequence_number": number}
        return b"event: error\ndata: " + orjson.dumps({"type": "error", **said}) + b"\n\n"


class Anthropic:
    """Anthropic's Messages."""

    def body(self, error: ApiError) -> bytes:
        return error.raw if isinstance(error, EngineSaid) else self._document(error)

    def event(self, error: ApiError, number: int) -> bytes:
        return b"event: error\ndata: " + self._document(error) + b"\n\n"

    def _document(self, error: ApiError) -> bytes:
        kind = _ANTHROPIC_TYPES.get(error.status, "api_error")
        details = {} if error.details is None else {"details": error.details}
        return orjson.dumps({"type": "error", "error": {"type": kind, "message": error.message, **details}})


OPENAI, RESPONSES, ANTHROPIC = OpenAi(), Responses(), Anthropic()


def wording_of(path: str) -> Wording:
    """The wording of the surface that a path belongs to; OpenAI's for every other path."""
    if path.startswith("/v1/messages"):
        return ANTHROPIC
    return RESPONSES if path.startswith("/v1/responses") else OPENAI
