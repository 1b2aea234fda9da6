"""A run's deadline turned into the time at which a call must have started."""

from __future__ import annotations

import math

from policies.calls import Call, Estimate

EASE = 0.6
"""With so much slack, as a share of the time that its run still needs, a delay hurts a third as much as with none."""
LEAST = 0.05
"""What a second of delay is worth to a run that has all the time in the world, or none left to save."""


def latest_start(deadline: float | None, estimate: Estimate) -> float | None:
    """The last moment at which the call can start and the run still make its deadline; None without a deadline."""
    if deadline is None:
        return None
    return deadline - estimate.needed


def slack(deadline: float | None, estimate: Estimate, now: float) -> float | None:
    """Seconds to spare if the call started now; negative when the deadline is out of reach."""
    latest = latest_start(deadline, estimate)
    return None if latest is None else latest - now


def shifted(moment: float, call: Call, step: float) -> float:
    """`moment` moved by the call's own priority: each step of it counts as `step` seconds."""
    return moment - call.priority * step


def urgency(deadline: float | None, estimate: Estimate, now: float) -> float:
    """What a second of delay costs the run, between LEAST and 1: most when it can just make its deadline.

    With more slack than the run still needs anything, a delay does no harm; and what is too late already cannot be
    made good. A run without a deadline is never in a hurry.
    """
    spare = slack(deadline, estimate, now)
    if spare is None:
        return LEAST
    needed = EASE * max(0.1, estimate.needed)
    return LEAST + (1.0 - LEAST) * math.exp(-abs(spare) / needed)
