"""What clients will ask for: runs drawn completely in advance, so that every policy meets the same ones."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate
from random import Random

from policies.calls import Fate, Kind

Segment = tuple[int, int]
"""A piece of text: its identity, and its length in tokens. Of two with one identity the shorter begins the longer."""


def identity(*parts: str | int) -> int:
    """A number for a text of this description, the same in every process."""
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=7).digest(), "big")


@dataclass(frozen=True, slots=True, kw_only=True)
class CallPlan:
    """One call: a prompt of `segments` and an answer of `output` tokens, or a statement of `seconds`.

    The answer is the text `answer`: a later prompt that repeats it has (answer, output) among its segments.
    `expected_output` is what the client says of the answer's length, if it says anything.
    """

    stage: str
    pool: str
    kind: Kind = "llm"
    segments: tuple[Segment, ...] = ()
    output: int = 1
    answer: int = 0
    fate: Fate = "ok"
    seconds: float = 0.0
    expected_output: int | None = None

    @property
    def prompt(self) -> int:
        """Tokens of the prompt."""
        return sum([tokens for _, tokens in self.segments])


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Calls that are made together, `pause` seconds after those before them have all ended."""

    calls: tuple[CallPlan, ...]
    pause: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """One execution of a workflow that begins at `at` and should take no more than `budget` seconds.

    Without a deadline they are infinitely many. A client with `patience` leaves so many seconds after the beginning,
    whatever it has by then.
    """

    id: str
    workflow: str
    at: float
    budget: float
    rounds: tuple[Round, ...]
    tenant: str = ""
    priority: int = 0
    patience: float | None = None

    @property
    def calls(self) -> Iterator[CallPlan]:
        return (call for round in self.rounds for call in round.calls)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Runs in the order of their beginnings."""

    name: str
    runs: tuple[RunPlan, ...]

    @property
    def calls(self) -> int:
        return sum(len(round.calls) for run in self.runs for round in run.rounds)


def chance(*parts: str | int) -> Random:
    """A generator of its own for each purpose: one that draws more does not shift what another draws."""
    return Random(repr(parts))  # noqa: S311 - a simulation's chance


def poisson(runs: int, rate: float, seed: int) -> list[float]:
    """Beginnings of runs that know nothing of each other, `rate` a second; another rate stretches the same draws."""
    rng = chance("poisson", seed)
    return list(accumulate(rng.expovariate(1.0) / rate for _ in range(runs)))


def bursty(
    runs: int, rate: float, seed: int, *, ratio: float = 5.0, share: float = 0.2, cycle: float = 60.0
) -> list[float]:
    """Beginnings that come `ratio` times as fast for a `share` of the time, `rate` a second on the average.

    Busy and calm spells follow each other, exponentially long, one of each in `cycle` seconds on the average. The
    spells are the same at any rate.
    """
    rng, spells = chance("bursty", seed), chance("spells", seed)
    calm = rate / (1.0 - share + share * ratio)
    ends, sums = [0.0], [0.0]  # when each spell ends, and how many arrivals are expected until then
    arrivals = []
    due = 0.0
    for _ in range(runs):
        due += rng.expovariate(1.0)
        while sums[-1] < due:
            busy = len(ends) % 2 == 0
            length = spells.expovariate(1.0) * cycle * (share if busy else 1.0 - share)
            ends.append(ends[-1] + length)
            sums.append(sums[-1] + length * calm * (ratio if busy else 1.0))
        after = bisect_right(sums, due, hi=len(sums) - 1)
        left = (sums[after] - due) / (sums[after] - sums[after - 1])
        arrivals.append(ends[after] - left * (ends[after] - ends[after - 1]))
    return arrivals


def spread(rng: Random, mean: float, sigma: float) -> float:
    """A log-normal draw with this mean; `sigma` is the deviation of its logarithm."""
    return mean * math.exp(rng.gauss(0.0, sigma) - sigma * sigma / 2)


def tokens(rng: Random, mean: float, sigma: float) -> int:
    """A log-normal number of tokens, at least one."""
    return max(1, round(spread(rng, mean, sigma)))


def merged(name: str, workloads: Sequence[Workload]) -> Workload:
    """All their runs, in the order of their beginnings."""
    runs = [run for workload in workloads for run in workload.runs]
    return Workload(name=name, runs=tuple(sorted(runs, key=lambda run: (run.at, run.id))))
