"""What reviews go by: the load of the engines for the gate, their congestion for the budgets."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import pytest

from policies.budget import Adaptive, Budget, Congestion, Fixed
from policies.events import EngineUp, Launch, Reported, Scaled
from policies.fleet import Fleet
from policies.gate import Gate, GatePolicy, Load, Member, Open
from policies.pool import UNLIMITED, EngineLimits, PoolSpec
from policies.reviews import WAITS, Reviews
from tests.policies.making import a_call, a_waiting


@dataclass(frozen=True)
class Listening:
    """A gate policy and a budget that keep what they are told."""

    period: float = 2.0
    entry_only: bool = False
    loads: list[Load] = field(default_factory=list)
    seen: list[Congestion] = field(default_factory=list)

    def limit(self, limit: float, load: Load) -> float:
        self.loads.append(load)
        return 9.0

    def admits(self, one: Member, active: Collection[Member], limit: float, load: Load, now: float) -> bool:
        return True

    def pauses(self, active: Collection[Member], limit: float, load: Load, now: float) -> Sequence[Member]:
        return ()

    def turn(self, one: Member) -> float:
        return 0.0

    def resized(self, work: float, congestion: Congestion) -> float:
        self.seen.append(congestion)
        return 100.0 if math.isinf(work) else work + 1.0


def a_spec(name: str, **given: object) -> PoolSpec:
    usual: dict[str, object] = {"maximum": 3, "limits": EngineLimits(sequences=4)}
    return PoolSpec(name=name, **usual | given)  # type: ignore[arg-type]


def a_fleet(specs: dict[str, PoolSpec], engines: int = 1, kv_tokens: int | None = 1000) -> Fleet:
    fleet = Fleet(specs)
    for name, spec in specs.items():
        for action in fleet.handle(Scaled(pool=name, engines=engines), 0.0):
            assert isinstance(action, Launch)
            limits = EngineLimits(sequences=4, work=spec.limits.work, kv_tokens=kv_tokens)
            fleet.handle(EngineUp(engine=action.engine, limits=limits), 0.0)
    return fleet


def reviews(specs: dict[str, PoolSpec], gate: GatePolicy, **budgets: Budget) -> Reviews:
    return Reviews(specs, {name: budgets.get(name, Fixed()) for name in specs}, Gate(gate))


SPECS = {"a": a_spec("a"), "b": a_spec("b"), "sql": a_spec("sql", kind="sql")}


def known(policy: Listening) -> Gate:
    """A gate that knows a run, and whose first review falls due at 0."""
    gate = Gate(policy)
    gate.came(("", "", "r"), 0.0, a_waiting(a_call()), -policy.period)
    return gate


def test_an_open_gate_and_fixed_budgets_need_no_reviews() -> None:
    idle = reviews(SPECS, Open())
    assert not idle.needed
    assert idle.next_at(5.0) == math.inf
    assert idle.held(a_fleet(SPECS), 5.0) == []
    assert reviews(SPECS, Listening()).needed
    assert reviews(SPECS, Open(), b=Adaptive()).needed


def load_of(fleet: Fleet, found: Sequence[tuple[int, int | None]] = ()) -> Load:
    policy = Listening()
    looking = Reviews(SPECS, dict.fromkeys(SPECS, Fixed()), known(policy))
    for prompt, cached in found:
        looking.found(prompt, cached)
    looking.held(fleet, 1.0)
    return policy.loads[-1]


def test_kv_use_is_the_mean_of_the_fullest_pool_for_llm_calls() -> None:
    fleet = a_fleet(SPECS, engines=2)
    for engine, use in (("a/0", 0.9), ("a/1", 0.1), ("b/0", 0.6), ("b/1", 0.8), ("sql/0", 1.0), ("sql/1", 1.0)):
        fleet.reported(Reported(engine=engine, alive=True, kv_use=use), 0.0)
    assert load_of(fleet).kv_use == pytest.approx(0.7)


def test_the_memory_is_that_of_all_usable_engines_and_infinite_where_one_is_not_known() -> None:
    fleet = a_fleet(SPECS, engines=2)
    assert load_of(fleet).kv_tokens == 4000
    engine = fleet.get("b/1")
    assert engine is not None
    engine.limits = EngineLimits(sequences=1)
    assert load_of(fleet).kv_tokens == math.inf
    engine.status = "draining"
    assert load_of(fleet).kv_tokens == 3000
    assert load_of(Fleet(SPECS)) == Load()


def test_the_hit_rate_is_the_share_of_prompt_tokens_that_was_cached() -> None:
    fleet = a_fleet(SPECS)
    assert load_of(fleet).hit_rate == 1.0
    assert load_of(fleet, [(1000, 900), (10, 0)]).hit_rate == pytest.approx(900 / 1010, abs=0.01)
    assert load_of(fleet, [(100, 500)]).hit_rate == 1.0  # more than it was asked for counts as all of it


def test_the_hit_rate_of_engines_that_do_not_say_what_they_find_is_nothing() -> None:
    fleet = a_fleet(SPECS)
    assert load_of(fleet, [(1000, None)]).hit_rate == 0.0
    assert load_of(fleet, [(1000, 900), (1000, None)]).hit_rate == pytest.approx(0.9)


def test_the_hit_rate_forgets() -> None:
    fleet = a_fleet(SPECS)
    rates = [load_of(fleet, [(100, 100)] * 500 + [(100, 0)] * misses).hit_rate for misses in (0, 70, 500)]
    assert rates == [1.0, pytest.approx(0.5, abs=0.02), pytest.approx(0.0, abs=0.02)]


def test_a_pool_is_given_its_budget_from_the_first_engine_on() -> None:
    fleet = a_fleet(SPECS, engines=2)
    looking = reviews(SPECS, Open(), a=Adaptive(start=50_000))
    for name in ("a/0", "b/0", "nobody"):
        looking.joined(fleet, name)
    assert [fleet.get(name).budget for name in ("a/0", "b/0")] == [50_000, UNLIMITED]  # type: ignore[union-attr]


def test_a_review_resizes_all_engines_of_its_pool_and_those_that_come_later_get_the_same() -> None:
    fleet = a_fleet(SPECS, engines=2)
    looking = reviews(SPECS, Open(), a=Listening())
    looking.held(fleet, 1.0)
    assert [engine.budget for engine in fleet.of("a")] == [100.0, 100.0]
    assert [engine.budget for engine in fleet.of("b")] == [UNLIMITED] * 2
    assert looking.next_at(1.0) == 3.0
    looking.held(fleet, 2.9)
    looking.held(fleet, 3.0)
    assert [engine.budget for engine in fleet.of("a")] == [101.0, 101.0]
    [launch] = fleet.handle(Scaled(pool="a", engines=3), 3.0)
    assert isinstance(launch, Launch)
    looking.joined(fleet, launch.engine)
    assert [engine.budget for engine in fleet.of("a")] == [101.0] * 3


def test_a_budget_hears_of_the_waits_since_its_last_review_and_of_what_waits_in_the_mean() -> None:
    fleet, policy = a_fleet(SPECS, engines=2), Listening()
    looking = reviews(SPECS, Open(), a=policy)
    for waiting, engine in ((3, "a/0"), (4, "a/1"), (99, "b/0")):
        fleet.reported(Reported(engine=engine, alive=True, waiting=waiting), 0.0)
    looking.began("a", 0.5)
    looking.began("b", 7.0)
    looking.held(fleet, 1.0)
    for wait in range(WAITS + 5):
        looking.began("a", float(wait))
    looking.held(fleet, 3.0)
    looking.held(fleet, 5.0)
    assert [(tuple(seen.waits), seen.waiting) for seen in policy.seen] == [
        ((0.5,), 3.5),
        (tuple(float(wait) for wait in range(5, WAITS + 5)), 3.5),
        ((), 3.5),
    ]


def test_the_next_review_is_the_earliest_of_all() -> None:
    fleet = a_fleet(SPECS)
    looking = Reviews(
        SPECS, {"a": Listening(period=9.0), "b": Listening(period=4.0), "sql": Fixed()}, known(Listening(period=1.0))
    )
    looking.held(fleet, 10.0)
    assert looking.next_at(10.0) == 11.0
    looking.held(fleet, 11.0)
    assert looking.next_at(11.0) == 12.0
    assert looking.held(fleet, 14.0) == []
    assert looking.next_at(14.0) == 15.0


def test_a_review_that_was_put_off_while_nothing_happened_is_due_at_once() -> None:
    looking = reviews(SPECS, Open(), a=Listening(period=2.0))
    assert looking.next_at(50.0) == 50.0
    looking.held(a_fleet(SPECS), 50.0)
    assert looking.next_at(50.0) == 52.0
    assert looking.next_at(99.0) == 99.0
