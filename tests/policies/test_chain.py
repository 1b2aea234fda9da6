"""What remains of a run, against chains worked out by hand and against runs drawn at random."""

from __future__ import annotations

import math
from random import Random

import pytest

from policies.chain import SWEEPS, Remaining, State, remaining, visits


def fixed(seconds: float, *ways: tuple[float, int], beside: tuple[tuple[float, int], ...] = ()) -> State:
    """A state that always takes the same time."""
    return State(seconds, seconds * seconds, ways=list(ways), beside=list(beside))


def start(*ways: tuple[float, int], beside: tuple[tuple[float, int], ...] = ()) -> State:
    return fixed(0.0, *ways, beside=beside)


def test_what_remains_on_a_line_is_the_sum_of_what_follows() -> None:
    after = remaining([fixed(1.0, (1.0, 1)), fixed(2.0, (1.0, 2)), fixed(4.0)])
    assert [one.mean for one in after] == [6.0, 4.0, 0.0]
    assert [one.hops for one in after] == [2.0, 1.0, 0.0]
    assert [one.tail for one in after] == [6.0, 4.0, 0.0]


def test_what_remains_in_a_loop_is_that_of_the_absorbing_chain() -> None:
    # generate 0, execute 1, verify 2, fix 3. E = 0.7 (1 + V) + 0.3 (3 + F); V = 0.1 (3 + F); F = 0.5 + E.
    # By hand: E = 1.81 + 0.37 F, so F = 2.31 / 0.63.
    fix = 2.31 / 0.63
    after = remaining(
        [
            fixed(2.0, (1.0, 1)),
            fixed(0.5, (0.7, 2), (0.3, 3)),
            fixed(1.0, (0.1, 3)),
            fixed(3.0, (1.0, 1)),
        ]
    )
    assert [one.mean for one in after] == pytest.approx([fix, fix - 0.5, 0.1 * (3.0 + fix), fix], rel=2e-3)


def test_the_spread_of_a_loop_is_that_of_the_runs_that_it_stands_for() -> None:
    # A state of one second that is entered again with chance one half: a geometric number of further seconds.
    (after,) = remaining([fixed(1.0, (0.5, 0))])
    assert after.mean == pytest.approx(1.0, rel=1e-2)
    assert after.square - after.mean**2 == pytest.approx(2.0, rel=2e-2)


def test_the_upper_end_is_the_80th_percentile_of_a_gamma_distribution() -> None:
    # Of the exponential distribution it is ln 5; of the sum of four, 5.515 (chi-square of 8 at 0.8, halved).
    assert Remaining(1.0, 2.0).tail == pytest.approx(math.log(5), rel=0.02)
    assert Remaining(4.0, 20.0).tail == pytest.approx(5.515, rel=0.01)
    assert Remaining(0.0, 0.0).tail == 0.0
    assert Remaining(1.0, 1000.0).tail == 0.0, "nearly all runs end at once"


def test_of_branches_the_slowest_counts() -> None:
    join = 3
    states = [
        start((1.0, 1), beside=((1.0, 2),)),
        fixed(2.0, (1.0, join)),
        fixed(5.0, (1.0, join)),
        fixed(1.0),
    ]
    after = remaining(states)
    assert (after[0].mean, after[0].hops) == (6.0, 2.0)
    states[0].beside = [(0.25, 2)]
    assert remaining(states)[0].mean == pytest.approx(0.75 * 3.0 + 0.25 * 6.0)


def test_the_slower_of_two_uncertain_branches_is_later_than_either() -> None:
    rng = Random(3)
    drawn = [max(rng.gauss(10, 2), rng.gauss(11, 3)) for _ in range(40_000)]
    states = [start((1.0, 1), beside=((1.0, 2),)), State(10.0, 104.0), State(11.0, 130.0)]
    after = remaining(states)[0]
    assert after.mean == pytest.approx(sum(drawn) / len(drawn), rel=0.01)
    assert after.square == pytest.approx(sum(one * one for one in drawn) / len(drawn), rel=0.01)
    assert after.tail == pytest.approx(sorted(drawn)[32_000], rel=0.03)


def test_a_chain_that_never_ends_costs_a_bounded_number_of_rounds() -> None:
    (after,) = remaining([fixed(1.0, (1.0, 0))])
    assert after.mean == SWEEPS
    assert visits([fixed(1.0, (1.0, 0))], start((1.0, 0)), frozenset()) == [SWEEPS]


def test_visits_of_a_loop_are_those_of_the_absorbing_chain() -> None:
    # execute: x = 1 + f; fix: f = 0.3 x.
    entered = visits([fixed(1.0, (0.3, 1)), fixed(1.0, (1.0, 0))], start((1.0, 0)), frozenset())
    assert entered == pytest.approx([1 / 0.7, 0.3 / 0.7], rel=5e-3)


def test_a_join_is_entered_once_by_all_its_branches() -> None:
    join = 2
    states = [fixed(1.0, (1.0, join)), fixed(1.0, (1.0, join)), fixed(1.0)]
    assert visits(states, start((1.0, 0), beside=((1.0, 1),)), frozenset({join})) == [1.0, 1.0, 1.0]
    assert visits(states, start(beside=((1.0, 0), (1.0, 1))), frozenset({join})) == [1.0, 1.0, 1.0]
    assert visits(states, start((1.0, 0), beside=((0.5, 1),)), frozenset({join})) == [1.0, 0.5, 1.0]
