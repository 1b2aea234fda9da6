"""What filters, scorers and pickers claim, and how they are put together."""

from __future__ import annotations

from random import Random
from typing import cast

import pytest

from policies.catalog import CATALOG, Named, make
from policies.pool import EngineLimits, EngineView
from policies.protocols import Demand, Scorer
from policies.routing.filters import KvBelow, SpareForLost, Untried
from policies.routing.pickers import Best, TwoChoices
from policies.routing.pipeline import Pipeline
from policies.routing.scorers import FreeWork, LeastDelay, LeastRunning, OwnPool, PrefixAffinity, RoundRobin
from tests.policies.claims import claims
from tests.policies.making import a_call, a_view


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


# --- least_delay. A prompt token takes 0.1 ms and a step 20 ms, 0.1 ms more for each sequence: what is believed at
# first ---


@claims("scorers", "least_delay")
def test_least_delay_adds_up_what_the_call_loses_and_what_it_takes_from_others() -> None:
    small = EngineLimits(sequences=4, work=1e9, kv_tokens=1000)
    views = [
        a_view(matched=1000),  # 100 steps of 20.1 ms
        a_view(matched=0),  # and 1000 tokens of prompt, which are computed in vain
        a_view(matched=0, limits=small, footprint=500.0),  # of which 600 with the answer evict what is kept
        a_view(matched=0, running=4, prefill=500.0, pressure=0.5, urgency=3.0),  # stalls others by 0.11 s
        a_view(matched=600, pool="q", guest=True),  # 400 more tokens than the first, each counts five times more
    ]
    costs = [2.01, 2.01 + 0.1 + 0.1, 2.21 + 0.06, 0.15 + 100 * 0.0205 / 0.5 + 3 * 0.11 + 0.5, 2.01 + 0.08 + 5 * 0.04]
    scores = LeastDelay(copies=5.0).scores(Demand(call=a_call(prompt_tokens=1000), output=100), views)
    assert scores == pytest.approx([2.011 / (0.001 + cost) for cost in costs])


@claims("scorers", "least_delay")
def test_least_delay_prices_copies_higher_for_runs_without_a_deadline() -> None:
    views = [a_view(matched=1000), a_view(matched=600, pool="q", guest=True)]
    demand = Demand(call=a_call(prompt_tokens=1000), output=100, bounded=False)
    scores = LeastDelay(copies=5.0, unbounded_copies=7.0).scores(demand, views)
    assert scores == pytest.approx([1.0, 2.011 / (2.01 + 0.08 + 7 * 0.04 + 0.001)])


@claims("scorers", "least_delay")
@pytest.mark.parametrize(
    ("params", "cost"),
    [
        ({}, 0.5 * (0.05 + 2.03) + 2.0 * (0.04 + 0.01) + 0.02 + 0.04 * 3),
        ({"others": 0.0}, 0.5 * (0.05 + 2.03) + 0.04 * 3),
        ({"waste": 0.0}, 0.5 * (0.05 + 2.03) + 2.0 * (0.04 + 0.01) + 0.02),
        ({"others": 3.0, "waste": 2.0}, 0.5 * (0.05 + 2.03) + 3.0 * (2.0 * (0.04 + 0.01) + 0.02) + 2 * 0.04 * 3),
    ],
)
def test_least_delay_weighs_each_part_by_its_parameter(params: dict[str, float], cost: float) -> None:
    # Two calls run, which lose 2 by a second, 100 tokens are still to be computed; 400 are missing, 200 do not fit.
    limits = EngineLimits(sequences=9, work=1e9, kv_tokens=1000)
    busy = a_view(matched=600, running=2, prefill=100.0, urgency=2.0, footprint=700.0, limits=limits)
    idle = a_view(matched=1000)
    demand = Demand(call=a_call(prompt_tokens=1000), output=100, urgency=0.5)
    scores = LeastDelay(**params).scores(demand, [idle, busy])
    assert scores == pytest.approx([1.0, (0.5 * 2.01 + 0.001) / (cost + 0.001)])


@claims("scorers", "least_delay")
def test_least_delay_sends_a_call_that_has_time_where_it_harms_nobody() -> None:
    warm = a_view("warm", matched=1000, running=3, urgency=3.0)
    cold = a_view("cold")
    call = a_call(prompt_tokens=1000)

    def better(urgency: float, others: float = 1.0, waste: float = 0.0) -> str:
        demand = Demand(call=call, output=100, urgency=urgency)
        scores = LeastDelay(others=others, waste=waste).scores(demand, [warm, cold])
        return "warm" if scores[0] > scores[1] else "cold"

    assert better(urgency=1.0) == "warm"  # 2.04 + 0.03 against 2.11
    assert better(urgency=0.1) == "cold"  # 0.204 + 0.03 against 0.211
    assert better(urgency=0.1, others=0.0) == "warm"
    assert better(urgency=0.1, waste=1.0) == "warm"  # 0.1 s of prompt would be computed a second time
