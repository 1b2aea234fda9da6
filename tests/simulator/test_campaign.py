from __future__ import annotations

from dataclasses import replace
from statistics import fmean

import pytest

from policies.catalog import Named, PolicySet
from simulator.campaign import Entrant, campaign, thinned
from simulator.choice import Choice
from simulator.lineup import LINEUP
from tests.simulator.making import a_run, a_setup, a_statement

CHOICE = Choice(workload="fanout", runs=6)


def entrants(*names: str) -> list[Entrant]:
    return [Entrant(name=name, contender=LINEUP[name]) for name in names]


@pytest.mark.slow
def test_findings_come_in_one_order_and_are_the_same_in_one_process_and_in_three() -> None:
    some = entrants("cortex", "edf", "round-robin")
    alone = list(campaign(CHOICE, [0.2, 0.4], [1, 2], some, jobs=1))
    assert [(one.rate, one.seed, one.entrant) for one in alone] == [
        (rate, seed, one.name) for rate in (0.2, 0.4) for seed in (1, 2) for one in some
    ]
    assert list(campaign(CHOICE, [0.2, 0.4], [1, 2], some, jobs=3)) == alone


@pytest.mark.untraced
def test_the_entrants_of_a_single_load_are_shared_out() -> None:
    some = entrants("cortex", "edf", "round-robin")
    alone = list(campaign(CHOICE, [0.4], [1], some, jobs=1))
    assert list(campaign(CHOICE, [0.4], [1], some, jobs=2)) == alone
    assert [one.entrant for one in alone] == ["cortex", "edf", "round-robin"]


def test_a_finding_says_what_the_stages_and_the_memory_did() -> None:
    (one,) = campaign(CHOICE, [0.4], [1], entrants("cortex"), jobs=1)
    assert one.stages.keys() == {"plan", "work", "reduce"}
    assert all(times.service > 1.0 for times in one.stages.values())
    assert one.kv_use.keys() == {"lead", "workers"}
    assert 0.0 < max(use for _, use in one.kv_use["workers"]) < 1.0
    assert one.p50 <= one.p95 <= one.p99
    assert one.prefill > 0


def test_a_pool_with_policies_of_its_own_keeps_them_but_lends_as_the_layout_says() -> None:
    own = PolicySet(priority=Named(name="edf"), borrowing=Named(name="always"))
    entrant = Entrant(name="mine", contender=LINEUP["cortex"], own={"db": own, "another": own})
    setup = a_setup([a_run("a", 0.0, a_statement())])
    chosen = entrant.scenario(setup, 1).blueprint.policies
    usual = Entrant(name="usual", contender=LINEUP["cortex"]).scenario(setup, 1).blueprint.policies
    assert chosen["llm"] == usual["llm"]
    assert chosen["db"] == replace(own, borrowing=usual["db"].borrowing)
    assert chosen.keys() == {"db", "llm"}


def test_a_thinned_curve_keeps_its_mean_and_its_ends() -> None:
    curve = [(2.0 * number, float(number % 7)) for number in range(1200)]
    thin = thinned(curve, 100)
    assert len(thin) == 100
    assert fmean(value for _, value in thin) == pytest.approx(fmean(value for _, value in curve), rel=0.01)
    assert 0.0 < thin[0][0] < thin[-1][0] < curve[-1][0]
    assert thinned(curve[:50], 100) == curve[:50]
