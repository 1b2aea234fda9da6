"""Members of a JSON body: read with a default and a check, or refused as vLLM refuses them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson


class Refusal(Exception):
    """A request that is answered with an error; `kind` is the `type` of vLLM's error body.

    `retry_after` is a header of the answer, in seconds.
    """

    def __init__(
        self, status: int, kind: str, message: str, param: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.status = status
        self.kind = kind
        self.param = param

    def body(self) -> bytes:
        error = {"message": str(self), "type": self.kind, "param": self.param, "code": self.status}
        return orjson.dumps({"error": error})

    def anthropic_body(self) -> bytes:
        """The same in Anthropic's shape; the type is vLLM's own, which it does not translate."""
        return orjson.dumps({"type": "error", "error": {"type": self.kind, "message": str(self)}})


def read_document(body: bytes, kind: str) -> dict[str, Any]:
    """A body of the content type `kind`, which must be JSON's, as vLLM will have it."""
    if kind.partition(";")[0].strip().lower() != "application/json":
        raise Refusal(400, "Bad Request", "Unsupported Media Type: Only 'application/json' is allowed")
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refusal(400, "Bad Request", f"the body is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise Refusal(400, "Bad Request", "the body must be a JSON object")
    return document


def bad(param: str, message: str) -> Refusal:
    """A member that is there and wrong."""
    return Refusal(400, "BadRequestError", f"{param}: {message}", param)


def missing(param: str, message: str) -> Refusal:
    """A member that is not there, or of no use at all."""
    return Refusal(400, "Bad Request", f"{param}: {message}", param)


def value(
    document: Mapping[str, Any], name: str, default: Any, is_right: Callable[[object], bool], wanted: str
) -> Any:
    """The member, or the default where it is null or missing."""
    found = document.get(name)
    if found is None:
        return default
    if not is_right(found):
        raise bad(name, f"must be {wanted}")
    return found


def text(document: Mapping[str, Any], name: str) -> str | None:
    found: str | None = value(document, name, None, is_text, "a text that is not empty")
    return found


def flag(document: Mapping[str, Any], name: str) -> bool:
    return bool(value(document, name, False, is_flag, "true or false"))


def count(document: Mapping[str, Any], name: str) -> int | None:
    found: int | None = value(document, name, None, is_count, "a positive integer")
    return found


def objects(document: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """A list of objects, empty where there is none."""
    found: list[dict[str, Any]] = value(document, name, [], lambda given: isinstance(given, list), "a list")
    for index, entry in enumerate(found):
        if not isinstance(entry, dict):
            raise bad(f"{name}[{index}]", "must be an object")
    return found


def texts(document: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """A text or a list of texts; empty ones are left out."""
    found = document.get(name)
    given = [found] if isinstance(found, str) else found or []
    if not isinstance(given, list) or not all(isinstance(entry, str) for entry in given):
        raise bad(name, "must be a text or a list of texts")
    return tuple(entry for entry in given if entry)


def is_flag(found: object) -> bool:
    return isinstance(found, bool)


def is_int(found: object) -> bool:
    return type(found) is int


def is_int64(found: object) -> bool:
    return type(found) is int and -(2**63) <= found < 2**63


def is_count(found: object) -> bool:
    return type(found) is int and found > 0


def is_number(found: object) -> bool:
    return type(found) in (int, float)


def is_text(found: object) -> bool:
    return isinstance(found, str) and found != ""


def is_object(found: object) -> bool:
    return isinstance(found, dict)
