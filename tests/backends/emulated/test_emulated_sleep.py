"""An emulated engine in development mode sleeps as a real one does."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from backends.emulated.options import EmulatedOptions
from tests.backends.emulated.test_emulated_http import Client, client

DEVELOPED = EmulatedOptions(decode_step=0.005, dev_mode=True)
LONG = {"messages": [{"role": "user", "content": "go on"}], "max_tokens": 2000}
CHAT = "/v1/chat/completions"


async def sleep_states(c: Client) -> dict[str, float]:
    page = await c.get("/metrics")
    lines = [line for line in page.splitlines() if line.startswith("vllm:engine_sleep_state{")]
    return {line.split('sleep_state="')[1].partition('"')[0]: float(line.rpartition(" ")[2]) for line in lines}


async def told(c: Client, path: str, status: int = 200) -> Any:
    return await c.post(path, {}, status)


async def test_whoever_is_answered_when_it_falls_asleep_has_the_answer_so_far() -> None:
    async with client(DEVELOPED) as c:
        whole = asyncio.create_task(c.post(CHAT, LONG))
        stream = asyncio.create_task(c.events(CHAT, LONG | {"stream_options": {"include_usage": True}}))
        await c.until("vllm:num_requests_running", 2)
        while await c.metric("vllm:generation_tokens_total") < 6:
            pass
        assert await told(c, "/sleep?level=1") == {"status": "sleeping", "level": 1}
        answer, events = await whole, await stream
        assert answer["choices"][0]["finish_reason"] == "abort"
        assert 0 < answer["usage"]["completion_tokens"] < 2000
        assert events[-2]["choices"][0]["finish_reason"] == "abort"
        assert events[-1]["usage"]["completion_tokens"] == len(events) - 3
        page = await c.get("/metrics")
        assert 'finished_reason="abort",model_name="cortex-emulated"} 2.0' in page


async def test_a_sleeping_engine_is_well_and_answers_nothing_until_it_wakes() -> None:
    async with client(DEVELOPED) as c:
        assert await c.get("/is_sleeping") == '{"is_sleeping":false}'
        await told(c, "/sleep")
        assert await c.get("/is_sleeping") == '{"is_sleeping":true}'
        await c.get("/health")
        asking = asyncio.create_task(c.chat("hello", max_tokens=2))
        await c.until("vllm:num_requests_waiting", 1)
        assert not asking.done()
        assert (await told(c, "/wake_up"))["status"] == "awake"
        assert (await asking)["usage"]["completion_tokens"] == 2
        assert await c.get("/is_sleeping") == '{"is_sleeping":false}'


async def test_a_client_that_leaves_a_sleeping_engine_leaves_nothing_behind() -> None:
    async with client(DEVELOPED) as c:
        await told(c, "/sleep")
        asking = asyncio.create_task(c.chat("hello"))
        await c.until("vllm:num_requests_waiting", 1)
        asking.cancel()
        await c.until("vllm:num_requests_waiting", 0)


@pytest.mark.parametrize(("level", "state"), [(0, None), (1, "weights_offloaded"), (2, "discard_all")])
async def test_the_metrics_tell_how_deep_it_sleeps_and_only_a_pause_keeps_the_cache(
    level: int, state: str | None
) -> None:
    states = dict.fromkeys(("awake", "weights_offloaded", "discard_all"), 0.0)
    async with client(EmulatedOptions(time_scale=1000.0, dev_mode=True)) as c:
        assert await sleep_states(c) == states | {"awake": 1.0}
        await c.chat("x" * 400, max_tokens=1)
        await told(c, f"/sleep?level={level}")
        assert await sleep_states(c) == states | ({state: 1.0} if state else {})
        await told(c, "/wake_up")
        assert await sleep_states(c) == states | {"awake": 1.0}
        usage = (await c.chat("x" * 400, max_tokens=1))["usage"]
        assert (usage["prompt_tokens_details"]["cached_tokens"] > 0) == (level == 0)


@pytest.mark.parametrize("query", ["level=3", "level=x", "mode=wait"])
async def test_what_is_no_sleep_is_refused(query: str) -> None:
    async with client(DEVELOPED) as c:
        error = (await told(c, f"/sleep?{query}", 400))["error"]
        assert error["param"] == f"query.{query.partition('=')[0]}"
        assert await c.get("/is_sleeping") == '{"is_sleeping":false}'


async def test_without_development_mode_none_of_it_exists() -> None:
    async with client() as c:
        for path in ("/sleep", "/wake_up"):
            await told(c, path, 404)
        for path in ("/is_sleeping", "/server_info"):
            await c.get(path, 404)
        assert await c.get("/kv_event_sources") == "{}"


@pytest.mark.parametrize("priority", [2**63, -(2**63) - 1, 1.5, "1"])
async def test_a_priority_has_64_bits(priority: object) -> None:
    async with client() as c:
        await c.chat("hello", 400, priority=priority)
        await c.chat("hello", priority=2**63 - 1, max_tokens=1)
