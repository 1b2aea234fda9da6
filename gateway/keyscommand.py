"""The command `cortex keys`: make a key, list those that there are, take one back, and hash one that exists."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType

from pydantic import ValidationError

from gateway.keys import draw, hash_of
from gateway.keyspecs import PERIODS, DeadlineRange, PriorityRange, StoredKey
from gateway.keystore import Entry, KeyFileError, checked, entries, locked, write
from gateway.quotas import Rate

FILE = Path("keys.json")
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


def add_keys(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `keys` and its own commands."""
    keys = commands.add_parser("keys", help="make, list and revoke API keys")
    own = keys.add_subparsers(required=True, metavar="command")
    create = own.add_parser("create", help="make a key; it is shown this once")
    create.add_argument("--tenant", required=True, help="whom it belongs to")
    create.add_argument("--workflow", help="for calls that name none")
    create.add_argument("--pools", type=_listed, action="extend", metavar="POOL,...", help="all it may use")
    create.add_argument("--models", type=_listed, action="extend", metavar="MODEL,...", help="all it may ask for")
    create.add_argument("--requests", metavar="RATE", help="such as 60/m (s, m, h, d)")
    create.add_argument("--tokens", metavar="RATE", help="read and written, such as 100000/m")
    create.add_argument("--concurrency", type=int, metavar="N", help="requests open at once")
    for end in ("min", "max"):
        create.add_argument(f"--deadline-{end}", metavar="DURATION", help="of a run, such as 60s")
        create.add_argument(f"--priority-{end}", type=int, metavar="N", help="-8 to 8")
    create.add_argument("--expires", metavar="WHEN", help="after such a time (30d, 12h) or at a date (2027-12-31)")
    create.set_defaults(does=_create)
    listing = own.add_parser("list", help="the keys of a file, without the keys themselves")
    listing.set_defaults(does=_list)
    revoke = own.add_parser("revoke", help="take a key back, from gateways that run as well")
    revoke.add_argument("id", metavar="ID", help="as `cortex keys list` shows it, and as it stands in the key")
    revoke.set_defaults(does=_revoke)
    for parser in (create, listing, revoke):
        parser.add_argument("--file", type=Path, default=FILE, help=f"auth.file of the configuration ({FILE})")
    hashing = own.add_parser("hash", help="what a configuration holds of a key that exists, read from the input")
    hashing.set_defaults(does=_hash)
    keys.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Run the command; returns its exit status."""
    try:
        parsed.does(parsed)
    except (KeysError, KeyFileError) as error:
        where = f"{parsed.file}: " if isinstance(error, KeyFileError) else ""
        print(f"cortex keys: {where}{error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"cortex keys: {error.filename or parsed.file}: {error.strerror}", file=sys.stderr)
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
    for option, complaint in _complaints(entry):
        raise KeysError(f"{option}: {complaint}")
    with locked(parsed.file):
        listed = _there(parsed.file, missing=[])
        checked([*listed, entry])
        write(parsed.file, [*listed, entry])
    print(key.text)
    where = f"key {key.id} of {parsed.tenant} stands in {parsed.file} as a hash"
    print(f"{where}: this is the only time that it is shown", file=sys.stderr)
    if not listed:
        print(f"a gateway takes it with `auth: {{file: {parsed.file}}}` in its configuration", file=sys.stderr)


def _list(parsed: argparse.Namespace) -> None:
    found = checked(_there(parsed.file))
    rows: list[tuple[str, ...]] = [("ID", "TENANT", "WORKFLOW", "POOLS", "MODELS", "LIMITS", "EXPIRES", "CREATED")]
    rows += [_row(key, entry) for entry, key in found.values()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _revoke(parsed: argparse.Namespace) -> None:
    with locked(parsed.file):
        found = checked(_there(parsed.file))
        if parsed.id not in found:
            raise KeysError(f"no key has the id {parsed.id!r} in {parsed.file} (cortex keys list shows them)")
        write(parsed.file, [entry for id_, (entry, _) in found.items() if id_ != parsed.id])
    tenant = found[parsed.id][1].tenant
    print(f"key {parsed.id} of {tenant} is revoked; requests that are open go on", file=sys.stderr)


def _hash(parsed: argparse.Namespace) -> None:
    """From the input and not an option, which everybody on the machine could read."""
    if sys.stdin.isatty():
        print("the key, and Enter:", file=sys.stderr)
    key = sys.stdin.readline().strip()
    if len(key) < SHORTEST:
        raise KeysError(f"a key has at least {SHORTEST} characters (`cortex keys create` draws one)")
    print(hash_of(key))


def _there(path: Path, missing: list[Entry] | None = None) -> list[Entry]:
    try:
        return entries(path)
    except FileNotFoundError:
        if missing is None:
            raise
        return missing


def _complaints(entry: Entry) -> Iterator[tuple[str, str]]:
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
        for place, message in key.faults():
            yield f"--{place[0]}-min", message


def _moment(value: str, now: datetime) -> str:
    """The time at which something ends that lasts so long, or ends at a date."""
    found = re.fullmatch(r"([1-9]\d{0,5})([smhd])", value)
    return (now + timedelta(seconds=int(found[1]) * PERIODS[found[2]])).isoformat() if found else value


def _listed(value: str) -> list[str]:
    return [part.strip() for part in value.split(",")]


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
