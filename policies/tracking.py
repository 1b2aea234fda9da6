"""Where one call is."""

from __future__ import annotations

from dataclasses import dataclass

from policies.calls import Call
from policies.events import Reason
from policies.queue import Waiting
from policies.runs import Run


@dataclass(slots=True, eq=False)
class Tracked:
    """A call that is under way: `attempt` and `engine` as it runs, `entry.queued` as it waits, `leader` as it
    follows.

    `trouble` is how its last attempt failed, `no_engine` before one has; `served` the seconds of engine time that its
    attempts account for, `kept` the tokens of KV memory that they added.
    """

    call: Call
    run: Run
    visit: int
    entry: Waiting | None = None
    attempt: int | None = None
    engine: str = ""
    attempts: int = 0
    leader: str | None = None
    trouble: Reason = "no_engine"
    served: float = 0.0
    kept: float = 0.0
