"""Loans and budgets, as the dispatcher makes use of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.calls import Call, Outcome
from policies.catalog import Named
from policies.events import Arrived, Event, Finished, FirstToken, Launch, Scaled, Start, Woken
from policies.pool import EngineState
from tests.policies.making import FCFS, Desk, a_call, a_desk, a_pool, started

ROOMY = a_pool(sequences=8)


def names(starts: Iterable[Start]) -> list[str]:
    return [start.call for start in starts]


def engine(desk: Desk, name: str) -> EngineState:
    state = desk.dispatcher.fleet.get(name)
    assert state is not None
    return state


# --- loans ---

GATED = dataclasses.replace(
    FCFS,
    borrowing=Named(name="gated"),
    scorers=(Named(name="own_pool", weight=9.0), Named(name="free_work")),
)


def lending_desk(*, guests: int = 1, seats: int = 10, pressed: float = 0.25) -> Desk:
    """A pool `guest` that may borrow from a pool `owner`, both with budgets of 1000."""
    pools = [
        a_pool("guest", sequences=guests, work=1000, lenders=("guest", "owner")),
        a_pool("owner", sequences=seats, work=1000, maximum=4),
    ]
    borrowing = Named(name="gated", params=(("pressed", pressed),))
    return a_desk(pools, policies=dataclasses.replace(GATED, borrowing=borrowing))


def guest(name: str, work: int = 100, **given: float) -> Call:
    return a_call(name, pool="guest", prompt_tokens=work, expected_output=0, **given)


def owner(name: str, work: int = 100, **given: float) -> Call:
    return a_call(name, pool="owner", prompt_tokens=work, expected_output=0, **given)


def test_borrowed_work_stays_within_its_share_and_the_owner_gets_the_rest() -> None:
    desk = lending_desk()
    assert [started(desk, guest(str(n))).engine for n in range(8)] == ["guest/0"] + ["owner/0"] * 7
    assert desk.arrive(guest("beyond")) is None
    assert engine(desk, "owner/0").on_loan == 700
    assert started(desk, owner("own", 300)).engine == "owner/0"


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("ggootf"), st.integers(1, 600)), max_size=60))
def test_borrowed_work_never_exceeds_its_share_and_is_accounted_for(steps: list[tuple[str, int]]) -> None:
    desk, running = lending_desk(), dict[str, Start]()
    for count, (what, number) in enumerate(steps):
        event: Event = Woken()
        if what in "go":
            event = Arrived(call=(guest if what == "g" else owner)(str(count), number))
        elif running:
            start = running[sorted(running)[number % len(running)]]
            event = FirstToken(call=start.call, attempt=start.attempt)
            if what == "f":
                del running[start.call]
                event = Finished(call=start.call, attempt=start.attempt, outcome=Outcome(fate="ok"))
        running |= {start.call: start for start in desk.tell(event, Start)}
        lent = engine(desk, "owner/0")
        assert lent.on_loan == sum(slot.work for slot in lent.slots.values() if slot.borrowed)
        assert 0.0 <= lent.on_loan <= 750.0
        assert engine(desk, "guest/0").on_loan == 0.0


@pytest.mark.parametrize(("tokens", "lent"), [(250, ["guest"]), (251, [])])
def test_while_the_owners_calls_wait_guests_have_a_smaller_share_of_the_engine(tokens: int, lent: list[str]) -> None:
    desk = lending_desk(pressed=0.25)
    started(desk, guest("at home"))
    running = [started(desk, owner(name, 400)) for name in ("first", "second")]
    assert desk.arrive(owner("large", 900, arrived=5.0)) is None
    assert desk.arrive(guest("guest", tokens)) is None  # the first in turn, but there is no room
    assert names(desk.finish(running[0])) == lent


@pytest.mark.parametrize(("pressed", "served"), [(0.25, ["guest", "own"]), (0.0, ["own", "guest"])])
def test_the_most_urgent_goes_first_and_a_guest_only_within_its_share(pressed: float, served: list[str]) -> None:
    desk = lending_desk(seats=1, pressed=pressed)
    started(desk, guest("at home"))
    running = started(desk, owner("running"))
    assert desk.arrive(guest("guest", arrived=0.0)) is None
    desk.now = 5.0
    assert desk.arrive(owner("own", arrived=5.0)) is None
    [first] = desk.finish(running)
    assert first.engine == "owner/0"
    assert [first.call, *names(desk.finish(first))] == served


def test_a_guest_that_is_not_lent_an_engine_does_not_keep_it_from_others() -> None:
    desk = lending_desk()
    started(desk, guest("at home"))
    assert desk.arrive(guest("too large", 800)) is None
    assert started(desk, owner("own")).engine == "owner/0"


def test_a_guest_gets_what_the_owners_calls_leave_of_a_new_engine_at_once() -> None:
    desk = lending_desk(seats=4)
    started(desk, guest("at home"))
    for number in range(4):
        started(desk, owner(str(number)))
    assert desk.arrive(guest("guest")) is None
    assert desk.arrive(owner("own")) is None
    [name] = [launch.engine for launch in desk.tell(Scaled(pool="owner", engines=2), Launch)]
    assert sorted(names(desk.up(name))) == ["guest", "own"]


# --- budgets ---


def test_an_adaptive_budget_that_grows_makes_room_and_one_that_shrinks_takes_it() -> None:
    params = (("start", 1000), ("least", 100), ("most", 9000), ("grow", 2), ("cut", 0.5), ("period", 5))
    policies = dataclasses.replace(FCFS, budget=Named(name="adaptive", params=params))
    desk = a_desk([a_pool(sequences=9)], policies=policies)
    first = started(desk, a_call("first", expected_output=200))
    assert desk.arrive(a_call("second", expected_output=200)) is None
    desk.tell(Woken(), Start)
    assert engine(desk, "p/0").budget == 1000
    desk.now = 5.0
    assert names(desk.tell(Woken(), Start)) == ["second"]
    assert engine(desk, "p/0").budget == 2000
    desk.tell(FirstToken(call="first", attempt=first.attempt), Start)  # after five seconds: congested
    desk.now = 10.0
    desk.tell(Woken(), Start)
    assert engine(desk, "p/0").budget == 1000
    assert desk.arrive(a_call("third", expected_output=1)) is None
    assert names(desk.finish(first)) == ["third"]


def test_the_pools_own_bound_holds_under_any_budget() -> None:
    params = (("start", 5000), ("least", 5000))
    policies = dataclasses.replace(FCFS, budget=Named(name="adaptive", params=params))
    desk = a_desk([a_pool(sequences=9, work=1000)], policies=policies)
    started(desk, a_call("first", expected_output=200))
    assert desk.arrive(a_call("second", expected_output=200)) is None


def test_a_pool_without_an_engine_of_its_own_lives_on_loans_however_large() -> None:
    desk = a_desk(
        [
            a_pool("guest", work=1000, lenders=("guest", "owner"), minimum=0, start=0),
            a_pool("owner", sequences=4, work=1000),
        ],
        policies=GATED,
    )
    assert started(desk, guest("large", 5000)).engine == "owner/0"


def test_a_predicted_wait_counts_those_of_other_pools_who_wait_for_the_same_engines() -> None:
    pools = [a_pool(name, lenders=("a", "b"), prior_service=service) for name, service in (("a", 1.0), ("b", 10.0))]
    desk = a_desk(pools)
    for number in range(5):
        desk.arrive(a_call(f"b{number}", pool="b"))
    view = desk.dispatcher.pool_view("a", 0.0)
    assert (view.waiting, view.slots, view.others) == (0, 2, 30.0)
    assert view.predicted_wait == pytest.approx(0.5 + 15.0)
