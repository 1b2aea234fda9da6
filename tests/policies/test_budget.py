"""Budgets of committed work: where they begin, when they shrink and grow, and their bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.budget import Adaptive, Congestion, Fixed
from tests.policies.claims import claims

CALM = Congestion(waits=(), waiting=0.0)


def congestion(*waits: float, waiting: float = 0.0) -> Congestion:
    return Congestion(waits=waits, waiting=waiting)


@claims("budget", "fixed")
def test_the_fixed_budget_asks_for_no_review_and_leaves_the_pools_own_bound() -> None:
    assert Fixed().period is None
    assert Fixed().resized(5000.0, congestion(99.0, waiting=99.0)) == math.inf


@claims("budget", "adaptive")
@pytest.mark.parametrize(("start", "begins"), [(120_000.0, 120_000.0), (10.0, 30_000.0), (1e9, 300_000.0)])
def test_the_adaptive_budget_begins_at_its_start_within_its_bounds(start: float, begins: float) -> None:
    assert Adaptive(start=start).resized(math.inf, congestion(99.0)) == begins


@claims("budget", "adaptive")
@pytest.mark.parametrize(
    ("seen", "congested"),
    [
        (CALM, False),
        (congestion(1.0, 1.0), False),
        (congestion(1.0, 1.1), True),  # the mean
        (congestion(*[0.1] * 15, 5.5), True),  # the 95th percentile of 16 is the last of them
        (congestion(*[0.1] * 15, 5.0), False),
        (congestion(*[0.1] * 29, 9.0), False),  # one of thirty is beyond it
        (congestion(5.5, *[0.1] * 15), True),  # in whatever order
        (congestion(waiting=2.0), False),
        (congestion(waiting=2.1), True),  # what waits in an engine now
        (congestion(0.1, waiting=9.0), True),
    ],
)
def test_the_adaptive_budget_shrinks_by_mean_by_p95_or_by_what_waits_and_grows_else(
    seen: Congestion, congested: bool
) -> None:
    assert Adaptive().resized(100_000.0, seen) == pytest.approx(80_000.0 if congested else 110_000.0)


@claims("budget", "adaptive")
def test_the_adaptive_budget_comes_back_from_either_bound() -> None:
    policy, work = Adaptive(least=50.0, most=200.0, start=100.0), 100.0
    for _ in range(20):
        work = policy.resized(work, congestion(9.0))
    assert work == 50.0
    for _ in range(30):
        work = policy.resized(work, CALM)
    assert work == 200.0
    assert policy.resized(work, congestion(9.0)) == 160.0


@given(st.lists(st.lists(st.floats(0, 30), max_size=20), max_size=40))
def test_the_adaptive_budget_never_leaves_its_bounds(reviews: Sequence[Sequence[float]]) -> None:
    policy, work = Adaptive(), math.inf
    for waits in reviews:
        before, work = work, policy.resized(work, Congestion(waits=waits, waiting=0.0))
        assert policy.least <= work <= policy.most
        assert math.isinf(before) or 0.8 * before - 1e-6 <= work <= 1.1 * before + 1e-6
