"""Carries out a command of the terminal that has been parsed, and says in one line why it cannot."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Collection

from gateway.output import complain, say
from gateway.terminal.client import REFUSED, WRONG, AdminClient, Trouble, connected, key, place
from gateway.terminal.facts import PoolFacts, PoolsAnswer
from gateway.terminal.status import status
from gateway.terminal.tables import many
from gateway.terminal.top import live, once


def run(parsed: argparse.Namespace) -> int:
    """Do it; returns the exit status. Raises OutputError."""
    try:
        if parsed.does == "top" and parsed.svg and not parsed.once:
            raise Trouble("--svg is a picture of one frame: it goes with --once", WRONG)
        url = place(parsed.url, os.environ)
        token = key(parsed.token, parsed.token_file, os.environ)
        return asyncio.run(_done(parsed, url, token))
    except Trouble as trouble:
        complain(f"cortex {parsed.does}: {trouble}")
        return trouble.status


async def _done(parsed: argparse.Namespace, url: str, token: str) -> int:
    async with connected(url, token) as client:
        match parsed.does:
            case "status":
                return await status(client, as_json=parsed.json)
            case "scale":
                return await _scale(client, parsed.pool, parsed.engines)
            case "drain":
                return await _drain(client, parsed.engine)
            case _:
                return await (once(client, parsed.svg) if parsed.once else live(client, parsed.every))


async def _scale(client: AdminClient, pool: str, engines: int) -> int:
    pools = (await client.get("/admin/pools", PoolsAnswer)).pools
    _check("pool", pool, [one.name for one in pools])
    return _say(await client.scale(pool, engines))


async def _drain(client: AdminClient, engine: str) -> int:
    pools = (await client.get("/admin/pools", PoolsAnswer)).pools
    _check("engine", engine, [one.name for pool in pools for one in pool.engines])
    pool = await client.drain(engine)
    running = sum(one.running for one in pool.engines if one.name == engine)
    calls = f"after its {many(running, 'call')}" if running else "at once"
    say(f"engine {engine} goes {calls}\n")
    return _say(pool)


def _check(what: str, name: str, known: Collection[str]) -> None:
    """Raises Trouble where there is no such pool or engine; a name with a slash too many is no path of the API."""
    if name not in known:
        raise Trouble(f"there is no {what} '{name}' (there are: {', '.join(known) or 'none'})", REFUSED)


def _say(pool: PoolFacts) -> int:
    states = [engine.state for engine in pool.engines]
    told = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "none yet"
    say(f"pool {pool.name}: {pool.target} of {pool.min} to {pool.max} engines wanted; {told}\n")
    return 0
