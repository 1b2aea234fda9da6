"""What the commands of the terminal are called and take. It imports nothing that a gateway would not."""

from __future__ import annotations

import argparse
from pathlib import Path

URL = "http://127.0.0.1:8080"
FASTEST = 0.1
"""Seconds between two frames of `cortex top`, at least."""


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> list[argparse.ArgumentParser]:
    """Add `status`, `scale`, `drain` and `top`; `parsed.does` is then which of them it is."""
    status = commands.add_parser("status", help="pools, engines, queues and runs of a gateway that runs")
    status.add_argument("--json", action="store_true", help="as the admin API has it, for scripts")
    scale = commands.add_parser("scale", help="how many engines a pool shall have")
    scale.add_argument("pool", metavar="POOL")
    scale.add_argument("engines", type=int, metavar="N")
    drain = commands.add_parser("drain", help="let an engine finish its calls and go")
    drain.add_argument("engine", metavar="ENGINE", help="as `cortex status` names it: POOL/NUMBER")
    top = commands.add_parser("top", help="the same as `status`, live")
    top.add_argument("--every", type=_seconds, default=0.5, metavar="SECONDS", help="between two looks (0.5)")
    top.add_argument("--once", action="store_true", help="one frame, with or without a terminal")
    top.add_argument("--svg", type=Path, metavar="FILE", help="with --once: a picture of it, too")
    made = {"status": status, "scale": scale, "drain": drain, "top": top}
    for name, parser in made.items():
        _add_where(parser)
        parser.set_defaults(does=name)
    return list(made.values())


def _add_where(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", help=f"the gateway (without: CORTEX_URL, else {URL})")
    token = parser.add_mutually_exclusive_group()
    token.add_argument("--token-file", type=Path, metavar="FILE", help="holds the admin's token")
    token.add_argument(
        "--token", help="the token itself, which then everybody on this machine can see (without: CORTEX_ADMIN_TOKEN)"
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, and not '{text}'") from None
    if not FASTEST <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"must be {FASTEST:g} to 3600")
    return seconds
