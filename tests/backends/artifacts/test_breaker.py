"""A server that does not answer is left alone, and asked again by and by."""

from __future__ import annotations

from backends.artifacts.breaker import Breaker


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_it_opens_after_some_failures_in_a_row_only() -> None:
    breaker = Breaker(clock=Clock(), tries=3)
    for _ in range(5):
        breaker.failed()
        breaker.failed()
        breaker.worked()
    assert breaker.allows()
    for _ in range(3):
        assert breaker.allows()
        breaker.failed()
    assert breaker.open
    assert not breaker.allows()


def test_one_trial_is_let_through_after_each_pause_and_the_pauses_grow_up_to_a_bound() -> None:
    clock = Clock()
    breaker = Breaker(clock=clock, tries=1, rest=1.0, most=4.0)
    breaker.failed()
    pauses = []
    for _ in range(5):
        began = clock.now
        while not breaker.allows():
            clock.now += 0.25
        pauses.append(clock.now - began)
        assert not breaker.allows()  # the others wait for what becomes of the trial
        breaker.failed()
    assert pauses == [1.0, 2.0, 4.0, 4.0, 4.0]


def test_it_closes_when_the_trial_works_and_begins_anew() -> None:
    clock = Clock()
    breaker = Breaker(clock=clock, tries=1, rest=1.0)
    for _ in range(4):
        breaker.failed()
    clock.now += 100.0
    assert breaker.allows()
    breaker.worked()
    assert not breaker.open
    breaker.failed()
    clock.now += 1.0
    assert breaker.allows()


def test_a_trial_that_nobody_saw_the_end_of_is_followed_by_another() -> None:
    clock = Clock()
    breaker = Breaker(clock=clock, tries=1, rest=1.0)
    breaker.failed()
    clock.now += 1.0
    assert breaker.allows()
    clock.now += 1.0
    assert breaker.allows()
