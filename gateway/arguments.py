"""The arguments of a tool call read while they arrive: which texts stand whole in them so far.

Arguments are one JSON object in pieces that end anywhere. A text is there as soon as its closing quote is, long
before the object ends. Only as much is parsed as it takes to know where a member of the object begins and ends:
each character is looked at once, and nothing is kept but the text that is being read.
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
    """Takes the pieces in. `texts` are the members whose value is a whole text by now, the last one of a name.

    `ended` once the object is closed, `broken` once it can be no such object, or is too long: nothing is read then.
    """

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.ended = False
        self.broken = False
        self._read = 0
        self._open: list[str] = []
        self._name: str | None = None
        self._named = False
        self._string: list[str] | None = None
        self._escape = False

    def feed(self, piece: str) -> None:
        """Take in the next piece."""
        self._read += len(piece)
        self.broken = self.broken or self._read > ARGUMENTS_MOST
        at = 0
        while at < len(piece) and not self.broken and not self.ended:
            at = self._between(piece, at) if self._string is None else self._inside(piece, at)

    def _between(self, piece: str, at: int) -> int:
        """Read on outside of texts, up to the next mark; returns where to go on."""
        found = _MARK.search(piece, at)
        if found is None:
            return len(piece)
        mark = found[0]
        if not self._open and mark != "{":
            self.broken = True
        elif mark == '"':
            self._string = []
        elif mark in "{[":
            self._open.append(mark)
            self.broken = len(self._open) > _NESTED_MOST
        elif mark in "}]":
            self.broken = self._open.pop() != _CLOSES[mark]
            self.ended = not self._open
        elif len(self._open) == 1:
            self._named = mark == ":"
        return found.end()

    def _inside(self, piece: str, at: int) -> int:
        """Read on inside of a text, up to its end or its next escape; returns where to go on."""
        assert self._string is not None
        if self._escape:  # what follows \u needs no care: it holds no quote
            self._escape = False
            self._string.append(piece[at])
            return at + 1
        found = _STOP.search(piece, at)
        end = len(piece) if found is None else found.end()
        self._string.append(piece[at:end])
        if found is not None and found[0] == '"':
            self._closed("".join(self._string))
            self._string = None
        else:
            self._escape = found is not None
        return end

    def _closed(self, raw: str) -> None:
        """A text has come whole, `raw` with its closing quote: a member's name, its value, or of no interest."""
        if len(self._open) > 1:
            return
        try:
            text: str = orjson.loads('"' + raw)
        except orjson.JSONDecodeError:
            self.broken = True
            return
        if not self._named:
            self._name = text
            self.texts.pop(text, None)  # of a name that stands twice the last value counts, whatever it is
        elif self._name is not None:
            self.texts[self._name] = text
