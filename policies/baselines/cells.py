"""What the baselines share: the deadline of a run that has none, and one integer for orders that are not in time."""

from __future__ import annotations

import math

from policies.priority import NO_DEADLINE
from policies.protocols import RunView

FARTHEST = (1 << 30) - 1
"""Cells end here on both sides, far inside the engine's 32 bits."""


def deadline_of(run: RunView) -> float:
    """The run's deadline, of one without the same as in `policies.priority`."""
    return run.started + NO_DEADLINE if run.deadline is None else run.deadline


def cell(value: float, width: float) -> int:
    """The cell of `width` that a value falls into, lower first."""
    return max(-FARTHEST, min(FARTHEST, math.floor(value / width)))
