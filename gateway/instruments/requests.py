"""Requests as their clients meet them, and the gateway's own part in them."""

from __future__ import annotations

from gateway.instruments.series import Instruments


class RequestMetrics:
    """What endpoints have answered. Their names, and the codes of errors, are fixed lists."""

    def __init__(self, made: Instruments) -> None:
        self._requests = made.counter("cortex_requests_total")
        self._cancelled = made.counter("cortex_cancellations_total")
        self._errors = made.counter("cortex_errors_total")
        self._seconds = made.histogram("cortex_request_seconds")
        self._own = made.histogram("cortex_gateway_seconds")
        self._lag = made.histogram("cortex_loop_lag_seconds")
        self._identity = made.counter("cortex_identity_total")
        self._keys = made.gauge("cortex_keys")
        self._broken = made.gauge("cortex_keys_file_broken")

    def answered(self, endpoint: str, status: int, seconds: float, own: float) -> None:
        """Count an answer; `own` is the part of its time in which it waited for nobody."""
        self._requests(endpoint, str(status)).inc()
        self._seconds(endpoint).observe(seconds)
        self._own(endpoint).observe(own)

    def cancelled(self, endpoint: str) -> None:
        self._cancelled(endpoint).inc()

    def failed(self, endpoint: str, reason: str) -> None:
        """Count an error that a client was given, by its code."""
        self._errors(endpoint, reason).inc()

    def named(self, source: str) -> None:
        """Count which channel told whose call it was."""
        self._identity(source).inc()

    def measure(self, *, keys: int, broken: bool) -> None:
        """Note how many API keys are known, and whether their file is of no effect as it is."""
        self._keys().set(keys)
        self._broken().set(broken)

    def late(self, seconds: float) -> None:
        """Note by how much the event loop was late."""
        self._lag().observe(seconds)
