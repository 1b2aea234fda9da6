"""What a hosted model owes, by LiteLLM itself, which speaks to an emulated server as to three providers."""

from __future__ import annotations

import pytest

from tests.backends.hosted import *  # noqa: F403 - the tests

pytestmark = pytest.mark.asyncio(loop_scope="module")
