"""How much of a call's prompt each engine holds, by what the engines themselves say of their memory.

For that the prompt's tokens are asked for before the call is queued, and each engine's KV events are followed from
the moment it is up. What was sent and is not computed yet counts as held: a call that comes behind it will find it.
Each answer is held against what the engine reports in the end; one whose index is often wrong is not believed until
it has been right as often.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from backends.base import Engine
from backends.capabilities import Capabilities, KvSource
from backends.kvindex import BlockIndex, Tokens, chain, keyed
from gateway.openai.payload import Payload
from gateway.tokens import Prompts
from policies.calls import Call, Outcome
from policies.events import (
    Action,
    EngineGone,
    EngineUp,
    Event,
    Failed,
    Finished,
    FirstToken,
    Left,
    Refused,
    Retire,
    Start,
)

BLOCKS_MOST: Final = 1_000_000
"""Blocks of an engine that does not say how many it has room for."""
GRACE: Final = 0.5
"""Seconds after a first token within which the events of its prompt have come."""
TRUST_MOST: Final = 4
NEAR: Final = 2
"""Blocks by which an answer may be wrong before it counts against its index."""
_log = logging.getLogger("cortex.engines")


class Follows(Protocol):
    """Listens to engines."""

    async def follow(self, source: KvSource, url: str, index: BlockIndex) -> None: ...

    def close(self) -> None: ...


class Counts(Protocol):
    """What the metrics hear of it."""

    def prefix_found(self, index: str, *, predicted: int, actual: int, block: int) -> None: ...


@dataclass(slots=True, eq=False)
class _Prompt:
    """The tokens of a call that is open, and the hashes of their whole blocks by the size of those."""

    tokens: Tokens
    seed: int
    hashes: dict[int, list[int]] = field(default_factory=dict)

    def blocks(self, size: int) -> list[int]:
        if size not in self.hashes:
            self.hashes[size] = chain(self.tokens, size, self.seed)
        return self.hashes[size]

    def depth(self, index: BlockIndex) -> int:
        """How many of its blocks need not be computed: of a prompt that is held whole the last token is."""
        return index.depth(self.blocks(index.size), (len(self.tokens) - 1) // index.size)


@dataclass(slots=True, eq=False)
class _Fed:
    """An engine that tells what it holds. `trust` above 0: it is believed."""

    source: KvSource
    index: BlockIndex
    task: asyncio.Task[None]
    trust: int = TRUST_MOST

    @property
    def known(self) -> bool:
        return self.index.whole and self.trust > 0


@dataclass(slots=True, eq=False)
class _Sent:
    """An attempt under way: `blocks` that its engine was expected to find, by its own word or else not known."""

    engine: str
    blocks: int | None = None
    fed: _Fed | None = None
    believed: bool = False
    expected: int = 0


class Residence:
    """The `Residency` of a gateway. `pools` are those whose engines are asked; `engines` all that are up."""

    def __init__(
        self,
        *,
        pools: Collection[str],
        engines: Callable[[], Mapping[str, Engine]],
        can: Callable[[str], Capabilities],
        prompts: Prompts,
        ears: Follows,
        counts: Counts,
    ) -> None:
        self._pools = frozenset(pools)
        self._engines = engines
        self._can = can
        self._asked = prompts
        self._ears = ears
        self._counts = counts
        self._feeds: dict[str, _Fed] = {}
        self._prompts: dict[str, _Prompt] = {}
        self._sent: dict[str, _Sent] = {}

    # --- calls ------------------------------------------------------------------------------------------------

    async def read(self, call: Call, payload: Payload, salt: str) -> Call:
        """Have a call's tokens ready when it is placed, and counted in it. To be queued at once."""
        if call.pool not in self._pools or not self._feeds:
            return call
        tokens = await self._asked.tokens(call, payload)
        if not tokens:
            return call
        self._prompts[call.id] = _Prompt(tokens, keyed(0, (salt,) if salt else ()))
        return replace(call, prompt_tokens=len(tokens))

    def held(self, call: Call, engines: Sequence[str]) -> Mapping[str, int]:
        prompt = self._prompts.get(call.id)
        if prompt is None:
            return {}
        return {
            name: prompt.depth(fed.index) * fed.index.size
            for name in engines
            if (fed := self._feeds.get(name)) is not None and fed.known
        }

    def sent(self, call: Call, engine: str) -> None:
        if call.pool not in self._pools:
            return
        self._settle(call.id, 0.0)  # what an attempt before this one was to compute
        sent = self._sent[call.id] = _Sent(engine)
        prompt, fed = self._prompts.get(call.id), self._feeds.get(engine)
        if prompt is not None and fed is not None and fed.index.whole:
            sent.blocks, sent.fed, sent.believed = prompt.depth(fed.index), fed, fed.known
            fed.index.expect(prompt.blocks(fed.index.size))

    @property
    def open(self) -> int:
        """How many calls something is known of that are not over."""
        return len(self._prompts.keys() | self._sent.keys())

    def resident(self) -> Mapping[str, int]:
        """How many blocks each engine holds that is known exactly."""
        return {name: len(fed.index) for name, fed in self._feeds.items() if fed.known}

    # --- what becomes of them ---------------------------------------------------------------------------------

    def watch(self, event: Event, actions: list[Action]) -> None:
        """Hear what the dispatcher was told and decided."""
        self._told(event, actions)
        for action in actions:
            match action:
                case Start() if action.call in self._sent:
                    self._sent[action.call].expected = action.expected_cached
                case Refused():
                    self._ended(action.call, None)
                case Retire():
                    self._leave(action.engine)
                case _:
                    pass

    def _told(self, event: Event, actions: list[Action]) -> None:
        match event:
            case EngineUp():
                self._follow(event.engine)
            case EngineGone():
                self._leave(event.engine)
            case FirstToken():
                self._settle(event.call, GRACE)
            case Finished():
                self._ended(event.call, event.outcome)
            case Failed(final=False):
                # Where it is tried elsewhere in the same step, `sent` has been told of that already.
                if not any(isinstance(action, Start) and action.call == event.call for action in actions):
                    self._settle(event.call, 0.0)
                    self._sent.pop(event.call, None)
            case Failed() | Left():
                self._ended(event.call, None)
            case _:
                pass

    def _settle(self, call: str, after: float) -> None:
        """What a call computes has come in, or will not."""
        sent, prompt = self._sent.get(call), self._prompts.get(call)
        if sent is None or sent.fed is None or prompt is None:
            return
        index, sent.fed = sent.fed.index, None
        asyncio.get_running_loop().call_later(after, index.settle, prompt.blocks(index.size))

    def _ended(self, call: str, outcome: Outcome | None) -> None:
        sent = self._sent.get(call)
        self._settle(call, GRACE)
        if sent is not None and outcome is not None and outcome.fate == "ok":
            self._compare(call, sent, outcome)
        self._sent.pop(call, None)
        self._prompts.pop(call, None)

    def _compare(self, call: str, sent: _Sent, outcome: Outcome) -> None:
        """Learn from what an engine has found of a prompt."""
        prompt, fed, cached = self._prompts.get(call), self._feeds.get(sent.engine), outcome.cached_tokens
        if fed is None or cached is None:
            return
        size = fed.index.size
        kind = "exact" if sent.believed else "approximate"
        self._counts.prefix_found(kind, predicted=sent.expected, actual=cached, block=size)
        if prompt is None:
            return
        pool = sent.engine.rpartition("/")[0]
        self._asked.counted(pool, len(prompt.tokens), outcome.prompt_tokens)
        if sent.blocks is None or len(prompt.tokens) != outcome.prompt_tokens:
            return
        found = cached // size
        if found < sent.blocks:
            fed.index.recomputed(prompt.blocks(size)[found : sent.blocks])
        before = fed.trust
        trust = min(TRUST_MOST, before + (1 if abs(found - sent.blocks) <= NEAR else -1))
        fed.trust = 1 - TRUST_MOST if trust <= 0 < before else max(1 - TRUST_MOST, trust)
        if (before > 0) != (fed.trust > 0):
            _log.warning("KV events are %s engine=%s", "believed again" if before <= 0 else "wrong", sent.engine)

    # --- engines ----------------------------------------------------------------------------------------------

    def _follow(self, name: str) -> None:
        """Listen to an engine that has come up, where it speaks."""
        can, engine = self._can(name), self._engines().get(name)
        if name.rpartition("/")[0] not in self._pools or engine is None:
            return
        if len(can.kv_events) != 1 or can.block_size is None:  # several ranks have a cache each
            _log.info("no KV events engine=%s sources=%s", name, len(can.kv_events))
            self._leave(name)
            return
        source, fed = can.kv_events[0], self._feeds.get(name)
        if fed is not None and fed.source == source and fed.index.size == can.block_size:
            return
        self._leave(name)
        index = BlockIndex(size=can.block_size, most=min(can.kv_blocks or BLOCKS_MOST, BLOCKS_MOST))
        listening = self._ears.follow(source, getattr(engine, "url", ""), index)
        task = asyncio.create_task(listening, name=f"KV events of {name}")
        self._feeds[name] = _Fed(source, index, task)

    def _leave(self, name: str) -> None:
        fed = self._feeds.pop(name, None)
        if fed is not None:
            fed.task.cancel()

    async def aclose(self) -> None:
        await self._asked.aclose()
        tasks = [fed.task for fed in self._feeds.values()]
        for name in list(self._feeds):
            self._leave(name)
        await asyncio.gather(*tasks, return_exceptions=True)
        self._ears.close()
