"""How much a key may ask for: requests and tokens by the time that has passed, and calls that are open at once.

Nothing here reads a clock: `now` is given, in seconds, and never goes back.
"""

from __future__ import annotations

from dataclasses import dataclass

CLOSE = 1e-6
"""What is missing of a whole request or token by rounding alone."""


@dataclass(frozen=True, slots=True)
class Rate:
    """So many in so many seconds, spread evenly; all of them at once after a rest of that time."""

    amount: int
    per: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a quota is made from; None bounds nothing."""

    requests: Rate | None = None
    tokens: Rate | None = None
    concurrency: int | None = None

    @property
    def bounds(self) -> bool:
        """Whether there is any."""
        return self != NO_LIMITS


NO_LIMITS = Limits()


class Bucket:
    """A token bucket: full at first, refilled continuously, never fuller than its rate's amount.

    What is taken may leave it below nothing, as a debt that the following time pays.
    """

    __slots__ = ("_at", "_level", "_speed", "capacity")

    def __init__(self, rate: Rate, now: float) -> None:
        self.capacity = float(rate.amount)
        self._speed = rate.amount / rate.per
        self._level = self.capacity
        self._at = now

    def level(self, now: float) -> float:
        """What is in it; less than 0 where more was taken than it held."""
        return min(self.capacity, self._level + (now - self._at) * self._speed)

    def wait(self, amount: float, now: float) -> float:
        """Seconds until it holds so much. More than it can ever hold is had from a full one."""
        missing = min(amount, self.capacity) - self.level(now)
        return missing / self._speed if missing > CLOSE else 0.0

    def full_in(self, now: float) -> float:
        """Seconds until nothing is missing."""
        return self.wait(self.capacity, now)

    def take(self, amount: float, now: float) -> None:
        """Take so much, there or not; a negative amount is given back."""
        self._level = self.level(now) - amount
        self._at = now


@dataclass(frozen=True, slots=True)
class Spent:
    """What a request would go beyond, and the seconds after which it would not; None where nobody can tell."""

    what: str
    wait: float | None


class Quota:
    """What is left of a key's limits. Whoever enters leaves, whatever happens in between."""

    def __init__(self, limits: Limits, now: float) -> None:
        self.limits = limits
        self.inside = 0
        self.requests = Bucket(limits.requests, now) if limits.requests else None
        self.tokens = Bucket(limits.tokens, now) if limits.tokens else None

    @property
    def of_work(self) -> bool:
        """Whether it bounds what engines do, and not only how often they are asked."""
        return self.limits.tokens is not None or self.limits.concurrency is not None

    def enter(self, now: float) -> Spent | None:
        """Take a request in, or say what stands against it: then nothing was taken."""
        most = self.limits.concurrency
        if most is not None and self.inside >= most:
            return Spent("concurrency", None)
        if self.requests is not None:
            if wait := self.requests.wait(1, now):
                return Spent("requests", wait)
            self.requests.take(1, now)
        self.inside += 1
        return None

    def leave(self) -> None:
        """A request that was taken in is over."""
        self.inside -= 1

    def reserve(self, tokens: float, now: float) -> float | Spent:
        """Take the tokens that a call is expected to need, or say what stands against it.

        Returns what was taken, which is never more than a full bucket, to be made good with `charge`.
        """
        if self.tokens is None:
            return 0.0
        tokens = min(tokens, self.tokens.capacity)
        if wait := self.tokens.wait(tokens, now):
            return Spent("tokens", wait)
        self.tokens.take(tokens, now)
        return tokens

    def charge(self, tokens: float, now: float) -> None:
        """Take what was used beyond the reservation; a negative number gives the rest of it back."""
        if self.tokens is not None:
            self.tokens.take(tokens, now)
