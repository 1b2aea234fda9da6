"""The gate on runs: its policies by numbers, and that whoever is parked is let go exactly once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.gate import LINGER, PARKED_MOST, Aimd, Gate, GatePolicy, Load, Member, Open, PauseRestore
from policies.queue import Waiting
from policies.runs import RunKey
from tests.policies.claims import claims
from tests.policies.making import a_call, a_waiting

CALM = Load(kv_use=0.1, hit_rate=0.9)
BETWEEN = Load(kv_use=0.3, hit_rate=0.1)
BUSY_BUT_WARM = Load(kv_use=0.9, hit_rate=0.2)
THRASHING = Load(kv_use=0.6, hit_rate=0.1)
STEADY = Aimd(start=2, least=1, step=0)
"""Two runs at once, whatever happens."""


def key(run: str) -> RunKey:
    return ("", "", run)


def member(run: str, *, started: float = 0.0, seen: float = 0.0, context: int = 0, open: int = 0) -> Member:
    return Member(key(run), started, seen, context=context, open=open)


class Door:
    """A gate with the runs' calls at hand: opens and ends them by name, and keeps what was let through."""

    def __init__(self, policy: GatePolicy) -> None:
        self.gate = Gate(policy)
        self.now = 0.0
        self.entries: dict[str, Waiting] = {}
        self.runs: dict[str, str] = {}
        self._ids = count()

    def come(self, run: str, *, started: float = 0.0, prompt: int = 100, pool: str = "p") -> bool:
        """A call of a run, the first of it named like it, others `run.2` and so on; whether it may queue at once."""
        had = sum(owner == run for owner in self.runs.values())
        name = run if not had else f"{run}.{had + 1}"
        call = a_call(name, run=run, pool=pool, arrived=self.now, prompt_tokens=prompt)
        self.entries[name] = entry = a_waiting(call, next(self._ids))
        self.runs[name] = run
        return self.gate.came(key(run), started, entry, self.now)

    def end(self, name: str, *, over: bool = True) -> list[str]:
        """A call ends or leaves; who may queue because of it."""
        entry = self.entries.pop(name)
        return [one.call.id for one in self.gate.went(key(self.runs[name]), entry, over=over, now=self.now)]

    def review(self, load: Load = BETWEEN) -> list[str]:
        return [one.call.id for one in self.gate.reviewed(load, self.now)]


# --- the policies ---


@claims("gate", "open")
def test_the_open_gate_lets_all_runs_through_and_asks_for_no_review() -> None:
    door = Door(Open())
    assert door.gate.always_open
    assert all(door.come(str(run)) for run in range(1000))
    assert door.gate.parked("p") == 0
    assert door.review(THRASHING) == []
    assert (door.gate.active, door.gate.window) == (1000, math.inf)
    assert Open().turn(member("a", started=3.0)) == 3.0


@claims("gate", "aimd")
@pytest.mark.parametrize(
    ("load", "window"),
    [(CALM, 18.0), (BETWEEN, 16.0), (BUSY_BUT_WARM, 16.0), (THRASHING, 8.0), (Load(kv_use=0.2), 16.0)],
)
def test_aimd_adds_runs_while_memory_is_free_and_halves_only_when_it_is_full_and_misses(
    load: Load, window: float
) -> None:
    assert Aimd().limit(math.inf, load) == 16.0
    assert Aimd().limit(16.0, load) == window


@claims("gate", "aimd")
def test_aimd_never_falls_below_its_least() -> None:
    assert [Aimd(least=5).limit(limit, THRASHING) for limit in (12.0, 9.0, 5.0)] == [6.0, 5.0, 5.0]


@claims("gate", "aimd")
def test_aimd_pauses_the_youngest_runs_beyond_its_window() -> None:
    runs = [member(str(n), started=10.0 - n) for n in range(5)]
    paused = Aimd().pauses(runs, 3.0, CALM, 0.0)
    assert {one.key[2] for one in paused} == {"0", "1"}
    assert Aimd().pauses(runs, 5.0, CALM, 0.0) == ()
    assert Aimd(pausing=0).pauses(runs, 3.0, CALM, 0.0) == ()


@claims("gate", "aimd")
@pytest.mark.parametrize("window", [1.0, 4.0, 4.5, 4.99, 7.2])
def test_aimd_pauses_no_run_that_it_would_let_in_again(window: float) -> None:
    active: list[Member] = []
    while Aimd().admits(member("next"), active, window, CALM, 0.0):
        active.append(member(str(len(active))))
    assert Aimd().pauses(active, window, CALM, 0.0) == ()


@claims("gate", "pause_restore")
def test_pause_restore_counts_contexts_and_halves_those_of_acting_runs_each_second() -> None:
    policy, load = PauseRestore(buffer=100.0), Load(kv_tokens=10_000)
    assert policy.limit(math.inf, load) == 10_000
    assert PauseRestore(share=0.5).limit(77.0, load) == 5000
    reasoning, acting = member("r", context=3900, open=1), member("a", context=3900, seen=0.0)
    new = member("n", context=2000, open=1)
    # 4000 of the one, 4000 halved for each second of the other, and 2100 that would come.
    assert not policy.admits(new, [reasoning, acting], 8000, load, 1.0)
    assert policy.admits(new, [reasoning, acting], 8100, load, 1.0)
    assert policy.admits(new, [reasoning, acting], 7100, load, 2.0)


@claims("gate", "pause_restore")
def test_pause_restore_lets_one_run_in_however_large() -> None:
    assert PauseRestore().admits(member("n", context=10**6), [], 1000, Load(), 0.0)


@claims("gate", "pause_restore")
@pytest.mark.parametrize(
    ("limit", "paused"),
    [
        (9000, []),
        (8999, ["small tool"]),
        (7999, ["small tool", "large tool"]),
        (4999, ["small tool", "large tool", "small"]),
        (0, ["small tool", "large tool", "small", "large"]),
    ],
)
def test_pause_restore_pauses_acting_runs_before_reasoning_ones_the_smallest_first(
    limit: float, paused: list[str]
) -> None:
    runs = [
        member("large", context=3500, open=1),
        member("large tool", context=3000),
        member("small", context=1500, open=2),
        member("small tool", context=1000),
    ]
    assert [one.key[2] for one in PauseRestore(buffer=0).pauses(runs, limit, Load(), 0.0)] == paused


@claims("gate", "pause_restore")
def test_pause_restore_goes_on_with_reasoning_runs_and_the_smallest_first() -> None:
    runs = [member("tool", context=1), member("large", context=900, open=1), member("small", context=2, open=1)]
    assert [one.key[2] for one in sorted(runs, key=PauseRestore().turn)] == ["small", "large", "tool"]


@claims("gate", "pause_restore")
def test_pause_restore_parks_what_does_not_fit_and_lets_it_go_on_when_it_does() -> None:
    door, load = Door(PauseRestore(buffer=0.0)), Load(kv_tokens=1000)
    assert door.come("a", prompt=400)  # nothing is known of the memory yet
    assert door.review(load) == []
    assert door.come("b", prompt=500)
    assert not door.come("large", prompt=600)
    assert not door.come("small", prompt=300)
    door.now = 5.0
    assert door.review(load) == []
    assert door.end("a", over=False) == []  # a tool is at work: its context fades
    door.now = 10.0
    assert door.review(load) == ["small"]  # 500 + 400 / 32 + 300
    assert door.end("b") == ["large"]  # 300 + 400 / 32 + 600


# --- the gate ---


def test_calls_of_a_run_under_way_pass_and_those_of_others_are_parked() -> None:
    door = Door(STEADY)
    assert [door.come(run) for run in ("a", "b", "a", "c", "c", "b")] == [True, True, True, False, False, True]
    assert (door.gate.parked("p"), door.gate.parked("q"), door.gate.active) == (2, 0, 2)


def test_a_run_that_ends_gives_its_place_to_the_one_that_started_first_with_all_its_calls() -> None:
    door = Door(STEADY)
    for run, started in (("a", 0.0), ("b", 1.0), ("late", 9.0), ("early", 5.0), ("early", 5.0)):
        door.come(run, started=started)
    assert door.end("a") == ["early", "early.2"]
    assert (door.gate.parked("p"), door.gate.active) == (1, 2)
    assert door.end("early") == []  # its other call is open
    assert door.end("early.2") == ["late"]


def test_a_run_between_two_calls_keeps_its_place() -> None:
    door = Door(STEADY)
    for run in ("a", "b", "c"):
        door.come(run)
    assert door.end("a", over=False) == []
    assert door.come("a")
    assert door.gate.parked("p") == 1


def test_a_run_without_a_call_for_long_counts_as_gone() -> None:
    door = Door(STEADY)
    for run in ("a", "b", "c"):
        door.come(run)
    door.end("a", over=False)
    door.now = LINGER
    assert door.review() == []
    door.now = LINGER + 0.1
    assert door.review() == ["c"]
    assert not door.come("a")


def test_a_parked_call_that_leaves_is_not_let_through_later() -> None:
    door = Door(STEADY)
    for run in ("a", "b", "c", "c", "d"):
        door.come(run)
    assert door.end("c", over=False) == []
    assert door.gate.parked("p") == 2
    assert door.end("a") == ["c.2"]
    assert door.end("c.2") == ["d"]


def test_a_parked_run_that_leaves_altogether_is_forgotten() -> None:
    door = Door(STEADY)
    for run in ("a", "b", "c"):
        door.come(run)
    assert door.end("c") == []
    assert [door.end(run) for run in ("a", "b")] == [[], []]
    assert (door.gate.parked("p"), door.gate.next_review) == (0, None)


def test_a_window_that_shrinks_parks_the_next_calls_of_the_youngest_and_not_those_under_way() -> None:
    door = Door(Aimd(start=4, least=2))
    for started, run in enumerate("abcd"):
        assert door.come(run, started=float(started))
    assert door.review(THRASHING) == []
    assert (door.gate.window, door.gate.active, door.gate.parked("p")) == (2.0, 2, 0)
    assert door.end("d", over=False) == []
    assert [door.come(run) for run in "abcd"] == [True, True, False, False]
    assert door.review(CALM) == ["c.2", "d.2"]
    assert door.gate.window == 4.0


def test_a_paused_run_keeps_its_place_by_its_start() -> None:
    door = Door(Aimd(start=2, least=1, step=1))
    for started, run in enumerate("abc"):
        door.come(run, started=float(started))
    door.review(THRASHING)
    assert not door.come("b", started=1.0)  # paused, and older than c
    assert door.review(CALM) == ["b.2"]


@pytest.mark.parametrize(("waited", "let_through"), [(PARKED_MOST, []), (PARKED_MOST + 0.1, ["c"])])
def test_nothing_is_parked_for_longer_than_a_minute_and_a_review(waited: float, let_through: list[str]) -> None:
    door = Door(STEADY)
    for run in ("a", "b", "c"):
        door.come(run)
    door.now = waited
    assert door.review() == let_through


def test_reviews_are_due_while_runs_are_known_and_one_period_after_the_last() -> None:
    door = Door(Aimd(period=2.0))
    door.now = 10.0
    door.come("a")
    assert door.gate.next_review == 12.0
    door.now = 12.5
    door.review()
    assert door.gate.next_review == 14.5
    door.end("a")
    assert door.gate.next_review is None


@pytest.mark.parametrize("over", [True, False])
def test_a_run_that_comes_after_a_pause_finds_no_review_overdue(over: bool) -> None:
    door = Door(Aimd(period=2.0))
    door.come("a")
    door.end("a", over=over)
    door.now = 20.0
    door.come("b")
    assert door.gate.next_review == 22.0


def test_an_overdue_review_is_not_put_off_by_calls_that_come_while_others_are_open() -> None:
    door = Door(Aimd(period=2.0))
    door.come("a")
    door.now = 2.5
    door.come("b")
    assert door.gate.next_review == 2.0


def test_the_window_does_not_move_between_reviews() -> None:
    door = Door(Aimd(start=8, least=1))
    door.come("a")
    door.review(THRASHING)
    assert door.gate.window == 4.0
    for before, after in ("ab", "bc", "cd"):
        door.end(before)
        door.now += 100.0
        door.come(after)
    assert door.gate.window == 4.0


def test_an_end_of_a_run_that_the_gate_does_not_know_changes_nothing() -> None:
    door = Door(STEADY)
    assert door.gate.went(key("stranger"), None, over=True, now=0.0) == []
    assert door.gate.active == 0


def test_parked_runs_are_not_looked_at_one_by_one() -> None:
    asked: list[str] = []

    class Asked(Aimd):
        def admits(self, one: Member, active: Collection[Member], limit: float, load: Load, now: float) -> bool:
            asked.append(one.key[2])
            return len(active) < limit

    door = Door(Asked(start=2, least=1, step=0))
    for run in range(2000):
        door.come(str(run), started=float(run))
    asked.clear()
    assert door.end("0") == ["2"]
    assert asked == ["2", "3"]


def test_runs_that_are_parked_and_leave_again_take_no_memory() -> None:
    door = Door(STEADY)
    for run in ("a", "b", "first in line"):
        door.come(run)
    for number in range(1000):
        door.come(str(number), started=1.0)
        door.end(str(number))
    assert door.gate.places <= 70
    assert door.end("a") == ["first in line"]


def test_a_parked_run_whose_context_grows_falls_back() -> None:
    door = Door(PauseRestore(buffer=0.0))
    door.come("a", prompt=900)
    door.review(Load(kv_tokens=1000))
    for run, prompt in (("b", 200), ("c", 300), ("b", 400)):
        assert not door.come(run, prompt=prompt)
    assert door.end("a") == ["c", "b", "b.2"]


# --- whatever happens ---

POLICIES: list[GatePolicy] = [Aimd(start=2, least=1), Aimd(start=3, least=1, pausing=0), PauseRestore(buffer=50.0)]
LOADS = [CALM, BETWEEN, BUSY_BUT_WARM, THRASHING, Load(kv_tokens=900), Load(kv_tokens=100)]


@settings(max_examples=200)
@given(
    st.sampled_from(POLICIES),
    st.lists(st.tuples(st.sampled_from("cccceelrt"), st.integers(0, 10_000)), max_size=120),
)
def test_each_parked_call_is_let_through_once_or_leaves_and_in_the_end_nothing_is_remembered(
    policy: GatePolicy, steps: list[tuple[str, int]]
) -> None:
    door = Door(policy)
    through: Counter[str] = Counter()
    came: dict[str, int] = {}

    def note(released: list[str]) -> None:
        for name in released:
            assert name in door.entries, "a call that has left was let through"
            through[name] += 1
        parked = Counter(entry.call.pool for name, entry in door.entries.items() if not through[name])
        assert {pool: door.gate.parked(pool) for pool in "pq"} == {pool: parked[pool] for pool in "pq"}

    def end(which: int, *, over: bool) -> None:
        name = sorted(door.entries)[which % len(door.entries)]
        others = sum(door.runs[other] == door.runs[name] for other in door.entries) - 1
        note(door.end(name, over=over and not others))

    for what, number in steps:
        if what == "c":
            run = f"r{number % 9}"
            before = set(door.entries)
            passed = door.come(run, started=float(number % 7), prompt=number % 400, pool="pq"[number % 2])
            [name] = set(door.entries) - before
            came[name] = number
            through[name] += passed
            note([])
        elif what in "el" and door.entries:
            end(number, over=what == "e")
        elif what == "r":
            note(door.review(LOADS[number % len(LOADS)]))
        elif what == "t":
            door.now += number % 70
    while door.entries:
        end(0, over=True)
    assert all(times <= 1 for times in through.values())
    door.now += LINGER + 1.0
    assert door.review() == []
    assert (door.gate.active, door.gate.next_review) == (0, None)
