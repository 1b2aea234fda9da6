"""The gate on working sets: new runs wait while those under way fill the memory, and nobody is paused."""

from __future__ import annotations

import math

from policies.calls import Outcome
from policies.catalog import Named
from policies.events import Finished, Reported, Start, Woken
from policies.gate import Gate, Load, Member, WorkingSet
from policies.pool import EngineLimits, PoolSpec
from tests.policies.claims import claims
from tests.policies.making import a_call, a_desk, a_waiting, started


def under_way(kept: float, *, context: int = 0) -> Member:
    return Member(("", "", f"run of {kept}"), 0.0, 0.0, context=context, kept=kept)


@claims("gate", "working_set")
def test_a_run_fits_while_what_all_have_kept_and_its_own_prompt_stay_within_the_share() -> None:
    policy = WorkingSet(share=0.5)
    limit = policy.limit(math.inf, Load(kv_tokens=2000.0))
    assert limit == 1000.0
    active = [under_way(500.0), under_way(300.0)]
    assert policy.admits(under_way(0.0, context=200), active, limit, Load(), 0.0)
    assert not policy.admits(under_way(0.0, context=201), active, limit, Load(), 0.0)


@claims("gate", "working_set")
def test_one_run_may_always_begin_and_none_is_paused() -> None:
    policy = WorkingSet()
    assert policy.admits(under_way(0.0, context=10**9), [], 1.0, Load(), 0.0)
    assert policy.pauses([under_way(1e9)], 1.0, Load(), 0.0) == ()


@claims("gate", "working_set")
def test_memory_that_nobody_knows_holds_everything() -> None:
    policy = WorkingSet()
    assert policy.admits(under_way(0.0, context=10**9), [under_way(1e12)], policy.limit(1.0, Load()), Load(), 0.0)


@claims("gate", "working_set")
def test_a_conversation_that_fills_the_memory_holds_up_the_next_one_until_it_is_over() -> None:
    pool = PoolSpec(name="p", limits=EngineLimits(sequences=8, kv_tokens=1000))
    desk = a_desk([pool], gate=Named(name="working_set"))
    first = started(desk, a_call("first", run="long", prompt_tokens=600))
    outcome = Outcome(fate="ok", total=1.0, output_tokens=50, prompt_tokens=600, cached_tokens=0)
    desk.tell(Finished(call="first", attempt=first.attempt, outcome=outcome), Start)
    desk.tell(Reported(engine="p/0", alive=True), Start)
    desk.now = 2.0
    desk.tell(Woken(), Start)  # the first review learns how much memory there is
    assert desk.arrive(a_call("waits", prompt_tokens=200)) is None
    again = started(desk, a_call("second turn", run="long", prompt_tokens=700, final=True))
    [waited] = desk.tell(Finished(call="second turn", attempt=again.attempt, outcome=outcome), Start)
    assert waited.call == "waits"


def a_gate(tokens: float) -> Gate:
    """A gate over so much memory, of which three quarters may be taken."""
    gate = Gate(WorkingSet(share=0.75))
    gate.came(("", "", "first of all"), 0.0, a_waiting(a_call("first of all"), 0), 0.0)
    gate.reviewed(Load(kv_tokens=tokens), 0.0)
    gate.went(("", "", "first of all"), a_waiting(a_call("first of all"), 0), over=True, now=0.0)
    return gate


def test_a_run_counts_for_no_more_than_its_longest_prompt_and_its_last_call() -> None:
    gate, key = a_gate(1000.0), ("", "", "long")
    for number in range(50):
        entry = a_waiting(a_call(f"turn {number}", run="long", prompt_tokens=300), number)
        assert gate.came(key, 0.0, entry, float(number), under_way=number > 0)
        gate.went(key, entry, over=False, now=float(number), kept=100.0)
    other = a_waiting(a_call("other", prompt_tokens=300), 99)
    assert gate.came(("", "", "other"), 50.0, other, 50.0)


def test_a_newcomer_does_not_pass_a_parked_run_because_it_is_small() -> None:
    gate = a_gate(1000.0)
    large, small = a_waiting(a_call("large", prompt_tokens=700), 1), a_waiting(a_call("small", prompt_tokens=10), 2)
    assert gate.came(("", "", "there"), 0.0, a_waiting(a_call("there", prompt_tokens=500), 0), 0.0)
    gate.went(("", "", "there"), a_waiting(a_call("there", prompt_tokens=500), 0), over=False, now=0.0, kept=500.0)
    assert not gate.came(("", "", "large"), 1.0, large, 1.0)
    assert not gate.came(("", "", "small"), 2.0, small, 2.0)


def test_a_run_that_comes_back_after_long_is_not_parked_in_its_middle() -> None:
    gate, key = a_gate(1000.0), ("", "", "back")
    gate.came(("", "", "full"), 0.0, a_waiting(a_call("full", prompt_tokens=900), 0), 0.0)
    assert gate.came(key, 0.0, a_waiting(a_call("late", run="back", prompt_tokens=900), 1), 100.0, under_way=True)


def test_a_run_that_pauses_counts_for_less_and_less() -> None:
    policy, paused = WorkingSet(fade=10.0), under_way(800.0)
    assert not policy.admits(under_way(0.0, context=600), [paused], 1000.0, Load(), 9.0)
    assert policy.admits(under_way(0.0, context=600), [paused], 1000.0, Load(), 10.0)
    paused.open = 1
    assert not policy.admits(under_way(0.0, context=600), [paused], 1000.0, Load(), 100.0)
