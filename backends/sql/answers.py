"""The answers of a worker: how it went in a word or two and a line feed, then JSON that nobody parses to pass it on.

The first word is the outcome. A second one, `volatile`, says that the same data may give another result next time.

Parts that go ahead of an answer look the same: `rows` are lines of NDJSON, `progress` is a number of percent.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import orjson

STATUS: Final[Mapping[str, int]] = MappingProxyType({"ok": 200, "empty": 200, "error": 400, "timeout": 504})
"""The HTTP status of each outcome. `empty` is a result without a row."""


def result(body: bytes, *, empty: bool = False, volatile: bool = False) -> bytes:
    return (b"empty" if empty else b"ok") + (b" volatile\n" if volatile else b"\n") + body


def failure(message: str, code: str) -> bytes:
    """The outcome is `timeout` where the code is, else `error`."""
    outcome = b"timeout\n" if code == "timeout" else b"error\n"
    return outcome + orjson.dumps({"error": {"message": message, "code": code}})


def rows(lines: bytes) -> bytes:
    return b"rows\n" + lines


def progress(percent: float) -> bytes:
    return b"progress\n" + orjson.dumps(percent)


def split(answer: bytes) -> tuple[str, bytes]:
    """How it went, in its words, and the body."""
    words, _, body = answer.partition(b"\n")
    return words.decode(), body
