"""Every decision on record: events, actions and their times, one JSON line each, and their replay."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import BufferedWriter
from pathlib import Path
from typing import Any, Protocol

import orjson
from pydantic import TypeAdapter

from policies import events
from policies.events import Action, Event

VERSION = 1
_log = logging.getLogger("cortex.journal")
_EVENTS: Mapping[str, TypeAdapter[Event]] = {
    kind.__name__: TypeAdapter(kind)
    for kind in (
        events.Arrived,
        events.Joined,
        events.Left,
        events.FirstToken,
        events.Finished,
        events.Failed,
        events.Reported,
        events.Scaled,
        events.Drained,
        events.EngineUp,
        events.EngineGone,
        events.Woken,
    )
}


class Machine(Protocol):
    """What can be journalled and replayed: the dispatcher."""

    def handle(self, event: Event, now: float) -> list[Action]: ...


def line(event: Event, actions: Iterable[Action], now: float) -> bytes:
    """One step as a line of the journal."""
    return orjson.dumps(
        {
            "t": now,
            "event": [type(event).__name__, event],
            "actions": [[type(action).__name__, action] for action in actions],
        },
        option=orjson.OPT_APPEND_NEWLINE,
    )


class Journal:
    """A file that steps are appended to. A write that fails (a full disk) is dropped and counted, never raised."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self._file: BufferedWriter = path.open("wb")
        self.dropped = 0
        self._write(orjson.dumps({"cortex": VERSION, **header}, option=orjson.OPT_APPEND_NEWLINE, default=list))

    def record(self, event: Event, actions: Iterable[Action], now: float) -> None:
        """Append one step; it reaches the disk with the next `flush` or when the buffer is full."""
        self._write(line(event, actions, now))

    def flush(self) -> None:
        self._guarded(self._file.flush)

    def close(self) -> None:
        self._guarded(self._file.close)

    def _write(self, data: bytes) -> None:
        self._guarded(lambda: self._file.write(data))

    def _guarded(self, act: Callable[[], object]) -> None:
        try:
            act()
        except (OSError, ValueError):
            self.dropped += 1
            if self.dropped == 1:
                _log.warning("journal cannot be written; steps are dropped")


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """The first step at which a replay decided otherwise: its line in the journal, what was done, what would be."""

    line: int
    recorded: str
    replayed: str


def steps(path: Path) -> Iterator[tuple[int, bytes]]:
    """The journal's steps with their line numbers; the header is skipped."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if number > 1:
                yield number, raw


def replay(path: Path, machine: Machine) -> Divergence | None:
    """Feed a journal's events to a fresh machine; None when it takes every decision again as it was taken."""
    for number, raw in steps(path):
        record = orjson.loads(raw)
        name, fields = record["event"]
        event = _EVENTS[name].validate_python(fields)
        again = line(event, machine.handle(event, record["t"]), record["t"])
        if again != raw:
            return Divergence(
                line=number,
                recorded=orjson.dumps(record["actions"]).decode(),
                replayed=orjson.dumps(orjson.loads(again)["actions"]).decode(),
            )
    return None
