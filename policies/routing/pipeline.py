"""Filter, score, pick: the three steps that choose an engine among those with room."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from policies.pool import EngineView
from policies.protocols import Demand, Filter, Picker, Scorer


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """The routing policy of a pool: filters, weighted scorers, a picker."""

    filters: tuple[Filter, ...]
    scorers: tuple[tuple[float, Scorer], ...]
    picker: Picker

    def choose(self, demand: Demand, engines: Sequence[EngineView], rng: Random) -> EngineView | None:
        """The engine that takes the call, or None where the filters leave none."""
        kept = [engine for engine in engines if all(rule.keep(demand, engine) for rule in self.filters)]
        if not kept:
            return None
        if len(kept) == 1:
            return kept[0]
        totals = [0.0] * len(kept)
        for weight, scorer in self.scorers:
            for index, score in enumerate(scorer.scores(demand, kept)):
                totals[index] += weight * score
        return self.picker.pick(list(zip(totals, kept, strict=True)), rng)
