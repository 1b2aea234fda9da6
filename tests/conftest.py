"""What holds for all tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from unittest import mock

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Leave a test that is marked so out of the coverage, which makes long computations three times as long."""
    if item.get_closest_marker("untraced") is None:
        return (yield)
    trace = sys.gettrace()
    sys.settrace(None)
    with mock.patch.dict(os.environ):
        for name in ("COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG"):  # nor are its processes
            os.environ.pop(name, None)
        try:
            return (yield)
        finally:
            sys.settrace(trace)
