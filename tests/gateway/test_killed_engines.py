"""Engines that are killed under load: no call is lost without a word, and nothing is left of them."""

from __future__ import annotations

import pytest

from bench.kill import emulated, storm


@pytest.mark.untraced
async def test_killed_engines_are_replaced_and_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.vllm.KEEP_ALIVE", 0.4)
    result = await storm(emulated(20), engines=10, kills=6, at_once=2, every=0.2, tokens=4)
    assert result.seen["answered"] > 20
    assert result.failed > 0
    assert result.seen["lost"] == 0
    assert result.after.within(result.before), (result.before, result.after)
    assert not result.listening
