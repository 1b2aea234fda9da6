"""What is told of engines that do not start."""

from __future__ import annotations

from backends.base import BackendError
from gateway.starts import Failing, Starts


def test_failed_starts_are_counted_in_a_row_and_by_pool() -> None:
    starts, away = Starts(), BackendError("the engine is not reachable", trouble="refused", retryable=True)
    for now in (1.0, 2.0):
        starts.failed("a", away, now)
    starts.failed("b", away, 3.0)
    assert starts.failing("a") == Failing(starts=2, reason="the engine is not reachable", at=2.0)
    starts.succeeded("a")
    starts.succeeded("never failed")
    assert (starts.failing("a"), starts.failing("b")) == (None, Failing(starts=1, reason=str(away), at=3.0))


def test_of_an_error_that_no_backend_has_worded_only_its_kind_is_told() -> None:
    starts = Starts()
    starts.failed("a", OSError("http://10.0.0.7:8000 is secret"), 1.0)
    found = starts.failing("a")
    assert found is not None
    assert found.reason == "OSError (the log says more)"
