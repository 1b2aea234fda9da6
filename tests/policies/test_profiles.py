"""What is believed of service times: the most particular profile that has seen enough, fading and bounded."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from policies.calls import Estimate, Fate, Knobs, Outcome
from policies.profile import MEMORY, TRUSTED, WINDOW
from policies.profiles import PRIOR_OUTPUT, REFRESH_FIRST, REFRESH_MOST, Profiles
from policies.runs import Runs
from policies.transitions import DEEP, OVER
from policies.workflow import Edge, Stage, Workflow
from tests.policies.learning import POOLS, at, expected, learn, some_profiles, step
from tests.policies.making import nl2sql


def hardly_bounded() -> Profiles:
    """Over a graph whose loops may be taken so often that the bounds hardly count."""
    plain = nl2sql()
    stages = {name: replace(stage, visits=1000) for name, stage in plain.stages.items()}
    return Profiles(POOLS, {"nl2sql": replace(plain, stages=stages)})


def test_of_an_unknown_stage_the_pools_prior_is_believed() -> None:
    estimate = expected(some_profiles(), at(workflow="", stage="new"))
    assert estimate == Estimate(
        output_tokens=(PRIOR_OUTPUT, 4 * PRIOR_OUTPUT), service=2.0, remaining=0.0, known=False
    )


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


def test_at_first_what_remains_is_that_of_the_graph_and_the_pools() -> None:
    # By hand: E = 0.7 (2 + V) + 0.3 (3 + F); V = 0.1 (3 + F);
    # F = 0.5 + E, so E = 1.4 + 0.37 (3 + F) = 2.51 + 0.37 F, F = 3.01 / 0.63.
    profiles = hardly_bounded()
    estimate = expected(profiles, at())
    assert estimate.remaining == pytest.approx(0.5 + 2.51 + 0.37 * 3.01 / 0.63, rel=0.01)
    assert estimate.tail > estimate.remaining
    assert estimate.hops == pytest.approx(1 + 1.07 + 0.37 * 2.07 / 0.63, rel=0.01)  # E = 0.7 + 0.37 (1 + 1 + E)
    assert expected(profiles, at("verify")).remaining == pytest.approx(0.1 * (3 + 3.01 / 0.63), rel=0.01)
    assert expected(profiles, at("answer")).remaining == 0.0
    assert expected(some_profiles(), at()).remaining < estimate.remaining, "the bounds take something off"


def test_what_remains_follows_the_means_that_are_learned() -> None:
    profiles = some_profiles()
    before = expected(profiles, at()).remaining
    learn(profiles, at("execute", pool="sql", kind="sql"), 4.5, times=REFRESH_FIRST)
    assert expected(profiles, at()).remaining > before + 4.0


def test_what_remains_follows_a_change_after_a_bounded_number_of_observations() -> None:
    profiles = some_profiles()
    execute = at("execute", pool="sql", kind="sql")
    for seconds in (1.0, 1.0, 1.0, 1.0, 9.0):
        learn(profiles, execute, seconds, times=10 * MEMORY)
        expected(profiles, at())
    for _ in range(REFRESH_MOST):
        profiles.learn(step("generate", "execute"))
    learn(profiles, execute, 9.0, times=1)
    assert expected(profiles, at()).remaining > 9.0


def test_what_remains_follows_the_ways_that_runs_take() -> None:
    profiles = some_profiles()
    before = expected(profiles, at("execute"))
    for _ in range(4 * REFRESH_MOST):
        profiles.learn(step("execute", OVER))
        expected(profiles, at("execute"))
    after = expected(profiles, at("execute"))
    assert before.success < 0.01
    assert after.success > 0.95
    assert after.remaining < 0.1 * before.remaining


def test_a_stage_of_several_calls_costs_as_much_as_the_slowest_of_them() -> None:
    stages = {"plan": Stage(name="plan", kind="llm", pool="gen")}
    stages["map"] = Stage(name="map", kind="llm", pool="gen", width=4.0)
    edges = (Edge(source="start", target="plan"), Edge(source="plan", target="map"))
    profiles = Profiles(POOLS, {"w": Workflow(name="w", stages=stages, edges=edges)})
    call = at("plan", workflow="w")
    assert expected(profiles, call).remaining > 2.0, "the pool's prior, and more for four"
    rng = Random(7)
    for _ in range(3 * MEMORY):
        for seconds in (1.0, 3.0):
            profiles.observe(at("map", workflow="w"), 1, Outcome(fate="ok", total=seconds + rng.random() / 10))
    for _ in range(REFRESH_MOST):
        expected(profiles, call)
        profiles.learn(step("plan", "map", workflow="w"))
    # The slower time is among four draws in 15 of 16.
    assert expected(profiles, call).remaining == pytest.approx(3.05 * 15 / 16 + 1.05 / 16, rel=0.05)
    outlook = expected(profiles, call).outlook
    assert outlook is not None
    assert outlook.visits == pytest.approx({"plan": 1.0, "map": 4.0})


def test_the_outlook_is_that_of_the_whole_workflow() -> None:
    outlook = expected(hardly_bounded(), at()).outlook
    assert outlook is not None
    assert outlook.service == {"generate": 2.0, "execute": 0.5, "verify": 2.0, "fix": 3.0}
    assert outlook.visits["generate"] == 1.0
    assert outlook.visits["execute"] == pytest.approx(1.0 + outlook.visits["fix"], rel=0.01)
    assert outlook.visits["fix"] == pytest.approx(0.37 / 0.63, rel=0.01)
    assert expected(some_profiles(), at(workflow="")).outlook is None


@pytest.mark.untraced
def test_what_is_expected_is_what_happens() -> None:
    """Runs whose repairs fail the more often the more there were: what was expected of each call, and what came."""
    profiles, rng, number = some_profiles(), Random(21), 0
    runs = Runs(limit=1000, idle=60.0, learn=profiles.learn)
    means = {"generate": 2.0, "execute": 0.1, "verify": 0.7, "fix": 1.5}
    pairs: list[tuple[Estimate, float, int]] = []
    for run in range(1500):
        stage, passed = "generate", []
        while stage:
            number += 1
            call = at(stage, id=f"c{number}", run=f"r{run}", pool=nl2sql().stages[stage].pool)
            _, visit = runs.enter(call, nl2sql(), 0.0)
            estimate = profiles.estimate(call, visit)
            failing = {"execute": (0.3, 0.5, 0.6)[min(visit, DEEP) - 1], "verify": 0.1}.get(stage, 0.0)
            fate: Fate = "error" if rng.random() < failing else "ok"
            service = means[stage] * rng.lognormvariate(-0.125, 0.5)
            profiles.observe(call, visit, Outcome(fate=fate, total=service))
            runs.leave(call, fate, 0.0, over=stage == "verify" and fate == "ok", service=service)
            passed.append((stage, estimate, service))
            stage = nl2sql().following(stage, fate) or ""
            stage = "" if stage == "answer" else stage
        for place, (stage, estimate, _) in enumerate(passed):
            if run > 500 and stage != "verify":
                pairs.append((estimate, sum(one[2] for one in passed[place + 1 :]), len(passed) - place - 1))
    total = len(pairs)
    assert sum(one.remaining for one, _, _ in pairs) / total == pytest.approx(
        sum(s for _, s, _ in pairs) / total, rel=0.1
    )
    assert sum(one.hops for one, _, _ in pairs) / total == pytest.approx(sum(n for _, _, n in pairs) / total, rel=0.1)
    assert sum(seconds <= one.tail for one, seconds, _ in pairs) / total == pytest.approx(0.8, abs=0.05)


def test_calls_that_name_no_stage_are_learned_as_one() -> None:
    profiles = some_profiles()
    runs = Runs(limit=100, idle=60.0, learn=profiles.learn)
    for stage in ("", "start"):
        for number in range(40):
            call = at(
                stage,
                id=f"{stage}{number}",
                run=f"{stage} run {number // 4}",
                workflow="agent",
                final=number % 4 == 3,
            )
            _, visit = runs.enter(call, None, 0.0)
            estimate = expected(profiles, call, visit=visit)
            profiles.observe(call, visit, Outcome(fate="ok", total=2.0))
            runs.leave(call, "ok", 0.0)
        assert estimate.known == (stage == "")
    assert expected(profiles, at("", workflow="agent"), visit=1).remaining == pytest.approx(6.0, rel=0.3)
    assert len(list(profiles.stages())) > 0


def test_who_looks_at_what_is_believed_changes_nothing() -> None:
    watched, other, rng = some_profiles(), some_profiles(), Random(3)
    for number in range(200):
        call, seconds = at(rng.choice(["generate", "fix", "verify"]), run=f"{number // 3}"), rng.uniform(0.5, 3.0)
        for profiles in (watched, other):
            learn(profiles, call, seconds, times=1)
        assert list(watched.stages())
        assert expected(watched, call) == expected(other, call)
    assert watched.dump() == other.dump()


# --- what is known --------------------------------------------------------------------------------------------


def test_a_stage_is_known_once_enough_of_it_has_been_seen() -> None:
    profiles = some_profiles()
    assert not expected(profiles, at()).known
    learn(profiles, at("verify"), 1.0)
    assert not expected(profiles, at()).known, "of another stage of the pool"
    learn(profiles, at(), 1.0)
    assert expected(profiles, at()).known
    assert expected(profiles, at(), visit=2).known, "by what the stage's other rounds took"


def test_a_workflow_that_is_not_configured_is_known_once_its_ways_are() -> None:
    profiles = some_profiles()
    call = at("a", workflow="new")
    learn(profiles, call, 1.0)
    assert not expected(profiles, call).known
    for _ in range(REFRESH_FIRST):
        profiles.learn(step("a", "b", workflow="new"))
    learn(profiles, at("b", workflow="new"), 3.0)
    estimate = expected(profiles, call)
    assert estimate.known
    assert (estimate.remaining, estimate.success) == pytest.approx((3.0, 0.0))


def test_calls_of_no_workflow_are_known_by_their_pool() -> None:
    profiles, call = some_profiles(), at("", workflow="")
    learn(profiles, call, 4.0, times=TRUSTED - 1)
    assert not expected(profiles, call).known
    learn(profiles, call, 4.0, times=1)
    assert (expected(profiles, call).known, expected(profiles, call).service) == (True, 4.0)


def test_after_a_change_the_older_observations_are_forgotten_and_nothing_is_known_for_a_while() -> None:
    profiles, call = some_profiles(), at()
    learn(profiles, call, 1.0, times=32)
    learn(profiles, call, 4.0, times=31)
    assert expected(profiles, call).known
    learn(profiles, call, 4.0, times=1)  # 64: the newer half is compared with the older
    estimate = expected(profiles, call)
    assert not estimate.known
    assert estimate.service == pytest.approx(4.0)
    learn(profiles, call, 4.0, times=TRUSTED)
    assert expected(profiles, call).known
    (view,) = profiles.stages()
    assert view.profile.seconds.all().quantile(0.01) == pytest.approx(4.0, rel=0.05)


def test_a_change_late_in_life_is_noticed_too() -> None:
    profiles, call = some_profiles(), at()
    learn(profiles, call, 1.0, times=20 * WINDOW)
    changed = 0
    for _ in range(2 * WINDOW):
        learn(profiles, call, 4.0, times=1)
        changed += not expected(profiles, call).known
    assert changed == TRUSTED


def test_a_stage_that_does_not_change_stays_known() -> None:
    profiles, call, rng = some_profiles(), at(), Random(5)
    for number in range(3000):
        total = rng.lognormvariate(0.0, 0.6)
        profiles.observe(call, 1, Outcome(fate="ok", total=total, output_tokens=int(100 * total)))
        assert expected(profiles, call).known or number < TRUSTED


def test_prompt_tokens_that_no_cache_had_are_learned_where_the_engine_says_so() -> None:
    profiles, call = some_profiles(), at()
    profiles.observe(call, 1, Outcome(fate="ok", total=1.0, prompt_tokens=900, cached_tokens=None))
    (view,) = profiles.stages()
    assert view.profile.prefill.all().total == 0
    for cached in (800, 950):
        profiles.observe(call, 1, Outcome(fate="ok", total=1.0, prompt_tokens=900, cached_tokens=cached))
    seen = view.profile.prefill.all()
    assert (seen.total, seen.quantile(0.1), seen.quantile(1.0)) == pytest.approx((2, 0.0, 100), rel=0.05)
