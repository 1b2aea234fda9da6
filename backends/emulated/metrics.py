"""What the engine tells Prometheus: vLLM's names and labels, and a few of its own that begin with `emulated:`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from backends.emulated.driver import Line
from backends.emulated.model import Engine

SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000)
HISTOGRAMS = {
    "time_to_first_token_seconds": (SECONDS, "Arrival to first token."),
    "request_time_per_output_token_seconds": (SECONDS, "Mean time between the tokens of a request."),
    "e2e_request_latency_seconds": (SECONDS, "Arrival to last token."),
    "request_queue_time_seconds": (SECONDS, "Arrival to the first step with the request."),
    "request_inference_time_seconds": (SECONDS, "First step to last token."),
    "request_prefill_time_seconds": (SECONDS, "First step to first token."),
    "request_decode_time_seconds": (SECONDS, "First token to last token."),
    "request_prompt_tokens": (TOKENS, "Prompt tokens of a request."),
    "request_generation_tokens": (TOKENS, "Tokens generated for a request."),
    "request_prefill_kv_computed_tokens": (TOKENS, "Prompt tokens of a request that were not cached."),
}


class _Totals(Collector):
    """Reads the engine's own counters when it is asked, so that no step pays for it."""

    def __init__(self, engine: Engine, labels: dict[str, str], asleep: Callable[[], int | None]) -> None:
        self._engine = engine
        self._asleep = asleep
        self._labels = labels

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        engine, config = self._engine, self._engine.config
        yield self._gauge("vllm:num_requests_running", "Requests in execution.", engine.running)
        yield self._gauge("vllm:num_requests_waiting", "Requests that wait.", engine.waiting)
        yield self._gauge("vllm:kv_cache_usage_perc", "KV blocks held by live requests, 0 to 1.", engine.kv_use)
        yield self._counter("vllm:prefix_cache_queries", "Tokens looked up in the cache.", engine.prefix_queries)
        yield self._counter("vllm:prefix_cache_hits", "Tokens found in the cache.", engine.prefix_hits)
        yield self._counter("vllm:prompt_tokens", "Prompt tokens processed.", engine.prompt_tokens)
        yield self._counter("vllm:generation_tokens", "Tokens generated.", engine.generation_tokens)
        yield self._counter("vllm:num_preemptions", "Preemptions.", engine.preemptions)
        yield self._gauge("emulated:kv_blocks_peak", "Most blocks held at one time.", engine.blocks.peak)
        yield self._gauge("emulated:kv_blocks_resident", "Blocks with reusable content.", engine.blocks.resident)
        yield self._counter(
            "emulated:prefill_tokens_computed",
            "Prefill tokens computed, those after preemptions too.",
            engine.prefill_tokens_computed,
        )
        told = self._labels | {
            "block_size": str(config.block_size),
            "num_gpu_blocks": str(config.num_gpu_blocks),
            "enable_prefix_caching": "True",
        }
        yield self._sleep_state(self._asleep())
        info = GaugeMetricFamily("vllm:cache_config_info", "The cache's configuration.", labels=list(told))
        info.add_metric(list(told.values()), 1)
        yield info

    def _sleep_state(self, level: int | None) -> GaugeMetricFamily:
        labels = [*self._labels, "sleep_state"]
        family = GaugeMetricFamily("vllm:engine_sleep_state", "1 at the state that it is in.", labels=labels)
        for state, at in (("awake", None), ("weights_offloaded", 1), ("discard_all", 2)):
            family.add_metric([*self._labels.values(), state], level == at)
        return family

    def _gauge(self, name: str, meaning: str, value: float) -> GaugeMetricFamily:
        family = GaugeMetricFamily(name, meaning, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), value)
        return family

    def _counter(self, name: str, meaning: str, value: float) -> CounterMetricFamily:
        family = CounterMetricFamily(name, meaning, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), value)
        return family


class Metrics:
    """The engine's registry; `observe` is told of each request that came to its end, `asleep` the level of sleep."""

    def __init__(self, model: str, engine: Engine, asleep: Callable[[], int | None] = lambda: None) -> None:
        labels = {"engine": "0", "model_name": model}
        self._registry = CollectorRegistry()
        self._registry.register(_Totals(engine, labels, asleep))
        self._histograms = {
            name: Histogram(f"vllm:{name}", meaning, list(labels), registry=self._registry, buckets=buckets).labels(
                **labels
            )
            for name, (buckets, meaning) in HISTOGRAMS.items()
        }
        success = Counter(
            "vllm:request_success", "Requests by their end.", [*labels, "finished_reason"], registry=self._registry
        )
        self._success = {
            reason: success.labels(**labels, finished_reason=reason)
            for reason in ("stop", "length", "abort", "error")
        }

    def observe(self, line: Line, now: float) -> None:
        admitted = now if line.admitted is None else line.admitted
        first = now if line.first is None else line.first
        sequence = line.sequence
        seen = {
            "time_to_first_token_seconds": first - line.arrived,
            "e2e_request_latency_seconds": now - line.arrived,
            "request_queue_time_seconds": admitted - line.arrived,
            "request_inference_time_seconds": now - admitted,
            "request_prefill_time_seconds": first - admitted,
            "request_decode_time_seconds": now - first,
            "request_prompt_tokens": sequence.prompt,
            "request_generation_tokens": sequence.output,
            "request_prefill_kv_computed_tokens": sequence.prompt - line.cached,
        }
        if sequence.output > 1:
            seen["request_time_per_output_token_seconds"] = (now - first) / (sequence.output - 1)
        for name, value in seen.items():
            self._histograms[name].observe(value)
        # vLLM's engine knows nothing of tool calls: to it such an answer stopped by itself.
        self._success[line.finish if line.finish in ("length", "abort") else "stop"].inc()

    def render(self) -> bytes:
        return generate_latest(self._registry)
