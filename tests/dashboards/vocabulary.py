"""The names that a query may use: all series of a gateway, of its process, and of the engines behind it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from backends.emulated.metrics import Metrics as EngineMetrics
from backends.emulated.model import Engine
from backends.emulated.options import EmulatedOptions
from gateway.metrics import METRICS
from tests.dashboards.promql import TARGET, asked

Vocabulary = Mapping[str, frozenset[str]]
"""Labels by the name of the series."""


def known() -> Vocabulary:
    """What is declared, and what the pages of a process and of an engine (in vLLM's names) have."""
    process = CollectorRegistry()
    ProcessCollector(registry=process)
    GCCollector(registry=process)
    engine = EngineMetrics("model", Engine(EmulatedOptions().engine_config()))
    return {**dict(_declared()), **of_a_page(generate_latest(process)), **of_a_page(engine.render())}


def mistakes(expr: str, vocabulary: Vocabulary) -> Iterator[str]:
    """What is wrong with an expression: that it does not parse, or asks for what is not there."""
    try:
        found = asked(expr)
    except ValueError as error:
        yield str(error)
        return
    for one in found:
        if one.metric not in vocabulary:
            yield f"there is no metric {one.metric}"
        elif missing := one.labels - vocabulary[one.metric] - TARGET:
            yield f"{one.metric} has no label {', '.join(sorted(missing))}"


def of_a_page(text: bytes) -> Vocabulary:
    """The series of a `/metrics` page."""
    return {
        sample.name: frozenset(sample.labels)
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def _declared() -> Iterator[tuple[str, frozenset[str]]]:
    for metric in METRICS:
        labels = frozenset(metric.labels)
        if metric.kind == "histogram":
            yield f"{metric.name}_bucket", labels | {"le"}
            yield f"{metric.name}_sum", labels
            yield f"{metric.name}_count", labels
        else:
            yield metric.name, labels
