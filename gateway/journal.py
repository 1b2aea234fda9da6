"""Every decision on record: events, actions and their times, one JSON line each, and their replay."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import orjson
from pydantic import TypeAdapter, ValidationError

from policies import events
from policies.blueprint import Blueprint
from policies.events import Action, Event
from policies.routing.residency import Held, Retold

VERSION = 5
HELD_MOST = 256 * 1024
"""Bytes of steps that wait for the next flush; more are written at once."""
_log = logging.getLogger("cortex.journal")
_EVENTS: Mapping[str, TypeAdapter[Event]] = {
    kind.__name__: TypeAdapter(kind)
    for kind in (
        events.Arrived,
        events.Joined,
        events.Recalled,
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
_ACTIONS: Mapping[str, TypeAdapter[Action]] = {
    kind.__name__: TypeAdapter(kind)
    for kind in (
        events.Start,
        events.Refused,
        events.Abort,
        events.Launch,
        events.Retire,
        events.Wake,
    )
}
_BLUEPRINT: TypeAdapter[Blueprint] = TypeAdapter(Blueprint)
_ANSWERS: TypeAdapter[Sequence[Held]] = TypeAdapter(Sequence[Held])


class Machine(Protocol):
    """What can be journalled and replayed: the dispatcher."""

    def handle(self, event: Event, now: float) -> list[Action]: ...


def line(event: Event, actions: Iterable[Action], now: float, held: Sequence[Held] = ()) -> bytes:
    """One step as a line of the journal; `held` is what engines were found to hold, where that was asked."""
    record = {
        "t": now,
        "event": [type(event).__name__, event],
        "actions": [[type(action).__name__, action] for action in actions],
    }
    if held:
        record["held"] = held
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)


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

    def record(self, event: Event, actions: Iterable[Action], now: float, held: Sequence[Held] = ()) -> None:
        """Append one step; it reaches the disk with the next `flush`, or when many are held."""
        if self._broken:
            self.dropped += 1
        else:
            self._hold(line(event, actions, now, held))

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


class JournalError(ValueError):
    """A file that cannot be replayed; the message begins with its name, and the line where there is one."""


def blueprint_of(path: Path) -> Blueprint:
    """What the journalled dispatcher was made from. Raises JournalError, OSError."""
    with path.open("rb") as file:
        first = file.readline()
    if not first:
        raise JournalError(f"{path}: is empty")
    if not first.endswith(b"\n") and first.startswith(b'{"cortex"'):
        raise JournalError(f"{path}: its first line is cut off, so there is nothing to replay")
    try:
        header = orjson.loads(first)
    except orjson.JSONDecodeError:
        raise JournalError(f"{path}: is no journal of a gateway") from None
    if not isinstance(header, dict) or "cortex" not in header:
        raise JournalError(f"{path}: is no journal of a gateway")
    if header["cortex"] != VERSION:
        raise JournalError(f"{path}: is a journal of version {header['cortex']}, and version {VERSION} is needed")
    try:
        return _BLUEPRINT.validate_python(header.get("blueprint"))
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"])) or "blueprint"
        raise JournalError(f"{path}: its header does not fit this version of the scheduler, at {place}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of a journal: its line, when it was taken, what was heard, what engines held and what was done."""

    line: int
    at: float
    event: Event
    actions: Sequence[Action]
    held: Sequence[Held] = ()


def recorded(path: Path) -> Iterator[Step]:
    """The journal's steps. Raises JournalError at a line that is none."""
    for number, raw in steps(path):
        try:
            record = orjson.loads(raw)
            name, fields = record["event"]
            yield Step(
                line=number,
                at=float(record["t"]),
                event=_EVENTS[name].validate_python(fields),
                actions=[_ACTIONS[kind].validate_python(given) for kind, given in record["actions"]],
                held=_ANSWERS.validate_python(record.get("held", ())),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise JournalError(f"{path}:{number}: is no step that this version knows") from error


def replay(path: Path, machine: Machine, held: Retold | None = None) -> Divergence | None:
    """Feed a journal's events to a fresh machine; None when it takes every decision again as it was taken.

    `held` is what the machine was made with to be told again what engines held.
    """
    for (_, raw), step in zip(steps(path), recorded(path), strict=True):
        if held is not None:
            held.tell(step.held)
        again = line(step.event, machine.handle(step.event, step.at), step.at, step.held)
        if again != raw:
            return Divergence(
                line=step.line,
                recorded=orjson.dumps(orjson.loads(raw)["actions"]).decode(),
                replayed=orjson.dumps(orjson.loads(again)["actions"]).decode(),
            )
    return None
