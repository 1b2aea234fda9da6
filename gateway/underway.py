"""The runs under way as the admin API tells them: which are shown, in which order, and what is told of each."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from itertools import islice
from typing import Any, Literal, get_args

from gateway.openai.errors import ill_formed, shown
from policies.dispatcher import Dispatcher
from policies.runs import Run

Order = Literal["latest", "slack", "age"]
RUNS_SHOWN = 1000
SORTED = 5_000
"""Runs that are looked at for an order other than the latest first: to look at a run takes about a microsecond."""

Json = dict[str, Any]


def told(dispatcher: Dispatcher, query: Mapping[str, str], now: float) -> Json:
    """The answer to `GET /admin/runs?order=…&limit=…`. Raises ApiError 400."""
    order, limit = _asked(query)
    ahead = cache(dispatcher.profiles.ahead)
    latest = reversed(dispatcher.runs)

    def slack(run: Run) -> float | None:
        if run.deadline is None:
            return None
        place = run.places.get(run.position)
        service, after = ahead(run.workflow, run.position, place.rounds if place is not None else 1)
        return run.deadline - now - after - (service if run.open else 0.0)

    chosen = _chosen(islice(latest, RUNS_SHOWN if order == "latest" else SORTED), order, limit, slack)
    return {"total": len(dispatcher.runs), "runs": [_told(run, slack(run), now) for run in chosen]}


def _asked(query: Mapping[str, str]) -> tuple[str, int]:
    order, limit = query.get("order", "latest"), query.get("limit", str(RUNS_SHOWN))
    if order not in get_args(Order):
        raise ill_formed("order", f"must be one of {', '.join(get_args(Order))}, and not '{shown(order)}'")
    if not (limit.isascii() and limit.isdigit() and len(limit) <= 4 and 1 <= int(limit) <= RUNS_SHOWN):
        raise ill_formed("limit", f"must be a whole number from 1 to {RUNS_SHOWN}")
    return order, int(limit)


def _chosen(latest: Iterable[Run], order: str, limit: int, slack: Callable[[Run], float | None]) -> Iterable[Run]:
    """Runs with an open call come first. Of the others, which may be over without having said so, those without
    slack come last: nothing is known to be late about them.
    """

    def nearest(run: Run) -> tuple[int, float]:
        left = slack(run)
        left = math.inf if left is None else left
        return 0 if run.open else 1 if left >= 0 else 2, left

    def oldest(run: Run) -> tuple[int, float]:
        return 0 if run.open else 1, run.started

    if order == "latest":
        return islice(latest, limit)
    return heapq.nsmallest(limit, latest, key=nearest if order == "slack" else oldest)


def _told(run: Run, slack: float | None, now: float) -> Json:
    return {
        "id": run.key[2],
        "tenant": run.key[0],
        "workflow": run.workflow,
        "stage": run.position,
        "visits": dict(run.visits),
        "calls": run.calls,
        "open_calls": len(run.open),
        "age_s": round(now - run.started, 3),
        "deadline_in_s": None if run.deadline is None else round(run.deadline - now, 3),
        "slack_s": None if slack is None else round(slack, 3),
        "history": [{"stage": stage, "outcome": fate} for stage, fate in run.history],
    }
