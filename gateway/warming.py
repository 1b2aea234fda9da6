"""What a new engine computes before its first call: the beginnings of prompts that its pool's runs have in common.

A beginning is remembered with the shortest request that had it, and sent as that request with one token to write. So
it has the tenant's salt, and helps nobody else. Only a run's first visit to a stage is looked at: what a run shares
with itself is its conversation, which no other one continues.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from backends.base import BackendError, Engine, Request
from gateway.openai.errors import ApiError
from gateway.openai.splice import edit
from policies.routing.prefix import PrefixIndex, spans

KEPT_MOST: Final = 32
KEPT_BYTES: Final = 4_000_000
"""Beginnings of a pool that are remembered, and bytes of all their requests; the least recently seen go first."""
SENT_MOST: Final = 8
SEEN_TOKENS: Final = 1_048_576
"""Tokens of prompts by which it is told what recurs."""
FADE: Final = 600.0
"""Seconds after which a sighting counts a third."""
_ONE_TOKEN: Final = {"max_tokens": 1, "stream": False}
_DROPPED: Final = (
    "max_completion_tokens",
    "min_tokens",
    "n",
    "best_of",
    "stream_options",
    "logprobs",
    "top_logprobs",
)
_log = logging.getLogger("cortex.engines")

Prefix = tuple[int, ...]


@dataclass(slots=True, eq=False)
class _Beginning:
    """`tokens` that prompts have in common, and the shortest request that begins with them."""

    request: Request
    tokens: int
    sightings: float
    at: float

    def seen(self, request: Request, now: float) -> None:
        self.sightings, self.at = 1.0 + self.sightings * math.exp((self.at - now) / FADE), now
        if len(request.body) < len(self.request.body):
            self.request = request

    def worth(self, now: float) -> float:
        """Tokens that an engine without it computes again and again."""
        return self.tokens * self.sightings * math.exp((self.at - now) / FADE)


@dataclass(slots=True, eq=False)
class _Memory:
    """The beginnings of one pool by the hash of their last block, which no two tenants share."""

    beginnings: OrderedDict[int, _Beginning] = field(default_factory=OrderedDict)
    bytes: int = 0

    def see(self, request: Request, tokens: int, now: float) -> None:
        last = request.call.prefix[len(spans(tokens)) - 1]
        known = self.beginnings.pop(last, None)
        if known is None:
            known = _Beginning(request, tokens, 1.0, now)
        else:
            self.bytes -= len(known.request.body)
            known.seen(request, now)
        self.beginnings[last] = known
        self.bytes += len(known.request.body)
        while len(self.beginnings) > KEPT_MOST or self.bytes > KEPT_BYTES:
            self.forget(next(iter(self.beginnings)))

    def forget(self, last: int) -> None:
        known = self.beginnings.pop(last, None)
        self.bytes -= 0 if known is None else len(known.request.body)

    def best(self, now: float) -> Sequence[tuple[int, Request]]:
        """Those worth most, each by its last block, without those that another's request begins with."""
        chosen: list[tuple[int, Request]] = []
        held: set[int] = set()
        for last, one in sorted(self.beginnings.items(), key=lambda item: -item[1].worth(now)):
            if last not in held and len(chosen) < SENT_MOST:
                chosen.append((last, one.request))
                held.update(one.request.call.prefix)
        return chosen


class Warming:
    """Remembers beginnings by pool, and sends them to engines. `limit` seconds for an engine; 0: nothing is done.

    Nothing is sent to those of `billed` pools: what they compute costs money, and what they hold nobody knows.
    """

    def __init__(self, *, clock: Callable[[], float], limit: float, billed: Collection[str] = ()) -> None:
        self._now = clock
        self._billed = billed
        self._limit = limit
        self._blocks = PrefixIndex(SEEN_TOKENS)
        self._memories: dict[str, _Memory] = {}

    def see(self, request: Request, visit: int) -> None:
        """Take note of a request that an engine has taken up, its call's so many-th visit to the stage."""
        call = request.call
        if not call.prefix or visit > 1 or not self._limit or call.pool in self._billed:
            return
        pool = call.pool
        if pool not in self._memories:
            self._memories[pool] = _Memory()
            self._blocks.add_engine(pool)
        shared = self._blocks.matches(call.prefix, (pool,))[pool]
        self._blocks.sent(call.prefix, pool)
        if shared and len(request.body) <= KEPT_BYTES // SENT_MOST:
            self._memories[pool].see(request, shared, self._now())

    async def warm(self, pool: str, name: str, engine: Engine) -> tuple[Prefix, ...]:
        """Let an engine compute what is worth most to its pool; returns the prefixes that it holds then.

        Never raises for what the engine does: one that is not warm is an engine all the same.
        """
        memory, held = self._memories.get(pool), list[Prefix]()
        if memory is None or not memory.beginnings:
            return ()
        began = self._now()
        try:
            async with asyncio.timeout(self._limit):
                for last, request in memory.best(began):
                    status = await self._sent(request, engine)
                    if status == 200:
                        held.append(request.call.prefix)
                    elif 400 <= status < 500:  # it was taken once; whoever sends the like again brings it back
                        memory.forget(last)
        except (BackendError, ApiError, TimeoutError) as error:
            _log.warning("engine not all warm pool=%s engine=%s reason=%s", pool, name, error or "no time left")
        _log.info("engine warm pool=%s engine=%s prompts=%d seconds=%.2f", pool, name, len(held), self._now() - began)
        return tuple(held)

    async def _sent(self, request: Request, engine: Engine) -> int:
        body = edit(request.body, _ONE_TOKEN, _DROPPED)
        kind = (("content-type", "application/json"),)
        once = replace(request, body=body, headers=kind, head_timeout=self._limit, idle_timeout=self._limit)
        async with engine.open(once) as reply:
            async for _ in reply.chunks:
                pass
            return reply.status
