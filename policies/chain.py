"""What an absorbing Markov chain of stages still costs a run, as mean and spread, and how often it enters each.

A state is a stage in one of its rounds. Of the ways out of a state one is taken, or the run ends; the states beside
them begin as well, each with a chance of its own, and the run goes on with the slowest branch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

SWEEPS = 64
"""Times that values are handed on through the chain at most: one that never ends costs this much, not endlessly."""
STEPS = 4000
"""Ways handed along at most, in all sweeps: a dense chain gets fewer of them, so that it keeps nobody waiting."""
CLOSE = 1e-3
"""The relative change that is not worth another sweep."""
UPPER = 0.8416
"""The standard normal distribution's 80th percentile."""

Way = tuple[float, int]
"""A chance, and the index of the state that it leads to."""


@dataclass(slots=True)
class State:
    """Entering it costs `mean` seconds, `square` in the mean square, and makes `calls` calls one after another."""

    mean: float
    square: float
    calls: float = 1.0
    ways: list[Way] = field(default_factory=list)
    beside: list[Way] = field(default_factory=list)


@dataclass(slots=True)
class Remaining:
    """What comes after a state: mean and mean square of its seconds, calls one after another."""

    mean: float = 0.0
    square: float = 0.0
    hops: float = 0.0

    @property
    def tail(self) -> float:
        """The 80th percentile, as if the seconds were gamma distributed (Wilson and Hilferty, 1931)."""
        variance = self.square - self.mean * self.mean
        if self.mean <= 0.0 or variance <= 0.0:
            return self.mean
        spread = variance / (9 * self.mean * self.mean)
        return self.mean * float(max(0.0, 1 - spread + UPPER * math.sqrt(spread)) ** 3)


def remaining(states: Sequence[State]) -> list[Remaining]:
    """What comes after each state. The sweeps end soonest where a state's followers come after it in the list."""
    after = [Remaining() for _ in states]
    for _ in range(_sweeps(states)):
        changed = False
        for index in range(len(states) - 1, -1, -1):
            new = _step(states, after, states[index])
            changed = changed or abs(new.mean - after[index].mean) > CLOSE * new.mean
            after[index] = new
        if not changed:
            break
    return after


def _sweeps(states: Sequence[State]) -> int:
    ways = sum(len(state.ways) + len(state.beside) for state in states)
    return max(2, min(SWEEPS, STEPS // max(1, ways)))


def _step(states: Sequence[State], after: list[Remaining], state: State) -> Remaining:
    mean = square = hops = 0.0
    for chance, index in state.ways:
        onward, entered = after[index], states[index]
        mean += chance * (entered.mean + onward.mean)
        square += chance * (entered.square + 2 * entered.mean * onward.mean + onward.square)
        hops += chance * (entered.calls + onward.hops)
    for chance, index in state.beside:
        onward, entered = after[index], states[index]
        slower = _slower(
            (mean, square),
            (entered.mean + onward.mean, entered.square + 2 * entered.mean * onward.mean + onward.square),
        )
        mean += chance * (slower[0] - mean)
        square += chance * (slower[1] - square)
        hops = max(hops, chance * (entered.calls + onward.hops))
    return Remaining(mean, square, hops)


def _slower(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    """Mean and mean square of the greater of two quantities, as if they were normal and independent (Clark, 1961).

    Branches that join share what follows, so that taking them for independent errs on the side of too long.
    """
    apart = math.sqrt(max(0.0, one[1] - one[0] ** 2) + max(0.0, other[1] - other[0] ** 2))
    if apart < 1e-9:
        return max(one, other)
    by = (one[0] - other[0]) / apart
    share = 0.5 * math.erfc(-by / math.sqrt(2))
    peak = apart * math.exp(-by * by / 2) / math.sqrt(2 * math.pi)
    mean = one[0] * share + other[0] * (1 - share) + peak
    return mean, one[1] * share + other[1] * (1 - share) + (one[0] + other[0]) * peak


def visits(states: Sequence[State], start: State, joins: frozenset[int]) -> list[float]:
    """How often a run enters each state in the mean. A branch that began beside another ends where it joins it."""
    entered = [0.0] * len(states)
    # What has just entered each state: along the run's first branch, and along those beside it.
    main, other = _spread((start,), (1.0,), (0.0,), len(states), joins)
    for _ in range(_sweeps(states)):
        for index, (along, aside) in enumerate(zip(main, other, strict=True)):
            entered[index] += along + aside
        if sum(main) + sum(other) < CLOSE:
            break
        main, other = _spread(states, main, other, len(states), joins)
    return entered


def _spread(
    sources: Sequence[State], main: Sequence[float], other: Sequence[float], size: int, joins: frozenset[int]
) -> tuple[list[float], list[float]]:
    """One step of all that has entered the sources."""
    new_main, new_other = [0.0] * size, [0.0] * size
    for state, along, aside in zip(sources, main, other, strict=True):
        if along + aside == 0.0:
            continue
        for chance, index in state.ways:
            new_main[index] += chance * along
            new_other[index] += 0.0 if index in joins else chance * aside
        for place, (chance, index) in enumerate(state.beside):
            leads = not state.ways and place == 0
            new_main[index] += chance * along if leads else 0.0
            new_other[index] += chance * (aside if leads else along + aside)
    return new_main, new_other
