"""What is believed of service times: the most particular profile that has seen enough, fading and bounded."""

from __future__ import annotations

from typing import Any

import pytest

from policies.calls import Call, Estimate, Knobs, Outcome
from policies.profiles import DEEP, LIMIT, MEMORY, PRIOR_OUTPUT, REFRESH_FIRST, REFRESH_MOST, TRUSTED, Profiles
from tests.policies.making import a_call, a_pool, nl2sql

POOLS = {
    pool.name: pool
    for pool in (
        a_pool("gen", prior_service=2.0),
        a_pool("fix", prior_service=3.0),
        a_pool("sql", kind="sql", prior_service=0.5),
    )
}


def some_profiles() -> Profiles:
    return Profiles(POOLS, {"nl2sql": nl2sql()})


def at(stage: str = "generate", **given: Any) -> Call:
    return a_call("c", **{"pool": "gen", "workflow": "nl2sql", "stage": stage} | given)


def learn(profiles: Profiles, call: Call, service: float, *, visit: int = 1, times: int = TRUSTED) -> None:
    for _ in range(times):
        profiles.observe(call, visit, Outcome(fate="ok", total=service, output_tokens=round(service * 10)))


def expected(profiles: Profiles, call: Call, *, visit: int = 1, done: int = 0) -> Estimate:
    return profiles.estimate(call, visit, done)


def test_of_an_unknown_stage_the_pools_prior_is_believed() -> None:
    estimate = expected(some_profiles(), at(workflow="", stage="new"))
    assert estimate == Estimate(output_tokens=(PRIOR_OUTPUT, 4 * PRIOR_OUTPUT), service=2.0, remaining=0.0)


def test_a_pool_that_is_not_configured_has_a_prior_too() -> None:
    assert expected(some_profiles(), at(workflow="", stage="", pool="elsewhere")).service == 1.0
    assert some_profiles().mean_service("elsewhere") == 1.0


def test_a_statement_is_expected_to_write_no_tokens() -> None:
    assert expected(some_profiles(), at("execute", kind="sql", pool="sql")).output_tokens == (0, 0)


def test_the_clients_own_expectation_and_its_bound_count() -> None:
    profiles = some_profiles()
    assert expected(profiles, at(expected_output=300)).output_tokens == (300, 1200)
    assert expected(profiles, at(knobs=Knobs(max_tokens=50))).output_tokens == (50, 50)
    assert expected(profiles, at(expected_output=20, knobs=Knobs(max_tokens=50))).output_tokens == (20, 50)


def test_a_profile_is_believed_from_its_third_observation_on() -> None:
    profiles, call = some_profiles(), at()
    learn(profiles, call, 9.0, times=TRUSTED - 1)
    assert expected(profiles, call).service == 2.0
    learn(profiles, call, 9.0, times=1)
    estimate = expected(profiles, call)
    assert estimate.service == pytest.approx(9.0)
    assert estimate.output_tokens == (90, 360)


def test_the_most_particular_profile_that_has_seen_enough_is_believed() -> None:
    profiles = some_profiles()
    learn(profiles, at("fix"), 4.0, visit=1)
    learn(profiles, at("fix"), 8.0, visit=2)
    assert expected(profiles, at("fix"), visit=1).service == pytest.approx(4.0)
    assert expected(profiles, at("fix"), visit=2).service == pytest.approx(8.0)
    assert expected(profiles, at("fix"), visit=3).service == pytest.approx(6.0)  # of the stage
    assert expected(profiles, at("new"), visit=1).service == pytest.approx(6.0)  # of the pool


def test_deep_visits_share_a_profile() -> None:
    profiles = some_profiles()
    learn(profiles, at("fix"), 1.0, visit=1)
    learn(profiles, at("fix"), 9.0, visit=DEEP)
    assert expected(profiles, at("fix"), visit=DEEP + 20).service == pytest.approx(9.0)


def test_old_observations_fade() -> None:
    profiles, call = some_profiles(), at()
    learn(profiles, call, 1.0, times=1000)
    learn(profiles, call, 5.0, times=MEMORY)
    assert 3.3 < profiles.mean_service("gen") < 3.7  # 5 - 4 / e, about
    learn(profiles, call, 5.0, times=10 * MEMORY)
    assert profiles.mean_service("gen") == pytest.approx(5.0, abs=0.01)


def test_what_often_fails_is_believed_to_succeed_less() -> None:
    profiles, call = some_profiles(), at("verify")
    assert expected(profiles, call).success == pytest.approx(0.9)  # of ending the run here
    for fate in ("ok", "error", "ok", "empty"):
        profiles.observe(call, 1, Outcome(fate=fate, total=1.0))
    assert expected(profiles, call).success == pytest.approx(0.45)


def test_what_remains_is_learned_and_bounded_by_the_hops_that_are_left() -> None:
    profiles = some_profiles()
    hops = sum(stage.visits for stage in nl2sql().stages.values())
    at_last = expected(profiles, at(), done=hops - 1).remaining
    assert at_last == 0.5  # one more hop: to the statement, of which only the prior is known
    assert expected(profiles, at(), done=10 * hops).remaining == 0.0
    before = expected(profiles, at()).remaining
    learn(profiles, at("execute", pool="sql", kind="sql"), 4.5, times=REFRESH_FIRST)
    after = expected(profiles, at()).remaining
    assert after > before + 4.0
    assert expected(profiles, at(), done=hops - 1).remaining == pytest.approx(4.5)


def test_what_remains_follows_a_change_after_a_bounded_number_of_observations() -> None:
    profiles = some_profiles()
    execute = at("execute", pool="sql", kind="sql")
    for seconds in (1.0, 1.0, 1.0, 1.0, 9.0):
        learn(profiles, execute, seconds, times=10 * MEMORY)
        expected(profiles, at())
    learn(profiles, execute, 9.0, times=REFRESH_MOST)
    assert expected(profiles, at(), done=10).remaining == pytest.approx(9.0, abs=0.1)


def test_profiles_are_bounded_and_the_least_used_go_first() -> None:
    profiles = some_profiles()
    learn(profiles, at("first"), 7.0)
    learn(profiles, at("kept"), 5.0)
    for number in range(LIMIT):
        learn(profiles, at(f"stage {number}"), 1.0, times=1)
        if number % 1000 == 0:
            learn(profiles, at("kept"), 5.0, times=1)
    assert len(profiles) == LIMIT
    assert expected(profiles, at("kept")).service == pytest.approx(5.0)
    assert expected(profiles, at("first")).service == pytest.approx(profiles.mean_service("gen"))
