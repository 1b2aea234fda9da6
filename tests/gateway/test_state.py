"""`/v1/state/…`: what one agent publishes the others find, on every gateway, and nobody else's does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from redis.asyncio import Redis

from backends.artifacts.news import Reset, encoded
from backends.artifacts.redis_tier import CHANNEL
from backends.artifacts.shared import Shared
from policies.artifacts import Artifact, Head, Name
from tests.backends.artifacts.conftest import RedisServer
from tests.backends.artifacts.conftest import redis_server as redis_server  # noqa: PLC0414 - a fixture of here too
from tests.gateway.rawhttp import Raw, connected, request
from tests.gateway.support import Running, attached, error_of, metric, running, settled, until, written

NOBODY = {"default": attached("http://127.0.0.1:9")}
KEYS = {"keys": [{"key": "a", "tenant": "one"}, {"key": "b", "tenant": "two"}]}
RUN = {"X-Workflow-Type": "nl2sql", "X-Workflow-Id": "r1"}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@asynccontextmanager
async def store(folder: Path, **sections: Any) -> AsyncIterator[Running]:
    async with running(folder, written(NOBODY, **sections), report_every=60) as up:
        yield up
        await settled(up.gateway)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    """One gateway for the tests that use topics of their own."""
    async with store(tmp_path_factory.mktemp("state"), auth=KEYS, state={"value": "1kB", "keys": 3}) as up:
        up.http.headers.update(bearer("a"))
        yield up


module_loop = pytest.mark.asyncio(loop_scope="module")


async def publish(up: Running, topic: str, key: str = "k", value: object = 1, **more: Any) -> httpx.Response:
    headers = more.pop("headers", {})
    return await up.http.post(f"/v1/state/{topic}", json={"key": key, "value": value, **more}, headers=headers)


async def found(up: Running, topic: str, key: str = "k", **more: Any) -> object:
    reply = await up.http.get(f"/v1/state/{topic}/{key}", **more)
    return reply.json()["value"] if reply.status_code == 200 else None


class Reader:
    """A client that reads a topic's events."""

    def __init__(self, lines: AsyncIterator[str]) -> None:
        self._lines = lines

    async def event(self) -> tuple[str, str, Any]:
        """The next event: its id, its kind and its data."""
        fields: dict[str, str] = {}
        async with asyncio.timeout(15):
            async for line in self._lines:
                if line:
                    name, _, value = line.partition(": ")
                    fields[name] = value
                elif "event" in fields:
                    break
        return fields["id"], fields["event"], json.loads(fields["data"])


@asynccontextmanager
async def reading(up: Running, topic: str, **more: Any) -> AsyncIterator[Reader]:
    async with up.http.stream("GET", f"/v1/state/{topic}/events", **more) as reply:
        assert reply.status_code == 200
        assert reply.headers["content-type"].startswith("text/event-stream")
        reader = Reader(reply.aiter_lines())
        yield reader


# --- publishing and finding -----------------------------------------------------------------------------------


@module_loop
async def test_what_is_published_is_found_with_all_that_was_said_of_it(shared: Running) -> None:
    value = {"tables": ["orders"], "ü": [1.5, None, True]}
    more = {"type": "schema", "ttl": 60, "tags": ["table:orders", "table:orders", "doc:1"], "cost": 2.5}
    reply = await publish(shared, "schemas", "sales", value, producer="retrieve", **more)
    assert reply.status_code == 200, reply.text
    told = reply.json()
    assert (told["kept"], told["everywhere"]) == (True, True)
    reply = await shared.http.get("/v1/state/schemas/sales")
    artifact = reply.json()
    assert artifact["value"] == value
    assert (artifact["key"], artifact["type"], artifact["producer"]) == ("sales", "schema", "retrieve")
    assert (artifact["tags"], artifact["cost"]) == (["table:orders", "doc:1"], 2.5)
    assert 50 < artifact["ttl"] <= 60
    assert artifact["source"] == "memory"
    listed = (await shared.http.get("/v1/state/schemas")).json()
    assert [row["key"] for row in listed["keys"]] == ["sales"]
    assert "value" not in listed["keys"][0]
    assert listed["complete"]


@module_loop
@pytest.mark.parametrize(
    "text",
    [
        "123456789012345678901234567890",
        "0.10000000000000000555",
        "-1",
        '"é"',
        "null",
        "[ 1e2,\t12345678901234567890123 ]",
    ],
)
async def test_values_come_back_exactly(shared: Running, text: str) -> None:
    body = f'{{"scope": "tenant", "value" : {text} , "key": "exact"}}'
    assert (await shared.http.post("/v1/state/exact", content=body.encode())).status_code == 200
    reply = await shared.http.get("/v1/state/exact/exact")
    assert json.loads(reply.text, parse_int=str, parse_float=str)["value"] == json.loads(
        text, parse_int=str, parse_float=str
    )


@module_loop
async def test_of_a_value_that_is_given_twice_the_last_one_counts(shared: Running) -> None:
    body = b'{"key": "k", "value": 12345678901234567, "value": 2}'
    assert (await shared.http.post("/v1/state/twice", content=body)).status_code == 200
    assert await found(shared, "twice") == 2


@module_loop
async def test_names_of_any_script_and_with_signs_are_found_again(shared: Running) -> None:
    for key in ("a b", "é?#%", "...", "x" * 256):
        assert (await publish(shared, "names-" + key[:1], key, key)).status_code == 200
        path = httpx.URL(f"{shared.url}/").copy_with(
            raw_path=b"/v1/state/names-" + quoted(key[:1]) + b"/" + quoted(key)
        )
        assert (await shared.http.get(path)).json()["value"] == key


def quoted(text: str) -> bytes:
    return b"".join(b"%%%02X" % byte for byte in text.encode())


@module_loop
async def test_no_tenant_sees_lists_changes_or_hears_of_anothers(shared: Running) -> None:
    other = bearer("b")
    assert (await publish(shared, "private", tags=["t"])).status_code == 200
    async with reading(shared, "private", headers=other) as reader:
        assert (await reader.event())[1] == "open"
        assert await found(shared, "private", headers=other) is None
        assert (await shared.http.get("/v1/state/private", headers=other)).json()["keys"] == []
        assert not (await shared.http.delete("/v1/state/private/k", headers=other)).json()["deleted"]
        await shared.http.post("/v1/state/invalidate", json={"tags": ["t"]}, headers=other)
        await publish(shared, "private", value=2)
        await publish(shared, "private", value="other", headers=other)
        # Its own three and nothing in between.
        kinds = [(await reader.event())[1:] for _ in range(3)]
    assert [kind for kind, _ in kinds] == ["deleted", "invalidated", "published"]
    assert kinds[2][1]["value"] == "other"
    assert await found(shared, "private") == 2


@module_loop
async def test_a_run_and_a_workflow_have_topics_of_their_own(shared: Running) -> None:
    for scope, headers in [("tenant", {}), ("workflow", RUN), ("run", RUN)]:
        assert (await publish(shared, "scoped", value=scope, scope=scope, headers=headers)).status_code == 200
    other = {**RUN, "X-Workflow-Id": "r2"}
    assert await found(shared, "scoped") == "tenant"
    assert await found(shared, "scoped", params={"scope": "workflow"}, headers=other) == "workflow"
    assert await found(shared, "scoped", params={"scope": "run"}, headers=RUN) == "run"
    assert await found(shared, "scoped", params={"scope": "run"}, headers=other) is None


@module_loop
async def test_deleting_is_done_once_and_may_be_asked_for_twice(shared: Running) -> None:
    await publish(shared, "deleted")
    for there in (True, False):
        reply = await shared.http.delete("/v1/state/deleted/k")
        assert (reply.status_code, reply.json()["deleted"]) == (200, there)
    assert await found(shared, "deleted") is None


@module_loop
async def test_an_invalidation_makes_void_all_that_depends_on_its_tags(shared: Running) -> None:
    await publish(shared, "plans", "a", tags=["table:orders"])
    await publish(shared, "plans", "b", tags=["table:customers"])
    reply = await shared.http.post("/v1/state/invalidate", json={"tags": ["table:orders", "table:none"]})
    assert reply.json() == {"tags": ["table:orders", "table:none"], "everywhere": True}
    assert await found(shared, "plans", "a") is None
    assert await found(shared, "plans", "b") == 1


@module_loop
async def test_what_is_cheaper_to_compute_than_to_keep_is_not_kept(shared: Running) -> None:
    told = (await publish(shared, "cheap", cost=1e-6)).json()
    assert told["kept"] is False
    assert await found(shared, "cheap") is None


@module_loop
async def test_what_has_outlived_its_time_is_not_found(shared: Running) -> None:
    await publish(shared, "brief", ttl=1e-6)
    assert await found(shared, "brief") is None
    assert (await shared.http.get("/v1/state/brief")).json()["keys"] == []


# --- bad input ------------------------------------------------------------------------------------------------


@module_loop
@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"value": 1}, "key"),
        ({"key": "k"}, "value"),
        ({"key": "", "value": 1}, "key"),
        ({"key": "x" * 257, "value": 1}, "key"),
        ({"key": "a/b", "value": 1}, "key"),
        ({"key": "a\nb", "value": 1}, "key"),
        ({"key": "events", "value": 1}, "key"),
        ({"key": ".", "value": 1}, "key"),
        ({"key": "..", "value": 1}, "key"),
        ({"key": "k", "value": 1, "tll": 3}, "tll"),
        ({"kye": "k", "value": 1}, "kye"),
        ({"key": 1, "value": 1}, "key"),
        ({"key": "k", "value": 1, "type": 5}, "type"),
        ({"key": "k", "value": 1, "producer": "\x00"}, "producer"),
        *(({"key": "k", "value": 1, "ttl": ttl}, "ttl") for ttl in (0, -1, True, "1h", 86401, 10**400)),
        ({"key": "k", "value": 1, "cost": -1}, "cost"),
        ({"key": "k", "value": 1, "tags": "t"}, "tags"),
        ({"key": "k", "value": 1, "tags": ["t"] * 33}, "tags"),
        ({"key": "k", "value": 1, "tags": ["t", ""]}, "tags[1]"),
        ({"key": "k", "value": 1, "scope": "world"}, "scope"),
        ({"key": "k", "value": 1, "scope": "run"}, "scope"),
        ({"key": "k", "value": 1, "scope": "workflow"}, "scope"),
    ],
    ids=repr,
)
async def test_a_bad_publication_names_the_field(shared: Running, body: dict[str, Any], param: str) -> None:
    reply = await shared.http.post("/v1/state/bad", content=json.dumps(body).encode())
    assert reply.status_code == 400
    error = error_of(reply)
    if body.get("ttl") != 10**400:  # no number at all for JSON readers
        assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert (await shared.http.get("/v1/state/bad")).json()["keys"] == []


@module_loop
async def test_bad_paths_and_bodies_are_refused_in_openais_shape(shared: Running) -> None:
    for method, path, status, param in [
        ("GET", "/v1/state/t/missing", 404, "key"),
        ("GET", "/v1/state/t?scope=world", 400, "scope"),
        ("GET", "/v1/state/t?scope=", 400, "scope"),
        ("GET", "/v1/state/t/missing?scop=run", 400, "scop"),
        ("DELETE", "/v1/state/t/missing?scop", 400, "scop"),
        ("GET", "/v1/state/t/events?topic=u", 400, "topic"),
        ("GET", "/v1/state/%2e%2e", 400, "topic"),
        ("GET", "/v1/state/t/%2e%2e", 400, "key"),
        ("GET", f"/v1/state/{'x' * 257}", 400, "topic"),
        ("GET", "/v1/state/a%0Ab/events", 400, "topic"),
        ("GET", f"/v1/state/t/{'x' * 257}", 400, "key"),
        ("DELETE", "/v1/state/t/%00", 400, "key"),
        ("GET", "/v1/state/invalidate", 400, "topic"),
        ("PUT", "/v1/state/t", 405, None),
        ("POST", "/v1/state/t/k", 405, None),
    ]:
        reply = await shared.http.request(method, path)
        assert (reply.status_code, error_of(reply)["param"]) == (status, param), path
    for body in (b"", b"[]", b"{", b'{"tags": []}', b'{"tags": null}', b'{"tags": ["t"], "scope": "run"}'):
        assert (await shared.http.post("/v1/state/invalidate", content=body)).status_code == 400
    assert (await shared.http.get("/v1/state/t", headers=bearer("nobody"))).status_code == 401


@module_loop
async def test_who_misspells_is_told_what_he_may_have_meant(shared: Running) -> None:
    reply = await publish(shared, "misspelt", tll=3)
    assert error_of(reply)["message"].startswith("tll: is not known here; did you mean ttl? (known: key, value, ")
    reply = await shared.http.get("/v1/state/misspelt/k", params={"scop": "run"})
    assert error_of(reply)["message"] == "scop: is not known here; did you mean scope? (known: scope)"
    for path, body in [("t", {"key": "k", "value": 1}), ("invalidate", {"tags": ["t"]})]:
        reply = await shared.http.post(f"/v1/state/{path}", params={"scope": "run"}, json=body)
        assert (reply.status_code, error_of(reply)["param"]) == (400, "scope")
    # Whose run it is may stand in any body.
    more: dict[str, Any] = {"workflow": {"type": "nl2sql"}, "metadata": {"run": "1"}}
    assert (await publish(shared, "misspelt", **more)).status_code == 200
    assert (await shared.http.post("/v1/state/invalidate", json={"tags": ["t"], **more})).status_code == 200


@module_loop
@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "t/a", "DELETE, GET, HEAD"),
        ("POST", "t/a", "DELETE, GET, HEAD"),
        ("DELETE", "t", "GET, HEAD, POST"),
        ("POST", "t/events", "DELETE, GET, HEAD"),
    ],
)
async def test_a_wrong_method_is_told_all_that_the_path_has(
    shared: Running, method: str, path: str, allowed: str
) -> None:
    reply = await shared.http.request(method, f"/v1/state/{path}")
    assert (reply.status_code, reply.headers["allow"]) == (405, allowed)
    assert error_of(reply)["message"] == f"{method} is not possible here (allowed: {allowed})"


@module_loop
async def test_values_are_bounded(shared: Running) -> None:
    assert (await publish(shared, "large", value="x" * 998)).status_code == 200
    reply = await publish(shared, "large", value="x" * 999)
    assert (reply.status_code, error_of(reply)["param"]) == (413, "value")
    assert (await publish(shared, "large", value="x" * 100_000)).status_code == 413


@module_loop
async def test_a_topic_has_so_many_keys_and_changing_one_takes_no_more(shared: Running) -> None:
    for key in "abc":
        assert (await publish(shared, "full", key)).status_code == 200
    reply = await publish(shared, "full", "d")
    assert (reply.status_code, error_of(reply)["param"]) == (400, "key")
    assert (await publish(shared, "full", "a", 2)).status_code == 200
    await shared.http.delete("/v1/state/full/b")
    assert (await publish(shared, "full", "d")).status_code == 200


# --- events ---------------------------------------------------------------------------------------------------


@module_loop
async def test_a_reader_hears_what_happens_to_its_topic_and_no_other(shared: Running) -> None:
    async with reading(shared, "heard") as reader:
        assert (await reader.event())[1] == "open"
        await publish(shared, "elsewhere")
        await publish(shared, "heard", value={"a": [1]}, type="rows", tags=["t"])
        await shared.http.delete("/v1/state/heard/k")
        await shared.http.post("/v1/state/invalidate", json={"tags": ["t"]})
        _, kind, data = await reader.event()
        assert (kind, data["key"], data["type"], data["value"]) == ("published", "k", "rows", {"a": [1]})
        assert (await reader.event())[1:] == ("deleted", {"key": "k"})
        assert (await reader.event())[1:] == ("invalidated", {"tags": ["t"]})
        assert metric(shared.gateway, "cortex_state_readers") == 1
    await until(lambda: metric(shared.gateway, "cortex_state_readers") == 0, "the reader's end")


@module_loop
async def test_a_value_over_several_lines_is_one_line_of_an_event(shared: Running) -> None:
    async with reading(shared, "lines") as reader:
        await reader.event()
        body = b'{"key": "k", "value": {\r\n  "n": 12345678901234567890,\r  "text": "a\\nb"\n}}'
        assert (await shared.http.post("/v1/state/lines", content=body)).status_code == 200
        _, kind, data = await reader.event()
        assert (kind, data["value"]) == ("published", {"n": 12345678901234567890, "text": "a\nb"})


@module_loop
async def test_a_reader_that_comes_back_hears_what_it_missed(shared: Running) -> None:
    async with reading(shared, "resumed") as reader:
        await reader.event()
        await publish(shared, "resumed", value=1)
        last, *_ = await reader.event()
    await publish(shared, "resumed", value=2)
    await publish(shared, "resumed", value=3)
    async with reading(shared, "resumed", headers={"Last-Event-ID": last}) as reader:
        assert (await reader.event())[:2] == (last, "open")
        values = [(await reader.event())[2]["value"] for _ in range(2)]
        assert values == [2, 3]


@module_loop
@pytest.mark.parametrize("last", ["", "x", "0.1", "ffffffff.1", "{own}.999999", "{own}.-1", "{own}.²"])
async def test_a_reader_that_cannot_be_told_what_it_missed_is_told_that(shared: Running, last: str) -> None:
    async with reading(shared, "lost") as reader:
        own = (await reader.event())[0].partition(".")[0]
    header = {"Last-Event-ID": last.format(own=own).encode()}
    async with reading(shared, "lost", headers=header) as reader:
        assert [(await reader.event())[1] for _ in range(2)] == ["open", "reset"]
        await publish(shared, "lost", value="next")
        assert (await reader.event())[2]["value"] == "next"


async def test_a_slow_reader_costs_nothing_and_is_told_when_it_was_left_behind(tmp_path: Path) -> None:
    async with store(tmp_path) as up, connected(up.url) as slow:
        await slow.send(request(b"", path="/v1/state/fast/events", method="GET"))
        assert (await slow.head()).status == 200
        artifacts = up.gateway.state.artifacts
        for number in range(2500):  # in one go: more than the sockets between here and there hold
            name = Name("", ("tenant", "fast"), str(number % 100))
            now = artifacts.now()
            head = Head(name=name, size=15_000, cost=1.0, made=now, expires=now + 60, listed=True)
            await artifacts.publish(Artifact(head, b'"%b"' % (b"x" * 14_998)))
        log = up.gateway.state.events._logs[""]
        assert log.last == 2500
        assert sum(len(event.data) for event in log._events) <= 4_000_000
        read = await read_until(slow, b"event: reset")
        await publish(up, "fast", "end", "the end")
        read += await read_until(slow, b'"the end"')
        assert read.count(b"event: published") < 300
        assert read.count(b"event: reset") == 1


async def read_until(client: Raw, word: bytes) -> bytes:
    read = b""
    async with asyncio.timeout(15):
        while word not in read:
            read += await client.reader.read(1_000_000)
    return read


async def test_a_tenant_reads_so_many_streams_and_no_more(tmp_path: Path) -> None:
    async with store(tmp_path, auth=KEYS, state={"subscribers": 2}) as up:
        one, two = bearer("a"), bearer("b")
        async with reading(up, "t", headers=one), reading(up, "t", headers=one):
            reply = await up.http.get("/v1/state/t/events", headers=one)
            assert (reply.status_code, error_of(reply)["code"]) == (429, "rate_limit_exceeded")
            async with reading(up, "t", headers=two) as reader:
                assert (await reader.event())[1] == "open"
        await until(lambda: up.gateway.state.events.readers == 0, "the readers' end")
        async with reading(up, "t", headers=one) as reader:
            assert (await reader.event())[1] == "open"


async def test_readers_end_when_the_gateway_is_told_to_stop(tmp_path: Path) -> None:
    async with store(tmp_path) as up, up.http.stream("GET", "/v1/state/t/events") as reply:
        up.gateway.draining = True
        async with asyncio.timeout(15):
            await reply.aread()


# --- several gateways -----------------------------------------------------------------------------------------


@asynccontextmanager
async def two_gateways(folder: Path, url: str, timeout: str = "5s") -> AsyncIterator[tuple[Running, Running]]:
    state = {"redis": url, "timeout": timeout}
    for name in ("one", "other"):
        (folder / name).mkdir()
    async with store(folder / "one", state=state) as one, store(folder / "other", state=state) as other:
        for up in (one, other):
            shared = up.gateway.state.artifacts.shared
            assert shared is not None
            await until(lambda shared=shared: shared.listening, "listening")  # type: ignore[misc]
        yield one, other


async def test_two_gateways_share_one_state(tmp_path: Path, redis_server: RedisServer) -> None:
    async with two_gateways(tmp_path, redis_server.url) as (one, other), reading(other, "t") as reader:
        assert (await reader.event())[1] == "open"
        assert (await publish(one, "t", value="first", tags=["x"])).json()["everywhere"]
        assert (await reader.event())[2]["value"] == "first"
        assert (await other.http.get("/v1/state/t/k")).json()["source"] == "redis"
        assert (await other.http.get("/v1/state/t/k")).json()["source"] == "memory"
        await publish(one, "t", value="second", tags=["x"])
        assert (await reader.event())[2]["value"] == "second"
        assert await found(other, "t") == "second"
        listed = (await other.http.get("/v1/state/t")).json()
        assert [row["key"] for row in listed["keys"]] == ["k"]
        await one.http.post("/v1/state/invalidate", json={"tags": ["x"]})
        assert (await reader.event())[1] == "invalidated"
        assert await found(other, "t") is None
        assert metric(other.gateway, "cortex_artifact_lookups_total", tier="redis", result="hit") == 2


async def test_requests_go_on_while_redis_is_gone_and_readers_are_told_afterwards(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    async with two_gateways(tmp_path, redis_server.url, "100ms") as (one, other), reading(other, "t") as reader:
        await reader.event()
        redis_server.kill()
        reply = await publish(one, "t", value="meanwhile")
        assert (reply.status_code, reply.json()["kept"], reply.json()["everywhere"]) == (200, True, False)
        assert await found(one, "t") == "meanwhile"
        assert await found(other, "t") is None
        assert not (await one.http.get("/v1/state/t")).json()["complete"]
        assert metric(one.gateway, "cortex_redis_failures_total", reason="connection") > 0
        redis_server.start()
        assert (await reader.event())[1] == "reset"
        await until(lambda: not one.gateway.state.artifacts.shared.untold, "told")  # type: ignore[union-attr]
        assert await found(other, "t") == "meanwhile"


async def test_a_reset_of_one_tenant_is_told_to_no_other(tmp_path: Path, redis_server: RedisServer) -> None:
    state = {"redis": redis_server.url, "timeout": "5s"}
    async with store(tmp_path, auth=KEYS, state=state) as up:
        artifacts = up.gateway.state.artifacts
        shared = artifacts.shared
        assert shared is not None
        await until(lambda: shared.listening, "listening")
        async with reading(up, "t", headers=bearer("a")) as one, reading(up, "t", headers=bearer("b")) as two:
            assert [(await reader.event())[1] for reader in (one, two)] == ["open", "open"]
            for key in "ab":
                await publish(up, "t", headers=bearer(key))
            assert [(await reader.event())[1] for reader in (one, two)] == ["published", "published"]
            await redis_client(shared).publish(CHANNEL, encoded(Reset("one"), "another gateway"))
            assert (await one.event())[1] == "reset"
            await publish(up, "t", headers=bearer("b"))
            assert (await two.event())[1] == "published"
            kept = {name.tenant for name in artifacts.memory.shelf}
            assert kept == {"two"}


async def test_what_nobody_can_read_under_our_keys_fails_no_request(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    state = {"redis": redis_server.url, "timeout": "5s"}
    async with store(tmp_path, state=state) as up:
        shared = up.gateway.state.artifacts.shared
        assert shared is not None
        await until(lambda: shared.listening, "listening")
        client = redis_client(shared)
        for key, found_again in [("l", 200), ("m", 404), ("a", 404)]:
            await publish(up, "spoilt", tags=["x"])
            (at,) = [one async for one in client.scan_iter(match=f"cortex:{key}:*")]
            if key == "l":
                await client.hset(at, mapping={"foreign": b"not json", "list": b"[]", "\xff": b"{}"})
            else:
                await client.set(at, b"\xff")
            await up.gateway.state.artifacts.memory.drop_all("")
            assert (await up.http.get("/v1/state/spoilt/k")).status_code == found_again
            assert (await up.http.get("/v1/state/spoilt")).status_code == 200
        assert not shared.untold
        assert metric(up.gateway, "cortex_redis_failures_total", reason="broken") == 0


def redis_client(shared: Shared) -> Redis:
    return shared._tier.client
