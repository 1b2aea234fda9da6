"""Counters, gauges and histograms, and the names that clients choose as labels of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from gateway.config import Config
from gateway.instruments.labels import OTHER, Places
from gateway.instruments.series import Instruments, Metric
from gateway.metrics import Metrics
from policies.calls import Call, Outcome
from policies.events import Arrived, Finished, Start
from policies.runs import Runs

LIST = (
    Metric("some_total", "counter", "Some.", ("kind",)),
    Metric("level", "gauge", "A level."),
    Metric("wait_seconds", "histogram", "A wait.", ("kind",), (-1.0, 0.0, 2.5)),
)


def made() -> tuple[Instruments, Callable[..., float | None]]:
    registry = CollectorRegistry()

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, labels)

    return Instruments(LIST, registry), value


def test_a_counter_adds_up_by_its_labels_and_never_falls() -> None:
    instruments, value = made()
    some = instruments.counter("some_total")
    some("a").inc()
    some("a").inc(2.5)
    some("a").inc(-4)
    some("b").follow(7)
    assert (value("some_total", kind="a"), value("some_total", kind="b")) == (3.5, 7)


def test_what_has_no_labels_is_there_from_the_start() -> None:
    instruments, value = made()
    assert value("level") == 0
    instruments.gauge("level")().set(-3)
    assert value("level") == -3


def test_a_series_ends_when_it_is_cleared() -> None:
    instruments, value = made()
    instruments.counter("some_total")("a").inc()
    instruments.counter("some_total").clear()
    assert value("some_total", kind="a") is None


@pytest.mark.parametrize(
    ("seen", "counts"),
    [(-2.0, [1, 1, 1, 1]), (-1.0, [1, 1, 1, 1]), (0.1, [0, 0, 1, 1]), (2.5, [0, 0, 1, 1]), (9.0, [0, 0, 0, 1])],
)
def test_a_histogram_counts_what_is_at_most_its_bounds(seen: float, counts: list[int]) -> None:
    instruments, value = made()
    instruments.histogram("wait_seconds")("a").observe(seen)
    ends = ("-1.0", "0.0", "2.5", "+Inf")
    assert [value("wait_seconds_bucket", kind="a", le=end) for end in ends] == counts
    assert (value("wait_seconds_sum", kind="a"), value("wait_seconds_count", kind="a")) == (seen, 1)


def test_names_that_are_not_listed_or_of_another_kind_are_refused() -> None:
    instruments, _ = made()
    for look in (instruments.counter, instruments.gauge, instruments.histogram):
        with pytest.raises(KeyError):
            look("other_total")
    with pytest.raises(KeyError):
        instruments.gauge("some_total")


def test_what_is_configured_keeps_its_name_after_a_flood() -> None:
    places = Places([("shop", "generate"), ("shop", "")], most=10)
    for number in range(1000):
        places.pair(f"w{number}", f"s{number}")
    assert places.pair("shop", "generate") == ("shop", "generate")
    assert places.pair("shop", "another") == ("shop", OTHER)
    assert places.pair("w999", "generate") == (OTHER, OTHER)
    assert places.workflow("shop") == "shop"
    assert places.pair("", "") == ("", "")


def test_the_names_that_came_first_stay_apart() -> None:
    places = Places([], most=3)
    assert places.workflow("first") == "first"
    assert places.pair("first", "a") == ("first", "a")
    for number in range(10):
        places.pair("first", f"s{number}")
    assert places.pair("first", "a") == ("first", "a")
    assert places.pair("first", "s9") == ("first", OTHER)


def test_stages_of_one_workflow_cannot_take_the_names_of_others() -> None:
    places = Places([], most=5)
    for number in range(100):
        places.pair("greedy", f"s{number}")
    assert places.pair("modest", "only") == ("modest", OTHER)


@pytest.mark.slow
def test_of_a_hundred_thousand_names_a_label_has_at_most_101() -> None:
    pool = {"model": "m", "backend": {"name": "emulated"}}
    metrics = Metrics(Config.model_validate({"pools": {"p": pool}}))
    runs = Runs(limit=1000, idle=60.0)
    runs.watch(metrics.runs.ended)
    outcome = Outcome(fate="ok", total=1.0, first_token=0.5, output_tokens=9, prompt_tokens=90, cached_tokens=80)
    for number in range(100_000):
        name = f'{number} "\\ é'
        call = Call(
            id=name, pool="p", run=name, arrived=0.0, workflow=f"w{number % 70_000}{name}", stage=name, final=True
        )
        start = Start(
            call=name, attempt=number, engine="p/0", bucket=0, queued=0.1, slack=1.0, visit=1, expected_cached=0
        )
        metrics.watch(Arrived(call=call), [start])
        if number % 20 == 0:
            runs.enter(call, None, 0.0)
            runs.leave(call, "ok", 1.0, service=1.0)
        metrics.watch(Finished(call=name, attempt=number, outcome=outcome), [])
    seen: dict[tuple[str, str], set[str]] = {}
    samples = 0
    for family in text_string_to_metric_families(generate_latest(metrics.registry).decode()):
        samples += len(family.samples)
        for sample in family.samples:
            for label, value in sample.labels.items():
                seen.setdefault((family.name, label), set()).add(value)
    assert max(len(values) for values in seen.values()) <= 101
    assert len(seen["cortex_stage_service_seconds", "stage"]) > 90
    assert samples < 30_000
    assert metrics.registry.get_sample_value("cortex_stage_output_tokens_total", {"workflow": OTHER, "stage": OTHER})
