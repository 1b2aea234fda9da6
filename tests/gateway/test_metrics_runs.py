"""What `/metrics` says of runs and their stages, of what the gateway took itself, and of what went wrong."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from backends.emulated.options import EmulatedOptions
from backends.emulated.server import serve
from tests.gateway import shop
from tests.gateway.recorder import Exchange, recording
from tests.gateway.support import CHAT, attached, broken_off, chat, metric, running, settled, until, written

FAST = EmulatedOptions(time_scale=1000.0, faults=True)


def of_run(workflow: str = "w", **more: str) -> dict[str, str]:
    """The headers of a run of one call."""
    return {"X-Workflow-Type": workflow, "X-Workflow-Stage": "s", "X-Workflow-Final": "true", **more}


async def test_runs_are_counted_by_how_they_ended(tmp_path: Path) -> None:
    async with serve(FAST) as server, running(tmp_path, written({"default": attached(server.url)})) as up:

        def ended(outcome: str) -> float:
            return metric(up.gateway, "cortex_runs_ended_total", workflow="w", outcome=outcome)

        await up.http.post(CHAT, json=chat(max_tokens=1), headers=of_run())
        assert ended("unbounded") == 1
        await up.http.post(CHAT, json=chat(max_tokens=1), headers=of_run(**{"X-Workflow-Deadline-Ms": "60000"}))
        assert ended("in_time") == 1
        broken = of_run(**{"X-Emulated-Fault": "status=500"})
        assert (await up.http.post(CHAT, json=chat(), headers=broken)).status_code == 500
        assert ended("broken") == 1
        assert metric(up.gateway, "cortex_run_seconds_count", workflow="w") == 2
        assert metric(up.gateway, "cortex_run_slack_at_finish_seconds_count", workflow="w") == 1
        assert 0 < metric(up.gateway, "cortex_run_slack_at_finish_seconds_sum", workflow="w") <= 60
        assert metric(up.gateway, "cortex_slo_target_ratio", workflow="w") == 0.95, "or no alert could fire for it"


async def test_a_run_whose_deadline_has_passed_is_late_by_what_it_lacked(tmp_path: Path) -> None:
    slow = EmulatedOptions(decode_step=0.01)
    async with serve(slow) as server, running(tmp_path, written({"default": attached(server.url)})) as up:
        headers = of_run(**{"X-Workflow-Deadline-Ms": "1"})
        assert (await up.http.post(CHAT, json=chat(max_tokens=10), headers=headers)).status_code == 200
        assert metric(up.gateway, "cortex_runs_ended_total", workflow="w", outcome="late") == 1
        assert metric(up.gateway, "cortex_run_slack_at_finish_seconds_sum", workflow="w") < -0.05
        assert metric(up.gateway, "cortex_run_seconds_sum", workflow="w") > 0.05


async def test_a_client_that_leaves_has_abandoned_its_run_and_wasted_what_was_written(tmp_path: Path) -> None:
    slow = EmulatedOptions(decode_step=0.005)
    async with serve(slow) as server, running(tmp_path, written({"default": attached(server.url)})) as up:
        body = chat(max_tokens=5000, stream=True)
        async with up.http.stream("POST", CHAT, json=body, headers=of_run()) as reply:
            lines = reply.aiter_lines()
            for _ in range(20):
                await anext(lines)
        await settled(up.gateway, server)
        assert metric(up.gateway, "cortex_runs_ended_total", workflow="w", outcome="abandoned") == 1
        assert metric(up.gateway, "cortex_run_seconds_count", workflow="w") == 0
        assert 5 <= metric(up.gateway, "cortex_wasted_tokens_total", pool="default") < 5000
        assert metric(up.gateway, "cortex_cancellations_total", endpoint="chat") == 1


async def test_a_stream_that_is_read_to_its_end_or_breaks_off_wastes_nothing(tmp_path: Path) -> None:
    async with serve(FAST) as server, running(tmp_path, written({"default": attached(server.url)})) as up:
        assert "[DONE]" in (await up.http.post(CHAT, json=chat(max_tokens=5, stream=True))).text
        fault = {"X-Emulated-Fault": "die_after=2"}
        broken_off(await up.http.post(CHAT, json=chat(max_tokens=50, stream=True), headers=fault))
        assert metric(up.gateway, "cortex_wasted_tokens_total", pool="default") == 0
        assert metric(up.gateway, "cortex_errors_total", endpoint="chat", reason="stream_interrupted") == 1


async def test_a_walked_run_has_its_stages_repairs_and_critical_path(tmp_path: Path) -> None:
    async with shop.shop(tmp_path) as site:
        up, gateway = site.up, site.up.gateway
        for question in (shop.RIGHT, shop.REPAIRED):
            body = {"model": "workflow/shop", "messages": [{"role": "user", "content": question}]}
            assert (await up.http.post(CHAT, json=body)).status_code == 200
        assert metric(gateway, "cortex_runs_ended_total", workflow="shop", outcome="in_time") == 2
        assert metric(gateway, "cortex_run_repairs_total", workflow="shop") == 1
        served = {
            stage: metric(gateway, "cortex_stage_service_seconds_count", workflow="shop", stage=stage)
            for stage in ("retrieve", "generate", "execute", "fix", "verify")
        }
        assert served == {"retrieve": 1, "generate": 2, "execute": 3, "fix": 1, "verify": 2}
        total = 0.0
        for stage in served:
            place = {"workflow": "shop", "stage": stage}
            path = metric(gateway, "cortex_stage_critical_path_seconds_total", **place)
            had = metric(gateway, "cortex_stage_service_seconds_sum", **place)
            had += metric(gateway, "cortex_stage_queue_seconds_sum", **place)
            assert path == pytest.approx(had), "its calls come one after the other: all of them are on the path"
            total += path
        assert 0 < total <= metric(gateway, "cortex_run_seconds_sum", workflow="shop")
        for stage, answered in (("generate", 2), ("execute", 0)):
            place = {"workflow": "shop", "stage": stage}
            assert metric(gateway, "cortex_stage_first_token_seconds_count", **place) == answered
            assert (metric(gateway, "cortex_stage_prompt_tokens_total", **place) > 0) == bool(answered)
            assert (metric(gateway, "cortex_stage_output_tokens_total", **place) > 0) == bool(answered)
        assert metric(gateway, "cortex_stage_cached_tokens_total", workflow="shop", stage="generate") >= 0


async def test_a_walk_that_gives_up_has_broken(tmp_path: Path) -> None:
    async with shop.shop(tmp_path) as site:
        body = {"model": "workflow/shop", "messages": [{"role": "user", "content": shop.HOPELESS}]}
        await site.up.http.post(CHAT, json=body)
        assert metric(site.up.gateway, "cortex_runs_ended_total", workflow="shop", outcome="broken") == 1
        assert metric(site.up.gateway, "cortex_run_repairs_total", workflow="shop") == 3


async def test_the_gateways_own_time_leaves_out_queues_and_engines(tmp_path: Path) -> None:
    slow = EmulatedOptions(decode_step=0.02)
    async with serve(slow) as server:
        text = written({"default": attached(server.url, sequences=1)})
        async with running(tmp_path, text) as up:
            await asyncio.gather(*(up.http.post(CHAT, json=chat(max_tokens=20)) for _ in range(2)))
            await up.http.post(CHAT, json=chat(max_tokens=20, stream=True))
            whole = metric(up.gateway, "cortex_request_seconds_sum", endpoint="chat")
            own = metric(up.gateway, "cortex_gateway_seconds_sum", endpoint="chat")
            assert metric(up.gateway, "cortex_gateway_seconds_count", endpoint="chat") == 3
            assert whole > 1.2, "one of them waited for another"
            assert 0 < own < whole / 3


async def test_a_statement_over_mcp_is_not_the_gateways_own_time(tmp_path: Path) -> None:
    pools = {"warehouse": shop.warehouse(tmp_path)}
    async with running(tmp_path, written(pools, mcp={"enabled": True})) as up:
        sql = "SELECT count(*) AS n FROM range(8000) a, range(8000) b WHERE a.range * b.range % 7 = 3"
        params = {"name": "execute_sql", "arguments": {"sql": sql}}
        headers = {"accept": "application/json, text/event-stream", "mcp-protocol-version": "2025-06-18"}
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        assert (await up.http.post("/mcp", json=body, headers=headers)).status_code == 200
        await until(lambda: metric(up.gateway, "cortex_gateway_seconds_count", endpoint="mcp") == 1, "its end")
        whole = metric(up.gateway, "cortex_request_seconds_sum", endpoint="mcp")
        own = metric(up.gateway, "cortex_gateway_seconds_sum", endpoint="mcp")
        ran = metric(up.gateway, "cortex_sql_seconds_sum", pool="warehouse")
        assert own == pytest.approx(whole - ran, abs=ran / 2)


async def test_a_reader_of_events_is_not_the_gateways_own_time(tmp_path: Path) -> None:
    async with serve(FAST) as server, running(tmp_path, written({"default": attached(server.url)})) as up:
        async with up.http.stream("GET", "/v1/state/topic/events") as reply:
            await until(lambda: metric(up.gateway, "cortex_state_readers") == 1, "a reader")
            up.gateway.draining = True  # it is heard of when the reader next looks up
            async with asyncio.timeout(30):
                await reply.aread()
        await until(
            lambda: metric(up.gateway, "cortex_gateway_seconds_count", endpoint="state_events") == 1, "its end"
        )
        whole = metric(up.gateway, "cortex_request_seconds_sum", endpoint="state_events")
        assert metric(up.gateway, "cortex_gateway_seconds_sum", endpoint="state_events") < whole / 2


async def test_errors_are_counted_by_their_code(tmp_path: Path) -> None:
    async def decline(exchange: Exchange) -> None:
        await exchange.whole(b'{"error": {"message": "too long", "code": "whatever it likes"}}', status=400)

    async with recording(decline) as engine:
        pools = {"default": attached(engine.url), "warehouse": shop.warehouse(tmp_path)}
        async with running(tmp_path, written(pools), report_every=60) as up:
            asked = [
                (up.http.post(CHAT, json=chat()), 400, "chat", "status_400"),
                (up.http.post(CHAT, content=b"{"), 400, "chat", "invalid_json"),
                (up.http.post("/v1/sql", json={"sql": "DROP TABLE orders"}), 400, "sql", "refused"),
                (up.http.post("/v1/sql", json={"sql": shop.MISSPELT}), 400, "sql", "binder"),
                (
                    up.http.post("/v1/sql", json={"sql": shop.MISSPELT, "format": "ndjson"}),
                    400,
                    "sql",
                    "binder",
                ),
                (
                    up.http.post(CHAT, json=chat(), headers={"Host": "elsewhere.example"}),
                    421,
                    "edge",
                    "misdirected_request",
                ),
            ]
            for request, status, endpoint, reason in asked:
                before = metric(up.gateway, "cortex_errors_total", endpoint=endpoint, reason=reason)
                reply = await request
                assert reply.status_code == status, reply.text
                assert metric(up.gateway, "cortex_errors_total", endpoint=endpoint, reason=reason) == before + 1


async def test_a_client_that_leaves_is_no_error(tmp_path: Path) -> None:
    slow = EmulatedOptions(decode_step=0.02)
    async with serve(slow) as server, running(tmp_path, written({"default": attached(server.url)})) as up:
        async with httpx.AsyncClient(base_url=up.url, trust_env=False) as http:
            call = asyncio.create_task(http.post(CHAT, json=chat(max_tokens=5000)))
            await until(lambda: metric(up.gateway, "cortex_running_calls", pool="default") == 1, "a running call")
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
        await settled(up.gateway, server)
        page = up.gateway.metrics.text().decode()
        assert "cortex_errors_total{" not in page
        assert metric(up.gateway, "cortex_gateway_seconds_count", endpoint="chat") == 0


async def test_the_loop_is_sampled_and_the_version_told(tmp_path: Path) -> None:
    async with serve(FAST) as server, running(tmp_path, written({"default": attached(server.url)})) as up:
        await until(lambda: metric(up.gateway, "cortex_loop_lag_seconds_count") > 1, "two samples")
        assert metric(up.gateway, "cortex_loop_lag_seconds_sum") >= 0
        assert "cortex_build_info{version=" in up.gateway.metrics.text().decode()
