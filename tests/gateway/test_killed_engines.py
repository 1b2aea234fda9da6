"""Engines that are killed under load: no call is lost without a word, and nothing is left of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.kill import emulated, storm
from tests.gateway.recorder import Exchange, recording
from tests.gateway.support import CHAT, attached, chat, running, written


@pytest.mark.slow
async def test_killed_engines_are_replaced_and_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.vllm.KEEP_ALIVE", 0.4)
    result = await storm(emulated(20), engines=10, kills=6, at_once=2, every=0.2, tokens=4)
    assert result.seen["answered"] > 20
    assert result.failed > 0
    assert result.seen["lost"] == 0
    assert result.after.within(result.before), (result.before, result.after)
    assert not result.listening


@pytest.mark.parametrize(("healthy", "statuses"), [(False, [200] * 4), (True, [500, 200, 500, 200])])
async def test_a_500_of_a_server_whose_engine_has_died_is_no_answer(
    tmp_path: Path, healthy: bool, statuses: list[int]
) -> None:
    async def fail(exchange: Exchange) -> None:
        await exchange.whole(b'{"error": {"message": "inside"}}', status=500)

    async with recording(fail) as dead, recording() as alive:
        policies = {"scorers": [{"name": "round_robin"}]}
        text = written({"default": attached(dead.url, alive.url)}, policies=policies)
        async with running(tmp_path, text, report_every=60) as up:
            dead.healthy = healthy
            got = [(await up.http.post(CHAT, json=chat(f"call {number}"))).status_code for number in range(4)]
            assert sorted(got) == sorted(statuses)
            assert dead.seen
