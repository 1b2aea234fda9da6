"""Which engines may take a call, beyond having room."""

from __future__ import annotations

from dataclasses import dataclass, field

from policies.pool import EngineView
from policies.protocols import Demand


@dataclass(frozen=True, slots=True, kw_only=True)
class Untried:
    """Leave out the engines that have failed this call already."""

    def keep(self, demand: Demand, engine: EngineView) -> bool:
        return not engine.tried


@dataclass(frozen=True, slots=True, kw_only=True)
class KvBelow:
    """Leave out engines whose live requests use more than `use` of their KV blocks."""

    use: float = field(default=0.95, metadata={"most": 1.0})

    def keep(self, demand: Demand, engine: EngineView) -> bool:
        return engine.kv_use <= self.use or engine.running == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SpareForLost:
    """Give calls whose run is lost only engines that spend at most the share `pressure` of their time on prompts.

    A lost run is served with what is left over: whatever it takes from others may make them lost too. Starved ones
    are no longer held to this.
    """

    pressure: float = field(default=0.3, metadata={"most": 1.0})

    def keep(self, demand: Demand, engine: EngineView) -> bool:
        return not demand.lost or engine.pressure <= self.pressure or engine.running == 0
