"""When an engine of another pool may take a call: each condition alone, at its edge."""

from __future__ import annotations

from typing import Any

import pytest

from policies.borrowing import Always, Gated
from policies.calls import Estimate
from policies.pool import UNLIMITED, EngineLimits
from tests.policies.claims import claims
from tests.policies.making import a_call, a_view

LIMITS = EngineLimits(sequences=10, work=1000.0, kv_tokens=1000)


def lends(policy: Gated, *, owner_waits: bool = False, prompt: int = 100, output: int = 20, **engine: Any) -> bool:
    call = a_call(pool="guest", prompt_tokens=prompt)
    expected = Estimate(output_tokens=(output, 4 * output), service=1.0, remaining=0.0)
    return policy.lends(call, expected, a_view(limits=LIMITS, pool="owner", **engine), owner_waits)


@claims("borrowing", "always")
def test_always_lends_even_a_full_engine_whose_owner_waits() -> None:
    policy = Always()
    full = a_view(limits=LIMITS, running=10, work=1000.0, on_loan=1000.0, footprint=9000.0)
    assert policy.lends(a_call(), Estimate(output_tokens=(9, 9), service=1.0, remaining=0.0), full, True)
    assert not policy.gated


@claims("borrowing", "gated")
def test_gated_lends_an_idle_engine() -> None:
    assert Gated().gated
    assert lends(Gated())


@claims("borrowing", "gated")
@pytest.mark.parametrize(
    ("on_loan", "free", "pressed"), [(70.0, True, True), (71.0, True, False), (571.0, False, False)]
)
def test_gated_lends_a_smaller_share_while_calls_of_the_owner_wait(on_loan: float, free: bool, pressed: bool) -> None:
    policy = Gated(most=0.75, pressed=0.25)  # this call is 100 tokens to read and 20 to write, of a budget of 1000
    assert lends(policy, work=on_loan, on_loan=on_loan) is free
    assert lends(policy, owner_waits=True, work=on_loan, on_loan=on_loan) is pressed


@claims("borrowing", "gated")
def test_gated_lends_nothing_while_the_owner_waits_when_told_so() -> None:
    assert not lends(Gated(pressed=0.0), owner_waits=True)
    assert lends(Gated(pressed=0.0))


@claims("borrowing", "gated")
@pytest.mark.parametrize(
    ("taken", "lent"),
    [({"running": 6}, True), ({"running": 7}, False), ({"work": 600.0}, True), ({"work": 601.0}, False)],
)
def test_gated_lends_up_to_a_share_of_seats_and_of_budget(taken: dict[str, Any], lent: bool) -> None:
    assert lends(Gated(load=0.6), **taken) is lent


@claims("borrowing", "gated")
def test_gated_measures_load_by_the_budget_that_holds_now() -> None:
    assert not lends(Gated(load=0.6), work=400.0, budget=500.0)


@claims("borrowing", "gated")
@pytest.mark.parametrize(
    ("on_loan", "matched", "lent"),
    [(320.0, 0, True), (321.0, 0, False), (400.0, 80, True), (500.0, 100, False)],
)
def test_gated_keeps_borrowed_work_this_call_among_it_within_a_share(
    on_loan: float, matched: int, lent: bool
) -> None:
    assert lends(Gated(load=1.0, most=0.5), work=on_loan, on_loan=on_loan, matched=matched) is lent


@claims("borrowing", "gated")
def test_gated_lends_no_call_that_is_larger_than_the_share_by_itself() -> None:
    assert not lends(Gated(most=0.5), prompt=501, output=0)
    assert lends(Gated(most=0.5), prompt=500, output=0)
    assert lends(Gated(most=0.5), prompt=800, output=0, budget=UNLIMITED)


@claims("borrowing", "gated")
@pytest.mark.parametrize(
    ("footprint", "matched", "lent"), [(780.0, 0, True), (781.0, 0, False), (860.0, 80, True), (861.0, 80, False)]
)
def test_gated_lends_while_what_is_kept_and_what_is_added_fit_the_memory(
    footprint: float, matched: int, lent: bool
) -> None:
    assert lends(Gated(kv=0.9), footprint=footprint, matched=matched) is lent


@claims("borrowing", "gated")
def test_gated_asks_nothing_of_a_memory_that_is_not_known() -> None:
    call = a_call(pool="guest", prompt_tokens=100)
    expected = Estimate(output_tokens=(10, 40), service=1.0, remaining=0.0)
    assert Gated().lends(call, expected, a_view(pool="owner", footprint=1e9), False)
