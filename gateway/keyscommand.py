"""The command `cortex keys`: make a key, list those that there are, take one back, and hash one that exists."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType

from pydantic import ValidationError

from gateway.keys import draw, hash_of
from gateway.keyspecs import PERIODS, DeadlineRange, PriorityRange, StoredKey
from gateway.keystore import Entry, KeyFileError, checked, entries, locked, write
from gateway.output import complain, say
from gateway.quotas import Rate

Command = Callable[[argparse.Namespace], None]
SHORTEST = 16
"""Characters of a key that is hashed: what people can remember can be guessed from its hash."""
_PLACES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "tenant": ("tenant",),
        "workflow": ("workflow",),
        "pools": ("pools",),
        "models": ("models",),
        "requests": ("requests",),
        "tokens": ("tokens",),
        "concurrency": ("concurrency",),
        "deadline_min": ("deadline", "min"),
        "deadline_max": ("deadline", "max"),
        "priority_min": ("priority", "min"),
        "priority_max": ("priority", "max"),
        "expires": ("expires",),
    }
)
"""The options of `create`, and where in a key what they say stands."""


class KeysError(Exception):
    """Why a command did nothing, in one line."""


def run(parsed: argparse.Namespace) -> int:
    """Run the command; returns its exit status."""
    commands: dict[str, Command] = {"create": _create, "list": _list, "revoke": _revoke, "hash": _hash}
    try:
        commands[parsed.does](parsed)
    except (KeysError, KeyFileError) as error:
        where = f"{parsed.file}: " if isinstance(error, KeyFileError) else ""
        complain(f"cortex keys: {where}{error}")
        return 2
    except OSError as error:
        complain(f"cortex keys: {error.filename or parsed.file}: {error.strerror}")
        return 2
    return 0


def _create(parsed: argparse.Namespace) -> None:
    key = draw()
    now = datetime.now(UTC).replace(microsecond=0)
    entry: Entry = {"id": key.id, "hash": hash_of(key.text), "created": now.isoformat()}
    for option, place in _PLACES.items():
        if (value := getattr(parsed, option)) is not None:
            inside = entry if len(place) == 1 else entry.setdefault(place[0], {})
            assert isinstance(inside, dict)
            inside[place[-1]] = _moment(value, now) if option == "expires" else value
    for option, complaint in _complaints(entry, now):
        raise KeysError(f"{option}: {complaint}")
    with locked(parsed.file):
        listed = _there(parsed.file, missing=[])
        checked([*listed, entry])
        write(parsed.file, [*listed, entry])
    # First, so that whoever does not get to see the key knows what to revoke.
    where = f"key {key.id} of {parsed.tenant} stands in {parsed.file} as a hash"
    complain(f"{where}: this is the only time that it is shown")
    if not listed:
        complain(f"a gateway takes it with `auth: {{file: {parsed.file}}}` in its configuration")
    say(f"{key.text}\n")


def _list(parsed: argparse.Namespace) -> None:
    found = checked(_there(parsed.file))
    rows: list[tuple[str, ...]] = [("ID", "TENANT", "WORKFLOW", "POOLS", "MODELS", "LIMITS", "EXPIRES", "CREATED")]
    rows += [_row(key, entry) for entry, key in found.values()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    say("".join(f"{line}\n" for line in lines))


def _revoke(parsed: argparse.Namespace) -> None:
    with locked(parsed.file):
        found = checked(_there(parsed.file))
        if parsed.id not in found:
            raise KeysError(f"no key has the id {parsed.id!r} in {parsed.file} (cortex keys list shows them)")
        write(parsed.file, [entry for id_, (entry, _) in found.items() if id_ != parsed.id])
    tenant = found[parsed.id][1].tenant
    complain(f"key {parsed.id} of {tenant} is revoked; requests that are open go on")


def _hash(parsed: argparse.Namespace) -> None:
    """From the input and not an option, which everybody on the machine could read."""
    if sys.stdin.isatty():
        complain("the key, and Enter:")
    key = sys.stdin.readline().strip()
    if len(key) < SHORTEST:
        raise KeysError(f"a key has at least {SHORTEST} characters (`cortex keys create` draws one)")
    say(f"{hash_of(key)}\n")


def _there(path: Path, missing: list[Entry] | None = None) -> list[Entry]:
    try:
        return entries(path)
    except FileNotFoundError:
        if missing is None:
            raise
        return missing


def _complaints(entry: Entry, now: datetime) -> Iterator[tuple[str, str]]:
    """What is wrong with what the options say, each with the option's name."""
    options: dict[tuple[int | str, ...], str] = {}
    options |= {place: f"--{option.replace('_', '-')}" for option, place in _PLACES.items()}
    try:
        key = StoredKey.model_validate(entry)
    except ValidationError as error:
        for one in error.errors(include_url=False):
            loc = one["loc"]
            yield options.get(loc[:2]) or options[loc[:1]], one["msg"]
    else:
        if key.expires is not None and key.expires <= now:
            yield "--expires", "is in the past"
        for place, message in key.faults():
            yield f"--{place[0]}-min", message


def _moment(value: str, now: datetime) -> str:
    """The time at which something ends that lasts so long, or ends at a date."""
    found = re.fullmatch(r"([1-9]\d{0,5})([smhd])", value)
    return (now + timedelta(seconds=int(found[1]) * PERIODS[found[2]])).isoformat() if found else value


def _row(key: StoredKey, entry: Entry) -> tuple[str, ...]:
    expires = "never"
    if key.expires is not None:
        expires = "expired" if key.expires <= datetime.now(UTC) else f"{key.expires:%Y-%m-%d %H:%M}"
    return (
        key.public,
        key.tenant,
        key.workflow or "-",
        ",".join(key.pools or ("all",)),
        ",".join(key.models or ("all",)),
        _limits(key) or "none",
        expires,
        f"{key.created:%Y-%m-%d}" if key.created else "-",
    )


def _limits(key: StoredKey) -> str:
    said = [_rate(rate, what) for rate, what in ((key.requests, "requests"), (key.tokens, "tokens")) if rate]
    if key.concurrency:
        said.append(f"{key.concurrency} open")
    if key.deadline != DeadlineRange():
        said.append(f"deadline {_range(key.deadline.min, key.deadline.max, 's')}")
    if key.priority != PriorityRange():
        said.append(f"priority {_range(key.priority.min, key.priority.max)}")
    return ", ".join(said)


def _rate(rate: Rate, what: str) -> str:
    unit = next(unit for unit, seconds in PERIODS.items() if seconds == rate.per)
    return f"{rate.amount}/{unit} {what}"


def _range(least: float | None, most: float | None, unit: str = "") -> str:
    ends = ["" if end is None else f"{end:g}{unit}" for end in (least, most)]
    return "..".join(ends)
