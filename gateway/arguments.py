"""The arguments of a tool call read while they arrive: what stands whole in them so far.

Arguments are one JSON object in pieces that end anywhere. A text is there as soon as its closing quote is, long
before the object ends. Only as much is looked at as it takes to know where a member that is a text ends: there the
object is closed and read, with the members before it.
"""

from __future__ import annotations

import re

import orjson

ARGUMENTS_MOST = 20_000
"""Characters that are read; longer arguments hold no statement that the guard would let through."""
_NESTED_MOST = 64

_MARK = re.compile(r'["{}\[\],:]')
_STOP = re.compile(r'["\\]')
_CLOSES = {"}": "{", "]": "["}


class Arguments:
    """Takes the pieces in. `whole` is the object as far as it has come: up to the last text in it, and then closed.

    `ended` once all of it is there, `broken` once it can be no such object, or is too long: nothing is read then.
    """

    def __init__(self) -> None:
        self.whole = ""
        self.ended = False
        self.broken = False
        self._pieces: list[str] = []
        self._length = 0
        self._open: list[str] = []
        self._value = False
        self._inside = False
        self._escape = False

    def feed(self, piece: str) -> None:
        """Take in the next piece."""
        self._length += len(piece)
        self.broken = self.broken or self._length > ARGUMENTS_MOST
        at = 0
        while at < len(piece) and not self.broken and not self.ended:
            at = self._within(piece, at) if self._inside else self._between(piece, at)
        self._pieces.append(piece)

    def _between(self, piece: str, at: int) -> int:
        """Read on outside of texts, up to the next mark; returns where to go on."""
        found = _MARK.search(piece, at)
        if found is None:
            return len(piece)
        mark = found[0]
        if not self._open and mark != "{":
            self.broken = True
        elif mark == '"':
            self._inside = True
        elif mark in "{[":
            self._open.append(mark)
            self.broken = len(self._open) > _NESTED_MOST
        elif mark in "}]":
            self.broken = self._open.pop() != _CLOSES[mark]
            self.ended = not self._open
            if self.ended:
                self._read(piece[: found.end()])
        elif len(self._open) == 1:
            self._value = mark == ":"
        return found.end()

    def _within(self, piece: str, at: int) -> int:
        """Read on inside of a text, up to its end or its next escape; returns where to go on."""
        if self._escape:  # what follows \u needs no care: it holds no quote
            self._escape = False
            return at + 1
        found = _STOP.search(piece, at)
        if found is None:
            return len(piece)
        self._escape = found[0] == "\\"
        self._inside = self._escape
        if not self._inside and self._value and len(self._open) == 1:
            self._read(piece[: found.end()] + "}")
        return found.end()

    def _read(self, last: str) -> None:
        """Take what has come, this behind it, as the object."""
        text = "".join(self._pieces) + last
        try:
            orjson.loads(text)
        except orjson.JSONDecodeError:
            self.broken = True
        else:
            self.whole = text
