"""The answers of a worker: a status as three digits, then JSON, so that nobody parses a result to pass it on."""

from __future__ import annotations

import orjson


def result(body: bytes) -> bytes:
    return b"200" + body


def failure(message: str, code: str) -> bytes:
    """400 with the error; 504 where the code is `timeout`."""
    status = b"504" if code == "timeout" else b"400"
    return status + orjson.dumps({"error": {"message": message, "code": code}})


def split(answer: bytes) -> tuple[int, bytes]:
    return int(answer[:3]), answer[3:]
