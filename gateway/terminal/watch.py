"""Looks at a gateway again and again, and knows what it said last and since when it has said nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from time import monotonic

from gateway.terminal.client import AdminClient, Trouble
from gateway.terminal.facts import Facts, PoolsAnswer, RunsAnswer
from gateway.terminal.frame import Seen, View
from gateway.terminal.rates import Rates, counted

COUNTED_EVERY = 2.0
"""Seconds between two looks at the metrics: as often as the gateway asks its engines for theirs."""
SLOW = 2.0
"""Seconds after which a gateway that has not answered yet counts as lost."""


class Watch:
    """What is known of a gateway, for a view that says which runs are wanted and whether anything is."""

    def __init__(self, client: AdminClient, view: View) -> None:
        self.view = view
        self._client = client
        self._rates = Rates()
        self._counted = 0.0
        self._facts: Facts | None = None
        self._asked: float | None = None
        self._why = ""
        self._hurry = asyncio.Event()

    async def look(self) -> None:
        """Ask once. Raises Trouble."""
        self._asked = monotonic()
        pools = await self._client.get("/admin/pools", PoolsAnswer)
        wanted = f"?order={self.view.order}&limit={self.view.runs_wanted}"
        runs = await self._client.get(f"/admin/runs{wanted}", RunsAnswer)
        facts = Facts(pools=pools, runs=runs, at=monotonic())
        if facts.at - self._counted >= COUNTED_EVERY:
            self._rates.add(counted(await self._client.read("/metrics"), facts.engines, monotonic()))
            self._counted = facts.at
        self._facts, self._asked, self._why = facts, None, ""

    async def follow(self, every: float, changed: Callable[[], None]) -> None:
        """Look on and on, but not while the view is paused; `changed` is called after each look."""
        while True:
            self._hurry.clear()
            due = asyncio.get_running_loop().time() + every
            try:
                await self.look()
            except Trouble as trouble:
                self._why = str(trouble)
            changed()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(None if self.view.paused else due):
                    await self._hurry.wait()

    def hurry(self) -> None:
        """Look now: something else is wanted."""
        self._hurry.set()

    def seen(self) -> Seen:
        """What a frame shows now; something must have been seen."""
        assert self._facts is not None
        now = monotonic()
        slow = self._asked is not None and now - self._asked > SLOW
        return Seen(
            url=self._client.url,
            facts=self._facts,
            rates=self._rates,
            lost=now - self._facts.at if slow or self._why else None,
            why=self._why or "it takes long to answer",
        )
