"""What holds for all tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings

# The same examples each time, so that a change is to blame for what fails. How long one takes says how busy the
# machine is. `pytest --hypothesis-profile=search` looks for others.
settings.register_profile("search", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("cortex", settings.get_profile("search"), derandomize=True, database=None)
settings.load_profile("cortex")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Leave out of the coverage what takes long because of it and adds nothing to it: computations of a test that is
    marked `untraced`, and the processes of a gateway where they are not what is tested (`traced`)."""
    untraced = item.get_closest_marker("untraced") is not None
    aside = "gateway" in item.path.parts and item.get_closest_marker("traced") is None
    with _without_trace(untraced), _without_variables(untraced or aside):
        return (yield)


@contextmanager
def _without_trace(wanted: bool) -> Iterator[None]:
    trace = sys.gettrace()
    if wanted:
        sys.settrace(None)
    yield
    if wanted:
        sys.settrace(trace)


@contextmanager
def _without_variables(wanted: bool) -> Iterator[None]:
    with mock.patch.dict(os.environ):
        for name in ("COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG") if wanted else ():
            os.environ.pop(name, None)
        yield
