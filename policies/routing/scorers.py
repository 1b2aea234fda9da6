"""How well engines suit a call, each answer between 0 and 1, compared among the engines at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from policies.pool import EngineView
from policies.protocols import Demand


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixAffinity:
    """The share of the call's prompt that the engine probably holds; below `least` it counts as nothing."""

    least: float = field(default=0.0, metadata={"most": 1.0})

    def scores(self, demand: Demand, engines: Sequence[EngineView]) -> Sequence[float]:
        prompt = max(1, demand.call.prompt_tokens)
        shares = [min(1.0, engine.matched / prompt) for engine in engines]
        return [share if share >= self.least else 0.0 for share in shares]


@dataclass(frozen=True, slots=True, kw_only=True)
class FreeWork:
    """The share of the engine's capacity, committed work or sequences, that is free."""

    def scores(self, demand: Demand, engines: Sequence[EngineView]) -> Sequence[float]:
        return [max(0.0, 1.0 - engine.load) for engine in engines]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastDelay:
    """The least harm that the call can do, to itself and to the calls beside it: 1 for the best engine, others in
    proportion.

    Expected seconds, by the engine's learned pace, each weighed by what a second costs the run that it is lost to:
    the call's own time there (what the engine misses of its prompt and has to compute before it, then its steps,
    stretched by the engine's pressure), and the time that the call takes from those that run (its prompt stalls all
    of them, its steps make theirs longer). Tokens that do not fit beside what is worth keeping there are computed
    again. On an engine that is only on loan, what another one at hand would not have to compute counts `copies`
    times more: the owner's memory would hold a copy of it; `unbounded_copies` times where the call's run has no
    deadline, as nothing is then missed when the answer comes later. So prompts gather where few decode, long answers
    where few prompts come, and calls in a hurry where it is quiet: stages sort themselves out as far as it pays.
    """

    others: float = 1.0
    waste: float = 1.0
    copies: float = 6.0
    unbounded_copies: float = 20.0

    def scores(self, demand: Demand, engines: Sequence[EngineView]) -> Sequence[float]:
        least_missing = min(demand.call.missing(engine.matched) for engine in engines)
        costs = [self._cost(demand, engine, least_missing) for engine in engines]
        least = 1e-3 + min(costs)
        return [least / (1e-3 + cost) for cost in costs]

    def _cost(self, demand: Demand, engine: EngineView, least_missing: int) -> float:
        call, pace = demand.call, engine.pace
        missing = call.missing(engine.matched)
        crowd = engine.running + 1
        own = pace.prefill * (missing + engine.prefill) + pace.decode(demand.output, crowd, engine.pressure)
        taken = pace.prefill * missing + pace.sequence * demand.output
        memory = engine.limits.kv_tokens
        evicted = 0.0 if memory is None else max(0.0, engine.footprint + missing + demand.output - memory)
        copied = missing - least_missing if engine.guest else 0
        wasted = self.waste * missing * crowd + (self.copies if demand.bounded else self.unbounded_copies) * copied
        return (
            demand.urgency * own
            + self.others * engine.urgency * taken
            + pace.prefill * (self.others * evicted + wasted)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastRunning:
    """One for the engines with the fewest calls in them, less for the others in proportion."""

    def scores(self, demand: Demand, engines: Sequence[EngineView]) -> Sequence[float]:
        fewest = min(engine.running for engine in engines)
        return [(1 + fewest) / (1 + engine.running) for engine in engines]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRobin:
    """One for the engine whose last call began the longest ago, so that engines take turns."""

    def scores(self, demand: Demand, engines: Sequence[EngineView]) -> Sequence[float]:
        longest_ago = min(engine.last_start for engine in engines)
        return [float(engine.last_start == longest_ago) for engine in engines]


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnPool:
    """One for the engines of the call's own pool, so that borrowed ones come second."""

    def scores(self, demand: Demand, engines: Sequence[EngineView]) -> Sequence[float]:
        return [float(engine.pool == demand.call.pool) for engine in engines]
