"""SQL: where answers came from and what that saved, what ran ahead of its call, and how workers end."""

from __future__ import annotations

from gateway.instruments.series import Instruments
from gateway.settings import Config

WORKER_ENDS = ("killed", "crashed", "retired")


class SqlMetrics:
    """What the desk, the advances and the workers tell."""

    def __init__(self, made: Instruments, config: Config) -> None:
        self._answers = made.counter("cortex_sql_answers_total")
        self._saved = made.counter("cortex_sql_saved_seconds_total")()
        self._worker_ends = made.counter("cortex_sql_worker_ends_total")
        self._ahead = made.counter("cortex_sql_ahead_total")
        self._ahead_saved = made.counter("cortex_sql_ahead_saved_seconds_total")()
        for name, pool in config.pools.items():
            for reason in WORKER_ENDS if pool.kind == "sql" else ():
                self._worker_ends(name, reason)

    def answered(self, source: str, saved: float = 0.0) -> None:
        """Count where an answer came from: hit, joined, miss, stream, bypass (may not be kept) or refused; and the
        seconds of a worker that it did not take."""
        self._answers(source).inc()
        self._saved.inc(saved)

    def worker_ended(self, engine: str, reason: str) -> None:
        """Count a process that is no more: killed by its limits, crashed, or retired with its engine."""
        self._worker_ends(engine.rpartition("/")[0], reason).inc()

    def sql_ahead(self, fate: str) -> None:
        """Count what became of a statement ahead of its call: started, hit, joined, wasted or skipped."""
        self._ahead(fate).inc()

    def sql_saved(self, seconds: float) -> None:
        self._ahead_saved.inc(seconds)
