"""What `/metrics` shows: real numbers of real traffic, in series whose number no client can raise."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from backends.emulated.options import EmulatedOptions
from backends.emulated.server import serve
from tests.gateway import shop
from tests.gateway.support import Running, attached, chat, metric, running, settled, until, written

CHAT = "/v1/chat/completions"


async def shown(up: Running) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample by its name and labels; `_created` ones left out."""
    reply = await up.http.get("/metrics")
    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(reply.text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


async def test_requests_are_counted_by_endpoint_and_status_and_timed(tmp_path: Path) -> None:
    async with shop.shop(tmp_path) as site:
        up, gateway = site.up, site.up.gateway
        calls = [
            (CHAT, chat(max_tokens=2) | {"model": "generate"}, 200, "chat"),
            (CHAT, {"model": "nothing", "messages": [{"role": "user", "content": "x"}]}, 404, "chat"),
            ("/v1/completions", {"model": "generate", "prompt": "x", "max_tokens": 2}, 200, "completions"),
            ("/v1/sql", {"sql": shop.COUNT}, 200, "sql"),
            ("/v1/sql", {"sql": "DROP TABLE orders"}, 400, "sql"),
        ]
        for path, body, status, endpoint in calls:
            assert (await up.http.post(path, json=body)).status_code == status
            assert metric(gateway, "cortex_requests_total", endpoint=endpoint, status=str(status)) == 1
        await up.http.get("/v1/databases")
        for endpoint, count in [("chat", 2), ("completions", 1), ("sql", 2), ("databases", 1)]:
            assert metric(gateway, "cortex_request_seconds_count", endpoint=endpoint) == count
            assert metric(gateway, "cortex_request_seconds_sum", endpoint=endpoint) > 0


async def test_calls_attempts_and_waits_are_counted_by_pool_outcome_and_source(tmp_path: Path) -> None:
    async with shop.shop(tmp_path) as site:
        gateway = site.up.gateway
        headers = {"X-Workflow-Type": "shop", "X-Workflow-Stage": "generate", "X-Workflow-Deadline-Ms": "59000"}
        headers["X-Workflow-Final"] = "true"
        await site.up.http.post(CHAT, json=chat(max_tokens=2), headers=headers)
        assert metric(gateway, "cortex_attempts_total", pool="generate") == 1
        assert metric(gateway, "cortex_calls_total", outcome="ok", source="engine") == 1
        assert metric(gateway, "cortex_queue_seconds_count", pool="generate") == 1
        assert metric(gateway, "cortex_slack_at_dispatch_seconds_count", pool="generate") == 1
        below = {
            bound: metric(gateway, "cortex_slack_at_dispatch_seconds_bucket", pool="generate", le=bound)
            for bound in ("30.0", "60.0")
        }
        assert below == {"30.0": 0, "60.0": 1}
        assert metric(gateway, "cortex_identity_total", source="header") == 1
        for sql in (
            shop.COUNT,
            shop.COUNT,
            "SELECT id FROM orders WHERE id < 0",
            shop.MISSPELT,
            "SELECT random() AS r",
        ):
            await site.up.http.post("/v1/sql", json={"sql": sql})
        counted = {
            cache: metric(gateway, "cortex_sql_answers_total", cache=cache) for cache in ("hit", "miss", "bypass")
        }
        assert counted == {"hit": 1, "miss": 3, "bypass": 1}
        assert metric(gateway, "cortex_calls_total", outcome="ok", source="cache") == 1
        assert metric(gateway, "cortex_calls_total", outcome="empty", source="engine") == 1
        assert metric(gateway, "cortex_calls_total", outcome="error", source="engine") == 1
        assert metric(gateway, "cortex_identity_total", source="none") == 5
        assert metric(gateway, "cortex_runs") == 0  # a call that names no run takes its own with it


async def test_failures_refusals_and_clients_that_leave_are_counted(tmp_path: Path) -> None:
    slow = EmulatedOptions(decode_step=0.02, faults=True)
    async with serve(slow) as server:
        text = written({"default": attached(server.url, sequences=1)}, limits={"queue_calls": 1})
        async with running(tmp_path, text) as up:
            gateway = up.gateway
            failed = await up.http.post(CHAT, json=chat(), headers={"X-Emulated-Fault": "status=500"})
            assert failed.status_code == 500
            assert metric(gateway, "cortex_attempt_failures_total", reason="broken") == 1
            assert metric(gateway, "cortex_refusals_total", reason="broken") == 1
            async with httpx.AsyncClient(base_url=up.url, trust_env=False) as http:
                calls = [asyncio.create_task(http.post(CHAT, json=chat(max_tokens=5000)))]
                await until(lambda: metric(gateway, "cortex_running_calls", pool="default") == 1, "a running call")
                calls.append(asyncio.create_task(http.post(CHAT, json=chat(max_tokens=5000))))
                await until(lambda: metric(gateway, "cortex_waiting_calls", pool="default") == 1, "a waiting call")
                assert metric(gateway, "cortex_committed_work_tokens", pool="default") > 0
                assert (await http.post(CHAT, json=chat())).status_code == 429
                assert metric(gateway, "cortex_refusals_total", reason="queue_full") == 1
                for call in calls:
                    call.cancel()
                await asyncio.gather(*calls, return_exceptions=True)
            await settled(gateway, server)
            assert metric(gateway, "cortex_cancellations_total", endpoint="chat") == 2
            for gauge in ("cortex_waiting_calls", "cortex_running_calls", "cortex_committed_work_tokens"):
                assert metric(gateway, gauge, pool="default") == 0
            assert metric(gateway, "cortex_engine_budget_tokens", engine="default/0") == 120_000
            assert metric(gateway, "cortex_engine_prefix_tokens", engine="default/0") >= 0
            assert 0 < metric(gateway, "cortex_engine_pressure_ratio", engine="default/0") < 1
            states = {s: metric(gateway, "cortex_engines", pool="default", state=s) for s in ("ready", "gone")}
            assert states == {"ready": 1, "gone": 0}
            engines = [metric(gateway, f"cortex_{name}_engines", pool="default") for name in ("usable", "wanted")]
            assert engines == [1, 1]


@pytest.mark.untraced
async def test_no_client_can_make_new_series(tmp_path: Path) -> None:
    chance = random.Random(3)

    def word() -> str:
        return f"x{chance.getrandbits(60):x}"

    async def traffic(up: Running, calls: int) -> None:
        for _ in range(calls):
            headers = {
                "X-Workflow-Type": word(),
                "X-Workflow-Id": word(),
                "X-Workflow-Stage": word(),
                "X-Workflow-Agent": word(),
                "X-Request-Id": word(),
            }
            bodies: list[tuple[str, dict[str, object]]] = [
                (CHAT, chat(max_tokens=1)),
                (CHAT, {**chat(), "model": word()}),
                (f"/w/{word()}/s/{word()}/v1/chat/completions", chat(max_tokens=1)),
                (f"/{word()}", {}),
                ("/v1/sql", {"sql": "SELECT 1 AS x", "database": word()}),
            ]
            path, body = bodies[chance.randrange(len(bodies))]
            await up.http.post(path, json=body, headers=headers)

    async with (
        serve(shop.FAST) as server,
        running(
            tmp_path,
            written({"default": attached(server.url)}, limits={"runs": 10}, metrics={"labels": 5}),
        ) as up,
    ):
        await traffic(up, 150)
        before = (await shown(up)).keys()
        await traffic(up, 700)
        await settled(up.gateway, server)
        after = (await shown(up)).keys()
        assert after - before == set()
        assert metric(up.gateway, "cortex_runs") <= 10
