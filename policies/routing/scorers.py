"""How well engines suit a call, each answer between 0 and 1, compared among the engines at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from policies.calls import Call
from policies.pool import EngineView


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixAffinity:
    """The share of the call's prompt that the engine probably holds; below `least` it counts as nothing."""

    least: float = 0.0

    def scores(self, call: Call, engines: Sequence[EngineView]) -> Sequence[float]:
        prompt = max(1, call.prompt_tokens)
        shares = [min(1.0, engine.matched / prompt) for engine in engines]
        return [share if share >= self.least else 0.0 for share in shares]


@dataclass(frozen=True, slots=True, kw_only=True)
class FreeWork:
    """The share of the engine's capacity, committed work or sequences, that is free."""

    def scores(self, call: Call, engines: Sequence[EngineView]) -> Sequence[float]:
        return [max(0.0, 1.0 - engine.load) for engine in engines]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastCost:
    """What the call would cost, in prompt tokens to be computed: 1 for the cheapest engine, others in proportion.

    The cost is what the engine misses of the prompt, what it still has to compute of other prompts, the share
    `crowd` of the rest of its committed work, and `away` tokens on an engine of another pool, whose cache the call
    would disturb.
    """

    crowd: float = 0.2
    away: float = 1000.0

    def scores(self, call: Call, engines: Sequence[EngineView]) -> Sequence[float]:
        costs = [
            call.prompt_tokens
            - min(call.prompt_tokens, engine.matched)
            + engine.prefill
            + self.crowd * (engine.work - engine.prefill)
            + (0.0 if engine.pool == call.pool else self.away)
            for engine in engines
        ]
        least = 1.0 + min(costs)
        return [least / (1.0 + cost) for cost in costs]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastRunning:
    """One for the engines with the fewest calls in them, less for the others in proportion."""

    def scores(self, call: Call, engines: Sequence[EngineView]) -> Sequence[float]:
        fewest = min(engine.running for engine in engines)
        return [(1 + fewest) / (1 + engine.running) for engine in engines]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRobin:
    """One for the engine whose last call began the longest ago, so that engines take turns."""

    def scores(self, call: Call, engines: Sequence[EngineView]) -> Sequence[float]:
        longest_ago = min(engine.last_start for engine in engines)
        return [float(engine.last_start == longest_ago) for engine in engines]


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnPool:
    """One for the engines of the call's own pool, so that borrowed ones come second."""

    def scores(self, call: Call, engines: Sequence[EngineView]) -> Sequence[float]:
        return [float(engine.pool == call.pool) for engine in engines]
