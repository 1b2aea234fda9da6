"""When an engine may serve a call of another pool: the policies of the layouts.

Which pools may lend to which at all is configured (`PoolSpec.lenders`): all of one model, or those that `lends_to`
names. Scorers decide whether it pays; here stand the conditions under which it may be asked.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from policies.calls import Call, Estimate
from policies.pool import DECODE_WEIGHT, EngineView


class Borrowing(Protocol):
    """Whether an engine of another pool may take a call now. Where it is not `gated`, it always may."""

    @property
    def gated(self) -> bool: ...

    def lends(self, call: Call, estimate: Estimate, engine: EngineView, owner_waits: bool) -> bool:
        """`owner_waits`: calls of the engine's own pool wait for room."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Always:
    """Engines of compatible pools are one pool (`layout: shared`)."""

    gated: bool = field(default=False, init=False)

    def lends(self, call: Call, estimate: Estimate, engine: EngineView, owner_waits: bool) -> bool:
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Gated:
    """An engine is lent while its owner does not need it, and its KV memory holds both (`layout: adaptive`).

    A loan is a call: what runs cannot be recalled, so the committed work of borrowed calls stays within the share
    `most` of the engine's budget, within `pressed` while calls of its own pool wait, and none is lent once more than
    the share `load` of its seats or its budget is taken. The gate on KV: what the engine keeps for others (blocks
    that it was sent more than once, and what is live in it) and what the call would add must fit into the share `kv`
    of its memory; else a borrowed call evicts the prefix that the owner's calls live on.
    """

    gated: bool = field(default=True, init=False)
    load: float = 0.95
    most: float = 0.75
    pressed: float = 0.25
    kv: float = 0.9

    def lends(self, call: Call, estimate: Estimate, engine: EngineView, owner_waits: bool) -> bool:
        if engine.load > self.load:
            return False
        prefill, output = call.missing(engine.matched), estimate.output_tokens[0]
        most = self.pressed if owner_waits else self.most
        if engine.on_loan + prefill + DECODE_WEIGHT * output > most * engine.budget:
            return False
        memory = engine.limits.kv_tokens
        return memory is None or engine.footprint + prefill + output <= self.kv * memory
