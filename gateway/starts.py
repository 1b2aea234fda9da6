"""Which pools' engines fail to start: how often in a row, and why the last one did."""

from __future__ import annotations

from dataclasses import dataclass

from backends.base import BackendError


@dataclass(frozen=True, slots=True, kw_only=True)
class Failing:
    """So many `starts` have failed since one went well, the last of them `at`, on the gateway's clock."""

    starts: int
    reason: str
    at: float


class Starts:
    """What became of the starts of engines, by pool."""

    def __init__(self) -> None:
        self._failing: dict[str, Failing] = {}

    def failing(self, pool: str) -> Failing | None:
        return self._failing.get(pool)

    def failed(self, pool: str, error: Exception, now: float) -> None:
        """Only what backends say themselves is told on: of other errors nobody knows what they hold."""
        reason = str(error) if isinstance(error, BackendError) else f"{type(error).__name__} (the log says more)"
        before = self._failing.get(pool)
        self._failing[pool] = Failing(starts=before.starts + 1 if before else 1, reason=reason, at=now)

    def succeeded(self, pool: str) -> None:
        self._failing.pop(pool, None)
