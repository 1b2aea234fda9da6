"""The admin API: what is there, how much of it there shall be, and who may say so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from backends.emulated.options import EmulatedOptions
from backends.emulated.server import serve
from tests.gateway.recorder import Exchange, recording
from tests.gateway.shop import COUNT, FAST, warehouse
from tests.gateway.support import (
    MODEL,
    Running,
    attached,
    chat,
    children,
    metric,
    running,
    settled,
    until,
    written,
)

CHAT = "/v1/chat/completions"
TOKEN = {"Authorization": "Bearer secret"}
module_loop = pytest.mark.asyncio(loop_scope="module")


def pools(folder: Path, **backend: object) -> dict[str, object]:
    emulated = {"name": "emulated", "decode_step": "2ms", **backend}
    return {
        "default": {"model": MODEL, "backend": emulated, "engines": {"min": 1, "start": 1, "max": 3}},
        "warehouse": warehouse(folder) | {"engines": {"min": 1, "max": 2}},
    }


@asynccontextmanager
async def site(folder: Path, **backend: object) -> AsyncIterator[Running]:
    async with running(folder, written(pools(folder, **backend), admin={"token": "secret"})) as up:
        up.http.headers.update(TOKEN)
        yield up
        await settled(up.gateway)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    async with site(tmp_path_factory.mktemp("site")) as up:
        yield up


def error(reply: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = reply.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return found


@module_loop
async def test_pools_and_engines_are_listed_with_what_they_do(shared: Running) -> None:
    assert (await shared.http.post(CHAT, json=chat("x" * 800, max_tokens=3))).status_code == 200
    assert (await shared.http.post("/v1/sql", json={"sql": COUNT})).status_code == 200
    await shared.gateway.monitor.poll()
    listed = (await shared.http.get("/admin/pools")).json()["pools"]
    assert [(pool["name"], pool["kind"], pool["model"]) for pool in listed] == [
        ("default", "llm", MODEL),
        ("warehouse", "sql", None),
    ]
    one = (await shared.http.get("/admin/pools/default")).json()
    assert (one["min"], one["max"], one["target"], one["waiting"], one["waiting_bytes"]) == (1, 3, 1, 0, 0)
    assert one["mean_service_s"] > 0
    (engine,) = one["engines"]
    assert (engine["name"], engine["state"], engine["running"], engine["committed_work"]) == (
        "default/0",
        "ready",
        0,
        0.0,
    )
    assert (engine["budget"], engine["on_loan"], engine["prefill"], engine["urgency"]) == (120_000.0, 0.0, 0.0, 0.0)
    assert 0 < engine["pressure"] < 1
    assert engine["prefix_tokens"] > 0
    assert engine["counters"]["generation_tokens"] == 3 + 1  # one when it was asked what it can do
    assert engine["can"]["version"] == "0.32.0+emulated"
    assert (engine["can"]["kv_blocks"], engine["can"]["ordering"]) == (2048, "header")
    listed = (await shared.http.get("/admin/engines")).json()["engines"]
    by_name = {engine["name"]: engine for engine in listed}
    assert by_name["default/0"] == engine
    assert by_name["warehouse/0"]["counters"]["runs"] == 1
    assert by_name["warehouse/0"]["budget"] is None, "a worker has one statement at a time, however large"


@module_loop
async def test_prompts_that_come_again_are_what_is_hot_of_an_engines_cache(shared: Running) -> None:
    async def engine() -> dict[str, Any]:
        found: dict[str, Any] = (await shared.http.get("/admin/pools/default")).json()["engines"][0]
        return found

    before = await engine()
    grown = []
    for _ in range(2):
        await shared.http.post(CHAT, json=chat("again " * 200, max_tokens=1))
        after = await engine()
        grown.append([after[key] - before[key] for key in ("prefix_tokens", "prefix_tokens_hot")])
    assert grown[0][0] >= 256
    assert grown == [[grown[0][0], 0], [grown[0][0], grown[0][0]]]


@module_loop
async def test_the_pace_of_a_pool_is_learned_from_its_calls(shared: Running) -> None:
    told = {pool["name"]: pool for pool in (await shared.http.get("/admin/pools")).json()["pools"]}
    assert told["warehouse"]["pace"] is None
    for _ in range(30):
        await shared.http.post(CHAT, json=chat("x" * 200, max_tokens=20))
    now = (await shared.http.get("/admin/pools/default")).json()["pace"]
    assert 0 < now["step_ms"] < told["default"]["pace"]["step_ms"], "it is faster than was believed at first"
    assert now["prefill_tokens_per_s"] > 0
    assert now["step_ms_per_sequence"] >= 0


async def test_a_loan_and_a_run_that_the_gate_holds_back_are_shown(tmp_path: Path) -> None:
    """Of two pools one is asked for everything: its second call goes to the other's engine, its third run waits."""
    slow = EmulatedOptions(decode_step=0.02)
    async with serve(slow) as one, serve(slow) as two:
        pools = {name: attached(server.url, sequences=1) for name, server in (("a", one), ("b", two))}
        gate = {"name": "aimd", "start": 2, "least": 2, "step": 0, "period": "60s"}
        policies = {"gate": gate, "borrowing": {"name": "gated", "load": 1, "most": 0.5}}
        text = written(pools, admin={"token": "secret"}, policies=policies)
        async with running(tmp_path, text) as up:
            up.http.headers.update(TOKEN)
            body = {**chat("y" * 4000, max_tokens=60), "model": "a"}
            runs = [{"X-Workflow-Id": f"{number}", "X-Workflow-Final": "true"} for number in range(3)]
            calls = [asyncio.create_task(up.http.post(CHAT, json=body, headers=run)) for run in runs]
            runtime = up.gateway.runtime
            await until(lambda: runtime.dispatcher.calls == 3, "three calls")
            told = (await up.http.get("/admin/pools")).json()
            assert told["gate"] == {"window": 2.0, "active_runs": 2, "parked_calls": 1}
            lender = {pool["name"]: pool for pool in told["pools"]}
            assert (lender["a"]["parked"], lender["b"]["parked"], lender["a"]["waiting"]) == (1, 0, 1)
            (own,), (lent,) = lender["a"]["engines"], lender["b"]["engines"]
            assert (own["on_loan"], lent["on_loan"]) == (0.0, lent["committed_work"])
            assert lent["on_loan"] > 0
            assert own["urgency"] > 0
            assert metric(up.gateway, "cortex_engine_on_loan_tokens", engine="b/0") == lent["on_loan"]
            assert metric(up.gateway, "cortex_engine_on_loan_tokens", engine="a/0") == 0
            gauges = [metric(up.gateway, f"cortex_gate_{name}") for name in ("window", "active")]
            assert gauges == [2.0, 2.0]
            assert metric(up.gateway, "cortex_gate_parked", pool="a") == 1
            assert {reply.status_code for reply in await asyncio.gather(*calls)} == {200}
            await settled(up.gateway, one, two)
            assert (await up.http.get("/admin/pools/b")).json()["engines"][0]["on_loan"] == 0.0


async def test_tenants_are_listed_with_the_engine_time_they_had(tmp_path: Path) -> None:
    def header(tenant: str) -> dict[str, str]:
        return {"Authorization": f"Bearer key of {tenant}"}

    async with serve(FAST) as server:
        keys = [
            {"key": f"key of {name}", "tenant": name} for name in ("idle", *(f"t{i}" for i in range(104)), "busy")
        ]
        text = written({"default": attached(server.url)}, auth={"keys": keys}, admin={"token": "secret"})
        async with running(tmp_path, text) as up:
            assert (await up.http.post(CHAT, json=chat(max_tokens=30), headers=header("busy"))).status_code == 200
            answer = (await up.http.get("/admin/tenants", headers=TOKEN)).json()
            assert answer["total"] == 106
            assert len(answer["tenants"]) == 100
            first, second = answer["tenants"][:2]
            assert (first["tenant"], second["engine_s"]) == ("busy", 0.0)
            assert first["engine_s"] > 0
            await settled(up.gateway, server)


@module_loop
async def test_runs_are_listed_latest_first(shared: Running) -> None:
    for run, final in [("one", "false"), ("two", "false"), ("gone", "true")]:
        headers = {"X-Workflow-Id": run, "X-Workflow-Stage": "s", "X-Workflow-Deadline-Ms": "60000"}
        await shared.http.post(CHAT, json=chat(max_tokens=1), headers={**headers, "X-Workflow-Final": final})
    answer = (await shared.http.get("/admin/runs")).json()
    assert [run["id"] for run in answer["runs"]][:2] == ["two", "one"]
    assert "gone" not in {run["id"] for run in answer["runs"]}
    first = answer["runs"][0]
    assert (first["stage"], first["calls"], first["open_calls"], first["visits"]) == ("s", 1, 0, {"s": 1})
    assert first["history"] == [{"stage": "s", "outcome": "ok"}]
    assert 0 < first["deadline_in_s"] < 60
    assert answer["total"] == len(answer["runs"])


@module_loop
async def test_what_was_learned_is_listed_by_workflow_stage_and_visit(shared: Running) -> None:
    names = {"X-Workflow-Type": "learned", "X-Workflow-Id": "l"}
    for stage, final in (("a", "false"), ("b", "false"), ("a", "false"), ("b", "true")):
        headers = {**names, "X-Workflow-Stage": stage, "X-Workflow-Final": final}
        await shared.http.post(CHAT, json=chat("x" * 800, max_tokens=4), headers=headers)
    listed = (await shared.http.get("/admin/profiles")).json()["profiles"]
    found = {(one["stage"], one["visit"]): one for one in listed if one["workflow"] == "learned"}
    assert list(found) == [("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    one = found["a", 1]
    assert (one["pool"], one["count"], one["known"], one["success"], one["width"]) == ("default", 1, False, 1.0, 1.0)
    assert one["output_tokens"] == {"p50": 4.0, "p80": 4.0, "p95": 4.0}
    assert 0 < one["service_s"]["p50"] <= one["service_s"]["p95"]
    assert one["uncached_prompt_tokens"]["p50"] > 0
    assert (one["next"], one["beside"], one["ends"]) == ({"b": 1.0}, {}, 0.0)
    assert one["remaining_s"]["mean"] >= 0
    assert (found["b", 2]["ends"], found["b", 2]["next"]) == (0.6, {"a": 0.4}), (
        "one end, and what the first visit shows, as a prior"
    )


@module_loop
@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"engines": 0}', "1 to 3"),
        (b'{"engines": 4}', "1 to 3"),
        (b'{"engines": -1}', "1 to 3"),
        (b'{"engines": "2"}', "whole number"),
        (b'{"engines": 2.0}', "whole number"),
        (b'{"engines": true}', "whole number"),
        (b"{}", "whole number"),
        (b'{"engines": 2, "force": true}', "force: is not known here (known: engines)"),
        (b'{"engine": 2}', "engine: is not known here; did you mean engines?"),
        (b"[2]", "JSON object"),
        (b"", "valid JSON"),
    ],
)
async def test_a_size_that_cannot_be_is_refused_by_name(shared: Running, body: bytes, words: str) -> None:
    reply = await shared.http.post("/admin/pools/default/scale", content=body)
    assert reply.status_code == 400
    assert words in error(reply)["message"]
    assert shared.gateway.runtime.dispatcher.fleet.target("default") == 1


@module_loop
async def test_what_does_not_exist_is_404_with_what_does(shared: Running) -> None:
    for reply in (
        await shared.http.get("/admin/pools/nothing"),
        await shared.http.post("/admin/pools/nothing/scale", json={"engines": 1}),
    ):
        assert (reply.status_code, error(reply)["code"]) == (404, "pool_not_found")
        assert "default, warehouse" in error(reply)["message"]
    reply = await shared.http.post("/admin/engines/default/9/drain")
    assert (reply.status_code, error(reply)["code"]) == (404, "engine_not_found")
    assert "default/0" in error(reply)["message"]
    assert (await shared.http.get("/admin/nothing")).status_code == 404
    assert (await shared.http.get("/admin/pools/default/scale")).status_code == 405


@module_loop
async def test_every_path_wants_the_token(shared: Running) -> None:
    routes = shared.gateway.admin.routes()
    assert len(routes) == 9
    for route in routes:
        (method,) = (route.methods or set()) - {"HEAD"}
        path = route.path_format.format(pool="default", number=0, run="r")
        for headers in ({"Authorization": ""}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
            reply = await shared.http.request(method, path, headers=headers)
            assert reply.status_code == 401, path
            assert reply.headers["www-authenticate"] == "Bearer"
            wrong = headers["Authorization"] == "Bearer wrong"
            said = "this is not the admin token" if wrong else "the admin token is needed"
            assert error(reply)["message"] == said


async def test_a_clients_key_opens_nothing_and_without_a_token_there_is_nothing(tmp_path: Path) -> None:
    auth = {"keys": [{"key": "mine", "tenant": "me"}]}
    async with serve(FAST) as server:
        llm = {"default": attached(server.url)}
        async with running(tmp_path, written(llm, auth=auth, admin={"token": "secret"})) as up:
            reply = await up.http.get("/admin/pools", headers={"Authorization": "Bearer mine"})
            assert (reply.status_code, error(reply)["code"]) == (403, "permission_denied")
            assert (await up.http.get("/v1/models", headers=TOKEN)).status_code == 401
            assert (await up.http.get("/admin/pools", headers=TOKEN)).status_code == 200
        async with running(tmp_path, written(llm)) as up:
            for headers in ({}, TOKEN, {"Authorization": "Bearer x"}):
                assert (await up.http.get("/admin/pools", headers=headers)).status_code == 404


async def test_scaling_starts_and_ends_real_processes(tmp_path: Path) -> None:
    before = children("backends.emulated")

    def processes() -> int:
        return len(children("backends.emulated") - before)

    async with site(tmp_path) as up:
        assert processes() == 1
        told = (await up.http.post("/admin/pools/default/scale", json={"engines": 3})).json()
        assert told["target"] == 3
        assert [engine["state"] for engine in told["engines"]] == ["ready", "starting", "starting"]
        await until(lambda: len(up.gateway.runtime.engines) == 4, "three engines and a worker")
        assert processes() == 3
        replies = await asyncio.gather(*(up.http.post(CHAT, json=chat(f"{i}", max_tokens=9)) for i in range(12)))
        assert {reply.headers["x-workflow-engine"] for reply in replies} == {f"default/{i}" for i in range(3)}
        await up.http.post("/admin/pools/default/scale", json={"engines": 1})
        await until(lambda: processes() == 1, "the end of two processes")
        assert (await up.http.post(CHAT, json=chat(max_tokens=2))).status_code == 200
    assert processes() == 0


async def test_a_draining_engine_finishes_its_stream_before_its_process_ends(tmp_path: Path) -> None:
    before = children("backends.emulated")
    async with site(tmp_path, decode_step="10ms") as up:
        (pid,) = children("backends.emulated") - before
        body = chat("<<echo:abc >>", max_tokens=300, stream=True)
        async with up.http.stream("POST", CHAT, json=body) as reply:
            lines = reply.aiter_lines()
            while "abc" not in await anext(lines):
                pass
            told = (await up.http.post("/admin/engines/default/0/drain")).json()
            assert told["target"] == 1, "the pool keeps its minimum"
            assert [engine["state"] for engine in told["engines"]] == ["draining", "starting"]
            other = await up.http.post(CHAT, json=chat(max_tokens=1))
            assert other.headers["x-workflow-engine"] == "default/1", "a draining engine takes no new call"
            assert pid in children("backends.emulated")
            rest = [line async for line in lines]
            assert rest[-2:] == ["data: [DONE]", ""]
        await until(lambda: pid not in children("backends.emulated"), "the end of the drained process")
        again = await up.http.post("/admin/engines/default/0/drain")
        assert again.status_code == 404
        await up.http.post("/admin/pools/default/scale", json={"engines": 1})
        await until(lambda: not up.gateway.runtime.ready(), "a new engine")
        assert (await up.http.post(CHAT, json=chat(max_tokens=1))).headers["x-workflow-engine"] == "default/1"


async def test_a_pool_shows_who_waits_and_which_engine_is_left_out(tmp_path: Path) -> None:
    async def fail(exchange: Exchange) -> None:
        await exchange.whole(b"{}", status=500)

    async with serve(EmulatedOptions(decode_step=0.02)) as slow, recording(fail) as broken:
        broken.metrics = b""
        pool = attached(slow.url, sequences=1)
        pair = {"default": pool, "other": attached(broken.url, slow.url)}
        text = written(pair, admin={"token": "secret"}, policies={"layout": "isolated"})
        async with running(tmp_path, text) as up:
            up.http.headers.update(TOKEN)
            calls = [asyncio.create_task(up.http.post(CHAT, json=chat(max_tokens=20))) for _ in range(3)]
            runtime = up.gateway.runtime
            await until(lambda: runtime.dispatcher.calls == 3, "three calls")
            told = (await up.http.get("/admin/pools/default")).json()
            assert (told["running"], told["waiting"], sum(told["waiting_by_stage"].values())) == (1, 2, 2)
            assert told["waiting_bytes"] > 0
            assert told["engines"][0]["committed_work"] > 0
            await asyncio.gather(*calls)
            fleet = runtime.dispatcher.fleet
            for _ in range(12):
                await up.http.post(CHAT, json={**chat(max_tokens=1), "model": "other"})
                if any(engine.ejected_until > runtime.now() for engine in fleet):
                    break
            states = {e["name"]: e["state"] for e in (await up.http.get("/admin/engines")).json()["engines"]}
            assert states == {"default/0": "ready", "other/0": "ejected", "other/1": "ready"}
            await settled(up.gateway, slow)
