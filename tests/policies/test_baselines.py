"""The baselines order calls as their sources say, by numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from policies.baselines.autellix import Atlas, Plas
from policies.baselines.hexagent import HexAgent
from policies.baselines.hexgen import HexGen, HexGenReleased
from policies.baselines.laxity import LeastLaxity
from policies.baselines.oracle import SrptOracle
from policies.baselines.pythia import Pythia
from policies.baselines.tail_aware import TailAware
from policies.calls import Estimate, Outlook
from policies.priority import NO_DEADLINE, bucket
from policies.protocols import Key, RunView
from tests.policies.claims import claims
from tests.policies.making import a_call


def a_run(deadline: float | None = None, started: float = 0.0, **given: Any) -> RunView:
    return RunView(deadline=deadline, started=started, calls=1, first=False, **given)


def expecting(service: float = 1.0, remaining: float = 0.0, **given: Any) -> Estimate:
    usual: dict[str, Any] = {"output_tokens": (10, 40), "service": service, "remaining": remaining}
    return Estimate(**usual | given)


# --- HexGen-Text2SQL ---


@claims("priority", "hexgen")
def test_hexgen_splits_what_is_left_of_the_deadline_by_the_share_of_the_stage() -> None:
    """u = 4 of D = 20; t = 2 of the 2 + 6 that remain: a budget of 4, and at its end less t the latest start."""
    key = HexGen().key(a_call(arrived=104.0), expecting(2.0, 6.0), a_run(120.0, 100.0), 104.0)
    assert key == Key(start=(106.0, 104.0), bucket=bucket(106.0, 0.25))


@claims("priority", "hexgen")
def test_hexgen_puts_the_highest_urgency_first_at_any_time() -> None:
    cases = [
        (a_call("x", arrived=0.0), expecting(2.0, 6.0), a_run(16.0)),  # budget 4
        (a_call("y", arrived=1.0), expecting(1.0, 1.0), a_run(4.0)),  # budget 1.5
        (a_call("z", arrived=3.0), expecting(5.0, 0.0), a_run(10.0)),  # budget 7
    ]
    budgets = {"x": 4.0, "y": 1.5, "z": 7.0}
    by_key = sorted(cases, key=lambda case: HexGen().key(case[0], case[1], case[2], 3.0).start)
    for now in (3.0, 30.0):
        urgency = {
            call.id: expected.service - (budgets[call.id] - (now - call.arrived)) for call, expected, _ in cases
        }
        assert [call.id for call, _, _ in by_key] == sorted(urgency, key=lambda id: -urgency[id]) == ["y", "x", "z"]


@claims("priority", "hexgen")
def test_hexgen_gives_a_call_of_unknown_duration_all_that_is_left() -> None:
    assert HexGen().key(a_call(), expecting(0.0, 0.0), a_run(8.0), 0.0).start[0] == 8.0


CHESS = Outlook(
    visits={
        "retrieve": 4.0,
        "keywords": 1.0,
        "candidates": 1.2,
        "revise": 3.5,
        "test": 3.0,
        "tests": 0.5,
        "evaluate": 1,
    },
    service={
        "retrieve": 0.23,
        "keywords": 1.14,
        "candidates": 18.2,
        "revise": 3.33,
        "test": 0.17,
        "tests": 2.54,
        "evaluate": 0.87,
    },
)
"""The source's fifteen expected stages, with their mean seconds on an A100: 37.5 s in all."""


def released_budget(stage: str, entered: dict[str, int], success: float = 0.0) -> float:
    call = a_call(stage=stage)
    expected = expecting(CHESS.service[stage], 99.0, success=success, outlook=CHESS)
    key = HexGenReleased().key(call, expected, a_run(37.52, entered=entered), 0.0)
    return key.start[0] + expected.service  # arrived at 0: the budget


@claims("priority", "hexgen_released")
def test_hexgen_as_released_gives_the_first_and_the_seventh_run_the_budgets_that_were_measured() -> None:
    """Of the source's simulator with D = 37.52: 0.2 s for the first retrieval of run 0, 0.6 s for that of run 6.

    By then its list has come down to the four revisions that no run has made: 0.23 of 0.23 + 4 × 3.33.
    """
    assert released_budget("retrieve", {"retrieve": 1}) == pytest.approx(0.23, abs=0.001)
    used_up = dict.fromkeys(CHESS.visits, 7) | {"revise": 0}
    assert released_budget("retrieve", used_up) == pytest.approx(37.52 * 0.23 / 13.55)


@claims("priority", "hexgen_released")
def test_hexgen_as_released_expects_less_the_more_runs_have_entered_a_stage() -> None:
    everything = dict.fromkeys(CHESS.visits, 9)
    assert released_budget("candidates", everything) == pytest.approx(37.52)
    assert released_budget("candidates", everything | {"revise": 2}) == pytest.approx(
        37.52 * 18.2 / (18.2 + 2 * 3.33)
    )


@claims("priority", "hexgen_released")
def test_hexgen_as_released_drops_left_over_repairs_at_a_stage_that_closes_the_run() -> None:
    entered = {"retrieve": 4, "keywords": 1, "candidates": 1, "test": 1}
    going_on = 0.17 + 4 * 3.33 + 2 * 0.17 + 2.54 + 0.87
    assert released_budget("test", entered) == pytest.approx(37.52 * 0.17 / going_on)
    closing = 0.17 + 1 * 3.33 + 0.0 + 2.54 + 0.87  # of each stage only the first visit is expected
    assert released_budget("test", entered, success=0.9) == pytest.approx(37.52 * 0.17 / closing)


@claims("priority", "hexgen_released")
def test_hexgen_as_released_gives_all_that_is_left_where_nothing_is_known_of_the_workflow() -> None:
    assert HexGenReleased().key(a_call(), expecting(2.0, 6.0), a_run(9.0), 0.0).start[0] == 7.0


# --- Autellix ---


@claims("priority", "plas")
@pytest.mark.parametrize(
    ("attained", "band"),
    [(0.0, 0), (1.9, 0), (2.0, 1), (3.9, 1), (4.0, 2), (31.0, 4), (32.0, 5), (64.0, 6), (1e6, 6)],
)
def test_plas_bands_calls_by_the_service_that_their_run_has_had(attained: float, band: int) -> None:
    key = Plas().key(a_call(arrived=7.0), expecting(), a_run(attained=attained), 7.0)
    assert (key.start, key.bucket) == ((float(band), 7.0), band)


@claims("priority", "plas")
def test_plas_is_first_come_first_served_inside_a_band() -> None:
    early = Plas().key(a_call(arrived=1.0), expecting(), a_run(attained=3.5), 5.0)
    late = Plas().key(a_call(arrived=2.0), expecting(), a_run(attained=2.5), 5.0)
    assert early.start < late.start


@claims("priority", "plas")
def test_plas_moves_a_call_to_the_first_band_once_its_run_has_waited_too_long_for_its_service() -> None:
    """(5 + waited) / 10 reaches 3 when the call has waited for 25 s, at 125."""
    call, run = a_call(arrived=100.0), a_run(attained=10.0, waited=5.0)
    before = Plas(beta=3.0).key(call, expecting(), run, 124.0)
    assert (before.start, before.until) == ((3.0, 100.0), 125.0)
    assert Plas(beta=3.0).key(call, expecting(), run, 125.0) == Key(start=(0.0, 100.0), bucket=0)


@claims("priority", "atlas")
def test_atlas_bands_calls_by_the_longest_chain_of_their_run_and_not_by_all_its_service() -> None:
    wide = a_run(attained=40.0, path=3.0)
    key = Atlas().key(a_call(arrived=1.0), expecting(), wide, 1.0)
    assert (key.start, key.until) == ((1.0, 1.0), 1.0 + 8.0 * 40.0)
    assert Plas().key(a_call(arrived=1.0), expecting(), wide, 1.0).bucket == 5


# --- Pythia ---


@claims("priority", "pythia")
def test_pythia_serves_the_run_that_is_nearest_to_its_end() -> None:
    """Bases 1/1 and 1/4, of 10 s each: the one that is 7.5 s later is as good."""
    near = Pythia().key(a_call(arrived=7.0), expecting(hops=0.0), a_run(), 7.0)
    far = Pythia().key(a_call(arrived=0.0), expecting(hops=3.0), a_run(), 7.0)
    assert (near.start[0], far.start[0]) == (-3.0, -2.5)
    assert near.bucket == bucket(-3.0, 0.25)


@claims("priority", "pythia")
def test_pythia_prefers_runs_that_feed_pools_with_little_to_do() -> None:
    """Loads 8, 2 and 4: `sql` idles for 3/4, one call away; `fix` for 1/2, three away, in 1 of 4 runs."""
    outlook = Outlook(
        visits={"generate": 2.0, "sql": 2.0, "fix": 0.25}, service={"generate": 4.0, "sql": 1.0, "fix": 16.0}
    )
    call, here = a_call(stage="generate"), a_run(visits={"generate": 1})
    key = Pythia(finish=0.0, feed=1.0, ageing=1.0).key(call, expecting(outlook=outlook), here, 0.0)
    assert key.start[0] == pytest.approx(-(0.75 / 1 + 0.5 * 0.25 / 3))
    done = a_run(visits={"generate": 1, "sql": 2, "fix": 1})
    assert Pythia(finish=0.0).key(call, expecting(outlook=outlook), done, 0.0).start[0] == 0.0


@claims("priority", "pythia")
@pytest.mark.parametrize("visits", [{}, {"generate": 1.0, "sql": 1.0}])
def test_pythia_feeds_nobody_while_no_service_time_is_known(visits: dict[str, float]) -> None:
    outlook = Outlook(visits=visits, service={})
    key = Pythia().key(a_call(stage="generate"), expecting(hops=1.0, outlook=outlook), a_run(), 0.0)
    assert key.start[0] == -5.0


# --- HexAGenT ---


@claims("priority", "hexagent")
def test_hexagent_puts_the_run_first_that_is_slowed_down_most() -> None:
    """At the next full second, 21: (11 + 2) / (4 + 2) against (21 + 6) / (12 + 6)."""
    slowed = HexAgent().key(a_call(arrived=20.0), expecting(2.0), a_run(started=10.0, path=4.0), 20.3)
    old = HexAgent().key(a_call(arrived=19.0), expecting(6.0), a_run(started=0.0, path=12.0), 20.3)
    assert slowed.start == (-13 / 6, 20.0)
    assert old.start == (-27 / 18, 19.0)
    assert slowed.bucket == -2167
    assert slowed.until == old.until == 21.0


@claims("priority", "hexagent")
def test_hexagent_changes_its_order_as_short_runs_age_faster() -> None:
    short, long = a_run(started=9.0, path=0.0), a_run(started=0.0, path=3.0)
    starts = [
        [HexAgent().key(a_call(), expecting(1.0), run, now).start for run in (short, long)] for now in (9.0, 29.0)
    ]
    assert starts[0][0] > starts[0][1]  # 2/1 against 11/4
    assert starts[1][0] < starts[1][1]  # 22/1 against 31/4


@claims("priority", "hexagent")
def test_hexagent_renews_its_keys_at_common_moments() -> None:
    moments = {HexAgent(renewal=0.5).key(a_call(), expecting(), a_run(), 3.0 + n / 100).until for n in range(50)}
    assert moments == {3.5}


@claims("priority", "hexagent")
def test_hexagent_bounds_the_integer_of_a_run_that_needs_no_time() -> None:
    key = HexAgent().key(a_call(), expecting(0.0), a_run(started=0.0), 1e9)
    assert key.bucket == -(2**30 - 1)


# --- tail-aware release ---


@claims("priority", "tail_aware")
def test_tail_aware_serves_what_is_least_work_in_tokens() -> None:
    short = TailAware().key(a_call(arrived=9.0, prompt_tokens=600), expecting(output_tokens=(50, 90)), a_run(), 9.0)
    long = TailAware().key(a_call(prompt_tokens=500), expecting(output_tokens=(100, 200)), a_run(), 9.0)
    assert short == Key(start=(800.0, 9.0), bucket=800, until=30.0)
    assert long.start == (900.0, 0.0)


@claims("priority", "tail_aware")
@pytest.mark.parametrize(("p95", "old_at"), [(None, 112.0), (20.0, 120.0)])
def test_tail_aware_prefers_runs_older_than_most_that_have_ended(p95: float | None, old_at: float) -> None:
    policy, run = TailAware(holding=4.0, typical=12.0), a_run(started=100.0, p95=p95)
    call, expected = a_call(arrived=100.0, prompt_tokens=600), expecting(output_tokens=(50, 90))
    young, old = (policy.key(call, expected, run, now) for now in (old_at - 1.0, old_at))
    assert (young.start, young.bucket, young.until) == ((800.0, 100.0), 800, old_at)
    assert old == Key(start=(200.0, 100.0), bucket=200)


# --- the classical ones ---


@claims("priority", "llf")
def test_llf_orders_by_the_latest_start_and_by_nothing_else() -> None:
    key = LeastLaxity().key(a_call(arrived=5.0), expecting(2.0, 3.0, success=0.1), a_run(20.0), 6.0)
    assert key == Key(start=(15.0, 5.0), bucket=bucket(15.0, 0.25))
    sooner = LeastLaxity().key(a_call(arrived=6.0), expecting(2.0, 3.01), a_run(20.0), 6.0)
    assert sooner.start < key.start


@claims("priority", "llf")
def test_llf_counts_priority_in_steps_and_a_missing_deadline_as_an_hour() -> None:
    key = LeastLaxity(step=2.0).key(a_call(priority=3), expecting(1.0), a_run(None, started=7.0), 7.0)
    assert key.start[0] == 7.0 + NO_DEADLINE - 1.0 - 6.0


@claims("priority", "srpt_oracle")
def test_srpt_orders_by_what_the_oracle_says_and_else_by_the_mean() -> None:
    told = SrptOracle().key(a_call(arrived=3.0, foretold=4.0), expecting(2.0, 9.0), a_run(5.0), 3.0)
    mean = SrptOracle().key(a_call(arrived=1.0), expecting(2.0, 2.5), a_run(1.0), 3.0)
    assert told == Key(start=(4.0, 3.0), bucket=400)
    assert mean == Key(start=(4.5, 1.0), bucket=450)
