"""HexGen-Text2SQL (arXiv 2505.05286): the deadline is split over the stages, least slack of the stage first.

Both forms give each call a budget: what the deadline leaves when the call arrives, D − u, times the share of the
call's stage in the mean time of all that is expected from here on:

    budget = (D − u) · t / (t + Σ t of the stages expected after it)
    urgency = t − (budget − waited)              highest first

All urgencies grow alike with the clock, so `arrived + budget − t`, lowest first, is the same order and stands still.

Assumed: D is the deadline of the run. A pool's engines are alike, so that one mean time `t` serves for all of them,
and its calls wait in one queue, as they do in the released simulator. Left out: the dispatch over engines of
different types (routing).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from policies.baselines.cells import deadline_of
from policies.calls import Call, Estimate
from policies.priority import bucket
from policies.protocols import Key, RunView

CLOSING = 0.5
"""A stage closes a run if the run ends after it with more than this chance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HexGen:
    """The formula as published: what is expected after the call is what follows it in its own run.

    Assumed: the expectation is that of the learned graph, where the paper takes the stages seen from a fixed list.
    """

    def key(self, call: Call, estimate: Estimate, run: RunView, now: float) -> Key:
        return _key(call, estimate, run, after=estimate.remaining)


@dataclass(frozen=True, slots=True, kw_only=True)
class HexGenReleased:
    """As the released simulator computes it: one list of expected stages, which all runs of the workflow use up.

    There the list of a query's expected stages is a single one for all queries, and each stage that any query enters
    is removed from it, if it is still on it. After a few queries little is left of it, and a stage's budget is nearly
    all that the deadline leaves. Once a query has seen its tester, it goes on with a copy without the revisions.

    Assumed for graphs other than that of the source: the list holds each stage as often as a run is expected to enter
    it, rounded, halves up. At a stage that closes its run, repeated visits (the source's revisions) are no longer
    expected; a run that comes back from there expects them again. Such a run's entries after its copy was made use up
    the list all the same, as do calls made at once, which the source counts as one stage. Without anything known of
    the workflow the list is empty.
    """

    def key(self, call: Call, estimate: Estimate, run: RunView, now: float) -> Key:
        return _key(call, estimate, run, after=_left_on_list(estimate, run))


def _key(call: Call, estimate: Estimate, run: RunView, after: float) -> Key:
    together = estimate.service + after
    share = estimate.service / together if together > 0 else 1.0
    budget = (deadline_of(run) - call.arrived) * share
    moment = call.arrived + budget - estimate.service
    return Key(start=(moment, call.arrived), bucket=bucket(moment, 0.25))


def _left_on_list(estimate: Estimate, run: RunView) -> float:
    """Seconds of the stages that are still on the workflow's list; `run.entered` counts the call at hand too."""
    if estimate.outlook is None:
        return 0.0
    left = 0.0
    for stage, visits in estimate.outlook.visits.items():
        listed = math.floor(visits + 0.5)
        if estimate.success > CLOSING:
            listed = min(listed, 1)
        left += max(0, listed - run.entered.get(stage, 0)) * estimate.outlook.service.get(stage, 0.0)
    return left
