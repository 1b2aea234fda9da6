"""What `/metrics` says of engines as they come, go, fail and are lent, and of SQL workers and what they did."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from backends.emulated.options import EmulatedOptions
from backends.emulated.server import serve
from gateway.gateway import Gateway
from gateway.instruments.engines import state_of
from policies.events import Drained, Scaled
from policies.pool import EngineLimits, EngineState, EngineStatus
from tests.gateway import shop
from tests.gateway.support import CHAT, MODEL, attached, chat, children, metric, running, settled, until, written

FAST = EmulatedOptions(time_scale=1000.0, faults=True)
DEAF = "SELECT LENGTH(LPAD('x', 1000000000, 'y')) AS n"
ENDLESS = "SELECT count(*) FROM range(100000000) AS a, range(100000) AS b"


def ends(gateway: Gateway, reason: str, pool: str = "default") -> float:
    return metric(gateway, "cortex_engine_ends_total", pool=pool, reason=reason)


def of_engines(gateway: Gateway) -> set[str]:
    """The engines that have series of their own."""
    gateway.metrics.refresh()
    return {
        sample.labels["engine"]
        for family in gateway.metrics.registry.collect()
        for sample in family.samples
        if "engine" in sample.labels
    }


async def test_engines_that_come_and_go_are_counted_and_their_series_end_with_them(tmp_path: Path) -> None:
    before = children("backends.emulated")
    pool = {"model": MODEL, "backend": {"name": "emulated"}, "engines": {"min": 1, "start": 1, "max": 2}}
    async with running(tmp_path, written({"default": pool})) as up:
        gateway = up.gateway
        assert metric(gateway, "cortex_engine_launches_total", pool="default") == 1
        assert (ends(gateway, "retired"), ends(gateway, "failed")) == (0, 0)
        gateway.runtime.handle(Scaled(pool="default", engines=2))
        assert metric(gateway, "cortex_engine_state", engine="default/1", state="starting") == 1
        await until(
            lambda: metric(gateway, "cortex_engine_state", engine="default/1", state="ready") == 1, "an engine"
        )
        assert of_engines(gateway) == {"default/0", "default/1"}
        gateway.runtime.handle(Scaled(pool="default", engines=1))
        assert ends(gateway, "retired") == 1
        assert len(of_engines(gateway)) == 1
        await until(lambda: len(children("backends.emulated") - before) == 1, "one process")
        [pid] = children("backends.emulated") - before
        os.kill(pid, signal.SIGKILL)
        await until(lambda: ends(gateway, "failed") == 1, "a failed engine")
        await until(lambda: metric(gateway, "cortex_engine_launches_total", pool="default") == 3, "another one")
        assert ends(gateway, "retired") == 1, "one that has failed is not retired besides"


async def test_an_engine_that_keeps_failing_is_ejected_and_what_it_failed_is_tried_again(tmp_path: Path) -> None:
    async with (
        serve(FAST) as one,
        serve(FAST) as other,
        running(tmp_path, written({"default": attached(one.url, other.url)}), report_every=60) as up,
    ):
        assert metric(up.gateway, "cortex_engine_ejections_total", pool="default") == 0
        assert metric(up.gateway, "cortex_retries_total", pool="default") == 0
        failing = {"X-Emulated-Fault": "die_before"}  # by whichever engine is tried
        while not metric(up.gateway, "cortex_engine_ejections_total", pool="default"):
            assert metric(up.gateway, "cortex_attempts_total", pool="default") < 30
            await up.http.post(CHAT, json=chat(max_tokens=1, stream=True), headers=failing)
        attempts = metric(up.gateway, "cortex_attempts_total", pool="default")
        calls = metric(up.gateway, "cortex_request_seconds_count", endpoint="chat")
        assert metric(up.gateway, "cortex_retries_total", pool="default") == attempts - calls > 0


@pytest.mark.parametrize(
    ("status", "given", "told"),
    [
        ("ready", {}, "ready"),
        ("ready", {"asleep": True}, "asleep"),
        ("ready", {"ejected_until": 11.0}, "ejected"),
        ("ready", {"ejected_until": 9.0}, "ready"),
        ("starting", {}, "starting"),
        ("draining", {"asleep": True}, "draining"),
        ("gone", {"ejected_until": 11.0}, "gone"),
    ],
)
def test_an_engine_is_in_one_state(status: EngineStatus, given: dict[str, Any], told: str) -> None:
    engine = EngineState(name="p/0", pool="p", limits=EngineLimits(sequences=1), status=status, **given)
    assert state_of(engine, now=10.0) == told


async def test_each_engine_shows_what_it_has_in_hand(tmp_path: Path) -> None:
    slow = EmulatedOptions(decode_step=0.02, max_num_seqs=1)
    async with serve(slow) as server, running(tmp_path, written({"default": attached(server.url)})) as up:
        gateway = up.gateway
        async with httpx.AsyncClient(base_url=up.url, trust_env=False) as http:
            calls = [asyncio.create_task(http.post(CHAT, json=chat(max_tokens=5000))) for _ in range(3)]
            await until(
                lambda: metric(gateway, "cortex_engine_running_calls", engine="default/0") == 3, "three calls"
            )
            assert metric(gateway, "cortex_engine_committed_work_tokens", engine="default/0") > 0
            await until(
                lambda: metric(gateway, "cortex_engine_queued_calls", engine="default/0") == 2, "a queue inside"
            )
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        await settled(gateway, server)
        assert metric(gateway, "cortex_engine_running_calls", engine="default/0") == 0


async def test_calls_on_engines_of_another_pool_are_loans(tmp_path: Path) -> None:
    slow = EmulatedOptions(decode_step=0.01)
    async with serve(slow) as one, serve(slow) as other:
        pools = {"one": attached(one.url, sequences=1), "other": attached(other.url, sequences=1)}
        async with running(tmp_path, written(pools, policies={"layout": "shared"})) as up:
            assert "cortex_loans_total{borrower=" in up.gateway.metrics.text().decode(), "from the start, at 0"
            assert metric(up.gateway, "cortex_usable_engines", pool="one") == 2, "a lender's engine among them"
            assert metric(up.gateway, "cortex_wanted_engines", pool="one") == 1
            body = chat(max_tokens=40) | {"model": "one"}
            replies = await asyncio.gather(*(up.http.post(CHAT, json=body) for _ in range(2)))
            assert {reply.headers["x-workflow-engine"] for reply in replies} == {"one/0", "other/0"}
            assert metric(up.gateway, "cortex_loans_total", pool="other", borrower="one") == 1
            assert metric(up.gateway, "cortex_loans_total", pool="one", borrower="other") == 0
            assert metric(up.gateway, "cortex_attempts_total", pool="other") == 1


async def test_statements_are_counted_by_how_they_ended_and_what_recall_saved(tmp_path: Path) -> None:
    pools = {"warehouse": shop.warehouse(tmp_path, timeout="1s")}
    async with running(tmp_path, written(pools)) as up:
        gateway = up.gateway

        def ran(outcome: str) -> float:
            return metric(gateway, "cortex_sql_runs_total", pool="warehouse", outcome=outcome)

        async def ask(sql: str) -> int:
            return (await up.http.post("/v1/sql", json={"sql": sql})).status_code

        assert 'cortex_sql_runs_total{outcome="timeout",pool="warehouse"} 0.0' in gateway.metrics.text().decode()
        slow = "SELECT count(*) AS n FROM range(300) a, range(1000) b, orders"
        assert [await ask(slow), await ask("SELECT id FROM orders WHERE id < 0"), await ask(shop.MISSPELT)] == [
            200,
            200,
            400,
        ]
        assert (ran("ok"), ran("empty"), ran("error")) == (1, 1, 1)
        assert metric(gateway, "cortex_sql_saved_seconds_total") == 0
        took = metric(gateway, "cortex_sql_seconds_sum", pool="warehouse")
        assert await ask(slow) == 200
        assert ran("ok") == 1, "it was recalled"
        assert 0 < metric(gateway, "cortex_sql_saved_seconds_total") <= took
        assert await ask(ENDLESS) == 504
        assert ran("timeout") == 1
        assert metric(gateway, "cortex_errors_total", endpoint="sql", reason="timeout") == 1
        assert metric(gateway, "cortex_sql_seconds_count", pool="warehouse") == 4


async def test_a_statement_whose_client_leaves_is_cancelled(tmp_path: Path) -> None:
    pools = {"warehouse": shop.warehouse(tmp_path, timeout="20s")}
    async with running(tmp_path, written(pools)) as up:
        async with httpx.AsyncClient(base_url=up.url, trust_env=False) as http:
            call = asyncio.create_task(http.post("/v1/sql", json={"sql": ENDLESS}))
            await until(lambda: metric(up.gateway, "cortex_running_calls", pool="warehouse") == 1, "a statement")
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
        await settled(up.gateway)
        assert metric(up.gateway, "cortex_sql_runs_total", pool="warehouse", outcome="cancelled") == 1


async def test_workers_that_end_are_counted_by_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.sql.engine.GRACE", 0.1)
    before = children("backends.sql.worker")
    pools = {"warehouse": shop.warehouse(tmp_path, timeout="300ms")}
    async with running(tmp_path, written(pools)) as up:
        gateway = up.gateway

        def ended(reason: str) -> float:
            return metric(gateway, "cortex_sql_worker_ends_total", pool="warehouse", reason=reason)

        assert (await up.http.post("/v1/sql", json={"sql": DEAF})).status_code == 504
        assert (ended("killed"), ended("crashed"), ended("retired")) == (1, 0, 0)
        await until(lambda: bool(children("backends.sql.worker") - before), "another worker")
        assert (await up.http.post("/v1/sql", json={"sql": shop.COUNT})).status_code == 200
        [pid] = children("backends.sql.worker") - before
        os.kill(pid, signal.SIGKILL)
        await until(lambda: not children("backends.sql.worker") - before, "its end")
        # The death may be noticed only as the statement is sent: then that statement fails.
        assert (await up.http.post("/v1/sql", json={"sql": "SELECT 2 AS n"})).status_code in (200, 502)
        assert (await up.http.post("/v1/sql", json={"sql": "SELECT 3 AS n"})).status_code == 200
        assert (ended("killed"), ended("crashed")) == (1, 1)
        gateway.runtime.handle(Drained(engine="warehouse/0"))
        await until(lambda: ended("retired") == 1, "a retired worker")
