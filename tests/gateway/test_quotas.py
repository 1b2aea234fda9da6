"""Quotas: the arithmetic of their buckets, at any times and amounts, and what a refusal leaves behind."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.allowance import Allowance, lasting
from gateway.openai.errors import ApiError
from gateway.quotas import Bucket, Limits, Quota, Rate, Spent

RATES = st.builds(Rate, st.integers(1, 10**9), st.sampled_from([1.0, 60.0, 3600.0, 86400.0]))
STEPS = st.lists(st.tuples(st.floats(0, 1e5), st.floats(0, 1e9)), max_size=30)


class Clock:
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@given(RATES, STEPS)
def test_a_bucket_never_holds_more_than_its_rate_and_gives_no_more_than_time_has_brought(
    rate: Rate, steps: list[tuple[float, float]]
) -> None:
    bucket, now, taken = Bucket(rate, 0.0), 0.0, 0.0
    for after, amount in steps:
        now += after
        if not bucket.wait(amount, now):
            bucket.take(min(amount, bucket.capacity), now)
            taken += min(amount, bucket.capacity)
        assert -1e-5 <= bucket.level(now) <= bucket.capacity
    brought = rate.amount + now * rate.amount / rate.per
    assert taken <= brought * (1 + 1e-9) + len(steps) * 1e-5


@given(RATES, STEPS, st.floats(0, 1e10))
def test_whoever_waits_as_long_as_it_says_gets_it(
    rate: Rate, steps: list[tuple[float, float]], amount: float
) -> None:
    bucket, now = Bucket(rate, 0.0), 0.0
    for after, much in steps:
        now += after
        bucket.take(much, now)  # into debt, too
    wait = bucket.wait(amount, now)
    least = 1e-6 * max(1.0, bucket.capacity, abs(bucket.level(now)))
    assert min(amount, bucket.capacity) - bucket.level(now + wait) <= least
    if wait > 1:
        assert bucket.wait(amount, now + wait * 0.99) > 0


@given(RATES, st.floats(0, 1e6), st.floats(0, 1e6))
def test_what_is_given_back_makes_it_as_if_nothing_had_been_taken(rate: Rate, taken: float, later: float) -> None:
    one, other = Bucket(rate, 0.0), Bucket(rate, 0.0)
    one.take(taken, 10.0)
    one.take(-taken, 10.0)
    assert one.level(10.0 + later) == pytest.approx(other.level(10.0 + later))


def test_a_rate_is_spread_evenly() -> None:
    quota = Quota(Limits(requests=Rate(60, 60.0)), 0.0)
    assert all(quota.enter(0.0) is None for _ in range(60))
    assert quota.enter(0.25) == Spent("requests", 0.75)
    assert quota.enter(1.0) is None
    assert quota.enter(1.0) == Spent("requests", 1.0)


def test_a_refused_request_takes_nothing() -> None:
    quota = Quota(Limits(requests=Rate(2, 60.0), concurrency=1), 0.0)
    assert quota.enter(0.0) is None
    for _ in range(5):
        assert quota.enter(0.0) == Spent("concurrency", None)
    quota.leave()
    assert quota.enter(0.0) is None
    quota.leave()
    assert quota.enter(0.0) == Spent("requests", 30.0)
    assert quota.inside == 0


class Key:
    """A key's quota and the time; each request is an allowance of its own."""

    def __init__(self, limits: Limits) -> None:
        self.clock = Clock()
        self._quota = Quota(limits, self.clock())

    def request(self) -> Allowance:
        allowance = Allowance(self._quota, self.clock)
        allowance.enter()
        return allowance


def test_a_call_larger_than_the_bucket_passes_when_it_is_full_and_leaves_a_debt() -> None:
    key = Key(Limits(tokens=Rate(1000, 60.0)))
    first = key.request()
    first.reserve(10**30)
    first.use(3000)
    first.leave()
    assert dict(first.left())["X-RateLimit-Remaining-Tokens"] == "0"
    key.clock.now += 179
    second = key.request()
    with pytest.raises(ApiError) as caught:
        second.reserve(1000)
    assert dict(caught.value.headers) == {"Retry-After": "1"}
    second.leave()
    key.clock.now += 1
    key.request().reserve(1000)


def test_what_was_reserved_and_not_used_goes_back() -> None:
    key = Key(Limits(tokens=Rate(1000, 60.0)))
    request = key.request()
    request.reserve(800)
    assert dict(request.left())["X-RateLimit-Remaining-Tokens"] == "200"
    request.use(50)
    request.leave()
    assert dict(request.left()) == {
        "X-RateLimit-Limit-Tokens": "1000",
        "X-RateLimit-Remaining-Tokens": "950",
        "X-RateLimit-Reset-Tokens": "3s",
    }


def test_without_a_limit_nothing_is_refused_or_told() -> None:
    key = Key(Limits(concurrency=1))
    request = key.request()
    request.reserve(10**12)
    request.use(10**12)
    assert request.left() == []
    with pytest.raises(ApiError) as caught:
        key.request()
    assert (caught.value.status, caught.value.code) == (429, "concurrency_quota_exceeded")
    assert dict(caught.value.headers) == {"Retry-After": "1"}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *[(0.0, "0s"), (0.0001, "1ms"), (0.1715, "172ms"), (0.9999, "1000ms"), (1.0, "1s"), (8.64, "8.64s")],
        *[(59.999, "1m0s"), (60.0, "1m0s"), (360.0, "6m0s"), (3603.0, "1h0m3s"), (86400.0, "24h0m0s")],
    ],
)
def test_a_duration_is_written_as_openais_headers_have_it(seconds: float, text: str) -> None:
    assert lasting(seconds) == text
