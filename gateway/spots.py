"""Where in a request a foreign value may stand, and what must be true of it to be taken.

What stands there was not written for us: a value that does not fit counts as absent, and is never an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import orjson

ID_BYTES = 256
JSON_CHARS = 16 * 1024
_INTEGER = re.compile(r"-?[0-9]{1,15}")
_FLAGS: Mapping[str, bool] = MappingProxyType({"true": True, "1": True, "false": False, "0": False})

Headers = Mapping[bytes, bytes]
Body = Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class Spot:
    """A header, or a member of the body, and the way from there on.

    `path` leads through objects; a text on the way is read as JSON. `unless` are values that say nothing here.
    `beside` is a header without which this one means nothing. `like` finds the header by its name, where that is no
    fixed one. `take` makes the value of the text that stands there, as `note` says in words.
    """

    name: str
    path: tuple[str, ...] = ()
    body: bool = False
    unless: tuple[str, ...] = ()
    beside: str = ""
    like: re.Pattern[bytes] | None = None
    take: Callable[[str], str | None] | None = None
    note: str = ""

    @cached_property
    def key(self) -> bytes:
        """The header's name as ASGI has it."""
        return self.name.lower().encode()

    @cached_property
    def _beside(self) -> bytes:
        return self.beside.lower().encode()

    def value(self, headers: Headers, body: Body) -> object:
        """What stands there; None for nothing."""
        found = body.get(self.name) if self.body else self._header(headers)
        for step in self.path:
            if isinstance(found, str):
                found = _json(found)
            if not isinstance(found, Mapping):
                return None
            found = found.get(step)
        if self.take is not None:
            found = self.take(found) if isinstance(found, str) else None
        return None if isinstance(found, str) and found in self.unless else found

    def _header(self, headers: Headers) -> object:
        if self.beside and self._beside not in headers:
            return None
        if self.like is not None:
            value = next((value for name, value in headers.items() if self.like.fullmatch(name)), None)
        else:
            value = headers.get(self.key)
        # A byte that is not UTF-8 becomes a lone surrogate, which is not printable and so does not fit.
        return None if value is None else value.decode("utf-8", "surrogateescape")


def header(name: str, *path: str, unless: tuple[str, ...] = (), beside: str = "") -> Spot:
    """A header, or a member of the JSON in it."""
    return Spot(name=name, path=path, unless=unless, beside=beside)


def member(path: str) -> Spot:
    """A member of the body: `nvext.agent_context.session_id`."""
    name, *rest = path.split(".")
    return Spot(name=name, path=tuple(rest), body=True)


def as_text(value: object) -> str | None:
    """1 to 256 bytes of printable text, or None."""
    if isinstance(value, str) and value.isprintable() and 0 < len(value.encode()) <= ID_BYTES:
        return value
    return None


def as_integer(value: object, low: int, high: int) -> int | None:
    """An integer within bounds, also written as text, or None."""
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        value = int(value)
    return value if type(value) is int and low <= value <= high else None


def as_flag(value: object) -> bool | None:
    """A boolean, also written as text, or None."""
    if isinstance(value, str):
        return _FLAGS.get(value)
    return value if isinstance(value, bool) else None


def _json(text: str) -> object:
    """What a text says that may be JSON; None where it is none, or too long to be worth reading."""
    if len(text) > JSON_CHARS or not text.startswith("{"):
        return None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
