"""What the gateway asks of whatever does the work: engines, and the clusters that start and stop them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from backends.capabilities import Capabilities
from policies.calls import Call

Trouble = Literal["refused", "broken", "timeout", "overloaded", "crashed"]


class BackendError(Exception):
    """An engine did not do its work.

    `trouble` says how: `refused` (no connection), `broken` (the connection or the process ended), `timeout`,
    `overloaded` (it said 429 or 503), `crashed` (a worker died of this very request). `retryable`: another engine
    may be tried, because nothing can have been done or what was done is void. `retry_after` in seconds.
    The message is safe to show to a client: no address, no path.
    """

    def __init__(self, message: str, *, trouble: Trouble, retryable: bool, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.trouble: Trouble = trouble
        self.retryable = retryable
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One attempt: the call it belongs to, and what to send. `path` as in `/v1/chat/completions` or `/sql/query`,
    with the query of its URL.

    `head_timeout` bounds the wait for the head of the reply, `idle_timeout` that between two pieces of its body;
    both in seconds.
    """

    call: Call
    path: str
    body: bytes
    method: str = "POST"
    headers: tuple[tuple[str, str], ...] = ()
    head_timeout: float = 60.0
    idle_timeout: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The head of an engine's answer, and its body as it comes. `chunks` raises BackendError when it breaks off."""

    status: int
    headers: tuple[tuple[str, str], ...]
    chunks: AsyncIterator[bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReport:
    """What an engine says of itself: counts now, KV use in 0..1, and counters since its start.

    `counters` uses plain names: prompt_tokens, generation_tokens, prefix_queries, prefix_hits (tokens),
    preemptions, requests; SQL workers: runs, kills. One that is `asleep` is well, and leaves requests unanswered.
    """

    running: int = 0
    waiting: int = 0
    kv_use: float = 0.0
    asleep: bool = False
    counters: Mapping[str, float]


class Engine(Protocol):
    """One worker of a pool: an LLM server or a SQL worker process."""

    def open(self, request: Request) -> AbstractAsyncContextManager[Reply]:
        """Send one attempt. Entering waits for the head of the reply; leaving early aborts the work."""
        ...

    async def report(self) -> EngineReport:
        """Ask the engine how it is. Raises BackendError when it does not answer."""
        ...

    async def capabilities(self) -> Capabilities:
        """Ask the engine what it can do. What it does not tell stays unknown; it never raises."""
        ...

    async def aclose(self) -> None:
        """Give back what the engine holds here. Idempotent."""
        ...


class Cluster(Protocol):
    """The engines that one pool may have: starts and stops them, knows nothing of calls."""

    async def start(self, name: str) -> Engine:
        """Bring up one engine under this name, ready to work. Raises BackendError when that fails."""
        ...

    async def ended(self, name: str) -> None:
        """Return when the engine of this name has ended by itself; never where that cannot be seen from here."""
        ...

    async def stop(self, name: str) -> None:
        """End the engine of this name; unknown names are ignored."""
        ...

    async def aclose(self) -> None:
        """Stop every engine and give back what the cluster holds. Idempotent."""
        ...
