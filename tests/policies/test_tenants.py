"""Tenants' accounts: who is ahead of whom, what a pause is worth, and that they are bounded."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.tenants import Tenants


def at_work(**had: float) -> Tenants:
    """Accounts of tenants that each have one open call, after so many seconds."""
    tenants = Tenants()
    for name in had:
        tenants.came(name)
        tenants.came(name)
    for name, seconds in had.items():
        tenants.went(name, seconds)
    return tenants


def test_the_lead_is_what_a_tenant_has_had_more_than_the_least_at_work() -> None:
    tenants = at_work(a=5.0, b=2.0, c=9.0)
    assert [tenants.lead(name) for name in "abc"] == [3.0, 0.0, 7.0]


def test_nobody_leads_while_only_one_is_at_work() -> None:
    tenants = at_work(a=5.0)
    assert tenants.lead("a") == 0.0
    tenants.came("b")
    tenants.went("b")
    assert (tenants.lead("a"), tenants.lead("b"), tenants.lead("stranger")) == (0.0, 0.0, 0.0)


def test_the_least_rises_with_those_that_are_served() -> None:
    tenants = at_work(a=5.0, b=2.0)
    tenants.came("b")
    tenants.went("b", 10.0)
    assert (tenants.lead("a"), tenants.lead("b")) == (0.0, 7.0)
    tenants.went("a")  # idle: no longer the least at work
    tenants.came("c")
    assert (tenants.had("c"), tenants.lead("b")) == (12.0, 0.0)


def test_a_tenant_that_comes_back_is_lifted_to_the_least_at_work_and_keeps_what_is_more() -> None:
    tenants = at_work(a=5.0, b=20.0)
    tenants.went("b")
    tenants.came("a")
    tenants.went("a", 3.0)
    tenants.came("new")
    assert tenants.had("new") == 8.0
    tenants.came("b")
    assert tenants.had("b") == 20.0


def test_an_idle_tenant_saves_up_no_claim_even_where_it_comes_back_into_a_gap() -> None:
    tenants = Tenants()
    tenants.came("busy")
    tenants.went("busy", 1000.0)
    tenants.came("idle")
    tenants.came("busy")
    assert tenants.lead("busy") == 0.0


def test_one_of_several_open_calls_that_ends_leaves_its_tenant_at_work() -> None:
    tenants = Tenants()
    for _ in range(3):
        tenants.came("a")
    tenants.went("a", 1.0)
    tenants.came("b")
    assert (tenants.had("a"), tenants.had("b")) == (1.0, 1.0)
    tenants.went("a", 4.0)
    assert tenants.lead("a") == 4.0


def test_accounts_of_the_idle_are_bounded_and_those_at_work_are_never_forgotten() -> None:
    tenants = Tenants(limit=3)
    for name in range(10):
        tenants.came(str(name))
    assert len(tenants) == 10
    for name in (4, 1, 7, 0, 2):
        tenants.went(str(name), 1.0 + name)
    assert len(tenants) == 8
    assert [tenants.had(str(name)) for name in (4, 1, 7, 0, 2)] == [0.0, 0.0, 8.0, 1.0, 3.0]


def test_a_million_comings_and_goings_beside_one_long_call_take_no_memory() -> None:
    tenants = Tenants(limit=5)
    tenants.came("long")
    for number in range(5000):
        tenants.came(f"short {number % 50}")
        tenants.went(f"short {number % 50}", 1.0)
    assert len(tenants) == 6
    assert tenants.places <= 70


class Naive:
    """The same accounts by looking at all of them each time."""

    def __init__(self) -> None:
        self.had: dict[str, float] = {}
        self.open: dict[str, int] = {}
        self.last = 0.0

    def least(self) -> float:
        return min((self.had[name] for name in self.open), default=self.last)

    def came(self, name: str) -> None:
        if name not in self.open:
            self.had[name] = max(self.had.get(name, 0.0), self.least())
        self.open[name] = self.open.get(name, 0) + 1

    def went(self, name: str, seconds: float) -> None:
        self.had[name] += seconds
        self.open[name] -= 1
        if not self.open[name]:
            del self.open[name]
            self.last = self.had[name]

    def lead(self, name: str) -> float:
        return max(0.0, self.had.get(name, 0.0) - self.least()) if len(self.open) > 1 else 0.0


@pytest.mark.untraced
@settings(max_examples=150)
@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans(), st.integers(0, 40)), max_size=120))
def test_the_accounts_are_those_of_a_naive_model(steps: list[tuple[str, bool, int]]) -> None:
    tenants, naive = Tenants(), Naive()
    for name, comes, seconds in steps:
        if comes:
            tenants.came(name)
            naive.came(name)
        elif name in naive.open:
            tenants.went(name, float(seconds))
            naive.went(name, float(seconds))
        for other in "abcdefg":
            assert tenants.had(other) == naive.had.get(other, 0.0)
            assert tenants.lead(other) == naive.lead(other)
    assert tenants.places <= 2 * 6 + 64


def test_an_end_that_never_began_is_an_error() -> None:
    with pytest.raises(KeyError):
        Tenants().went("nobody")
