"""Which of the scored engines takes the call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from policies.pool import EngineView


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The highest score; among equals the one that was last used the longest ago."""

    def pick(self, scored: Sequence[tuple[float, EngineView]], rng: Random) -> EngineView:
        return max(scored, key=lambda pair: (pair[0], -pair[1].last_start))[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoChoices:
    """The better of two drawn at random: spreads load when many gateways decide at once."""

    def pick(self, scored: Sequence[tuple[float, EngineView]], rng: Random) -> EngineView:
        drawn = scored if len(scored) < 3 else rng.sample(list(scored), 2)
        return Best().pick(drawn, rng)
