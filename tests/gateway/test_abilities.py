"""What an engine can do decides how it is told the order of its calls, and how much it is believed to hold."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path

import aiohttp
import orjson
import pytest

from backends.emulated.options import EmulatedOptions
from backends.emulated.server import EmulatedServer, serve
from gateway.monitor import SILENT_MOST
from policies.pool import EngineState
from tests.gateway.recorder import Exchange, Recorder, politely, recording
from tests.gateway.support import CHAT, MODEL, Running, attached, chat, metric, running, settled, until, written

CALM = 60.0
"""Seconds between two reports: the test asks for them itself."""
CACHE = b'vllm:cache_config_info{block_size="16",enable_prefix_caching="%s",num_gpu_blocks="100"} 1.0\n'


def says(engine: Recorder, pages: Mapping[str, object], *, refuses_priority: bool = False) -> None:
    """Make a recorder a server with these pages, which may have no use for priorities."""

    async def tell(exchange: Exchange) -> None:
        page = pages.get(exchange.seen.path)
        status = 404 if page is None else 200
        await exchange.whole(orjson.dumps(page or {"detail": "Not Found"}), status=status)

    async def answer(exchange: Exchange) -> None:
        seen = exchange.seen
        if refuses_priority and (seen.document.get("priority") or seen.header("x-vllm-priority")):
            await exchange.whole(b'{"error":{"message":"Priority scheduling is not enabled."}}', status=400)
        elif seen.path == "/v1/completions":
            await exchange.whole(b'{"usage":{"prompt_tokens_details":null}}')
        else:
            await politely(exchange)

    engine.tell, engine.answer = tell, answer


def vllm(version: str) -> dict[str, object]:
    return {"/version": {"version": version}, "/v1/models": {"data": [{"id": MODEL, "max_model_len": 500}]}}


def only_engine(up: Running) -> EngineState:
    (state,) = up.gateway.runtime.dispatcher.fleet
    return state


async def test_an_engine_that_knows_the_header_is_told_the_order_by_it(tmp_path: Path) -> None:
    async with recording() as engine:
        says(engine, vllm("0.32.0"))
        async with running(tmp_path, written({"default": attached(engine.url)})) as up:
            assert (await up.http.post(CHAT, json=chat())).status_code == 200
            assert int(engine.last.header("X-Vllm-Priority") or "") > 0
            assert "priority" not in engine.last.document


async def test_an_older_engine_is_told_the_order_in_the_body_and_the_rest_stays_as_it_is(tmp_path: Path) -> None:
    body = (
        b'{ "messages": [ {"role":"user","content":"hi"} ], "model": "%b", "x": [1.0], "priority":7}' % MODEL.encode()
    )
    async with recording() as engine:
        says(engine, vllm("0.20.1"))
        async with running(tmp_path, written({"default": attached(engine.url)})) as up:
            reply = await up.http.post(CHAT, content=body, headers={"content-type": "application/json"})
            assert reply.status_code == 200
            got = engine.last
            assert got.header("X-Vllm-Priority") is None
            place = got.document["priority"]
            assert place > 7
            rest = got.body.replace(b'"priority":%d,' % place, b"", 1)
            assert rest == body.replace(b', "priority":7', b"", 1)


async def test_an_engine_that_refuses_priorities_is_told_none_and_a_warning_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with recording() as engine:
        says(engine, vllm("0.20.1"), refuses_priority=True)
        engine.metrics = CACHE % b"False"
        async with running(tmp_path, written({"default": attached(engine.url)})) as up:
            assert (await up.http.post(CHAT, json=chat(priority=3))).status_code == 200
            assert engine.last.header("X-Vllm-Priority") is None
            assert "priority" not in engine.last.document
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [text.partition("(")[0] for text in warned if text.startswith("engine cannot")] == [
        "engine cannot engine=default/0 priority: it serves in the order of arrival ",
        "engine cannot engine=default/0 tell how many tokens of a prompt were cached ",
        "engine cannot engine=default/0 keep prefixes ",
    ]


async def test_nothing_is_said_to_be_missing_that_was_not_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    pool = {"model": MODEL, "backend": {"name": "vllm", "priority": False, "attach": []}}
    async with recording() as engine:
        says(engine, vllm("0.20.1"), refuses_priority=True)
        pool["backend"] = {"name": "vllm", "priority": False, "attach": [engine.url]}
        async with running(tmp_path, written({"default": pool})):
            pass
    texts = [record.getMessage() for record in caplog.records]
    assert not any(text.startswith("engine cannot engine=default/0 priority") for text in texts)
    (said,) = [text for text in texts if text.startswith("engine can ")]
    assert said == (
        f"engine can engine=default/0 version=0.20.1 models={MODEL} longest=500 token_details=false priority=false"
        " ordering=none sleeps=false"
    )


async def test_the_size_of_an_engines_memory_is_its_own_unless_it_is_configured(tmp_path: Path) -> None:
    configured = attached("http://127.0.0.1:9") | {"concurrency": {"kv_tokens": 900}}
    async with recording() as one, recording() as two:
        one.metrics = two.metrics = CACHE % b"True"
        configured["backend"] = {"name": "vllm", "attach": [two.url]}
        pools = {"default": attached(one.url), "told": configured}
        async with running(tmp_path, written(pools)) as up:
            limits = {state.pool: state.limits.kv_tokens for state in up.gateway.runtime.dispatcher.fleet}
    assert limits == {"default": 1600, "told": 900}


async def test_an_engine_that_comes_back_is_asked_again(tmp_path: Path) -> None:
    async with recording() as engine:
        says(engine, vllm("0.32.0"))
        engine.metrics = CACHE % b"True"
        async with running(tmp_path, written({"default": attached(engine.url)}), report_every=CALM) as up:
            assert only_engine(up).limits.kv_tokens == 1600
            engine.healthy, engine.metrics = False, None
            for _ in range(SILENT_MOST - 1):
                await up.gateway.monitor.poll()
            says(engine, vllm("0.20.0"))
            engine.healthy, engine.metrics = True, CACHE.replace(b"100", b"50") % b"True"
            await up.gateway.monitor.poll()
            assert up.gateway.runtime.abilities.of("default/0").version == "0.20.0"
            assert only_engine(up).limits.kv_tokens == 800
            asked = len(engine.questions)
            await up.gateway.monitor.poll()
            assert len(engine.questions) == asked


async def test_an_engine_that_is_gone_is_forgotten(tmp_path: Path) -> None:
    async with recording() as engine:
        says(engine, vllm("0.32.0"))
        engine.metrics = b""
        async with running(tmp_path, written({"default": attached(engine.url)}), report_every=CALM) as up:
            abilities = up.gateway.runtime.abilities
            engine.healthy, engine.metrics = False, None
            for _ in range(SILENT_MOST):
                await up.gateway.monitor.poll()
            await until(lambda: not abilities.of("default/0").version, "its end")
            await up.gateway.runtime.ask_again("default/0")  # one that is no more is asked nothing


# --- sleep --------------------------------------------------------------------------------------------------------

DEVELOPED = EmulatedOptions(time_scale=100.0, dev_mode=True)


async def told(server: EmulatedServer, path: str) -> None:
    async with aiohttp.ClientSession() as session, session.post(server.url + path) as reply:
        assert reply.status == 200


async def test_a_sleeping_engine_takes_no_calls_and_they_wait_until_it_wakes(tmp_path: Path) -> None:
    async with (
        serve(DEVELOPED, model=MODEL) as server,
        running(tmp_path, written({"default": attached(server.url)}), report_every=CALM) as up,
    ):
        await told(server, "/sleep")
        await up.gateway.monitor.poll()
        assert up.gateway.runtime.ready() == ["default"]
        asking = asyncio.create_task(up.http.post(CHAT, json=chat(max_tokens=2)))
        await until(lambda: metric(up.gateway, "cortex_waiting_calls", pool="default") == 1, "a call that waits")
        assert server.engine.waiting == 0
        await told(server, "/wake_up")
        await up.gateway.monitor.poll()
        assert (await asking).status_code == 200
        await settled(up.gateway, server)


async def test_while_one_engine_sleeps_another_has_its_calls(tmp_path: Path) -> None:
    async with (
        serve(DEVELOPED, model=MODEL) as one,
        serve(DEVELOPED, model=MODEL) as two,
        running(tmp_path, written({"default": attached(one.url, two.url)}), report_every=CALM) as up,
    ):
        await told(one, "/sleep?level=2")
        await up.gateway.monitor.poll()
        replies = await asyncio.gather(*(up.http.post(CHAT, json=chat(f"{n}", max_tokens=2)) for n in range(8)))
        assert {reply.headers["x-workflow-engine"] for reply in replies} == {"default/1"}
        assert not up.gateway.runtime.ready()
        await settled(up.gateway, one, two)


async def test_an_engine_that_slept_when_it_came_up_is_asked_when_it_wakes(tmp_path: Path) -> None:
    async with serve(DEVELOPED, model=MODEL) as server:
        await told(server, "/sleep")
        async with running(tmp_path, written({"default": attached(server.url)}), report_every=CALM) as up:
            can = up.gateway.runtime.abilities.of
            assert can("default/0").token_details is None
            await told(server, "/wake_up")
            await up.gateway.monitor.poll()
            assert can("default/0").token_details is True
            assert (await up.http.post(CHAT, json=chat(max_tokens=2))).status_code == 200


async def test_an_engine_that_is_too_busy_for_questions_can_still_do_what_it_could(tmp_path: Path) -> None:
    async with recording() as engine:
        says(engine, vllm("0.20.1"))
        engine.metrics = CACHE % b"True"
        async with running(tmp_path, written({"default": attached(engine.url)}), report_every=CALM) as up:
            before = up.gateway.runtime.abilities.of("default/0")
            assert (before.ordering, only_engine(up).limits.kv_tokens) == ("body", 1600)
            engine.healthy, page, engine.metrics = False, engine.metrics, None
            await up.gateway.monitor.poll()

            async def hang_up(exchange: Exchange) -> None:
                await exchange.left()

            engine.healthy, engine.metrics, engine.tell = True, page, hang_up
            await up.gateway.monitor.poll()
            assert up.gateway.runtime.abilities.of("default/0") == before
            assert only_engine(up).limits.kv_tokens == 1600


@pytest.mark.parametrize(
    "page",
    [
        b'vllm:num_requests_running{e="0"} 1e308\nvllm:num_requests_running{e="1"} 1e308\n',
        b'vllm:cache_config_info{block_size="100000000000",num_gpu_blocks="100000000000000000"} 1.0\n',
    ],
)
async def test_an_engine_whose_counts_are_absurd_serves_all_the_same(tmp_path: Path, page: bytes) -> None:
    async with recording() as engine:
        says(engine, vllm("0.32.0"))
        engine.metrics = page
        text = written({"default": attached(engine.url)}, server={"port": 0, "journal": str(tmp_path / "journal")})
        async with running(tmp_path, text, report_every=CALM) as up:
            await up.gateway.monitor.poll()
            assert (await up.http.post(CHAT, json=chat(max_tokens=2))).status_code == 200
            assert up.gateway.runtime.journal_dropped == 0
