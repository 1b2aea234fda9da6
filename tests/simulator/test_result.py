from __future__ import annotations

import math

import pytest

from simulator.result import Result, RunRecord, quantile_of
from simulator.world import Counters


def a_record(number: int, latency: float | None, *, tenant: str = "t") -> RunRecord:
    at = float(number)
    ended = None if latency is None else at + latency
    return RunRecord(
        id=str(number), workflow="w", tenant=tenant, at=at, deadline=at + 5.0, ended=ended, refused=latency is None
    )


def a_result(*latencies: float | None) -> Result:
    return Result(
        runs=[a_record(number, latency) for number, latency in enumerate(latencies)],
        stages={},
        engines={"a": Counters(busy=1.0, peak_kv_use=0.5), "b": Counters(busy=2.0, peak_kv_use=0.3)},
        kv_use={},
        refusals={},
        span=10.0,
        events=0,
        profile=None,
    )


def test_a_run_without_an_end_has_missed_its_deadline_and_is_infinitely_late() -> None:
    result = a_result(1.0, 5.0, 5.5, None)
    assert [run.met for run in result.runs] == [True, True, False, False]
    assert result.attainment() == 0.5
    assert result.latency(0.75) == 5.5
    assert result.latency(0.76) == math.inf


def test_goodput_counts_by_the_second_in_which_runs_arrived() -> None:
    assert a_result(1.0, 1.0, 9.0, 1.0).goodput() == pytest.approx(0.75)
    assert math.isnan(a_result(1.0).goodput())


def test_a_quantile_is_one_of_the_values() -> None:
    assert [quantile_of([3.0, 1.0, 2.0, 4.0], share) for share in (0.0, 0.25, 0.5, 0.51, 1.0)] == [1, 1, 2, 3, 4]
    assert math.isnan(quantile_of([], 0.5))


def test_the_pools_counters_add_up_and_their_peaks_do_not() -> None:
    total = a_result().total
    assert (total.busy, total.peak_kv_use) == (3.0, 0.5)


def test_runs_are_told_apart_by_workflow_and_tenant() -> None:
    result = a_result(1.0, 2.0)
    assert len(result.of(workflow="w")) == 2
    assert not result.of(tenant="t", workflow="another")
    assert not result.of(tenant="another")
