"""How runs use to go: which stages begin one, and which join one that began at another stage.

Two runs of different kinds may be told the same. A stage at which runs begin is not taken for one that joins them.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence

from policies.linkage_runs import Run

_MOST, _GAPS_MOST = 8192, 16
_NONE = ""


class Habits:
    """Counts of one tenant, the least recently changed forgotten."""

    def __init__(self) -> None:
        self._joined: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._gaps: OrderedDict[str, deque[float]] = OrderedDict()

    def note(self, run: Run, stage: str, how: str, now: float) -> None:
        """A call at a stage was linked. One that goes on from another says nothing."""
        if how == "new":
            self._count((_NONE, stage))
        elif how == "quotes":
            self._count((kind(run), stage))
            self._gaps.setdefault(stage, deque(maxlen=_GAPS_MOST)).append(now - run.last)
            self._gaps.move_to_end(stage)
            if len(self._gaps) > _MOST:
                self._gaps.popitem(last=False)

    def begins(self, stage: str, run: Run) -> float:
        """How probable it is that a call begins a run, rather than join one like this; 1 while nothing is known."""
        begun, joined = self._joined.get((_NONE, stage), 0), self._joined.get((kind(run), stage), 0)
        return (begun + 1) / (begun + joined + 1)

    def gaps(self, stage: str) -> Sequence[float]:
        """How long ago runs had last been heard of when a call at this stage quoted them, of late."""
        return tuple(self._gaps.get(stage, ()))

    def _count(self, key: tuple[str, str]) -> None:
        self._joined[key] = self._joined.get(key, 0) + 1
        self._joined.move_to_end(key)
        if len(self._joined) > _MOST:
            self._joined.popitem(last=False)

    def weighed(self, told: Mapping[Run, float], stage: str) -> dict[Run, float]:
        """Evidence that could be of another run as well, by how often this stage joins runs of each kind."""
        begun = self._joined.get((_NONE, stage), 0)
        weighed: dict[Run, float] = {}
        for run, weight in told.items():
            joined = self._joined.get((kind(run), stage), 0) + 1
            weighed[run] = weight * joined / (joined + begun)
        return weighed


def kind(run: Run) -> str:
    """The stage at which a run began."""
    return next(iter(run.places.values()), "")
