"""Where a waiting call can go now: among the engines with room for its work, the one that the pool's policy picks."""

from __future__ import annotations

from collections.abc import Container, Sequence
from random import Random

from policies.pool import EngineState, EngineView
from policies.queue import Waiting
from policies.routing.pipeline import Pipeline
from policies.routing.prefix import PrefixIndex

DECODE_WEIGHT = 4.0
"""A token to be written costs an engine about as much as this many prompt tokens (tail-aware release, 2609.10964)."""


def work(entry: Waiting, matched: int) -> tuple[float, float]:
    """The committed work of a call on an engine that holds `matched` tokens of its prompt: prefill and decode."""
    prefill = max(0, entry.call.prompt_tokens - matched)
    return float(prefill), DECODE_WEIGHT * entry.estimate.output_tokens[0]


def place(
    entry: Waiting,
    engines: Sequence[EngineState],
    *,
    kept: Container[str],
    prefixes: PrefixIndex,
    routing: Pipeline,
    rng: Random,
    now: float,
) -> EngineView | None:
    """The engine that takes the call; None where none can. `kept` are the engines that better calls wait for."""
    free = [one for one in engines if one.name not in kept and one.usable(now) and one.has_room(0)]
    matched = prefixes.matches(entry.call.prefix, [engine.name for engine in free])
    views = [
        engine.view(matched=matched[engine.name], tried=engine.name in entry.tried)
        for engine in free
        if engine.has_room(sum(work(entry, matched[engine.name])))
    ]
    return routing.choose(entry.call, views, rng)
