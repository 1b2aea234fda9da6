"""A key says where a call stands; two calls that wait for one answer have one together."""

from __future__ import annotations

import pytest

from policies.calls import Estimate
from policies.protocols import Key
from policies.slack import latest_start, shifted, slack
from tests.policies.making import a_call

ESTIMATE = Estimate(output_tokens=(10, 40), service=2.0, remaining=3.0)


def test_the_latest_start_leaves_time_for_this_call_and_all_that_follows() -> None:
    assert latest_start(20.0, ESTIMATE) == 15.0
    assert slack(20.0, ESTIMATE, now=16.0) == -1.0


def test_without_a_deadline_there_is_no_slack() -> None:
    assert latest_start(None, ESTIMATE) is None
    assert slack(None, ESTIMATE, now=16.0) is None


def test_priority_moves_a_call_by_steps() -> None:
    assert shifted(10.0, a_call(priority=3), 2.0) == 4.0
    assert shifted(10.0, a_call(priority=-1), 2.0) == 12.0


@pytest.mark.parametrize(
    ("mine", "other", "lost", "starve"),
    [
        ((None, None), (None, None), None, None),
        ((5.0, None), (None, 9.0), None, 9.0),
        ((None, 7.0), (6.0, None), None, 7.0),
        ((5.0, 7.0), (6.0, 9.0), 6.0, 7.0),
    ],
)
def test_two_calls_with_one_answer_are_lost_when_both_are_and_starve_when_either_does(
    mine: tuple[float | None, float | None],
    other: tuple[float | None, float | None],
    lost: float | None,
    starve: float | None,
) -> None:
    one = Key(start=(4.0,), bucket=4, lost_at=mine[0], starve_at=mine[1])
    two = Key(start=(3.0,), bucket=5, lost_at=other[0], starve_at=other[1])
    expected = Key(start=(3.0,), bucket=4, lost_at=lost, starve_at=starve)
    assert one.joined(two) == two.joined(one) == expected
