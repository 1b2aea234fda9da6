"""`cortex status`: pools, engines, queues and runs, once; tables for people, JSON for scripts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from time import monotonic

import msgspec
from rich.text import Text

from gateway.output import say
from gateway.terminal.client import AdminClient
from gateway.terminal.columns import lines
from gateway.terminal.facts import Facts, PoolsAnswer, RunsAnswer
from gateway.terminal.screen import console, drawn
from gateway.terminal.tables import POOLS, RUNS, broken, engine_columns, many

RUNS_SHOWN = 10


async def status(client: AdminClient, *, as_json: bool) -> int:
    """Print what a gateway does now. Raises Trouble."""
    if as_json:
        say(await _document(client) + "\n")
        return 0
    pools = await client.get("/admin/pools", PoolsAnswer)
    runs = await client.get(f"/admin/runs?order=slack&limit={RUNS_SHOWN}", RunsAnswer)
    out = console()
    told = list(_told(Facts(pools=pools, runs=runs, at=monotonic()), out.width))
    for line in told:
        line.rstrip()
    say(drawn(out, told))
    return 0


async def _document(client: AdminClient) -> str:
    """All that the admin API says of pools and runs, in its own words."""
    pools = await client.get("/admin/pools", dict)
    runs = await client.get("/admin/runs?order=slack", dict)
    document = {"url": client.url, **pools, "runs": runs}
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode()


def _told(facts: Facts, width: int) -> Iterator[Text]:
    pools, engines, runs = facts.pools.pools, facts.engines, facts.runs
    yield from lines(POOLS, pools, width)
    for told in filter(None, map(broken, pools)):
        yield Text(f"failing   {told}", "bold red")
    queues = [f"{pool.name}: {stages}" for pool in pools if (stages := _waiting(pool.waiting_by_stage))]
    if queues:
        yield Text(f"waiting   {'; '.join(queues)}")
    gate = facts.pools.gate
    if gate.window is not None:
        yield Text(f"gate      {gate.active_runs:,} of {gate.window:,.0f}, {many(gate.parked_calls, 'call')} parked")
    yield Text()
    yield from lines(engine_columns(None), engines, width)
    yield Text()
    if runs.runs:
        yield from lines(RUNS, runs.runs, width)
    more = f"; those with the least slack are shown: {len(runs.runs)}" if runs.total > len(runs.runs) else ""
    yield Text(f"{many(runs.total, 'run')}{more}")


def _waiting(stages: Mapping[str, int]) -> str:
    return ", ".join(f"{stage or 'calls of no stage'} {count}" for stage, count in stages.items() if count)
