"""Which engine made a response, and for which run: a response is kept by the engine that wrote it alone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final, NamedTuple

import orjson

from gateway.openai import sse

KEPT_MOST: Final = 20_000
"""Responses of one tenant that are remembered; those that nobody has asked for longest are forgotten first."""
ID_CHARS: Final = 256


class Made(NamedTuple):
    """Who made a response: the engine, for a call of this run."""

    engine: str
    run: str


class Responses:
    """The responses of late, by tenant and id: no tenant comes by another's.

    `alone`: there is one tenant only, whose are those that are not remembered.
    """

    def __init__(self, alone: Callable[[], bool], *, most: int = KEPT_MOST) -> None:
        self.alone = alone
        self._most = most
        self._made: dict[str, OrderedDict[str, Made]] = {}

    def find(self, tenant: str, response: str) -> Made | None:
        """Who made it, as far as that is remembered."""
        known = self._made.get(tenant)
        if known is None or response not in known:
            return None
        known.move_to_end(response)
        return known[response]

    def run_of(self, tenant: str, response: str) -> str:
        """The run that it was made for; empty where that is not known."""
        made = self.find(tenant, response)
        return made.run if made is not None else ""

    def note_body(self, tenant: str, made: Made, body: bytes) -> None:
        """Remember a response that is there whole, as JSON that is known to be sound."""
        self._note(tenant, made, orjson.loads(body))

    def note_event(self, tenant: str, made: Made, event: bytes) -> None:
        """Remember one whose stream begins with this event, which is known to be sound."""
        self._note(tenant, made, sse.chunk_of(event))

    def _note(self, tenant: str, made: Made, document: object) -> None:
        match document:
            case {"response": {"id": str(name), **rest}} | {"id": str(name), "object": "response", **rest}:
                if 0 < len(name) <= ID_CHARS and rest.get("store") is not False:
                    known = self._made.setdefault(tenant, OrderedDict())
                    known[name] = made
                    known.move_to_end(name)
                    if len(known) > self._most:
                        known.popitem(last=False)

    def forget(self, tenant: str, response: str) -> None:
        if self.find(tenant, response) is not None:
            del self._made[tenant][response]
