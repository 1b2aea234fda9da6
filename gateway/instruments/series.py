"""Counters, gauges and histograms of one event loop: prometheus_client's to look at, and without its locks.

A call makes some twenty entries. The library's own take a lock and look their labels up each time, which costs four
times as much.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Generic, Literal, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Shown
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class Metric:
    """What is declared of a metric. A counter's name ends in `_total`; `buckets` are a histogram's upper bounds."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


class Counter:
    """One series of a counter."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        """Add; what is negative would be taken for a restart, and is ignored."""
        if amount > 0.0:
            self.value += amount

    def follow(self, total: float) -> None:
        """Be what is counted elsewhere."""
        self.value = total


class Gauge:
    """One series of a gauge."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def set(self, value: float) -> None:
        self.value = value


class Histogram:
    """One series of a histogram."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


S = TypeVar("S", Counter, Gauge, Histogram)


class Family(Collector, Generic[S]):
    """A metric: its series, each by the values of its labels in their order. Without labels it has one from the
    start. Whoever calls it bounds the values (`gateway.instruments.labels`)."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self._series: dict[tuple[str, ...], S] = {}
        if not metric.labels:
            self()

    def __call__(self, *values: str) -> S:
        """The series of these values, which it makes where there is none."""
        series = self._series.get(values)
        if series is None:
            assert len(values) == len(self.metric.labels)
            series = self._series[values] = self._made()
        return series

    def clear(self) -> None:
        """End all series."""
        self._series.clear()

    def _made(self) -> S:
        raise NotImplementedError


class Counters(Family[Counter]):
    """A counter with its series."""

    def _made(self) -> Counter:
        return Counter()

    def collect(self) -> Iterator[Shown]:
        shown = CounterMetricFamily(self.metric.name, self.metric.help, labels=self.metric.labels)
        for values, series in self._series.items():
            shown.add_metric(values, series.value)
        yield shown


class Gauges(Family[Gauge]):
    """A gauge with its series."""

    def _made(self) -> Gauge:
        return Gauge()

    def collect(self) -> Iterator[Shown]:
        shown = GaugeMetricFamily(self.metric.name, self.metric.help, labels=self.metric.labels)
        for values, series in self._series.items():
            shown.add_metric(values, series.value)
        yield shown


class Histograms(Family[Histogram]):
    """A histogram with its series."""

    def _made(self) -> Histogram:
        return Histogram(self.metric.buckets)

    def collect(self) -> Iterator[Shown]:
        # Not the library's HistogramMetricFamily: of a histogram whose values may be negative it leaves the sum out.
        name = self.metric.name
        shown = Shown(name, self.metric.help, "histogram")
        ends = [*map(floatToGoString, self.metric.buckets), "+Inf"]
        for values, series in self._series.items():
            labels = dict(zip(self.metric.labels, values, strict=True))
            for end, count in zip(ends, accumulate(series.counts), strict=True):
                shown.add_sample(f"{name}_bucket", {**labels, "le": end}, count)
            shown.add_sample(f"{name}_count", labels, sum(series.counts))
            shown.add_sample(f"{name}_sum", labels, series.sum)
        yield shown


class Instruments:
    """The metrics of a list, each in the registry and to be had by its name. Names that are not listed raise."""

    def __init__(self, metrics: Iterable[Metric], registry: CollectorRegistry) -> None:
        self._counters: dict[str, Counters] = {}
        self._gauges: dict[str, Gauges] = {}
        self._histograms: dict[str, Histograms] = {}
        for metric in metrics:
            match metric.kind:
                case "counter":
                    registry.register(self._counters.setdefault(metric.name, Counters(metric)))
                case "gauge":
                    registry.register(self._gauges.setdefault(metric.name, Gauges(metric)))
                case "histogram":
                    registry.register(self._histograms.setdefault(metric.name, Histograms(metric)))

    def counter(self, name: str) -> Counters:
        return self._counters[name]

    def gauge(self, name: str) -> Gauges:
        return self._gauges[name]

    def histogram(self, name: str) -> Histograms:
        return self._histograms[name]
