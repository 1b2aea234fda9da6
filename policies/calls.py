"""The vocabulary of scheduling: a call, what is expected of it, how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["llm", "sql"]
Fate = Literal["ok", "error", "empty", "timeout", "cancelled"]
Source = Literal["engine", "cache", "joined"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Knobs:
    """What a stage lets the platform change about a call."""

    model: str = ""
    reasoning: str | None = None
    max_tokens: int | None = None
    candidates: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request of one run at one stage, as the scheduler sees it: no text, no headers.

    `budget` is the deadline that this call asks for its *whole run*, in seconds from the run's first call; the
    run keeps the one of its first call. `timeout` ends the call itself (504). `visit` is how often the run has
    entered the stage; 0 lets the run tracker count. `told` is how the tool that the client ran before this call
    ended, where its tool message says so. `prefix` holds chained hashes of the prompt's first blocks
    (`policies.routing.prefix`). `only` names the one engine that can take it, because it holds what the call goes on
    from. `again`: its run is known by having asked the very same, so that it is admitted as a new one is. Which
    `agent` makes it, whose `parent` started it, and the channel that told so (`source`) are for those who read of it:
    nothing is decided by them. `foretold` is an oracle's word on what its run still needs, this call included, in
    seconds on an idle engine; only a simulation has one.
    """

    id: str
    pool: str
    run: str
    arrived: float
    tenant: str = ""
    workflow: str = ""
    stage: str = ""
    kind: Kind = "llm"
    visit: int = 0
    budget: float | None = None
    timeout: float | None = None
    priority: int = 0
    prompt_tokens: int = 0
    prefix: tuple[int, ...] = ()
    body_bytes: int = 0
    expected_output: int | None = None
    told: Fate | None = None
    final: bool = False
    only: str = ""
    again: bool = False
    agent: str = ""
    parent: str = ""
    source: str = "none"
    foretold: float | None = None
    knobs: Knobs = Knobs()

    def missing(self, matched: int) -> int:
        """The tokens of its prompt that are to be computed where `matched` of them are cached."""
        return max(0, self.prompt_tokens - matched)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What is expected of a whole workflow, by stage: how often a run enters it, and seconds of service each time."""

    visits: Mapping[str, float]
    service: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What is expected of a call: output tokens as (mean, upper), seconds of its service and of what follows it.

    `remaining` is the mean of what follows along the critical path, `tail` its 80th percentile, `hops` the number of
    calls in it. `success` is the chance that the run ends well right after this call. `known` is False while too
    little has been seen of the stage, or since it changed, to order by what is expected.
    """

    output_tokens: tuple[int, int]
    service: float
    remaining: float
    success: float = 1.0
    tail: float = 0.0
    hops: float = 0.0
    known: bool = True
    outlook: Outlook | None = None

    @property
    def needed(self) -> float:
        """Seconds of service until the run's end: of this call and of what follows it."""
        return self.service + self.remaining


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an attempt ended. Times in seconds: `queued` before its start, `first_token` and `total` from its start.

    `verdict` is what the answer means for what comes next in its run, where its stage says how that is told.
    """

    fate: Fate
    source: Source = "engine"
    queued: float = 0.0
    first_token: float | None = None
    total: float = 0.0
    output_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int | None = None
    verdict: Fate | None = None
