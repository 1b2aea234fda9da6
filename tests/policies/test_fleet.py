"""How many engines there are, and which of them may be given a call."""

from __future__ import annotations

import pytest

from policies.events import Action, EngineUp, Failed, Launch, Reported, Retire
from policies.fleet import RELAUNCH_LONGEST, Fleet, groups
from policies.pool import EJECT_AFTER, EJECT_LONGEST, EngineLimits, EngineState, Slot, lending
from tests.policies.making import a_pool

LIMITS = EngineLimits(sequences=2, work=100.0)


def a_fleet(engines: int = 0, *, maximum: int = 4) -> Fleet:
    """A pool `p` with so many engines ready."""
    fleet = Fleet({"p": a_pool(minimum=0, maximum=maximum)})
    up(fleet, fleet.scaled("p", engines, 0.0))
    return fleet


def up(fleet: Fleet, actions: list[Action]) -> None:
    for action in actions:
        if isinstance(action, Launch):
            fleet.up(EngineUp(engine=action.engine, limits=LIMITS), 0.0)


def engine(fleet: Fleet, name: str) -> EngineState:
    state = fleet.get(name)
    assert state is not None
    return state


def occupy(fleet: Fleet, name: str, work: float = 1.0) -> None:
    state = engine(fleet, name)
    state.take(Slot("c", len(state.slots) + 1, work, 0.0, 0.0, 0), 1)


def names(actions: list[Action], kind: type[Launch | Retire]) -> list[str]:
    return [action.engine for action in actions if isinstance(action, kind)]


def statuses(fleet: Fleet) -> dict[str, str]:
    return {state.name: state.status for state in fleet}


def fail(fleet: Fleet, name: str, now: float, times: int = EJECT_AFTER) -> None:
    for _ in range(times):
        fleet.failed(engine(fleet, name), now, Failed(call="c", attempt=1, trouble="broken"))


# --- size ---


@pytest.mark.parametrize(("asked", "made"), [(0, 1), (2, 2), (9, 3)])
def test_a_pool_is_scaled_within_its_bounds(asked: int, made: int) -> None:
    fleet = Fleet({"p": a_pool(minimum=1, maximum=3)})
    assert len(names(fleet.scaled("p", asked, 0.0), Launch)) == made
    assert fleet.target("p") == made
    assert set(statuses(fleet).values()) == {"starting"}


def test_scaling_down_ends_idle_engines_at_once_and_busy_ones_when_they_are_empty() -> None:
    fleet = a_fleet(3)
    occupy(fleet, "p/0", 50.0)
    occupy(fleet, "p/1", 10.0)
    assert names(fleet.scaled("p", 1, 0.0), Retire) == ["p/2"]
    assert statuses(fleet) == {"p/0": "ready", "p/1": "draining"}
    engine(fleet, "p/1").give_back(1, 0.0)
    assert fleet.settle(engine(fleet, "p/1"), 0.0) == [Retire(pool="p", engine="p/1")]
    assert statuses(fleet) == {"p/0": "ready"}


def test_engines_that_still_start_are_the_first_to_go() -> None:
    fleet = a_fleet(1)
    fleet.scaled("p", 2, 0.0)
    assert names(fleet.scaled("p", 1, 0.0), Retire) == ["p/1"]


def test_scaling_up_takes_a_draining_engine_back_before_launching_one() -> None:
    fleet = a_fleet(2)
    occupy(fleet, "p/0")
    occupy(fleet, "p/1")
    fleet.scaled("p", 1, 0.0)
    assert "draining" in statuses(fleet).values()
    assert names(fleet.scaled("p", 3, 0.0), Launch) == ["p/2"]
    assert statuses(fleet) == {"p/0": "ready", "p/1": "ready", "p/2": "starting"}


def test_names_are_never_used_twice() -> None:
    fleet = a_fleet(2)
    fleet.scaled("p", 0, 0.0)
    assert names(fleet.scaled("p", 2, 0.0), Launch) == ["p/2", "p/3"]


def test_a_drained_engine_goes_when_it_is_empty_and_is_not_replaced() -> None:
    fleet = a_fleet(2)
    occupy(fleet, "p/0")
    assert fleet.drained("p/0", 0.0) == []
    assert fleet.drained("p/0", 0.0) == []
    assert fleet.target("p") == 1
    assert not engine(fleet, "p/0").usable(0.0)
    assert fleet.drained("p/1", 0.0) == [Retire(pool="p", engine="p/1")]
    assert fleet.drained("nobody", 0.0) == []
    assert fleet.target("p") == 0


def test_an_engine_that_was_told_to_go_is_not_taken_back() -> None:
    fleet = a_fleet(2)
    occupy(fleet, "p/0")
    fleet.drained("p/0", 0.0)
    assert names(fleet.scaled("p", 3, 0.0), Launch) == ["p/2", "p/3"]
    assert statuses(fleet)["p/0"] == "draining"


def test_draining_by_name_settles_the_fate_of_an_engine_that_was_draining_already() -> None:
    fleet = a_fleet(1)
    occupy(fleet, "p/0")
    fleet.scaled("p", 0, 0.0)
    fleet.drained("p/0", 0.0)
    assert fleet.target("p") == 0
    assert names(fleet.scaled("p", 1, 0.0), Launch) == ["p/1"]


def test_an_engine_on_its_way_out_holds_its_place_until_it_has_gone() -> None:
    fleet = a_fleet(1, maximum=1)
    occupy(fleet, "p/0")
    fleet.drained("p/0", 0.0)
    assert fleet.scaled("p", 1, 0.0) == []
    engine(fleet, "p/0").give_back(1, 0.0)
    expected: list[Action] = [Retire(pool="p", engine="p/0"), Launch(pool="p", engine="p/1")]
    assert fleet.settle(engine(fleet, "p/0"), 0.0) == expected


def test_an_engine_drained_while_it_starts_is_ended_and_its_coming_up_ignored() -> None:
    fleet = Fleet({"p": a_pool(minimum=0)})
    fleet.scaled("p", 1, 0.0)
    assert fleet.drained("p/0", 0.0) == [Retire(pool="p", engine="p/0")]
    fleet.up(EngineUp(engine="p/0", limits=LIMITS), 0.0)
    assert statuses(fleet) == {}


def test_a_pool_at_its_minimum_gets_another_engine_for_the_one_that_is_drained() -> None:
    fleet = Fleet({"p": a_pool()})
    fleet.scaled("p", 1, 0.0)
    fleet.up(EngineUp(engine="p/0", limits=LIMITS), 0.0)
    assert fleet.drained("p/0", 0.0) == [Retire(pool="p", engine="p/0"), Launch(pool="p", engine="p/1")]
    assert fleet.target("p") == 1


def test_an_engine_has_the_limits_that_it_came_up_with() -> None:
    assert engine(a_fleet(1), "p/0").limits == LIMITS


# --- loss ---


def test_an_engine_that_ends_unasked_is_replaced_at_once() -> None:
    fleet = a_fleet(1)
    occupy(fleet, "p/0")
    engine(fleet, "p/0").give_back(1, 0.0)
    expected: list[Action] = [Retire(pool="p", engine="p/0"), Launch(pool="p", engine="p/1")]
    assert fleet.gone("p/0", 5.0) == expected
    assert fleet.gone("p/0", 5.0) == []


def test_a_lost_engine_is_forgotten_when_the_last_of_its_calls_has_been_heard_of() -> None:
    fleet = a_fleet(1)
    occupy(fleet, "p/0")
    assert names(fleet.gone("p/0", 0.0), Retire) == []
    assert statuses(fleet) == {"p/0": "gone", "p/1": "starting"}
    assert fleet.drained("p/0", 0.0) == []
    fleet.up(EngineUp(engine="p/0", limits=LIMITS), 0.0)
    assert statuses(fleet)["p/0"] == "gone"
    engine(fleet, "p/0").give_back(1, 0.0)
    assert fleet.settle(engine(fleet, "p/0"), 0.0) == [Retire(pool="p", engine="p/0")]


def test_failed_launches_are_tried_again_after_growing_pauses() -> None:
    fleet = Fleet({"p": a_pool()})
    [launch] = names(fleet.scaled("p", 1, 0.0), Launch)
    now, pauses = 0.0, []
    for _ in range(9):
        assert names(fleet.gone(launch, now), Launch) == []
        turn = fleet.next_turn(now)
        assert turn is not None
        assert fleet.woken((now + turn) / 2) == []
        pauses.append(turn - now)
        now = turn
        [launch] = names(fleet.woken(now), Launch)
    assert pauses[:4] == [0.5, 1.0, 2.0, 4.0]
    assert pauses[-1] == RELAUNCH_LONGEST
    assert fleet.next_turn(now) is None
    fleet.up(EngineUp(engine=launch, limits=LIMITS), now)
    assert names(fleet.gone(launch, now), Launch) == [], "it came up and was of no use"
    assert fleet.next_turn(now) == now + RELAUNCH_LONGEST
    [launch] = names(fleet.woken(now + RELAUNCH_LONGEST), Launch)
    fleet.up(EngineUp(engine=launch, limits=LIMITS), now)
    occupy(fleet, launch)
    engine(fleet, launch).give_back(1, now)
    [launch] = names(fleet.gone(launch, now), Launch)
    fleet.gone(launch, now)
    assert fleet.next_turn(now) == now + 0.5


def test_launches_that_fail_together_count_once() -> None:
    fleet = Fleet({"p": a_pool(maximum=4)})
    for launch in names(fleet.scaled("p", 4, 0.0), Launch):
        fleet.gone(launch, 0.0)
    assert fleet.next_turn(0.0) == 0.5
    assert len(names(fleet.woken(0.5), Launch)) == 4


def test_scaling_by_hand_ends_the_pause() -> None:
    fleet = Fleet({"p": a_pool()})
    fleet.gone(names(fleet.scaled("p", 1, 0.0), Launch)[0], 0.0)
    assert fleet.stranded("p")
    assert names(fleet.scaled("p", 1, 0.1), Launch) == ["p/1"]
    assert not fleet.stranded("p")


# --- health ---


def test_an_engine_that_keeps_failing_is_left_out_for_a_while() -> None:
    fleet = a_fleet(2)
    fail(fleet, "p/0", 10.0, EJECT_AFTER - 1)
    assert engine(fleet, "p/0").usable(10.0)
    fail(fleet, "p/0", 10.0, 1)
    assert not engine(fleet, "p/0").usable(10.9)
    assert fleet.next_turn(10.0) == 11.0
    assert engine(fleet, "p/0").usable(11.0)


def test_successes_between_failures_keep_an_engine_in() -> None:
    fleet = a_fleet(2)
    for _ in range(5):
        fail(fleet, "p/0", 0.0, EJECT_AFTER - 1)
        engine(fleet, "p/0").succeeded()
    assert engine(fleet, "p/0").usable(0.0)


def test_an_engine_let_back_in_takes_one_call_until_it_has_proved_itself() -> None:
    fleet = a_fleet(2)
    fail(fleet, "p/0", 0.0)
    state = engine(fleet, "p/0")
    assert state.has_room(1.0)
    occupy(fleet, "p/0")
    assert not state.has_room(1.0)
    state.succeeded()
    assert state.has_room(1.0)


def test_each_failed_proof_doubles_the_time_out() -> None:
    fleet, now, times = a_fleet(2), 0.0, []
    for times_out in range(8):
        fail(fleet, "p/0", now, EJECT_AFTER if times_out == 0 else 1)
        turn = fleet.next_turn(now)
        assert turn is not None
        times.append(turn - now)
        now = turn
    assert times == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, EJECT_LONGEST, EJECT_LONGEST]


def test_the_last_usable_engine_is_never_left_out() -> None:
    fleet = a_fleet(2)
    fail(fleet, "p/0", 0.0)
    fail(fleet, "p/1", 0.0, 10)
    assert engine(fleet, "p/1").usable(0.0)
    alone = a_fleet(1)
    fail(alone, "p/0", 0.0, 10)
    assert engine(alone, "p/0").usable(0.0)
    occupy(alone, "p/0")
    assert engine(alone, "p/0").has_room(1.0)  # it was never out, so it need not prove itself


def test_an_engine_that_another_pool_has_none_but_is_not_left_out() -> None:
    specs = {"a": a_pool("a", lenders=("a", "b")), "b": a_pool("b"), "c": a_pool("c", lenders=("a",), minimum=0)}
    fleet = Fleet(specs)
    for pool in ("a", "b"):
        up(fleet, fleet.scaled(pool, 1, 0.0))
    fail(fleet, "a/0", 0.0)
    assert engine(fleet, "a/0").usable(0.0)  # `c` has nothing else
    fail(fleet, "b/0", 0.0)
    assert engine(fleet, "b/0").usable(0.0)  # nor has `b`


def test_an_engine_that_does_not_answer_counts_as_failing() -> None:
    fleet = a_fleet(2)
    for _ in range(EJECT_AFTER):
        fleet.reported(Reported(engine="p/1", alive=False), 0.0)
    assert not engine(fleet, "p/1").usable(0.0)
    fleet.reported(Reported(engine="nobody", alive=False), 0.0)


def test_what_an_engine_reports_is_kept() -> None:
    fleet = a_fleet(1)
    fleet.reported(Reported(engine="p/0", alive=True, running=3, waiting=2, kv_use=0.5), 0.0)
    state = engine(fleet, "p/0")
    assert (state.reported_running, state.reported_waiting, state.kv_use) == (3, 2, 0.5)


def test_an_engine_that_sleeps_is_not_usable_until_it_says_that_it_is_awake() -> None:
    fleet = a_fleet(1)
    fleet.reported(Reported(engine="p/0", alive=True, asleep=True), 0.0)
    assert not engine(fleet, "p/0").usable(100.0)
    fleet.reported(Reported(engine="p/0", alive=False), 100.0)  # silence says nothing of it
    assert not engine(fleet, "p/0").usable(100.0)
    fleet.reported(Reported(engine="p/0", alive=True), 101.0)
    assert engine(fleet, "p/0").usable(101.0)


# --- room ---


def test_room_is_bounded_by_sequences_and_by_work() -> None:
    fleet = a_fleet(1)
    state = engine(fleet, "p/0")
    assert state.has_room(1e9)  # an empty engine takes any one call
    occupy(fleet, "p/0", 60.0)
    assert state.has_room(40.0)
    assert not state.has_room(41.0)
    occupy(fleet, "p/0", 1.0)
    assert not state.has_room(0.0)


def test_a_slot_given_back_gives_its_work_back() -> None:
    state = EngineState("e", "p", LIMITS)
    state.take(Slot("a", 1, 10.0, 5.0, 0.0, 0), 1)
    state.take(Slot("b", 2, 20.0, 5.0, 0.0, 0), 2)
    state.prefilled(2)
    state.prefilled(2)
    state.prefilled(99)
    assert state.work == 20.0
    state.give_back(1, 0.0)
    assert state.work == 5.0
    state.give_back(2, 0.0)
    assert state.work == 0.0


def test_lent_engines_serve_after_the_own_ones() -> None:
    specs = {"a": a_pool("a", lenders=("a", "b")), "b": a_pool("b")}
    fleet = Fleet(specs)
    for pool in specs:
        fleet.scaled(pool, 1, 0.0)
    assert [state.name for state in fleet.serving("a")] == ["a/0", "b/0"]
    assert [state.name for state in fleet.serving("b")] == ["b/0"]
    assert [state.name for state in fleet.of("a")] == ["a/0"]
    assert fleet.borrowers == lending(specs) == {"a": ("a",), "b": ("a", "b")}


def test_pools_are_grouped_by_the_engines_that_they_share_directly_or_not() -> None:
    borrowers = {"a": ("a",), "b": ("a", "b"), "c": ("b", "c"), "d": ("d",)}
    assert groups(borrowers) == {"a": ("a", "b", "c"), "b": ("a", "b", "c"), "c": ("a", "b", "c"), "d": ("d",)}


def test_a_launch_that_was_put_off_is_tried_again_when_another_engine_has_come_up() -> None:
    fleet = Fleet({"p": a_pool(minimum=0, maximum=4)})
    fleet.scaled("p", 3, 0.0)
    assert names(fleet.gone("p/0", 1.0), Launch) == []
    assert fleet.next_turn(1.0) == 1.5
    assert names(fleet.up(EngineUp(engine="p/1", limits=LIMITS), 1.2), Launch) == ["p/3"]
    assert statuses(fleet) == {"p/1": "ready", "p/2": "starting", "p/3": "starting"}
