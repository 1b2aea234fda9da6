"""Quantiles from buckets, held against the sorted numbers; and whether two samples are told apart."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.drift import distances, drifted
from policies.sketch import BUCKETS, ERROR, LEAST, MOST, Sketch
from policies.snapshot import ProfileError, Record


def of(*numbers: float) -> Sketch:
    sketch = Sketch()
    for number in numbers:
        sketch.add(number)
    return sketch


@given(
    st.lists(st.floats(2 * LEAST, MOST), min_size=1, max_size=60),
    st.sampled_from((0.0, 0.5, 0.8, 0.95, 1.0)),
)
def test_a_quantile_is_off_by_the_promised_error_at_most(numbers: list[float], share: float) -> None:
    exact = sorted(numbers)[max(0, math.ceil(share * len(numbers)) - 1)]
    assert of(*numbers).quantile(share) == pytest.approx(exact, rel=ERROR + 1e-9)


def test_a_sketch_is_bounded_whatever_it_is_given() -> None:
    rng = Random(1)
    sketch = of(*(10.0 ** rng.uniform(-30, 30) for _ in range(20_000)))
    assert len(sketch.buckets) <= BUCKETS < 400
    assert sketch.quantile(1.0) == pytest.approx(MOST, rel=ERROR)


def test_nought_is_a_number_too() -> None:
    sketch = of(0.0, 0.0, 3.0)
    assert (sketch.quantile(0.5), sketch.mean, sketch.total) == (0.0, 1.0, 3.0)
    assert Sketch().quantile(0.5) == Sketch().mean == 0.0


def test_the_largest_of_several_draws_is_that_of_the_distribution() -> None:
    rng = Random(2)
    sketch = of(*(rng.expovariate(1.0) for _ in range(20_000)))
    for draws in (1, 2, 8):  # of exponential times: 1 + 1/2 + ... + 1/n, and the variances add up likewise
        mean = sum(1 / k for k in range(1, draws + 1))
        square = mean**2 + sum(1 / k**2 for k in range(1, draws + 1))
        assert sketch.largest(draws) == pytest.approx((mean, square), rel=0.06)
    assert sketch.largest(1.0)[0] < sketch.largest(1.5)[0] < sketch.largest(2.0)[0]


def test_of_two_sketches_in_one_the_older_may_count_less() -> None:
    both = of(*[1.0] * 10).merged(of(*[5.0] * 10), keep=0.1)
    assert both.total == pytest.approx(11.0)
    assert both.mean == pytest.approx(51 / 11)
    assert both.quantile(0.5) == pytest.approx(5.0, rel=ERROR)


def test_a_sketch_is_read_back_as_it_was() -> None:
    sketch = of(0.0, 0.5, 0.5, 70.0)
    again = Sketch.load(Record(sketch.dump()))
    assert (again.buckets, again.total, again.sum) == (sketch.buckets, sketch.total, sketch.sum)


def test_a_bucket_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ProfileError, match="buckets: has a bucket that does not exist"):
        Sketch.load(Record({"sum": 1.0, "buckets": [[BUCKETS, 1.0]]}))


def test_distances_of_two_samples_are_those_of_their_distributions() -> None:
    one, other = of(1.0, 1.0), of(1.0, 3.0)
    assert distances(one, other) == pytest.approx((0.5, 1.0), rel=2 * ERROR)
    assert distances(one, one) == (0.0, 0.0)


def sample(seed: int, scale: float, size: int = 64) -> Sketch:
    rng = Random(seed)
    return of(*(scale * rng.lognormvariate(0.0, 0.5) for _ in range(size)))


def test_samples_of_one_distribution_are_not_told_apart() -> None:
    assert not any(drifted(sample(seed, 1.0), sample(1000 + seed, 1.0)) for seed in range(300))


def test_samples_of_two_distributions_are_told_apart() -> None:
    assert all(drifted(sample(seed, 1.0), sample(1000 + seed, 2.5)) for seed in range(100))


def test_what_is_certain_but_small_is_no_change() -> None:
    assert not drifted(of(*[1.0] * 200), of(*[1.2] * 200))
    assert drifted(of(*[1.0] * 200), of(*[1.4] * 200))


def test_few_observations_prove_nothing() -> None:
    assert not drifted(of(1.0, 1.0, 1.0), of(9.0, 9.0, 9.0))
    assert not drifted(Sketch(), of(9.0))
    assert not drifted(of(9.0), Sketch())
