"""What a key is worth at a gateway that runs: its quotas, what it may use, and how it is taken back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.access import Caller
from gateway.cli import main
from gateway.identity import Identity
from gateway.keyspecs import DeadlineRange, PriorityRange
from tests.gateway.recorder import CHUNKS, Exchange, Recorder, recording
from tests.gateway.shop import RIGHT, database, shop, warehouse
from tests.gateway.support import (
    CHAT,
    MODEL,
    Running,
    attached,
    chat,
    error_of,
    metric,
    running,
    settled,
    until,
    written,
)

pytestmark = pytest.mark.asyncio

ADA, BOB = "key-of-ada", "key-of-bob"
LIMIT, LEFT, RESET = ("x-ratelimit-limit-", "x-ratelimit-remaining-", "x-ratelimit-reset-")


@asynccontextmanager
async def keyed(folder: Path, engine: Recorder, *keys: dict[str, Any], **more: Any) -> AsyncIterator[Running]:
    """A gateway before one engine, with these keys."""
    pools = {"default": attached(engine.url), **more.pop("pools", {})}
    async with running(folder, written(pools, auth={"keys": list(keys)}, **more)) as up:
        yield up
        await settled(up.gateway)
        quotas = [up.gateway.access.caller([(b"x-api-key", key["key"].encode())]).quota for key in keys]
        assert not any(quota.inside for quota in quotas if quota)


def key(secret: str, **more: object) -> dict[str, object]:
    return {"key": secret, "tenant": "t", **more}


def bearing(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


async def asks(up: Running, secret: str, **more: Any) -> httpx.Response:
    return await up.http.post(CHAT, json=chat(**more), headers=bearing(secret))


def used(prompt: int, output: int) -> bytes:
    """A whole answer that says its usage."""
    choice = {"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}
    return json.dumps({"choices": [choice], "usage": {"prompt_tokens": prompt, "completion_tokens": output}}).encode()


async def test_requests_beyond_the_rate_are_told_when_to_come_again(tmp_path: Path) -> None:
    async with recording() as engine, keyed(tmp_path, engine, key(ADA, requests="2/h"), key(BOB)) as up:
        first, second, third = [await asks(up, ADA) for _ in range(3)]
        assert [reply.status_code for reply in (first, second, third)] == [200, 200, 429]
        assert [reply.headers[f"{LEFT}requests"] for reply in (first, second, third)] == ["1", "0", "0"]
        assert first.headers[f"{LIMIT}requests"] == "2"
        assert first.headers[f"{RESET}requests"].startswith(("29m", "30m"))
        assert f"{LIMIT}tokens" not in first.headers
        assert 1790 <= int(third.headers["retry-after"]) <= 1800
        assert error_of(third)["code"] == "request_quota_exceeded"
        assert error_of(third)["type"] == "rate_limit_error"
        assert len(engine.seen) == 2
        other = await asks(up, BOB)
        assert other.status_code == 200, "another key of the tenant has limits of its own"
        assert not any(name.startswith("x-ratelimit") for name in other.headers)
        assert metric(up.gateway, "cortex_errors_total", endpoint="edge", reason="request_quota_exceeded") == 1


async def test_a_refused_request_has_no_body_read(tmp_path: Path) -> None:
    async with recording() as engine, keyed(tmp_path, engine, key(ADA, requests="1/h")) as up:
        assert (await asks(up, ADA)).status_code == 200
        reply = await up.http.post(CHAT, content=b"no JSON", headers=bearing(ADA))
        assert reply.status_code == 429


async def test_every_path_counts_as_a_request(tmp_path: Path) -> None:
    limited = key(ADA, requests="7/h")
    pools = {"warehouse": warehouse(tmp_path)}
    async with recording() as engine, keyed(tmp_path, engine, limited, pools=pools, mcp={"enabled": True}) as up:
        ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
        for number, (method, path, body) in enumerate(
            [
                ("POST", "/v1/sql", {"sql": "SELECT 1 AS one"}),
                ("GET", "/v1/databases", None),
                ("POST", "/v1/state/topic", {"key": "k", "value": 1}),
                ("GET", "/v1/state/topic/k", None),
                ("POST", "/mcp", ping),
                ("GET", "/v1/models", None),
                ("GET", "/v1/nothing", None),
                ("POST", CHAT, chat()),
            ]
        ):
            headers = {**bearing(ADA), "accept": "application/json, text/event-stream"}
            reply = await up.http.request(method, path, json=body, headers=headers)
            assert (reply.status_code == 429) == (number == 7), path
            assert reply.headers[f"{LEFT}requests"] == str(max(0, 6 - number)), path
        for path in ("/health", "/ready", "/metrics"):
            assert (await up.http.get(path, headers=bearing(ADA))).status_code == 200


async def test_tokens_are_reserved_and_then_charged_as_the_engine_says(tmp_path: Path) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.whole(used(300, 100), headers=[("content-type", "application/json"), (f"{LIMIT}tokens", "7")])

    async with recording(answer) as engine, keyed(tmp_path, engine, key(ADA, tokens="1000/d")) as up:
        first = await asks(up, ADA, max_tokens=500)
        assert first.headers.get_list(f"{LIMIT}tokens") == ["1000"], "and not what the engine says of its own"
        assert 480 <= int(first.headers[f"{LEFT}tokens"]) <= 499
        second = await asks(up, ADA, max_tokens=500)
        assert second.status_code == 200, "of the 500 that were set aside 400 were used"
        third = await asks(up, ADA, max_tokens=500)
        assert (third.status_code, error_of(third)["code"]) == (429, "token_quota_exceeded")
        assert third.headers[f"{LEFT}tokens"] == "200"
        assert int(third.headers["retry-after"]) == 3600
        assert (await asks(up, ADA, max_tokens=100)).status_code == 200
        assert len(engine.seen) == 3
        gone = await asks(up, ADA, max_tokens=1)
        assert (gone.status_code, gone.headers[f"{LEFT}tokens"]) == (429, "0")
        assert metric(up.gateway, "cortex_errors_total", endpoint="chat", reason="token_quota_exceeded") == 2


async def test_a_stream_without_usage_is_charged_by_its_events_also_where_its_client_leaves(tmp_path: Path) -> None:
    ended = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await exchange.head()
        for _ in range(100):
            await exchange.write(CHUNKS[1])
        await exchange.left()
        ended.set()

    async with recording(answer) as engine, keyed(tmp_path, engine, key(ADA, tokens="10000/d")) as up:
        async with up.http.stream("POST", CHAT, json=chat(stream=True), headers=bearing(ADA)) as reply:
            assert reply.status_code == 200
            seen = 0
            async for line in reply.aiter_lines():
                seen += line.startswith("data:")
                if seen == 100:
                    break
        await ended.wait()
        await settled(up.gateway)
        quota = up.gateway.access.caller([(b"x-api-key", ADA.encode())]).quota
        assert quota is not None
        assert quota.tokens is not None
        assert 9880 <= quota.tokens.level(up.gateway.access.now()) <= 9900


async def test_what_an_engine_never_answered_is_not_charged(tmp_path: Path) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.whole(b'{"error": {"message": "no"}}', status=400)

    async with recording(answer) as engine, keyed(tmp_path, engine, key(ADA, tokens="1000/d")) as up:
        assert (await asks(up, ADA, max_tokens=900)).status_code == 400
        again = await asks(up, ADA, max_tokens=900)
        assert again.status_code == 400, "what was set aside for the first is back"


async def test_an_answer_from_memory_takes_no_tokens(tmp_path: Path) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.whole(used(300, 100))

    stages = {"s": {"recall": "1h"}}
    flow = {"workflows": {"w": {"stages": stages, "edges": [{"from": "start", "to": "s"}]}}}
    async with recording(answer) as engine, keyed(tmp_path, engine, key(ADA, tokens="1000/d"), **flow) as up:
        for _ in range(4):
            reply = await asks(up, ADA, model="w/s", temperature=0)
            assert reply.status_code == 200
        assert len(engine.seen) == 1
        assert int(reply.headers[f"{LEFT}tokens"]) >= 580


async def test_as_many_requests_are_open_as_a_key_allows_however_they_end(tmp_path: Path) -> None:
    go = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        if b"fail" in exchange.seen.body:
            await exchange.whole(b"{}", status=500)
        elif b"leave" in exchange.seen.body:
            await exchange.left()
        else:
            await go.wait()
            await exchange.whole(used(1, 1))

    async with recording(answer) as engine, keyed(tmp_path, engine, key(ADA, concurrency=1), key(BOB)) as up:
        held = asyncio.create_task(asks(up, ADA))
        await until(lambda: len(engine.seen) == 1)
        refused = await asks(up, ADA)
        assert (refused.status_code, error_of(refused)["code"]) == (429, "concurrency_quota_exceeded")
        assert refused.headers["retry-after"] == "1"
        go.set()
        assert (await held).status_code == 200
        assert (await asks(up, ADA)).status_code == 200
        assert (await asks(up, ADA, content="fail")).status_code >= 500
        assert (await up.http.post(CHAT, content=b"{", headers=bearing(ADA))).status_code == 400
        with pytest.raises(httpx.ReadTimeout):
            await up.http.post(CHAT, json=chat("leave"), headers=bearing(ADA), timeout=0.2)
        await settled(up.gateway)
        assert (await asks(up, ADA)).status_code == 200


async def test_a_pool_that_is_not_the_keys_is_refused_by_name_whatever_leads_there(tmp_path: Path) -> None:
    async with recording() as engine, recording() as other:
        pools = {"other": attached(other.url) | {"model": "large"}, "warehouse": warehouse(tmp_path)}
        stages = {"s": {"pool": "other"}, "q": {"pool": "warehouse", "tool": "execute_sql"}}
        flow = {"w": {"stages": stages, "edges": [{"from": "start", "to": "s"}, {"from": "s", "to": "q"}]}}
        keys = [key(ADA, pools=["d*"]), key(BOB, pools=["other", "ware*"])]
        async with keyed(tmp_path, engine, *keys, pools=pools, workflows=flow) as up:
            assert (await asks(up, ADA)).status_code == 200
            for more, headers in (
                ({"model": "large"}, {}),
                ({"model": "w/s"}, {}),
                ({}, {"X-Workflow-Type": "w", "X-Workflow-Stage": "s"}),
                ({"model": "large"}, {"X-Workflow-Tools": "intercept"}),
            ):
                reply = await up.http.post(CHAT, json=chat(**more), headers={**bearing(ADA), **headers})
                assert (reply.status_code, error_of(reply)["code"]) == (403, "pool_not_allowed")
                assert "'other'" in error_of(reply)["message"]
            sql = await up.http.post("/v1/sql", json={"sql": "SELECT 1 AS one"}, headers=bearing(ADA))
            assert (sql.status_code, error_of(sql)["code"]) == (403, "pool_not_allowed")
            assert "'warehouse'" in error_of(sql)["message"]
            schema = await up.http.get("/v1/databases/shop/schema", headers=bearing(ADA))
            assert schema.status_code == 403
            for holder, names in ((ADA, []), (BOB, ["shop"])):
                listed = await up.http.get("/v1/databases", headers=bearing(holder))
                assert listed.json() == {"databases": names}
                ask = {"sql": "SELECT 1 AS one", "database": "nowhere"}
                unknown = await up.http.post("/v1/sql", json=ask, headers=bearing(holder))
                assert unknown.status_code == 404
                assert ("shop" in error_of(unknown)["message"]) == bool(names)
            assert other.seen == []
            assert (await asks(up, BOB)).status_code == 403
            assert (await asks(up, BOB, model="large")).status_code == 200
            for _ in range(2):  # the second from memory
                sql = await up.http.post("/v1/sql", json={"sql": "SELECT 1 AS one"}, headers=bearing(BOB))
                assert sql.status_code == 200
            again = await up.http.post("/v1/sql", json={"sql": "SELECT 1 AS one"}, headers=bearing(ADA))
            assert again.status_code == 403
            assert metric(up.gateway, "cortex_errors_total", endpoint="chat", reason="pool_not_allowed") == 5


async def test_of_the_pools_of_a_key_alone_databases_are_offered_and_the_only_one_need_not_be_named(
    tmp_path: Path,
) -> None:
    other = {"backend": {"name": "duckdb", "databases": {"attic": str(database(tmp_path / "attic.duckdb"))}}}
    pools = {"warehouse": warehouse(tmp_path), "other": other}
    keys = [key(ADA, pools=["d*", "ware*"]), key(BOB)]
    asking = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    async with recording() as engine, keyed(tmp_path, engine, *keys, pools=pools, mcp={"enabled": True}) as up:
        for holder, names, status in ((ADA, ["shop"], 200), (BOB, ["attic", "shop"], 400)):
            headers = {**bearing(holder), "accept": "application/json, text/event-stream"}
            listed = (await up.http.post("/mcp", json=asking, headers=headers)).text
            assert [name for name in ("attic", "shop") if f'"{name}"' in listed] == names
            asked = await up.http.post("/v1/sql", json={"sql": "SELECT 1 AS one"}, headers=headers)
            assert asked.status_code == status


async def test_a_model_is_allowed_by_the_name_that_led_to_it_or_that_of_the_engines(tmp_path: Path) -> None:
    async with recording() as engine, recording() as other:
        pools = {"other": attached(other.url) | {"model": "large"}}
        flow = {"w": {"stages": {"s": {"pool": "other"}}, "edges": [{"from": "start", "to": "s"}]}}
        keys = [key(ADA, models=["gpt-*"]), key(BOB, models=["cortex-*"])]
        more: dict[str, Any] = {"pools": pools, "workflows": flow, "models": {"gpt-5": "default", "big": "other"}}
        async with keyed(tmp_path, engine, *keys, **more) as up:
            stage = {"X-Workflow-Type": "w", "X-Workflow-Stage": "s"}
            for secret, model, headers, status in (
                (ADA, "gpt-5", {}, 200),
                (BOB, "gpt-5", {}, 200),
                (BOB, MODEL, {}, 200),
                (ADA, MODEL, {}, 403),
                (ADA, "big", {}, 403),
                (ADA, "gpt-5", stage, 403),
                (BOB, MODEL, stage, 403),
                (BOB, "w/s", {}, 403),
            ):
                reply = await up.http.post(CHAT, json=chat(model=model), headers={**bearing(secret), **headers})
                assert reply.status_code == status, (secret, model, headers)
                if status == 403:
                    assert (error_of(reply)["code"], error_of(reply)["param"]) == ("model_not_allowed", "model")
            assert (len(engine.seen), other.seen) == (3, [])
            models = (await up.http.get("/v1/models", headers=bearing(BOB))).json()["data"]
            assert [model["id"] for model in models] == [MODEL, "gpt-5"]  # which leads to it
            assert (await up.http.get("/v1/models/large", headers=bearing(BOB))).status_code == 404


async def test_a_workflow_is_walked_for_who_may_use_all_of_it_and_its_tokens_are_charged(tmp_path: Path) -> None:
    keys = [key("part", pools=["generate", "fix", "verify"]), key("other", models=["shop/*"])]
    keys.append(key("all", models=["workflow/*"], tokens="100000/d", requests="10/d"))
    async with shop(tmp_path, auth={"keys": keys}) as site:
        body = {"model": "workflow/shop", "messages": [{"role": "user", "content": RIGHT}]}
        part = await site.up.http.post(CHAT, json=body, headers=bearing("part"))
        assert (part.status_code, error_of(part)["code"]) == (403, "pool_not_allowed")
        other = await site.up.http.post(CHAT, json=body, headers=bearing("other"))
        assert (other.status_code, error_of(other)["code"]) == (403, "model_not_allowed")
        assert sum(site.read().values()) == 0
        reply = await site.up.http.post(CHAT, json=body, headers=bearing("all"))
        usage = reply.json()["usage"]
        assert usage["total_tokens"] > 50
        quota = site.up.gateway.access.caller([(b"x-api-key", b"all")]).quota
        assert quota is not None
        assert quota.tokens is not None
        assert quota.requests is not None
        now = site.up.gateway.access.now()
        assert quota.tokens.level(now) == pytest.approx(100_000 - usage["total_tokens"], abs=30)
        assert quota.requests.level(now) == pytest.approx(9, abs=0.1), "calls of the walk are no requests"


async def test_what_a_call_asks_for_is_moved_to_what_its_key_allows() -> None:
    caller = Caller(
        deadline=DeadlineRange.model_validate({"min": "2s", "max": "60s"}), priority=PriorityRange(min=-1, max=1)
    )
    for asked, got in ((0.5, 2.0), (30.0, 30.0), (600.0, 60.0), (None, None)):
        assert caller.clamp(Identity(deadline=asked)).deadline == got
    for priority, allowed in ((-8, -1), (0, 0), (8, 1)):
        assert caller.clamp(Identity(priority=priority)).priority == allowed
    assert Caller().clamp(Identity(deadline=1e9, priority=8)) == Identity(deadline=1e9, priority=8)


async def test_a_deadline_is_clamped_before_the_call_is_queued(tmp_path: Path) -> None:
    async with recording() as engine, keyed(tmp_path, engine, key(ADA, deadline={"max": "5s"}), key(BOB)) as up:
        for secret, least, most in ((ADA, 0, 5), (BOB, 500, 600)):
            headers = {**bearing(secret), "X-Workflow-Deadline-Ms": "600000"}
            reply = await up.http.post(CHAT, json=chat(), headers=headers)
            assert least < int(reply.headers["x-workflow-slack-ms"]) / 1000 <= most


async def hears_what_is_published(up: Running, secret: str) -> None:
    """Check that a tenant that came after the start has events of its own."""
    up.gateway.access.look()
    async with up.http.stream("GET", "/v1/state/topic/events", headers=bearing(secret)) as stream:
        lines = stream.aiter_lines()
        while not (await anext(lines)).startswith("event: open"):
            pass
        await up.http.post("/v1/state/topic", json={"key": "k", "value": 1}, headers=bearing(secret))
        while not (await anext(lines)).startswith("event: published"):
            pass


async def test_a_key_that_is_revoked_opens_nothing_from_the_next_look_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys.json"
    made = ["keys", "create", "--tenant", "t", "--file", str(file)]
    assert main([*made, "--expires", "1d"]) == 0
    first = capsys.readouterr().out.strip()
    async with recording() as engine:
        text = written({"default": attached(engine.url)}, auth={"file": "keys.json"}, server={"port": 0})
        async with running(tmp_path, text) as up:
            assert (await asks(up, first)).status_code == 200
            assert main([*made[:3], "new", *made[4:], "--requests", "1/d"]) == 0
            second = capsys.readouterr().out.strip()
            assert main(["keys", "revoke", first.split("_")[1], "--file", str(file)]) == 0
            up.gateway.access.look()
            assert (await asks(up, first)).status_code == 401
            assert [(await asks(up, second)).status_code for _ in range(2)] == [200, 429]
            events = "/v1/state/topic/k"
            assert (await up.http.get(events, headers=bearing(second))).status_code == 429
            assert "new" in up.gateway.access.tenants
            assert metric(up.gateway, "cortex_keys") == 1
            assert metric(up.gateway, "cortex_keys_file_broken") == 0
            assert main([*made[:3], "third", *made[4:]]) == 0
            await hears_what_is_published(up, capsys.readouterr().out.strip())
            file.write_text("{")
            up.gateway.access.look()
            assert metric(up.gateway, "cortex_keys_file_broken") == 1
