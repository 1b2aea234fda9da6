"""What the scheduler is told and what it answers: the two sides of `Dispatcher.handle`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from policies.calls import Call, Outcome
from policies.pool import EngineLimits

Reason = Literal["queue_full", "late", "no_engine", "refused", "broken", "timeout", "overloaded", "crashed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """A call wants service."""

    call: Call


@dataclass(frozen=True, slots=True, kw_only=True)
class Recalled:
    """A call came and went whose answer was known already: its run moves on, and nothing was queued."""

    call: Call
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """A call waits for the same answer as `leader`, another call, and lends it its urgency."""

    call: Call
    leader: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """Nobody waits for this call any more, wherever it stands. Unknown calls are ignored."""

    call: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstToken:
    """The engine has begun to answer: its prefill is behind it."""

    call: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A call has its answer. `attempt` is None where no engine gave it (`outcome.source`)."""

    call: str
    attempt: int | None
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """An attempt ended without an answer. `final`: it must not be tried elsewhere (a byte has gone out, say).

    `rest`: for so many seconds the engine wants to be asked nothing.
    """

    call: str
    attempt: int
    trouble: Reason
    final: bool = False
    rest: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """What an engine says of itself; `alive` is False when it did not answer. One that is `asleep` takes no calls."""

    engine: str
    alive: bool
    running: int = 0
    waiting: int = 0
    kv_use: float = 0.0
    asleep: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaled:
    """A pool shall have so many engines. Outside its bounds the nearest bound is taken."""

    pool: str
    engines: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained:
    """An engine shall take no new call and go when it is empty."""

    engine: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineUp:
    """An engine that was asked for is ready to work. It has computed the prompts that begin with `held`."""

    engine: str
    limits: EngineLimits
    held: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineGone:
    """An engine has ended, or never came up. Its attempts are failed by their own events."""

    engine: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Woken:
    """The moment that a `Wake` asked for has come."""


Event = (
    Arrived
    | Joined
    | Recalled
    | Left
    | FirstToken
    | Finished
    | Failed
    | Reported
    | Scaled
    | Drained
    | EngineUp
    | EngineGone
    | Woken
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Send the call to this engine, as this attempt. `bucket` orders it inside the engine: lower is sooner."""

    call: str
    attempt: int
    engine: str
    bucket: int
    queued: float
    slack: float | None
    visit: int
    expected_cached: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The call gets no answer. `retry_after` in seconds, where waiting would help."""

    call: str
    reason: Reason
    retry_after: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Abort:
    """Stop this attempt: nobody waits for it."""

    call: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Bring up one engine of the pool under this name."""

    pool: str
    engine: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Retire:
    """End this engine: it is empty, or never will be needed."""

    pool: str
    engine: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wake:
    """Feed `Woken` at this time; an earlier request for a wake-up is replaced."""

    at: float


Action = Start | Refused | Abort | Launch | Retire | Wake
