"""A run's deadline turned into the time at which a call must have started."""

from __future__ import annotations

from policies.calls import Call, Estimate


def latest_start(deadline: float | None, estimate: Estimate) -> float | None:
    """The last moment at which the call can start and the run still make its deadline; None without a deadline."""
    if deadline is None:
        return None
    return deadline - estimate.service - estimate.remaining


def slack(deadline: float | None, estimate: Estimate, now: float) -> float | None:
    """Seconds to spare if the call started now; negative when the deadline is out of reach."""
    latest = latest_start(deadline, estimate)
    return None if latest is None else latest - now


def shifted(moment: float, call: Call, step: float) -> float:
    """`moment` moved by the call's own priority: each step of it counts as `step` seconds."""
    return moment - call.priority * step
