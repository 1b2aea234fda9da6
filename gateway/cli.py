"""The command `cortex`: serve, check, keys, demo, simulate, replay, and those that look at a gateway that runs.

Each command imports what it needs when it runs: a look at a gateway shall not wait for all that a gateway is made of.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.keysoptions import add_keys
from gateway.output import UNWRITTEN, OutputError, complain, say
from gateway.terminal.options import add_commands

if TYPE_CHECKING:
    import socket

    from gateway.config import Override
    from gateway.settings import Config
    from simulator.campaign import Entrant

Command = Callable[[argparse.Namespace], int]
_log = logging.getLogger("cortex")

REPLAY_USAGE = "cortex replay JOURNAL [--set SLOT=POLICY[:PARAMETER=VALUE,...]] ..."
CONFIG = Path("config.yaml")
DEMO = Path("examples/nl2sql/demo.py")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    try:
        try:
            return _run(_parser(), arguments)
        finally:
            say("")  # what others have printed, argparse among them, must get through, too
    except OutputError as error:
        if not str(error):  # who reads it has read enough
            return 0
        complain(f"cortex: the output cannot be written: {error}")
        return UNWRITTEN
    except KeyboardInterrupt:
        return 130


def _run(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> int:
    parsed, rest = parser.parse_known_args(arguments)
    if rest and parsed.run not in (_demo, _simulate):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    parsed.rest = rest
    status: int = parsed.run(parsed)
    return status


def _configured(run: Command) -> Command:
    """A command that reads a configuration, and says in one line what is wrong with it."""

    @wraps(run)
    def told(parsed: argparse.Namespace) -> int:
        from gateway.config import ConfigError

        try:
            return run(parsed)
        except ConfigError as error:
            complain(str(error))
            return 2

    return told


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cortex", description="A workflow-aware, OpenAI-compatible gateway for agentic LLM serving."
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    parser.add_argument("--version", action="version", version=f"cortex {version('cortex-gateway')}")
    serve = commands.add_parser("serve", help="start the gateway")
    file = serve.add_mutually_exclusive_group()
    file.add_argument("file", type=Path, nargs="?", default=CONFIG, metavar="FILE", help=f"default: {CONFIG}")
    file.add_argument("--config", type=Path, metavar="FILE", help="the same, as an option")
    serve.add_argument("--host", help="listen here instead of where the file says")
    serve.add_argument("--port", type=int, help="listen on this port instead of the file's")
    serve.set_defaults(run=_serve)
    check = commands.add_parser("check", help="check a configuration and say what it holds")
    check.add_argument("file", type=Path, nargs="?", default=CONFIG, metavar="FILE", help=f"default: {CONFIG}")
    check.set_defaults(run=_check)
    demo = commands.add_parser(
        "demo", help="60 questions through an NL2SQL agent, under four pool layouts", add_help=False
    )
    demo.set_defaults(run=_demo)
    add_keys(commands).set_defaults(run=_keys)
    _add_virtual(commands)
    for added in add_commands(commands):
        added.set_defaults(run=_terminal)
    return parser


def _add_virtual(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The commands for which no gateway runs."""
    simulate = commands.add_parser("simulate", help="policies against each other, in virtual time", add_help=False)
    simulate.set_defaults(run=_simulate)
    replay = commands.add_parser("replay", help="what happened, from a gateway's journal", usage=REPLAY_USAGE)
    replay.add_argument("journal", type=Path, metavar="JOURNAL")
    replay.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SLOT=POLICY",
        help="where other policies would have acted otherwise",
    )
    replay.set_defaults(run=_replay)


def read_config(path: Path, environ: Mapping[str, str] = os.environ, overrides: Sequence[Override] = ()) -> Config:
    """A configuration with its policies checked against the catalog. Raises ConfigError."""
    from gateway.blueprints import complaint
    from gateway.config import load

    return load(path, environ, complaint, overrides)


@_configured
def _check(parsed: argparse.Namespace) -> int:
    config = read_config(parsed.file)
    for warning in _warnings(config):
        complain(f"warning: {warning}")
    say(f"{parsed.file}: ok ({_counted(config.pools, 'pool')}, {_counted(config.workflows, 'workflow')})\n")
    return 0


def _counted(things: Collection[str], what: str) -> str:
    return f"{len(things)} {what}{'' if len(things) == 1 else 's'}"


def _warnings(config: Config) -> Iterator[str]:
    """Databases that are not there yet or hold nothing: no mistake in the configuration, but hardly what is meant."""
    from gateway.backendspecs import DuckDb
    from gateway.yamlfile import spelled

    for name, pool in config.pools.items():
        for database, path in pool.backend.databases.items() if isinstance(pool.backend, DuckDb) else ():
            where = spelled(("pools", name, "backend", "databases", database))
            if not path.exists():
                yield f"{where}: no such file: {path}"
            elif path.is_dir() and not any(map(_is_table, path.rglob("*.parquet"))):
                yield f"{where}: no Parquet file in this folder, so it has no tables: {path}"


def _is_table(path: Path) -> bool:
    return not path.name.startswith((".", "_"))


@_configured
def _serve(parsed: argparse.Namespace) -> int:
    import uvloop

    from gateway.config import Override
    from gateway.listening import bound

    given = {name: getattr(parsed, name) for name in ("host", "port")}
    overrides = [Override(f"--{name}", "server", name, value) for name, value in given.items() if value is not None]
    config = read_config(parsed.config or parsed.file, overrides=overrides)
    _set_up_logs(config)
    for warning in _warnings(config):
        _log.warning(warning)
    try:
        # Before anything else is started: a port that is taken is the most common reason not to start at all.
        listener = bound(config.server)
    except OSError as error:
        reason = str(error.strerror).partition(" (while ")[0]  # the rest is the address once more
        complain(f"cannot listen on {config.server.host}:{config.server.port}: {reason}")
        return 2
    with listener:
        uvloop.run(_serve_until_told(config, listener))
    return 0


async def _serve_until_told(config: Config, listener: socket.socket) -> None:
    from gateway.compose import compose
    from gateway.listening import server

    gateway = await compose(config)
    await server(gateway).serve(sockets=[listener])


def _set_up_logs(config: Config) -> None:
    logging.basicConfig(
        level=config.server.log_level.upper(),
        format="%(asctime)s %(levelname)-7s %(name)s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
    )
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    # Its warnings are about what clients send: garbage, or the wish for a WebSocket. Each is answered, none is news.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)


@_configured
def _simulate(parsed: argparse.Namespace) -> int:
    from simulator import command

    parser = argparse.ArgumentParser(
        prog="cortex simulate",
        usage="cortex simulate [options]",
        description="Runs workloads through the gateway's scheduler in virtual time, under several policies.",
    )
    more = "run this configuration's policies too"
    parser.add_argument("--config", type=Path, action="append", default=[], metavar="FILE", help=more)
    command.add_options(parser)
    options = parser.parse_args(parsed.rest)
    entrants = [_entrant(path) for path in options.config]
    try:
        planned = command.plan(options, entrants)
    except ValueError as error:
        complain(f"cortex simulate: {error}")
        return 2
    return command.run(planned, sys.stdout, sys.stderr)


def _entrant(path: Path) -> Entrant:
    """The policies and the layout of a configuration. Its pools matter only where they have policies of their own."""
    from gateway.blueprints import blueprint
    from gateway.settings import PoolPolicies
    from simulator.campaign import Entrant
    from simulator.lineup import Contender

    config = read_config(path)
    own = {name for name, pool in config.pools.items() if pool.policies != PoolPolicies()}
    everywhere = config.model_copy(
        update={
            "pools": {
                name: pool.model_copy(update={"policies": PoolPolicies()}) for name, pool in config.pools.items()
            }
        }
    )
    common, exact = blueprint(everywhere), blueprint(config)
    return Entrant(
        name=str(path),
        contender=Contender(
            name=str(path),
            layout=config.policies.layout,
            policies=next(iter(common.policies.values())),
            gate=common.gate,
        ),
        own={name: exact.policies[name] for name in own},
    )


def _replay(parsed: argparse.Namespace) -> int:
    from gateway.retelling import retell
    from gateway.whatif import assigned

    try:
        return retell(parsed.journal, assigned(parsed.set), lambda line: say(f"{line}\n"))
    except ValueError as error:
        complain(f"cortex replay: {error}")
        return 2


def _keys(parsed: argparse.Namespace) -> int:
    from gateway.keyscommand import run

    return run(parsed)


def _terminal(parsed: argparse.Namespace) -> int:
    from gateway.terminal.command import run

    return run(parsed)


def _demo(parsed: argparse.Namespace) -> int:
    if not DEMO.exists():
        complain("cortex demo runs from a checkout of the repository: examples/nl2sql is not here")
        return 2
    import runpy

    sys.path.insert(0, str(Path.cwd()))
    module = runpy.run_path(str(DEMO))
    status: int = asyncio.run(module["main"](parsed.rest))
    return status
