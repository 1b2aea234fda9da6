"""The engines are asked how they are; one that stays silent is given up and replaced."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from unittest import mock

import pytest

from backends.base import EngineReport
from backends.emulated.options import EmulatedOptions
from backends.emulated.server import serve
from gateway.monitor import SILENT_MOST
from policies.events import Event
from tests.gateway.recorder import recording
from tests.gateway.shop import FAST
from tests.gateway.support import MODEL, Running, attached, chat, children, metric, running, settled, until, written

CHAT = "/v1/chat/completions"
CALM = 60.0
"""Seconds between two reports: the test asks for them itself."""


def engine_names(up: Running) -> set[str]:
    return {engine.name for engine in up.gateway.runtime.dispatcher.fleet}


async def test_a_killed_engine_is_replaced_at_once_and_its_pools_calls_wait_for_the_new_one(tmp_path: Path) -> None:
    before = children("backends.emulated")
    pool = {"model": MODEL, "backend": {"name": "emulated", "time_scale": 1000.0}}
    async with running(tmp_path, written({"default": pool}), report_every=CALM) as up:
        (pid,) = children("backends.emulated") - before
        os.kill(pid, signal.SIGKILL)
        await until(lambda: engine_names(up) == {"default/1"}, "the news of its end")
        replies = await asyncio.gather(*(up.http.post(CHAT, json=chat(max_tokens=2)) for _ in range(5)))
        assert [reply.status_code for reply in replies] == [200] * 5
        (other,) = children("backends.emulated") - before
        assert other != pid
        assert metric(up.gateway, "cortex_engines", pool="default", state="ready") == 1
        await settled(up.gateway)


async def test_an_engine_that_stays_silent_is_given_up_and_tried_again_later(tmp_path: Path) -> None:
    async with recording() as engine:
        engine.metrics = b""
        async with running(tmp_path, written({"default": attached(engine.url)}), report_every=CALM) as up:
            engine.healthy, engine.metrics = False, None
            for _ in range(SILENT_MOST - 1):
                await up.gateway.monitor.poll()
                assert engine_names(up) == {"default/0"}
            await up.gateway.monitor.poll()
            assert "default/0" not in engine_names(up)
            engine.healthy, engine.metrics = True, b""
            await until(lambda: not up.gateway.runtime.ready(), "the engine's return")
            await up.gateway.monitor.poll()
            assert "default/0" not in up.gateway.monitor.reports
            assert (await up.http.post(CHAT, json=chat(max_tokens=2))).status_code == 200


async def test_an_engine_that_answers_again_in_time_is_kept(tmp_path: Path) -> None:
    async with recording() as engine:
        engine.metrics = b""
        async with running(tmp_path, written({"default": attached(engine.url)}), report_every=CALM) as up:
            for _ in range(3):
                engine.healthy, engine.metrics = False, None
                for _ in range(SILENT_MOST - 1):
                    await up.gateway.monitor.poll()
                engine.healthy, engine.metrics = True, b""
                await up.gateway.monitor.poll()
            assert engine_names(up) == {"default/0"}


async def test_what_an_engine_reports_reaches_the_scheduler_and_the_metrics(tmp_path: Path) -> None:
    async with recording() as engine:
        engine.metrics = (
            b'vllm:kv_cache_usage_perc{model_name="m"} 0.25\nvllm:num_requests_running{model_name="m"} 3\n'
            b'vllm:num_requests_waiting{model_name="m"} 2\nvllm:prompt_tokens_total{model_name="m"} 77\n'
        )
        async with running(tmp_path, written({"default": attached(engine.url)}), report_every=CALM) as up:
            (state,) = up.gateway.runtime.dispatcher.fleet
            assert (state.kv_use, state.reported_running, state.reported_waiting) == (0.25, 3, 2)
            assert metric(up.gateway, "cortex_engine_kv_use_ratio", engine="default/0") == 0.25
            assert up.gateway.monitor.reports["default/0"].counters == {"prompt_tokens": 77}


async def test_a_live_engines_memory_is_seen_while_it_works(tmp_path: Path) -> None:
    async with (
        serve(EmulatedOptions(decode_step=0.02)) as server,
        running(tmp_path, written({"default": attached(server.url)}), report_every=0.05) as up,
    ):
        (state,) = up.gateway.runtime.dispatcher.fleet
        asking = asyncio.create_task(up.http.post(CHAT, json=chat("x" * 2000, max_tokens=100)))
        await until(lambda: state.kv_use > 0, "memory in use")
        assert state.reported_running == 1
        assert (await asking).status_code == 200
        await until(lambda: state.kv_use == 0 and state.reported_running == 0, "an idle engine")
        await settled(up.gateway, server)


async def test_the_watch_goes_on_whatever_goes_wrong_in_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with recording() as engine:
        engine.metrics = b""
        async with running(tmp_path, written({"default": attached(engine.url)}), report_every=0.02) as up:
            runtime = up.gateway.runtime
            original, broken = runtime.handle, [True]

            def handle(event: Event) -> None:
                if broken[0]:
                    raise RuntimeError("a defect")
                original(event)

            runtime.handle = handle  # type: ignore[method-assign]
            await until(lambda: "poll failed" in caplog.text, "the defect in the log")
            broken[0] = False
            engine.metrics = b"vllm:kv_cache_usage_perc 0.5\n"
            (state,) = runtime.dispatcher.fleet
            await until(lambda: state.kv_use == 0.5, "the next report")


async def test_an_idle_engine_is_not_forgotten_when_others_go(tmp_path: Path) -> None:
    async with serve(FAST) as one, recording() as two:
        two.metrics = b""
        async with running(tmp_path, written({"default": attached(one.url, two.url)}), report_every=CALM) as up:
            two.healthy, two.metrics = False, None
            for _ in range(SILENT_MOST):
                await up.gateway.monitor.poll()
            assert "default/0" in engine_names(up)
            assert "default/1" not in engine_names(up)
            assert (await up.http.post(CHAT, json=chat(max_tokens=2))).status_code == 200
            await settled(up.gateway, one)


async def test_a_busy_engine_that_answers_calls_is_not_given_up_for_late_reports(tmp_path: Path) -> None:
    async with recording() as engine:
        engine.metrics = b""
        async with running(tmp_path, written({"default": attached(engine.url)}), report_every=CALM) as up:
            engine.healthy, engine.metrics = False, None
            asked = up.gateway.runtime.engines["default/0"]
            report = asked.report

            async def late() -> EngineReport:
                assert (await up.http.post(CHAT, json=chat(max_tokens=2))).status_code == 200
                return await report()

            with mock.patch.object(type(asked), "report", side_effect=late):
                for _ in range(SILENT_MOST + 1):
                    await up.gateway.monitor.poll()
            assert engine_names(up) == {"default/0"}
            for _ in range(SILENT_MOST):
                await up.gateway.monitor.poll()
            assert "default/0" not in engine_names(up)
