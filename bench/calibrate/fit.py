"""The fit of a step time to what was measured: least squares without negative coefficients, robust to outliers.

A measured time is explained as

    overhead * requests + fixed * steps
    + prefill_token * prefill + decode_sequence * decoding + context_token * context

where `overhead` is what a request costs outside of the engine's steps (HTTP, text to tokens and back, the way to the
engine), which no step time can hold. Errors count relative to the time: short steps weigh as much as long ones.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from backends.emulated.model import StepTime

ROUNDS = 30  # of reweighting; it settles in about ten
HUBER = 1.345  # standard deviations from which on an error counts linearly; the usual constant, 95 % efficient
SINGULAR = 1e-12

Vector = list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """`seconds` in which the engine did so many steps; the other figures are sums over these steps."""

    kind: Literal["prefill", "decode"]
    seconds: float
    steps: int
    prefill: int
    decoding: int
    context: float
    requests: int = 0

    def terms(self) -> Vector:
        """What each coefficient is multiplied with."""
        return [self.requests, self.steps, self.prefill, self.decoding, self.context]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A step time, and the seconds that a request takes outside of the steps."""

    step_time: StepTime
    overhead: float

    def seconds(self, of: Observation) -> float:
        step = self.step_time
        factors = (self.overhead, step.fixed, step.prefill_token, step.decode_sequence, step.context_token)
        return sum(factor * term for factor, term in zip(factors, of.terms(), strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """How far predictions lie from measurements: r2 of the times, and relative errors, as shares."""

    points: int
    r2: float
    median: float
    p95: float


def fit(observations: Sequence[Observation]) -> Fit:
    """The step time that explains them best. Raises ValueError where they do not determine one."""
    rows, times = [seen.terms() for seen in observations], [seen.seconds for seen in observations]
    for column, name in ((1, "step"), (2, "prefill token"), (3, "decoding sequence")):
        if not any(row[column] for row in rows):
            raise ValueError(f"nothing was measured that has a {name}")
    # A time far too short bends the first start, one far too long the second; from the other one it is found out.
    starts = ([time**-2 for time in times], [1.0] * len(times))
    ends = [_reweighted(rows, times, weights) for weights in starts]
    found = min(ends, key=lambda end: sum(miss for miss, _ in _misses(rows, times, end)))
    overhead, fixed, prefill_token, decode_sequence, context_token = found
    step_time = StepTime(
        fixed=fixed, prefill_token=prefill_token, decode_sequence=decode_sequence, context_token=context_token
    )
    return Fit(step_time=step_time, overhead=overhead)


def errors(found: Fit, observations: Sequence[Observation]) -> Errors:
    return spread([found.seconds(seen) for seen in observations], [seen.seconds for seen in observations])


def spread(predicted: Sequence[float], measured: Sequence[float]) -> Errors:
    misses = sorted(abs(guess - true) / true for guess, true in zip(predicted, measured, strict=True))
    mean = statistics.fmean(measured)
    around = sum((true - mean) ** 2 for true in measured)
    left = sum((guess - true) ** 2 for guess, true in zip(predicted, measured, strict=True))
    return Errors(
        points=len(misses),
        r2=1 - left / around if around else 0.0,
        median=statistics.median(misses),
        p95=misses[min(len(misses) - 1, int(0.95 * len(misses)))],
    )


def _reweighted(rows: Sequence[Vector], times: Vector, weights: Vector) -> Vector:
    """Fit again and again, each time with less weight for what was far off."""
    found = _non_negative(rows, times, weights)
    for _ in range(ROUNDS):
        misses = _misses(rows, times, found)
        # 1.4826 times the median is the standard deviation of normal errors.
        bound = HUBER * max(1.4826 * statistics.median(miss for miss, _ in misses), 1e-9)
        weights = [min(1.0, bound / miss if miss else 1.0) / scale**2 for miss, scale in misses]
        found = _non_negative(rows, times, weights)
    return found


def _misses(rows: Sequence[Vector], times: Vector, found: Vector) -> list[tuple[float, float]]:
    """How far off each row is, relative to the greater of guess and time, and that scale.

    So none is off by more than 1, be its time far too long or far too short.
    """
    guesses = [_dot(row, found) for row in rows]
    scales = [max(guess, time) for guess, time in zip(guesses, times, strict=True)]
    return [(abs(guess - time) / scale, scale) for guess, time, scale in zip(guesses, times, scales, strict=True)]


def _non_negative(rows: Sequence[Vector], times: Vector, weights: Vector) -> Vector:
    """The x >= 0 with the least weighted squares of `rows @ x - times`.

    The answer is the plain least squares on the columns where it is not 0, so with this few columns all sets of them
    can be tried.
    """
    width = len(rows[0])
    best, least = [0.0] * width, math.inf
    for columns in _sets(width):
        part = _least_squares([[row[column] for column in columns] for row in rows], times, weights)
        if part is None or min(part) < 0:
            continue
        whole = [0.0] * width
        for column, value in zip(columns, part, strict=True):
            whole[column] = value
        left = sum(
            weight * (_dot(row, whole) - time) ** 2 for row, time, weight in zip(rows, times, weights, strict=True)
        )
        if left < least:
            best, least = whole, left
    return best


def _sets(width: int) -> Iterator[tuple[int, ...]]:
    for size in range(1, width + 1):
        yield from combinations(range(width), size)


def _least_squares(rows: Sequence[Vector], times: Vector, weights: Vector) -> Vector | None:
    """The normal equations of `rows @ x = times`, or None where they have no single answer."""
    columns = list(zip(*rows, strict=True))
    sizes = [sum(weight * value * value for value, weight in zip(column, weights, strict=True)) for column in columns]
    if not all(sizes):
        return None
    # Columns of one size: tokens of context and requests differ by a factor of a million.
    scaled = [[value / size**0.5 for value in column] for column, size in zip(columns, sizes, strict=True)]
    weighted = [[value * weight for value, weight in zip(column, weights, strict=True)] for column in scaled]
    matrix = [[*(_dot(left, right) for right in scaled), _dot(left, times)] for left in weighted]
    solved = _solve(matrix)
    return None if solved is None else [value / size**0.5 for value, size in zip(solved, sizes, strict=True)]


def _solve(matrix: list[Vector]) -> Vector | None:
    """Gauss-Jordan elimination of a square system, whose right side is the last column; None where it is singular."""
    size = len(matrix)
    for column in range(size):
        pivot = max(range(column, size), key=lambda row: abs(matrix[row][column]))
        if abs(matrix[pivot][column]) < SINGULAR:
            return None
        matrix[column], matrix[pivot] = matrix[pivot], matrix[column]
        head = [value / matrix[column][column] for value in matrix[column]]
        matrix[column] = head
        for row in range(size):
            if row != column:
                factor = matrix[row][column]
                matrix[row] = [value - factor * over for value, over in zip(matrix[row], head, strict=True)]
    return [row[-1] for row in matrix]


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    return sum(one * other for one, other in zip(left, right, strict=True))
