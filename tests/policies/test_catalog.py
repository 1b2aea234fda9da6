"""Every policy that a configuration can name: what it claims, and that it says so in docs/policies.md."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any, cast

import pytest

from policies.admission import PredictedWait, QueueBound
from policies.calls import Call, Estimate
from policies.catalog import CATALOG, Named, PolicySet, UnknownPolicy, make, make_all, parameters
from policies.pool import PoolView
from policies.priority import EPOCH, LEAD_MOST, NO_DEADLINE, TOLERABLE_LEAST, Edf, Fcfs, LeastSlack, bucket
from policies.protocols import Admit, Key, Refuse, RunView
from policies.routing.filters import KvBelow, Untried
from policies.routing.pickers import Best
from policies.routing.pipeline import Pipeline
from policies.routing.scorers import LeastDelay
from tests.policies import test_baselines, test_borrowing, test_budget, test_gate, test_gate_working_set, test_routing
from tests.policies.claims import CLAIMED, claims
from tests.policies.making import a_call

PAGE = Path(__file__).parents[2] / "docs" / "policies.md"
ALL = [(slot, name) for slot, policies in CATALOG.items() for name in policies]
ELSEWHERE = (test_baselines, test_borrowing, test_budget, test_gate, test_gate_working_set, test_routing)
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
    # 1 lies in the range of each parameter that there is.
    given = tuple((param, 1.0) for param in parameters(slot, name))
    made = make(slot, Named(name=name, params=given))
    assert isinstance(made, CATALOG[slot][name])
    assert all(getattr(made, param) == value for param, value in given)


def test_units_tell_seconds_from_plain_numbers() -> None:
    assert parameters("priority", "edf") == {"patience": "s", "step": "s"}
    assert parameters("scorers", "least_delay") == {"others": "", "waste": "", "copies": "", "unbounded_copies": ""}


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
    assert made.routing == Pipeline(filters=(Untried(), KvBelow()), scorers=((1.0, LeastDelay()),), picker=Best())


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
def test_least_slack_serves_what_it_knows_too_little_of_by_what_its_run_has_had() -> None:
    policy = LeastSlack(quantum=5.0)
    fresh, long = (
        policy.key(
            a_call(), dataclasses.replace(estimate(), known=False), dataclasses.replace(run(14.0), attained=had), 0.0
        )
        for had in (0.0, 9.0)
    )
    assert fresh.bucket == long.bucket
    assert fresh.start < long.start


@claims("priority", "least_slack")
def test_least_slack_gives_a_call_up_when_even_a_share_of_its_time_is_too_long() -> None:
    key = LeastSlack(optimism=0.5).key(a_call(), estimate(service=4.0, remaining=2.0), run(10.0), 0.0)
    assert key.lost_at == 7.0
    assert LeastSlack(optimism=1.0).key(a_call(), estimate(4.0, 2.0), run(10.0), 0.0).lost_at == 4.0
    assert LeastSlack().key(a_call(), estimate(), run(None), 0.0).lost_at is None


@claims("priority", "least_slack")
@pytest.mark.parametrize(
    ("attained", "waited", "starves"),
    [
        (0.0, 0.0, 3.0 + 8.0),  # eight times its expected second and what follows it
        (2.0, 0.0, 3.0 + 24.0),
        (2.0, 6.0, 3.0 + 18.0),  # less what it has waited for already
        (0.0, 7.0, 3.0 + TOLERABLE_LEAST),
        (9.0, 0.0, 3.0 + 40.0),  # never longer than the patience
    ],
)
def test_least_slack_bounds_the_wait_by_its_patience_and_by_what_the_run_needs(
    attained: float, waited: float, starves: float
) -> None:
    view = dataclasses.replace(run(), attained=attained, waited=waited)
    policy = LeastSlack(patience=40.0, ratio=8.0)
    assert policy.key(a_call(arrived=3.0), estimate(service=0.6, remaining=0.4), view, 0.0).starve_at == starves


@claims("priority", "least_slack")
def test_least_slack_counts_priority_the_last_sibling_and_a_tenants_lead_in_seconds() -> None:
    policy = LeastSlack(step=2.0, straggler=3.0, fairness=0.5)

    def cell(call: Call, **view: Any) -> int:
        return policy.key(call, estimate(), dataclasses.replace(run(50.0), **view), 0.0).bucket

    plain = cell(a_call())
    assert plain - cell(a_call(priority=4)) == 4 * 2 / 0.25
    assert plain - cell(a_call(), last=True) == 3 / 0.25
    assert cell(a_call(), lead=6.0) - plain == 0.5 * 6 / 0.25
    assert cell(a_call(), lead=1e6) - plain == 0.5 * LEAD_MOST / 0.25


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


@pytest.mark.parametrize(
    ("slot", "named", "told"),
    [
        ("priority", Named(name="least_slack", params=(("quantum", 0.0),)), "'quantum' .* more than 0, and is 0"),
        ("priority", Named(name="least_slack", params=(("optimism", 1.5),)), "'optimism' .* from 0 to 1, and is 1.5"),
        ("priority", Named(name="edf", params=(("patience", -1.0),)), "'patience' .* at least 0, and is -1"),
        ("gate", Named(name="aimd", params=(("start", 0.0),)), "'start' .* at least 1, and is 0"),
        ("gate", Named(name="working_set", params=(("share", float("nan")),)), "'share' .* more than 0, and is nan"),
        ("budget", Named(name="adaptive", params=(("cut", 5.0),)), "'cut' .* from 0 to 1, and is 5"),
        (
            "budget",
            Named(name="adaptive", params=(("least", 9.0), ("most", 5.0))),
            "'least' .9. must not be above 'most'",
        ),
        ("filters", Named(name="kv_below", params=(("use", float("inf")),)), "'use' .* from 0 to 1, and is inf"),
    ],
)
def test_a_parameter_out_of_range_is_refused_by_its_name(slot: str, named: Named, told: str) -> None:
    with pytest.raises(UnknownPolicy, match=told):
        make(slot, named)
