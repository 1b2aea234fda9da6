"""What is kept for reuse: completions, artifacts, and the Redis behind them."""

from __future__ import annotations

from gateway.instruments.series import Instruments
from gateway.settings import Config
from policies.artifacts import Shelf


class StoreMetrics:
    """What stores tell of themselves."""

    def __init__(self, made: Instruments, config: Config) -> None:
        self._completions = made.counter("cortex_completion_lookups_total")
        self._completions_saved = made.counter("cortex_completion_saved_seconds_total")
        self._wasted = made.counter("cortex_wasted_tokens_total")
        self._lookups = made.counter("cortex_artifact_lookups_total")
        self._evictions = made.counter("cortex_artifact_evictions_total")()
        self._redis = made.counter("cortex_redis_failures_total")
        self._artifacts = made.gauge("cortex_artifacts")()
        self._bytes = made.gauge("cortex_artifact_bytes")()
        self._readers = made.gauge("cortex_state_readers")()
        self._dropped = made.gauge("cortex_journal_dropped")()
        for name, pool in config.pools.items():
            if pool.kind == "llm":
                self._wasted(name)

    def completion_looked_up(self, pool: str, cache: str) -> None:
        """Count where a deterministic completion came from: hit, joined or miss."""
        self._completions(pool, cache).inc()

    def completion_saved(self, pool: str, seconds: float) -> None:
        """Add the seconds of an engine that one which was recalled or joined did not take."""
        self._completions_saved(pool).inc(seconds)

    def completion_wasted(self, pool: str, tokens: int) -> None:
        """Add what an engine of this pool has written of a completion that nobody read to its end."""
        self._wasted(pool).inc(tokens)

    def artifact_looked_up(self, tier: str, result: str) -> None:
        """Count a look into memory or Redis: hit or miss."""
        self._lookups(tier, result).inc()

    def artifact_evicted(self, count: int) -> None:
        self._evictions.inc(count)

    def redis_failed(self, reason: str) -> None:
        """Count what Redis was to be asked: timeout, connection, broken, or skipped because of those."""
        self._redis(reason).inc()

    def measure(self, shelf: Shelf, *, readers: int, journal_dropped: int) -> None:
        """Set the gauges to how things stand."""
        self._artifacts.set(len(shelf))
        self._bytes.set(shelf.bytes)
        self._readers.set(readers)
        self._dropped.set(journal_dropped)
