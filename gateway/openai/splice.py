"""Editing a body in place: top-level members change, every other byte stays as it came."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

import orjson

from gateway.openai.payload import MEMBERS_MOST, too_many_members

# Numbers stay text, so that none is too long for Python; the scanner and its strings are C.
_DECODER = json.JSONDecoder(parse_float=str, parse_int=str)
_SPACE = re.compile(r"[ \t\n\r]*")
_CLOSING = re.compile(rb"[ \t\n\r]*\}")


class _Member(NamedTuple):
    """One member of an object by its places in the text: all between two commas, and the value within."""

    key: str
    start: int
    value: int
    value_end: int
    end: int


def edit(body: bytes, replace: Mapping[str, object], drop: Collection[str] = ()) -> bytes:
    """Change top-level members of a body that `parse` took; every other byte stays as it is.

    A key that stands there twice is replaced once and its other members go; one that is missing comes first. Raises
    ApiError (400) for a body with too many members.
    """
    if _lacks(body, replace) and _lacks(body, drop):
        return _insert(body, replace) if replace else body
    text = body.decode()
    head = text.index("{") + 1
    members = _members(text, head)
    tail = members[-1].end if members else head
    new = {key: orjson.dumps(value).decode() for key, value in replace.items()}
    kept = []
    for key, start, value, value_end, end in members:
        if key in new:
            kept.append(text[start:value] + new.pop(key) + text[value_end:end])
        elif key not in replace and key not in drop:
            kept.append(text[start:end])
    kept[:0] = [f"{json.dumps(key)}:{value}" for key, value in new.items()]
    return (text[:head] + ",".join(kept) + text[tail:]).encode()


def values(body: bytes) -> dict[str, str]:
    """The top-level members of a body that `parse` took, each value as the text that it is; the last of a key.
    Raises ApiError (400) for too many."""
    text = body.decode()
    members = _members(text, text.index("{") + 1)
    return {member.key: text[member.value : member.value_end] for member in members}


def _lacks(body: bytes, names: Iterable[str]) -> bool:
    """Whether these members are certainly absent, told without a scan: no escape can spell their letters."""
    return b"\\u00" not in body and all(
        name.isascii() and name.isidentifier() and b'"%b"' % name.encode() not in body for name in names
    )


def _insert(body: bytes, new: Mapping[str, object]) -> bytes:
    at = body.index(b"{") + 1
    members = orjson.dumps(new)[1:-1]
    comma = b"" if _CLOSING.match(body, at) else b","
    return body[:at] + members + comma + body[at:]


def _members(text: str, at: int) -> list[_Member]:
    """The members of the object whose brace ends at `at`. Raises ApiError for too many: a key may be there often."""
    members: list[_Member] = []
    if text.startswith("}", _after_space(text, at)):
        return members
    while True:
        key, key_end = _DECODER.raw_decode(text, _after_space(text, at))
        value = _after_space(text, _after_space(text, key_end) + 1)
        _, value_end = _DECODER.raw_decode(text, value)
        end = _after_space(text, value_end)
        members.append(_Member(key, at, value, value_end, end))
        if text[end] == "}":
            return members
        if len(members) == MEMBERS_MOST:
            raise too_many_members()
        at = end + 1


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at
