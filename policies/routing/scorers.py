"""How well an engine suits a call, each answer between 0 and 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from policies.calls import Call
from policies.pool import EngineView


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixAffinity:
    """The share of the call's prompt that the engine probably holds; below `least` it counts as nothing."""

    least: float = 0.0

    def score(self, call: Call, engine: EngineView, others: Sequence[EngineView]) -> float:
        share = min(1.0, engine.matched / max(1, call.prompt_tokens))
        return share if share >= self.least else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FreeWork:
    """The share of the engine's capacity, committed work or sequences, that is free."""

    def score(self, call: Call, engine: EngineView, others: Sequence[EngineView]) -> float:
        sequences = engine.running / engine.limits.sequences
        return max(0.0, 1.0 - max(sequences, engine.work / engine.limits.work))


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastRunning:
    """One for the engines with the fewest calls in them, less for the others in proportion."""

    def score(self, call: Call, engine: EngineView, others: Sequence[EngineView]) -> float:
        fewest = min(other.running for other in others)
        return (1 + fewest) / (1 + engine.running)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRobin:
    """One for the engine whose last call began the longest ago, so that engines take turns."""

    def score(self, call: Call, engine: EngineView, others: Sequence[EngineView]) -> float:
        return float(engine.last_start == min(other.last_start for other in others))


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnPool:
    """One for the engines of the call's own pool, so that borrowed ones come second."""

    def score(self, call: Call, engine: EngineView, others: Sequence[EngineView]) -> float:
        return float(engine.pool == call.pool)
