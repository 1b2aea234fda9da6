"""What every priority of the catalog keeps to, whatever its order is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from random import Random
from typing import cast

import pytest

from policies.calls import Call, Estimate, Outlook
from policies.catalog import CATALOG, Named, make
from policies.priority import EPOCH
from policies.protocols import Key, Priority, RunView
from policies.queue import LIVE, LOST, STARVED, StageQueue, Waiting
from tests.policies.making import a_call

NAMES = list(CATALOG["priority"])
NOW = EPOCH + 300 * 86400.0
STAGES = ("generate", "execute", "verify", "fix")


def situations(seed: int, count: int = 60) -> Iterator[tuple[Call, Estimate, RunView, float]]:
    """Calls at one moment of a live gateway, with all that may be unknown of them unknown in some."""
    rng = Random(seed)

    def counts() -> dict[str, int]:
        return {stage: rng.randrange(5) for stage in STAGES}

    for n in range(count):
        started = NOW - rng.expovariate(1 / 40)
        outlook = Outlook(
            visits={stage: rng.random() * 3 for stage in STAGES},
            service={stage: rng.random() * 9 for stage in STAGES},
        )
        call = a_call(
            f"c{n}",
            arrived=rng.uniform(started, NOW),
            stage=rng.choice(STAGES),
            priority=rng.randrange(-8, 9),
            prompt_tokens=rng.randrange(200_000),
            foretold=rng.choice((None, rng.random() * 60)),
        )
        mean = rng.randrange(4000)
        expected = Estimate(
            service=rng.choice((0.0, rng.expovariate(1 / 5))),
            remaining=rng.choice((0.0, rng.expovariate(1 / 20))),
            output_tokens=(mean, 2 * mean),
            success=rng.random(),
            hops=rng.random() * 6,
            known=rng.random() < 0.8,
            outlook=rng.choice((None, outlook)),
        )
        attained = rng.choice((0.0, rng.expovariate(1 / 20)))
        run = RunView(
            deadline=rng.choice((None, started + rng.uniform(-5, 90))),
            started=started,
            calls=2,
            first=False,
            attained=attained,
            path=attained * rng.random(),
            waited=rng.random() * 30,
            p95=rng.choice((None, rng.random() * 90)),
            visits=counts(),
            entered=counts(),
        )
        yield call, expected, run, NOW


def priority(name: str) -> Priority:
    return cast(Priority, make("priority", Named(name=name)))


@pytest.mark.parametrize("name", NAMES)
def test_the_engines_integer_orders_like_the_key_and_fits_it(name: str) -> None:
    policy = priority(name)
    keys = sorted((policy.key(*case) for case in situations(1, 300)), key=lambda key: key.start)
    buckets = [key.bucket for key in keys]
    assert buckets == sorted(buckets)
    assert len(set(buckets)) > 3
    assert all(abs(cell) < 2**30 for cell in buckets)


@pytest.mark.parametrize("name", NAMES)
def test_keys_are_finite_and_held_for_some_time(name: str) -> None:
    policy = priority(name)
    for call, expected, run, now in situations(2):
        key = policy.key(call, expected, run, now)
        assert all(map(math.isfinite, key.start))
        assert key.until is None or now < key.until < math.inf
        assert all(moment is None or math.isfinite(moment) for moment in (key.lost_at, key.starve_at))


@pytest.mark.parametrize("name", NAMES)
def test_the_same_arguments_give_the_same_key(name: str) -> None:
    one, two = ([priority(name).key(*case) for case in situations(3)] for _ in range(2))
    assert one == two


@pytest.mark.parametrize("name", NAMES)
def test_a_key_that_is_not_due_for_renewal_would_be_made_the_same(name: str) -> None:
    policy = priority(name)
    for call, expected, run, now in situations(4):
        key = policy.key(call, expected, run, now)
        later = now + 20.0 if key.until is None else (now + key.until) / 2
        assert policy.key(call, expected, run, later) == key


@pytest.mark.parametrize("name", NAMES)
def test_a_call_without_a_deadline_has_a_place_and_is_never_lost(name: str) -> None:
    policy = priority(name)
    for call, expected, run, now in situations(5):
        key = policy.key(call, expected, replace(run, deadline=None), now)
        assert key.lost_at is None
        assert all(map(math.isfinite, key.start))


@pytest.mark.parametrize("name", NAMES)
def test_two_calls_with_one_answer_stand_where_the_sooner_does(name: str) -> None:
    policy = priority(name)
    keys = [policy.key(*case) for case in situations(6)]
    for one, two in pairwise(keys):
        joint = one.joined(two)
        assert joint == two.joined(one)
        assert (joint.start, joint.bucket) == (min(one.start, two.start), min(one.bucket, two.bucket))
        assert joint.until == min((key.until for key in (one, two) if key.until is not None), default=None)


@pytest.mark.parametrize("name", NAMES)
def test_a_queue_serves_at_each_moment_in_the_order_that_the_policy_gives_then(name: str) -> None:
    policy = priority(name)
    runs = {call.id: (call, expected, run) for call, expected, run, _ in situations(7)}

    def key_of(entry: Waiting, now: float) -> Key:
        return policy.key(*runs[entry.call.id], now)

    def place(entry: Waiting, now: float) -> tuple[int, tuple[float, ...], int]:
        key = key_of(entry, now)
        if key.starve_at is not None and now >= key.starve_at:
            return STARVED, (key.starve_at,), entry.order
        return LOST if key.lost_at is not None and now >= key.lost_at else LIVE, key.start, entry.order

    queue, waiting = StageQueue(key_of), []
    for order, (call, expected, run) in enumerate(runs.values()):
        key = policy.key(call, expected, run, NOW)
        entry = Waiting(
            call=call, estimate=expected, key=key, order=order, deadline=run.deadline, visit=1, since=call.arrived
        )
        queue.push(entry, NOW)
        waiting.append(entry)
    for now in (NOW + 0.7 * turn for turn in range(len(runs))):
        first = min(waiting, key=lambda entry: place(entry, now))
        assert queue.head(now) is first
        queue.remove(first)
        waiting.remove(first)
