"""What the commands of `cortex keys` are called and take. It imports nothing that only a key needs."""

from __future__ import annotations

import argparse
from pathlib import Path

FILE = Path("keys.json")


def add_keys(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add `keys` and its own commands; `parsed.does` is then which of them it is."""
    keys = commands.add_parser("keys", help="make, list and revoke API keys")
    own = keys.add_subparsers(required=True, metavar="command")
    create = own.add_parser("create", help="make a key; it is shown this once")
    _describe(create)
    listing = own.add_parser("list", help="the keys of a file, without the keys themselves")
    revoke = own.add_parser("revoke", help="take a key back, from gateways that run as well")
    revoke.add_argument("id", metavar="ID", help="as `cortex keys list` shows it, and as it stands in the key")
    for parser in (create, listing, revoke):
        parser.add_argument("--file", type=Path, default=FILE, help=f"auth.file of the configuration ({FILE})")
    hashing = own.add_parser("hash", help="what a configuration holds of a key that exists, read from the input")
    for name, parser in {"create": create, "list": listing, "revoke": revoke, "hash": hashing}.items():
        parser.set_defaults(does=name)
    return keys


def _describe(create: argparse.ArgumentParser) -> None:
    """What a key may do."""
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


def _listed(value: str) -> list[str]:
    return [part.strip() for part in value.split(",")]
