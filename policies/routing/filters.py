"""Which engines may take a call, beyond having room."""

from __future__ import annotations

from dataclasses import dataclass

from policies.calls import Call
from policies.pool import EngineView


@dataclass(frozen=True, slots=True, kw_only=True)
class Untried:
    """Leave out the engines that have failed this call already."""

    def keep(self, call: Call, engine: EngineView) -> bool:
        return not engine.tried


@dataclass(frozen=True, slots=True, kw_only=True)
class KvBelow:
    """Leave out engines whose live requests use more than `use` of their KV blocks."""

    use: float = 0.95

    def keep(self, call: Call, engine: EngineView) -> bool:
        return engine.kv_use <= self.use or engine.running == 0
