"""Every policy that a configuration can name: what it claims, and that it says so in docs/policies.md."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from random import Random
from typing import cast

import pytest

from policies.admission import PredictedWait, QueueBound
from policies.calls import Estimate
from policies.catalog import CATALOG, Named, PolicySet, UnknownPolicy, make, make_all, parameters
from policies.pool import EngineLimits, EngineView, PoolView
from policies.priority import EPOCH, NO_DEADLINE, Edf, Fcfs, LeastSlack, bucket
from policies.protocols import Admit, Demand, Key, Refuse, RunView, Scorer
from policies.routing.filters import KvBelow, SpareForLost, Untried
from policies.routing.pickers import Best, TwoChoices
from policies.routing.pipeline import Pipeline
from policies.routing.scorers import FreeWork, LeastDelay, LeastRunning, OwnPool, PrefixAffinity, RoundRobin
from tests.policies import test_baselines, test_borrowing, test_budget, test_gate
from tests.policies.claims import CLAIMED, claims
from tests.policies.making import a_call, a_view

PAGE = Path(__file__).parents[2] / "docs" / "policies.md"
ALL = [(slot, name) for slot, policies in CATALOG.items() for name in policies]
ELSEWHERE = (test_baselines, test_borrowing, test_budget, test_gate)
"""Modules with further tests of what policies claim; these are marked when their module is imported."""


def run(deadline: float | None = None, started: float = 0.0) -> RunView:
    return RunView(deadline=deadline, started=started, calls=1, first=True)


def estimate(service: float = 1.0, remaining: float = 0.0, success: float = 1.0) -> Estimate:
    return Estimate(output_tokens=(10, 40), service=service, remaining=remaining, success=success)


def a_pool_view(**given: int | float) -> PoolView:
    usual = PoolView(
        name="p",
        waiting=0,
        waiting_bytes=0,
        queue_calls=10,
        queue_bytes=1000,
        running=4,
        slots=4,
        mean_service=2.0,
    )
    return dataclasses.replace(usual, **given)  # type: ignore[arg-type]


# --- the catalog and its page ---


@pytest.mark.parametrize(("slot", "name"), ALL)
def test_every_policy_has_a_test_of_what_it_claims(slot: str, name: str) -> None:
    assert (slot, name) in CLAIMED


def paragraph(slot: str, name: str) -> str:
    """What docs/policies.md says of a policy: the text under its heading, on one line."""
    text = PAGE.read_text(encoding="utf-8")
    found = re.search(rf"^### `{slot}: {name}`\n(.*?)(?=^#|\Z)", text, re.M | re.S)
    assert found is not None, f"docs/policies.md has no heading '### `{slot}: {name}`'"
    return " ".join(found[1].split())


@pytest.mark.parametrize(("slot", "name"), ALL)
def test_every_policy_has_a_paragraph_with_its_parameters_and_their_defaults(slot: str, name: str) -> None:
    said = paragraph(slot, name)
    assert len(said.split()) > 15
    for param in (field for field in dataclasses.fields(CATALOG[slot][name]) if field.init):
        unit = param.metadata.get("unit", "")
        assert f"`{param.name}` (default {param.default:g}{unit})" in said


def test_the_page_names_no_policy_that_is_not_there() -> None:
    assert set(re.findall(r"^### `(\w+): (\w+)`$", PAGE.read_text(encoding="utf-8"), re.M)) == set(ALL)


def test_the_pages_table_lists_every_policy() -> None:
    table = re.findall(r"^\| \[`(\w+)`\]\(#\w+\) \|.*?\| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.M)
    assert {(slot, name) for slot, names in table for name in re.findall(r"`(\w+)`", names)} == set(ALL)


@pytest.mark.parametrize(("slot", "name"), ALL)
def test_every_policy_can_be_made_by_name_with_each_of_its_parameters(slot: str, name: str) -> None:
    given = tuple((param, 0.25) for param in parameters(slot, name))
    made = make(slot, Named(name=name, params=given))
    assert isinstance(made, CATALOG[slot][name])
    assert all(getattr(made, param) == value for param, value in given)


def test_units_tell_seconds_from_plain_numbers() -> None:
    assert parameters("priority", "least_slack") == {"quantum": "s", "patience": "s", "step": "s", "optimism": ""}


@pytest.mark.parametrize(
    ("slot", "named", "message"),
    [
        ("colour", Named(name="red"), "no policy slot 'colour' (there are priority, admission"),
        ("priority", Named(name="lifo"), "no priority policy named 'lifo' (there are fcfs, edf, least_slack, llf, "),
        ("picker", Named(name="best", params=(("of", 2),)), "'best' has no parameter 'of' (it has none)"),
        ("filters", Named(name="kv_below", params=(("of", 2),)), "no parameter 'of' (it has use)"),
        ("filters", Named(name="kv_below", params=(("use", True),)), "parameter 'use' of policy 'kv_below' must be"),
        ("filters", Named(name="kv_below", params=(("use", cast(float, "x")),)), "must be a number"),
    ],
)
def test_what_the_catalog_does_not_have_is_refused_by_a_message_that_says_what_it_has(
    slot: str, named: Named, message: str
) -> None:
    with pytest.raises(UnknownPolicy, match=re.escape(message)):
        make(slot, named)


def test_a_pools_policies_are_made_together_and_untried_always_filters() -> None:
    made = make_all(PolicySet(filters=(Named(name="untried"), Named(name="kv_below"))))
    assert isinstance(made.priority, LeastSlack)
    assert isinstance(made.admission, PredictedWait)
    assert made.routing == Pipeline(
        filters=(Untried(), KvBelow()), scorers=((2.0, PrefixAffinity()), (1.0, FreeWork())), picker=Best()
    )


# --- priority ---


@claims("priority", "fcfs")
def test_fcfs_orders_by_arrival_and_knows_no_deadline() -> None:
    early, late = (
        Fcfs().key(a_call(arrived=moment), estimate(), run(deadline), 0.0)
        for moment, deadline in ((1.0, 99.0), (2.0, 3.0))
    )
    assert early.start < late.start
    assert early == Key(start=(1.0,), bucket=bucket(1.0, 0.25))


@claims("priority", "fcfs")
def test_fcfs_counts_a_step_of_priority_as_seconds_of_precedence() -> None:
    assert Fcfs(step=3.0).key(a_call(arrived=10.0, priority=2), estimate(), run(), 0.0).start == (4.0,)


@claims("priority", "edf")
def test_edf_orders_by_the_deadline_of_the_run() -> None:
    policy = Edf(patience=30.0)
    key = policy.key(a_call(arrived=5.0), estimate(service=100.0), run(20.0), 0.0)
    assert key == Key(start=(20.0, 5.0), bucket=bucket(20.0, 0.25), lost_at=20.0, starve_at=35.0)
    sooner = policy.key(a_call(arrived=9.0), estimate(), run(19.0), 0.0)
    assert sooner.start < key.start
    assert policy.key(a_call(arrived=6.0, priority=2), estimate(), run(21.0), 0.0).start < key.start


@claims("priority", "edf")
def test_edf_orders_a_run_without_a_deadline_as_if_it_had_an_hour() -> None:
    key = Edf().key(a_call(arrived=50.0), estimate(), run(None, started=7.0), 0.0)
    assert key.start[0] == 7.0 + NO_DEADLINE
    assert key.lost_at is None


@claims("priority", "least_slack")
def test_least_slack_orders_by_the_latest_start() -> None:
    policy = LeastSlack(quantum=1.0)
    tight = policy.key(a_call(), estimate(service=2.0, remaining=10.0), run(20.0), 0.0)
    loose = policy.key(a_call(), estimate(service=2.0, remaining=1.0), run(15.0), 0.0)
    assert tight.start < loose.start  # 8 s against 12 s, though its deadline is later
    assert (tight.bucket, loose.bucket) == (bucket(8.0, 1.0), bucket(12.0, 1.0))


@claims("priority", "least_slack")
def test_least_slack_serves_inside_a_cell_what_is_likeliest_to_end_its_run_per_second() -> None:
    policy = LeastSlack(quantum=5.0)
    likely = policy.key(a_call(arrived=1.0), estimate(service=2.0, success=0.9), run(14.0), 0.0)
    unlikely = policy.key(a_call(), estimate(service=2.0, success=0.1), run(13.0), 0.0)
    long = policy.key(a_call(), estimate(service=4.0, success=0.9), run(16.0), 0.0)
    assert likely.bucket == unlikely.bucket == long.bucket
    assert sorted([unlikely.start, long.start, likely.start]) == [likely.start, long.start, unlikely.start]


@claims("priority", "least_slack")
def test_least_slack_gives_a_call_up_when_even_half_of_its_time_is_too_long() -> None:
    key = LeastSlack().key(a_call(), estimate(service=4.0, remaining=2.0), run(10.0), 0.0)
    assert key.lost_at == 7.0
    assert LeastSlack(optimism=1.0).key(a_call(), estimate(4.0, 2.0), run(10.0), 0.0).lost_at == 4.0
    assert LeastSlack().key(a_call(), estimate(), run(None), 0.0).lost_at is None


@claims("priority", "least_slack")
def test_least_slack_bounds_the_wait_by_its_patience_and_counts_priority_in_steps() -> None:
    assert LeastSlack(patience=12.0).key(a_call(arrived=3.0), estimate(), run(), 0.0).starve_at == 15.0
    plain, raised = (LeastSlack(step=2.0).key(a_call(priority=p), estimate(), run(50.0), 0.0) for p in (0, 4))
    assert plain.bucket - raised.bucket == 4 * 2 / 0.25


def test_buckets_stand_on_an_absolute_grid_and_fit_the_engines_integer() -> None:
    assert bucket(EPOCH, 0.25) == 0
    assert bucket(EPOCH + 0.3, 0.25) == 1
    assert bucket(EPOCH - 0.1, 0.25) == -1
    assert bucket(EPOCH + 8 * 365 * 86400, 0.25) < 2**30


# --- admission ---


@claims("admission", "queue_bound")
@pytest.mark.parametrize(
    ("waiting", "waiting_bytes", "full"),
    [(9, 0, False), (10, 0, True), (5, 900, False), (5, 901, True), (0, 0, False)],
)
def test_queue_bound_refuses_when_calls_or_bytes_have_no_room(waiting: int, waiting_bytes: int, full: bool) -> None:
    pool = a_pool_view(waiting=waiting, waiting_bytes=waiting_bytes)
    verdict = QueueBound().decide(a_call(body_bytes=100), estimate(), run(), pool, 0.0)
    expected = Refuse(late=False, retry_after=(waiting + 1) * 0.5 / 2) if full else Admit()
    assert verdict == expected


@claims("admission", "queue_bound")
def test_queue_bound_lets_a_body_larger_than_the_bound_into_an_empty_queue() -> None:
    verdict = QueueBound().decide(a_call(body_bytes=10**9), estimate(), run(), a_pool_view(), 0.0)
    assert verdict == Admit()


@claims("admission", "predicted_wait")
@pytest.mark.parametrize(
    ("waiting", "deadline", "retry_after"),
    [
        (7, 5.0, None),  # a wait of 8 x 0.5 s, and 5 - 1 s to spare
        (8, 5.0, 0.5),
        (9, 5.0, 1.0),
        (9, None, None),
        (1, 0.0, None),  # late anyway: a wait of a second is no reason
        (2, 0.0, 0.5),
    ],
)
def test_predicted_wait_refuses_a_run_whose_slack_the_wait_would_use_up(
    waiting: int, deadline: float | None, retry_after: float | None
) -> None:
    verdict = PredictedWait().decide(a_call(), estimate(), run(deadline), a_pool_view(waiting=waiting), 0.0)
    assert verdict == (Admit() if retry_after is None else Refuse(late=True, retry_after=retry_after))


@claims("admission", "predicted_wait")
def test_predicted_wait_admits_after_its_own_retry_after() -> None:
    pool = a_pool_view(waiting=9, queue_calls=100, mean_service=1.7, slots=3, running=3)
    verdict = PredictedWait().decide(a_call(), estimate(), run(3.0), pool, 0.0)
    assert isinstance(verdict, Refuse)
    gone = round(verdict.retry_after / pool.pace)
    assert verdict.retry_after == pytest.approx(gone * pool.pace)
    later, just_before = (dataclasses.replace(pool, waiting=9 - n) for n in (gone, gone - 1))
    assert PredictedWait().decide(a_call(), estimate(), run(3.0), later, 0.0) == Admit()
    assert isinstance(PredictedWait().decide(a_call(), estimate(), run(3.0), just_before, 0.0), Refuse)


@claims("admission", "predicted_wait")
def test_predicted_wait_bounds_the_queue_too_and_has_a_grace() -> None:
    full = a_pool_view(waiting=10)
    verdict = PredictedWait().decide(a_call(), estimate(), run(999.0), full, 0.0)
    assert isinstance(verdict, Refuse)
    assert not verdict.late
    assert PredictedWait(grace=60.0).decide(a_call(), estimate(), run(0.0), a_pool_view(waiting=9), 0.0) == Admit()


def test_the_predicted_wait_is_nothing_while_a_slot_is_free_and_finite_without_engines() -> None:
    assert a_pool_view(running=3).predicted_wait == 0.0
    assert a_pool_view(running=4).predicted_wait == 0.5
    assert a_pool_view(running=0, slots=0, waiting=3).predicted_wait == 6.0


# --- routing ---


@claims("filters", "untried")
def test_untried_leaves_out_what_has_failed_the_call() -> None:
    assert Untried().keep(Demand(call=a_call()), a_view())
    assert not Untried().keep(Demand(call=a_call()), a_view(tried=True))


@claims("filters", "kv_below")
def test_kv_below_leaves_out_full_engines_unless_they_are_idle() -> None:
    rule = KvBelow(use=0.5)
    kept = [
        rule.keep(Demand(call=a_call()), a_view(kv_use=use, running=running))
        for use, running in ((0.5, 3), (0.6, 3), (0.9, 0))
    ]
    assert kept == [True, False, True]


@claims("filters", "spare_for_lost")
@pytest.mark.parametrize(
    ("lost", "pressure", "running", "kept"),
    [(True, 0.4, 2, True), (True, 0.5, 2, False), (True, 0.5, 0, True), (False, 0.9, 2, True)],
)
def test_spare_for_lost_keeps_lost_calls_off_engines_that_are_busy_with_prompts(
    lost: bool, pressure: float, running: int, kept: bool
) -> None:
    demand = Demand(call=a_call(), lost=lost)
    assert SpareForLost(pressure=0.4).keep(demand, a_view(pressure=pressure, running=running)) is kept


@claims("scorers", "prefix_affinity")
def test_prefix_affinity_is_the_share_of_the_prompt_that_the_engine_holds() -> None:
    call = a_call(prompt_tokens=200)
    scores = PrefixAffinity(least=0.3).scores(
        Demand(call=call), [a_view(matched=tokens) for tokens in (0, 50, 100, 400)]
    )
    assert scores == [0.0, 0.0, 0.5, 1.0]
    assert PrefixAffinity().scores(Demand(call=a_call(prompt_tokens=0)), [a_view()]) == [0.0]


@claims("scorers", "free_work")
def test_free_work_is_what_is_free_of_the_scarcer_of_sequences_and_work() -> None:
    views = [a_view(running=1, work=500.0), a_view(running=3, work=500.0), a_view(running=1, work=5000.0), a_view()]
    assert FreeWork().scores(Demand(call=a_call()), views) == [0.5, 0.25, 0.0, 1.0]


@claims("scorers", "least_delay")
def test_least_delay_adds_up_what_the_call_loses_and_what_it_takes_from_others() -> None:
    # A prompt token takes 0.1 ms and a step 20 ms, and 0.1 ms more for each sequence: what is believed at first.
    small = EngineLimits(sequences=4, work=1e9, kv_tokens=1000)
    views = [
        a_view(matched=1000),  # 100 steps of 20.1 ms
        a_view(matched=0),  # and 1000 tokens of prompt
        a_view(matched=0, limits=small, footprint=500.0),  # of which 600 with the answer evict what is kept
        a_view(matched=0, running=4, prefill=500.0, pressure=0.5, urgency=3.0),  # stalls others by 0.11 s
        a_view(matched=1000, pool="q"),
    ]
    costs = [2.01, 2.11, 2.17, 0.15 + 100 * 0.0205 / 0.5 + 3 * 0.11, 2.51]
    scores = LeastDelay(away=0.5).scores(Demand(call=a_call(prompt_tokens=1000), output=100), views)
    assert scores == pytest.approx([2.011 / (0.001 + cost) for cost in costs])


@claims("scorers", "least_delay")
def test_least_delay_sends_a_call_that_has_time_where_it_harms_nobody() -> None:
    warm = a_view("warm", matched=1000, running=3, urgency=3.0)
    cold = a_view("cold")
    call = a_call(prompt_tokens=1000)

    def better(urgency: float, others: float = 1.0) -> str:
        demand = Demand(call=call, output=100, urgency=urgency)
        scores = LeastDelay(others=others).scores(demand, [warm, cold])
        return "warm" if scores[0] > scores[1] else "cold"

    assert better(urgency=1.0) == "warm"  # 2.04 + 0.03 against 2.11
    assert better(urgency=0.1) == "cold"  # 0.204 + 0.03 against 0.211
    assert better(urgency=0.1, others=0.0) == "warm"


@claims("scorers", "least_running")
def test_least_running_is_one_for_the_emptiest_and_less_for_the_others() -> None:
    views = [a_view(running=running) for running in (1, 3, 7)]
    assert LeastRunning().scores(Demand(call=a_call()), views) == [1.0, 0.5, 0.25]


@claims("scorers", "round_robin")
def test_round_robin_takes_turns() -> None:
    pipeline = Pipeline(filters=(), scorers=((1.0, RoundRobin()),), picker=Best())
    last = dict.fromkeys("abc", 0)
    chosen = []
    for order in range(1, 8):
        views = [a_view(name, last_start=last[name], running=order % 3) for name in last]
        choice = pipeline.choose(Demand(call=a_call()), views, Random(0))
        assert choice is not None
        last[choice.name] = order
        chosen.append(choice.name)
    assert "".join(chosen) == "abcabca"


@claims("scorers", "own_pool")
def test_own_pool_puts_borrowed_engines_second() -> None:
    scores = OwnPool().scores(Demand(call=a_call(pool="p")), [a_view(pool=pool) for pool in ("p", "q")])
    assert scores == [1.0, 0.0]


@pytest.mark.parametrize("name", CATALOG["scorers"])
def test_scores_lie_between_nothing_and_one(name: str) -> None:
    scorer, rng = cast(Scorer, make("scorers", Named(name=name))), Random(1)
    for _ in range(200):
        views = [
            a_view(running=rng.randrange(9), work=rng.random() * 3000, matched=rng.randrange(900), last_start=n)
            for n in range(1, 5)
        ]
        assert all(
            0.0 <= score <= 1.0 for score in scorer.scores(Demand(call=a_call(prompt_tokens=500), output=50), views)
        )


@claims("picker", "best")
def test_best_takes_the_highest_score_and_among_equals_the_longest_unused() -> None:
    scored = [(0.5, a_view("a")), (0.9, a_view("b", last_start=7)), (0.9, a_view("c", last_start=3))]
    assert Best().pick(scored, Random(0)).name == "c"


@claims("picker", "two_choices")
def test_two_choices_takes_the_better_of_two_drawn() -> None:
    scored = [(score / 10, a_view(str(score))) for score in range(5)]
    rng, drawn = Random(3), Random(3)
    for _ in range(50):
        expected = max(drawn.sample(scored, 2), key=lambda pair: pair[0])[1]
        assert TwoChoices().pick(scored, rng) is expected
    picked = {TwoChoices().pick(scored, rng).name for _ in range(200)}
    assert picked == {"1", "2", "3", "4"}  # the worst is never the better of two
    assert TwoChoices().pick(scored[:2], rng).name == "1"


def test_the_pipeline_filters_then_weighs_the_scores() -> None:
    views: list[EngineView] = [
        a_view("tried", tried=True, matched=400),
        a_view("warm", matched=300, running=3),
        a_view("idle", matched=0, running=0),
    ]
    call = a_call(prompt_tokens=400)

    def choice(affinity: float) -> EngineView | None:
        scorers = ((affinity, PrefixAffinity()), (1.0, FreeWork()))
        return Pipeline(filters=(Untried(),), scorers=scorers, picker=Best()).choose(
            Demand(call=call), views, Random(0)
        )

    assert choice(2.0) is views[1]  # 1.5 + 0.25 against 1
    assert choice(0.5) is views[2]
    nothing = Pipeline(filters=(Untried(),), scorers=(), picker=Best())
    assert nothing.choose(Demand(call=call), views[:1], Random(0)) is None
    assert nothing.choose(Demand(call=call), views[:2], Random(0)) is views[1]
