"""Every decision on record: events, actions and their times, one JSON line each, and their replay."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import orjson
from pydantic import TypeAdapter

from policies import events
from policies.blueprint import Blueprint
from policies.events import Action, Event

VERSION = 1
HELD_MOST = 256 * 1024
"""Bytes of steps that wait for the next flush; more are written at once."""
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

_BLUEPRINT: TypeAdapter[Blueprint] = TypeAdapter(Blueprint)


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
    """A file that steps are appended to. What cannot be written (a full disk) is counted as `dropped`, never raised.

    From the first gap on nothing more is written: what follows a gap cannot be replayed, what stands before it can.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        """An earlier journal at this path is kept as `PATH.1`. Raises OSError where the file cannot be opened."""
        if path.is_file():  # and not a device or a pipe
            earlier = path.with_name(f"{path.name}.1")
            path.replace(earlier)
            _log.info("the earlier journal is now %s", earlier)
        self._file = path.open("wb", buffering=0)
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._broken = False
        self.dropped = 0
        self._hold(orjson.dumps({"cortex": VERSION, **header}, option=orjson.OPT_APPEND_NEWLINE, default=list))

    def record(self, event: Event, actions: Iterable[Action], now: float) -> None:
        """Append one step; it reaches the disk with the next `flush`, or when many are held."""
        if self._broken:
            self.dropped += 1
        else:
            self._hold(line(event, actions, now))

    def flush(self) -> None:
        data = b"".join(self._held)
        self._held, self._held_bytes = [], 0
        try:
            written = self._file.write(data) or 0
        except OSError:
            written = 0
        if written < len(data):
            self._broken = True
            self.dropped += data.count(b"\n", written)  # each line has one, at its end
            _log.warning("journal cannot be written; steps are dropped from here on")

    def close(self) -> None:
        """Write what is held and close the file. Idempotent."""
        if not self._file.closed:
            self.flush()
            self._file.close()
        self._broken = True

    def _hold(self, text: bytes) -> None:
        self._held.append(text)
        self._held_bytes += len(text)
        if self._held_bytes > HELD_MOST:
            self.flush()


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """The first step at which a replay decided otherwise: its line in the journal, what was done, what would be."""

    line: int
    recorded: str
    replayed: str


def steps(path: Path) -> Iterator[tuple[int, bytes]]:
    """The journal's steps with their line numbers. A last line that was cut off, by a crash, is no step."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if number > 1 and raw.endswith(b"\n"):
                yield number, raw


def blueprint_of(path: Path) -> Blueprint:
    """What the journalled dispatcher was made from. Raises ValueError where the header does not hold it."""
    with path.open("rb") as file:
        header = orjson.loads(file.readline())
    if not isinstance(header, dict) or header.get("cortex") != VERSION:
        raise ValueError(f"{path} is no journal of version {VERSION}")
    return _BLUEPRINT.validate_python(header.get("blueprint"))


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
