"""What a second of delay costs a run, by the time that it has to spare."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from policies.calls import Estimate
from policies.slack import EASE, LEAST, latest_start, slack, urgency

TEN = Estimate(output_tokens=(1, 1), service=4.0, remaining=6.0)


def test_a_run_that_can_just_make_its_deadline_is_the_most_urgent() -> None:
    assert urgency(30.0, TEN, 20.0) == 1.0


@pytest.mark.parametrize("side", [1.0, -1.0], ids=["with time to spare", "too late"])
def test_urgency_falls_with_the_distance_on_both_sides(side: float) -> None:
    distances = (0.0, 0.1, 1.0, 6.0, 30.0, 300.0)
    found = [urgency(30.0, TEN, 20.0 - side * distance) for distance in distances]
    assert all(before > after for before, after in pairwise(found))
    assert found[-1] == pytest.approx(LEAST)
    third = urgency(30.0, TEN, 20.0 - side * EASE * 10.0)
    assert third == pytest.approx(LEAST + (1.0 - LEAST) / math.e)


@pytest.mark.parametrize("needed", [0.0, 1e-9, 1.0, 1e9])
@pytest.mark.parametrize("now", [-1e9, 0.0, 10.0, 1e9])
def test_urgency_stays_between_its_least_and_one(needed: float, now: float) -> None:
    expected = Estimate(output_tokens=(1, 1), service=needed, remaining=0.0)
    assert LEAST <= urgency(10.0, expected, now) <= 1.0


def test_a_run_without_a_deadline_is_never_in_a_hurry() -> None:
    assert urgency(None, TEN, 1e9) == LEAST
    assert slack(None, TEN, 0.0) is None
    assert latest_start(None, TEN) is None


def test_a_short_run_is_in_a_hurry_for_a_shorter_time_than_a_long_one() -> None:
    short = Estimate(output_tokens=(1, 1), service=1.0, remaining=0.0)
    assert slack(13.0, short, 9.0) == slack(22.0, TEN, 9.0) == 3.0
    assert urgency(13.0, short, 9.0) < urgency(22.0, TEN, 9.0)
