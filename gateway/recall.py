"""What is known already, or is being found out right now, is not computed again.

Looked up by key: an answer that is kept is returned; one that another call is waiting for is waited for too; else
the call computes it, as the flight that others may join. A flight belongs to nobody: it goes on as long as one
call waits for it, whoever began it (`backends.flights`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from backends.flights import Flight, Flights
from gateway.openai.errors import ApiError
from gateway.runtime import Runtime
from policies.calls import Call, Outcome, Source

REFUSALS = ("rate_limit_exceeded", "pool_unavailable")
"""What is said to one call and not of the answer: a call that followed it goes on by its own right."""

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
KeyIn_contra = TypeVar("KeyIn_contra", bound=Hashable, contravariant=True)


class Kept(Protocol[KeyIn_contra, T]):
    """Where answers are kept, within bounds."""

    def get(self, key: KeyIn_contra) -> T | None: ...

    def put(self, key: KeyIn_contra, value: T) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Recalled(Generic[T]):
    """An answer and where it came from: `hit` (kept), `joined` (another call's flight) or `miss` (computed)."""

    value: T
    cache: str


class Recall(Generic[K, T]):
    """The answers of one kind. `keep` says of a computed one whether it may be given to others later."""

    def __init__(
        self,
        *,
        runtime: Runtime,
        kept: Kept[K, T],
        outcome: Callable[[T, Source], Outcome],
        keep: Callable[[T], bool],
    ) -> None:
        self._runtime = runtime
        self._kept = kept
        self._outcome = outcome
        self._keep = keep
        self._flights = Flights[K, T, str]()  # each says which call leads it

    def at_hand(self, key: K, call: Call) -> T | None:
        """The answer if it is kept."""
        kept = self._kept.get(key)
        if kept is not None:
            self._runtime.recalled(call, self._outcome(kept, "cache"))
        return kept

    async def get(self, key: K, call: Call, compute: Callable[[Call], Awaitable[T]]) -> Recalled[T]:
        """The answer for a key. The scheduler hears of the call in each case."""
        kept = self.at_hand(key, call)
        if kept is not None:
            return Recalled(value=kept, cache="hit")
        flight = self._flights.get(key)
        joined = await self._joined(flight, key, call) if flight is not None else None
        if joined is not None:
            return joined
        flight = self._flights.begin(key, call.id, self._fly(key, call, compute))
        return Recalled(value=await self._flights.wait(key, flight), cache="miss")

    async def _joined(self, flight: Flight[T, str], key: K, call: Call) -> Recalled[T] | None:
        """The answer of another call's flight. None where that call was refused: this one then computes for itself,
        as to join one call after the other, each of them refused, would cost the square of their number."""
        async with self._runtime.follow(call, flight.about) as ticket:
            try:
                value = await self._flights.wait(key, flight)
            except ApiError as error:
                if error.code not in REFUSALS:  # what broke the leader's would break this one too
                    raise
                return None
            ticket.finished(None, self._outcome(value, "joined"))
            return Recalled(value=value, cache="joined")

    async def _fly(self, key: K, call: Call, compute: Callable[[Call], Awaitable[T]]) -> T:
        value = await compute(call)
        if self._keep(value):
            self._kept.put(key, value)
        return value
