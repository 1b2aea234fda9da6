"""What each run of late has done, call by call, as the gateway understands it: what `GET /admin/runs/{id}` tells.

It hears what the dispatcher hears and decides, and keeps that for as many runs as it may, the latest; nothing that a
client or a model has said is in it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from policies.calls import Call, Outcome
from policies.events import Action, Arrived, Event, Failed, Finished, Joined, Left, Recalled, Refused, Start
from policies.runs import RunKey

RUNS_MOST: Final = 2000
CALLS_MOST: Final = 200
"""Calls of one run that are kept; of a longer one the first are forgotten."""
ALL_MOST: Final = 50_000
"""Calls of all runs together, of about a kilobyte."""

Json = dict[str, Any]


@dataclass(slots=True, eq=False)
class _Told:
    """One call: when it came, where it was sent, and how it ended."""

    call: Call
    arrived: float
    starts: list[Start] = field(default_factory=list)
    ended: float | None = None
    how: str = ""
    outcome: Outcome | None = None


@dataclass(slots=True, eq=False)
class _Run:
    began: float
    calls: list[_Told] = field(default_factory=list)
    count: int = 0


class Chronicle:
    """The runs of late."""

    def __init__(self, clock: Callable[[], float], *, runs: int = RUNS_MOST) -> None:
        self._now = clock
        self._most = runs
        self._runs: OrderedDict[RunKey, _Run] = OrderedDict()
        self._kept = 0
        self._open: dict[str, _Told] = {}

    def watch(self, event: Event, actions: list[Action]) -> None:
        """Hear what the dispatcher was told and decided."""
        match event:
            case Arrived() | Joined():
                self._open[event.call.id] = self._came(event.call)
            case Recalled():
                self._over(self._came(event.call), "recalled", event.outcome)
            case Finished():
                self._over(self._open.pop(event.call, None), "finished", event.outcome)
            case Left():
                self._over(self._open.pop(event.call, None), "left")
            case Failed(final=True):
                self._over(self._open.pop(event.call, None), event.trouble)
            case _:
                pass
        for action in actions:
            match action:
                case Start() if (told := self._open.get(action.call)) is not None:
                    told.starts.append(action)
                case Refused():
                    self._over(self._open.pop(action.call, None), action.reason)
                case _:
                    pass

    def told(self, run: str) -> list[Json]:
        """What is known of all runs of this id, of whatever tenant and workflow, the latest first."""
        return [_told(key, found) for key, found in reversed(self._runs.items()) if key[2] == run]

    def _came(self, call: Call) -> _Told:
        now, key = self._now(), (call.tenant, call.workflow, call.run)
        run = self._runs.get(key)
        if run is None:
            run = self._runs[key] = _Run(now)
        else:
            self._runs.move_to_end(key)
        told = _Told(replace(call, prefix=()), now)  # all that is large
        run.count += 1
        run.calls.append(told)
        self._kept += 1
        if len(run.calls) > CALLS_MOST:
            del run.calls[0]
            self._kept -= 1
        while len(self._runs) > self._most or self._kept > ALL_MOST:
            self._kept -= len(self._runs.popitem(last=False)[1].calls)
        return told

    def _over(self, told: _Told | None, how: str, outcome: Outcome | None = None) -> None:
        if told is not None:
            told.ended, told.how, told.outcome = self._now(), how, outcome


def _told(key: RunKey, run: _Run) -> Json:
    return {
        "id": key[2],
        "tenant": key[0],
        "workflow": key[1],
        "calls": run.count,
        "trace": [_call(told, run.began) for told in run.calls],
    }


def _call(told: _Told, began: float) -> Json:
    call, outcome = told.call, told.outcome
    return {
        "id": call.id,
        "kind": call.kind,
        "stage": call.stage,
        "agent": call.agent or None,
        "parent": call.parent or None,
        "source": call.source,
        "pool": call.pool,
        "after_s": round(told.arrived - began, 3),
        "attempts": [
            {
                "engine": start.engine,
                "queued_s": round(start.queued, 4),
                "slack_s": None if start.slack is None else round(start.slack, 3),
                "expected_cached": start.expected_cached,
            }
            for start in told.starts
        ],
        "end": told.how or None,
        "outcome": None if outcome is None else outcome.verdict or outcome.fate,
        "seconds": None if told.ended is None else round(told.ended - told.arrived, 4),
        "prompt_tokens": 0 if outcome is None else outcome.prompt_tokens,
        "cached_tokens": None if outcome is None else outcome.cached_tokens,
        "output_tokens": 0 if outcome is None else outcome.output_tokens,
    }
