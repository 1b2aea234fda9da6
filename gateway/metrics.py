"""The gateway's own metrics: the one list of them, in a registry of their own.

Every label takes its values from the configuration or from a fixed list: a client cannot make new series.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from policies.events import Action, Event, Failed, Finished, Recalled, Refused, Start

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)


class Metrics:
    """Everything that `/metrics` shows. `refresh` sets the gauges when it is asked."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.refresh: Callable[[], None] = lambda: None
        counter = partial(Counter, registry=self.registry)
        gauge = partial(Gauge, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry)
        self._requests = counter("cortex_requests_total", "Requests answered.", ["endpoint", "status"])
        self._cancelled = counter("cortex_cancellations_total", "Requests whose client left first.", ["endpoint"])
        self._seconds = histogram("cortex_request_seconds", "Time of a request.", ["endpoint"], buckets=_SECONDS)
        self._queue = histogram("cortex_queue_seconds", "Wait of a call for its engine.", ["pool"], buckets=_SECONDS)
        self._slack = histogram(
            "cortex_slack_at_dispatch_seconds",
            "Slack of a call's run when it was sent.",
            ["pool"],
            buckets=(-60, -30, -10, -5, -2, -1, 0, 1, 2, 5, 10, 30, 60),
        )
        self._ended = counter("cortex_calls_total", "Calls ended, by outcome and source.", ["outcome", "source"])
        self._attempts = counter("cortex_attempts_total", "Attempts sent.", ["pool"])
        self._failures = counter("cortex_attempt_failures_total", "Attempts failed.", ["reason"])
        self._refusals = counter("cortex_refusals_total", "Calls let go unserved.", ["reason"])
        self._identity = counter("cortex_identity_total", "Calls by what named them.", ["source"])
        self._sql = counter("cortex_sql_answers_total", "SQL answers by where from.", ["cache"])
        self._ahead = counter("cortex_sql_ahead_total", "SQL ahead of its call.", ["fate"])
        self._saved = counter("cortex_sql_ahead_saved_seconds_total", "Seconds by which SQL was ahead of its call.")
        self._completions = counter(
            "cortex_completion_lookups_total", "Completions by where from.", ["pool", "cache"]
        )
        self._completions_saved = counter("cortex_completion_saved_seconds_total", "Engine time not taken.", ["pool"])
        self._lookups = counter("cortex_artifact_lookups_total", "Artifacts looked up.", ["tier", "result"])
        self._evictions = counter("cortex_artifact_evictions_total", "Artifacts let go for others.")
        self._redis = counter("cortex_redis_failures_total", "Questions without answer.", ["reason"])
        self.artifacts = gauge("cortex_artifacts", "Artifacts in memory.")
        self.artifact_bytes = gauge("cortex_artifact_bytes", "Their size.")
        self.state_readers = gauge("cortex_state_readers", "Streams of events that are read.")
        self.engines = gauge("cortex_engines", "Engines of a pool.", ["pool", "state"])
        self.waiting = gauge("cortex_waiting_calls", "Calls in a pool's queue.", ["pool"])
        self.running = gauge("cortex_running_calls", "Calls in a pool's engines.", ["pool"])
        self.work = gauge("cortex_committed_work_tokens", "Committed work of a pool.", ["pool"])
        self.kv = gauge("cortex_engine_kv_use_ratio", "KV in use, as the engine says.", ["engine"])
        self.budget = gauge("cortex_engine_budget_tokens", "Committed work that an engine may hold.", ["engine"])
        self.on_loan = gauge("cortex_engine_on_loan_tokens", "Committed work of other pools' calls.", ["engine"])
        self.pressure = gauge("cortex_engine_pressure_ratio", "Share of an engine's time for prompts.", ["engine"])
        self.resident = gauge("cortex_engine_resident_blocks", "KV blocks that an engine says it holds.", ["engine"])
        self.prefix = gauge("cortex_engine_prefix_tokens", "Tokens that an engine is believed to hold.", ["engine"])
        self._predicted = counter("cortex_prefix_predicted_tokens_total", "Tokens expected in cache.", ["index"])
        self._actual = counter("cortex_prefix_cached_tokens_total", "Tokens of the same found in cache.", ["index"])
        self._prefix_error = histogram(
            "cortex_prefix_error_blocks", "How far these were apart.", ["index"], buckets=(0, 1, 2, 4, 8, 16, 64, 256)
        )
        self.gate_window = gauge(
            "cortex_gate_window", "Runs that may be under way; tokens of their contexts (pause_restore)."
        )
        self.gate_active = gauge("cortex_gate_active", "Runs that the gate has let through.")
        self.gate_parked = gauge("cortex_gate_parked", "Calls parked with their runs.", ["pool"])
        # A series by its labels, found once: the library looks it up slowly, and short requests feel that.
        self._request = cache(self._requests.labels)
        self._second = cache(self._seconds.labels)
        self._end = cache(self._ended.labels)
        self._name = cache(self._identity.labels)
        self._answer = cache(self._sql.labels)
        self.runs = gauge("cortex_runs", "Runs that are kept track of.")
        self.journal = gauge("cortex_journal_dropped", "Journal steps that were not written.")

    def watch(self, event: Event, actions: list[Action]) -> None:
        """Count what the dispatcher was told and decided."""
        match event:
            case Finished() | Recalled():
                self._end(event.outcome.fate, event.outcome.source).inc()
            case Failed():
                self._failures.labels(event.trouble).inc()
            case _:
                pass
        for action in actions:
            match action:
                case Start():
                    pool = action.engine.rpartition("/")[0]
                    self._attempts.labels(pool).inc()
                    self._queue.labels(pool).observe(action.queued)
                    if action.slack is not None:
                        self._slack.labels(pool).observe(action.slack)
                case Refused():
                    self._refusals.labels(action.reason).inc()
                case _:
                    pass

    def answered(self, endpoint: str, status: int, seconds: float) -> None:
        self._request(endpoint, str(status)).inc()
        self._second(endpoint).observe(seconds)

    def named(self, source: str) -> None:
        """Count which channel told whose call it was."""
        self._name(source).inc()

    def sql_answered(self, source: str) -> None:
        """Count where a SQL answer came from: hit, joined, miss, bypass (may not be kept) or refused."""
        self._answer(source).inc()

    def sql_ahead(self, fate: str) -> None:
        """Count what became of a statement ahead of its call: started, hit, joined, wasted or skipped."""
        self._ahead.labels(fate).inc()

    def sql_saved(self, seconds: float) -> None:
        self._saved.inc(seconds)

    def completion_looked_up(self, pool: str, cache: str) -> None:
        """Count where a deterministic completion came from: hit, joined or miss."""
        self._completions.labels(pool, cache).inc()

    def completion_saved(self, pool: str, seconds: float) -> None:
        """Add the seconds of an engine that one which was recalled or joined did not take."""
        self._completions_saved.labels(pool).inc(seconds)

    def artifact_looked_up(self, tier: str, result: str) -> None:
        """Count a look into memory or Redis: hit or miss."""
        self._lookups.labels(tier, result).inc()

    def artifact_evicted(self, count: int) -> None:
        self._evictions.inc(count)

    def redis_failed(self, reason: str) -> None:
        """Count what Redis was to be asked: timeout, connection, broken, or skipped because of those."""
        self._redis.labels(reason).inc()

    def prefix_found(self, index: str, *, predicted: int, actual: int, block: int) -> None:
        """Count how many tokens of a prompt an engine was expected to hold, and did."""
        self._predicted.labels(index).inc(predicted)
        self._actual.labels(index).inc(actual)
        self._prefix_error.labels(index).observe(abs(predicted - actual) / block)

    def cancelled(self, endpoint: str) -> None:
        self._cancelled.labels(endpoint).inc()

    def text(self) -> bytes:
        """The exposition format of all of it."""
        self.refresh()
        return generate_latest(self.registry)
