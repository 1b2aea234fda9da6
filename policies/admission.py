"""Whether a run may begin: by the room in its first queue, and by the wait that it would meet."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from policies.calls import Call, Estimate
from policies.pool import PoolView
from policies.protocols import Admit, Refuse, RunView
from policies.slack import slack


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueBound:
    """Admit while the pool's queue has room, in calls and in bytes."""

    def decide(self, call: Call, estimate: Estimate, run: RunView, pool: PoolView, now: float) -> Admit | Refuse:
        full = (
            pool.waiting >= pool.queue_calls or pool.waiting_bytes + call.body_bytes > pool.queue_bytes
        ) and pool.waiting > 0
        return Refuse(late=False, retry_after=pool.predicted_wait / 2) if full else Admit()


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedWait:
    """As `QueueBound`, and refuse a run whose first wait alone would use up more than its slack.

    A wait of up to `grace` seconds is never a reason to refuse: a deadline that could not be met on an idle pool
    either is the client's own affair. `Retry-After` is the time by which enough of the queue will have gone, if
    nobody else joins it.
    """

    grace: float = field(default=1.0, metadata={"unit": "s"})

    def decide(self, call: Call, estimate: Estimate, run: RunView, pool: PoolView, now: float) -> Admit | Refuse:
        bound = QueueBound().decide(call, estimate, run, pool, now)
        spare = slack(run.deadline, estimate, now)
        if isinstance(bound, Refuse) or spare is None:
            return bound
        wait, tolerable = pool.predicted_wait, max(spare, self.grace)
        if wait <= tolerable:
            return Admit()
        return Refuse(late=True, retry_after=math.ceil((wait - tolerable) / pool.pace) * pool.pace)
