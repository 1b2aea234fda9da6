"""The critical path of a run: the longest chain of its calls, each of which came when the one before had ended."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Chain(NamedTuple):
    """Calls one after the other: how many seconds they have waited and been served in all, and by stage."""

    seconds: float
    by_stage: Mapping[str, float]

    def then(self, stage: str, seconds: float) -> Chain:
        """The chain with one more call."""
        return Chain(self.seconds + seconds, {**self.by_stage, stage: self.by_stage.get(stage, 0.0) + seconds})


NOTHING = Chain(0.0, MappingProxyType({}))
