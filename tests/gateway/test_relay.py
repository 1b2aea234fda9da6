"""What the relay sends on and what it gives back: bytes as they came, but for the edits that are ours."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.gateway.recorder import CHUNKS, WHOLE, Recorder, politely, recording
from tests.gateway.support import MODEL, Running, attached, chat, running, settled, written

pytestmark = pytest.mark.asyncio(loop_scope="module")

WORKFLOW = {
    "slo": {"deadline": "8s"},
    "stages": {
        "generate": {"pool": "generator", "prompt": "prompt.md"},
        "fix": {"pool": "fixer", "prompt": "prompt.md"},
    },
    "edges": [{"from": "start", "to": "generate"}, {"from": "generate", "to": "fix"}],
}
ODD = (
    b'{ "model" : "cortex-emulated",\n "messages":[{"role":"user","content":"caf\\u00e9 \xf0\x9f\x8d\xb5"}],'
    b'"x_vendor":{"big":12345678901234567890123,"f":1.50,"e":1e2},  "stream" : %b , "seed":7}'
)


class Site:
    """A gateway before three recorders: one for each pool."""

    def __init__(self, up: Running, engines: dict[str, Recorder]) -> None:
        self.up = up
        self.engines = engines

    async def post(self, body: dict[str, Any] | bytes, *, path: str = "/v1/chat/completions", **headers: str) -> Any:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.up.http.post(path, content=content, headers=named)

    @property
    def last(self) -> Any:
        """The one request that reached an engine since the last look."""
        seen = [request for engine in self.engines.values() for request in engine.seen]
        for engine in self.engines.values():
            engine.seen.clear()
        assert len(seen) == 1
        return seen[0]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    tmp_path = tmp_path_factory.mktemp("site")
    (tmp_path / "prompt.md").write_text("Question: {question}")
    async with recording() as default, recording() as generator, recording() as fixer:
        pools = {
            "default": attached(default.url),
            "generator": {**attached(generator.url), "model": "Qwen/Coder"},
            "fixer": {**attached(fixer.url), "model": "Qwen/Coder"},
        }
        keys = [
            {"key": "key-a", "tenant": "a", "workflow": "nl2sql"},
            {"key": "key-b", "tenant": "b", "priority": {"min": -1, "max": 1}},
        ]
        text = written(
            pools,
            models={"gpt-*": "default"},
            workflows={"nl2sql": WORKFLOW},
            auth={"keys": keys, "salt": "s3cret"},
            policies={"layout": "isolated"},
        )
        async with running(tmp_path, text) as up:
            up.http.headers["Authorization"] = "Bearer key-b"
            yield Site(up, {"default": default, "generator": generator, "fixer": fixer})


@pytest_asyncio.fixture(loop_scope="module")
async def site(shared_site: Site) -> AsyncIterator[Site]:
    """The one gateway of this module, with nothing left over from another test, nor for the next."""
    for engine in shared_site.engines.values():
        engine.answer = politely
        engine.seen.clear()
    yield shared_site
    await settled(shared_site.up.gateway)


@pytest.mark.parametrize("stream", [b"true", b"false"])
async def test_a_body_reaches_the_engine_byte_for_byte_but_for_the_salt(site: Site, stream: bytes) -> None:
    body = ODD % stream
    assert (await site.post(body)).status_code == 200
    got = site.last.body
    salt = json.loads(got)["cache_salt"]
    assert got == body.replace(b"{", b'{"cache_salt":"%b",' % salt.encode(), 1)


async def test_a_body_is_untouched_where_nothing_is_ours_to_change(tmp_path: Path) -> None:
    async with recording() as engine, running(tmp_path, written({"default": attached(engine.url)})) as up:
        for path in ("/v1/chat/completions", "/v1/completions"):
            for stream in (b"true", b"false"):
                body = (ODD % stream).replace(b'"messages"', b'"prompt":"Say hi", "messages"')
                assert (await up.http.post(path, content=body)).status_code == 200
                assert (engine.last.path, engine.last.body) == (path, body)


async def test_a_reply_comes_back_byte_for_byte(site: Site) -> None:
    whole = await site.post(chat())
    assert (whole.status_code, whole.content) == (200, WHOLE)
    assert whole.headers["content-type"] == "application/json"
    assert whole.headers["content-length"] == str(len(WHOLE))
    streamed = await site.post(chat(stream=True))
    assert (streamed.status_code, streamed.content) == (200, b"".join(CHUNKS))
    assert streamed.headers["content-type"] == "text/event-stream; charset=utf-8"


async def test_only_the_members_that_are_ours_change(site: Site) -> None:
    body = (
        b'{"model": "gpt-4o", "workflow": {"type": "nl2sql", "id": "r1"}, "priority": 3, "metadata": {"k": "v"},\n'
        b' "messages": [ {"role":"user","content":"hi"} ],  "cache_salt": "mine", "x": [1.0]}'
    )
    assert (await site.post(body)).status_code == 200
    got = site.last
    assert got.document["cache_salt"] not in ("", "mine")
    salt = json.dumps(got.document["cache_salt"]).encode()
    assert got.body == (
        b'{"model": "cortex-emulated", "metadata": {"k": "v"},\n'
        b' "messages": [ {"role":"user","content":"hi"} ],  "cache_salt": ' + salt + b', "x": [1.0]}'
    )


async def test_tenants_have_salts_of_their_own_that_stay_the_same(site: Site) -> None:
    salts = []
    for key in ("key-a", "key-b", "key-a"):
        await site.post(chat(), Authorization=f"Bearer {key}", X_Workflow_Type="other")
        salts.append(site.last.document["cache_salt"])
    assert salts[0] == salts[2] != salts[1]
    assert not any(salt == "a" or "s3cret" in salt or "key" in salt for salt in salts)


async def test_engines_are_told_run_request_and_order_but_no_secret(site: Site) -> None:
    secrets = {"Cookie": "session=1", "X-Api-Key": "key-b", "Api-Key": "key-b", "X-Forwarded-For": "10.0.0.1"}
    passing = {"traceparent": "00-ab-cd-01", "X-Vendor-Thing": "kept", "Accept-Language": "de"}
    forged = {"X-Vllm-Priority": "-99999"}
    ours = {"X-Workflow-Id": "run-7", "X-Workflow-Agent": "me", "X-Request-Id": "mine-1"}
    reply = await site.up.http.post("/v1/chat/completions", json=chat(), headers=secrets | passing | forged | ours)
    assert reply.status_code == 200
    got = site.last
    assert {name: got.header(name) for name in passing} == passing
    assert got.header("X-Session-ID") == "run-7"
    assert got.header("X-Request-Id") == "mine-1"
    assert int(got.header("X-Vllm-Priority") or "") > 0
    assert got.header("content-type") == "application/json"
    assert got.header("content-length") == str(len(got.body))
    everything = json.dumps(got.headers)
    for gone in ("key-b", "session=1", "10.0.0.1", "-99999", "x-workflow-"):
        assert gone not in everything


async def test_an_earlier_deadline_is_an_earlier_place_in_the_engine(site: Site) -> None:
    places = []
    for deadline in ("60000", "600000"):
        await site.post(chat(), X_Workflow_Deadline_Ms=deadline)
        places.append(int(site.last.header("X-Vllm-Priority")))
    assert places[0] < places[1]


async def test_the_reply_says_what_became_of_the_call(site: Site) -> None:
    reply = await site.post(chat(), X_Workflow_Type="nl2sql", X_Workflow_Stage="fix", X_Request_Id="q-1")
    said = {name: value for name, value in reply.headers.items() if name.startswith("x-")}
    run = site.last.header("X-Session-ID")
    slack, queued = float(said.pop("x-workflow-slack-ms")), float(said.pop("x-workflow-queue-ms"))
    assert 0 < slack <= 8000
    assert 0 <= queued < 8000
    assert said == {
        "x-request-id": "q-1",
        "x-workflow-id": run,
        "x-workflow-stage": "fix",
        "x-workflow-pool": "fixer",
        "x-workflow-engine": "fixer/0",
        "x-workflow-source": "header",
    }


PLACES: list[tuple[str, str, dict[str, Any], dict[str, str], str, str]] = [
    # what wins, path before /v1, body, headers, pool, source
    ("header", "", {}, {"X-Workflow-Type": "nl2sql", "X-Workflow-Stage": "fix"}, "fixer", "header"),
    ("body", "", {"workflow": {"type": "nl2sql", "stage": "fix"}}, {}, "fixer", "body"),
    ("metadata", "", {"metadata": {"workflow_type": "nl2sql", "stage": "fix"}}, {}, "fixer", "body"),
    ("path", "/w/nl2sql/s/fix", {}, {}, "fixer", "path"),
    ("alias", "", {"model": "nl2sql/fix"}, {}, "fixer", "alias"),
    ("key", "", {"model": "cortex-emulated"}, {"Authorization": "Bearer key-a"}, "default", "key"),
    ("header before body", "", {"workflow": {"stage": "generate"}},
     {"X-Workflow-Type": "nl2sql", "X-Workflow-Stage": "fix"}, "fixer", "header"),
    ("header before path", "/w/nl2sql/s/generate", {}, {"X-Workflow-Stage": "fix"}, "fixer", "path"),
    ("body before path", "/w/nl2sql/s/generate", {"workflow": {"stage": "fix"}}, {}, "fixer", "path"),
    ("path before alias", "/w/nl2sql/s/generate", {"model": "nl2sql/fix"}, {}, "generator", "path"),
    ("alias before key", "", {"model": "nl2sql/generate"}, {"Authorization": "Bearer key-a"}, "generator", "alias"),
]  # fmt: skip


@pytest.mark.parametrize("case", PLACES, ids=[case[0] for case in PLACES])
async def test_each_channel_places_a_call_and_the_stronger_one_wins(
    site: Site, case: tuple[str, str, dict[str, Any], dict[str, str], str, str]
) -> None:
    _, path, body, headers, pool, source = case
    reply = await site.up.http.post(f"{path}/v1/chat/completions", json=chat(**body), headers=headers)
    assert reply.status_code == 200
    assert reply.headers["x-workflow-pool"] == pool
    assert reply.headers["x-workflow-source"] == source
    model = site.last.document["model"]
    assert model == (MODEL if pool == "default" else "Qwen/Coder")


async def test_a_stage_or_a_workflow_that_nobody_knows_is_taken_from_a_header(site: Site) -> None:
    reply = await site.post(chat(), X_Workflow_Type="brand-new", X_Workflow_Stage="draft")
    assert (reply.status_code, reply.headers["x-workflow-pool"]) == (200, "default")
    assert reply.headers["x-workflow-stage"] == "draft"


async def test_calls_of_one_run_are_counted_to_it(site: Site) -> None:
    for _ in range(3):
        await site.post(chat(), X_Workflow_Id="run-9", X_Workflow_Type="nl2sql", X_Workflow_Stage="generate")
        assert site.last.header("X-Session-ID") == "run-9"
    (run,) = [run for run in site.up.gateway.runtime.dispatcher.runs if run.key == ("b", "nl2sql", "run-9")]
    assert (run.calls, run.visits["generate"]) == (3, 3)


async def test_an_engines_own_refusal_comes_back_as_it_is(site: Site) -> None:
    error = b'{"error": {"message": "too long", "type": "BadRequestError", "param": null, "code": 400}}'
    site.engines["default"].answer = lambda exchange: exchange.whole(error, status=400)
    for stream in (False, True):
        reply = await site.post(chat(stream=stream))
        assert (reply.status_code, reply.content) == (400, error)
        assert reply.headers["x-workflow-engine"] == "default/0"
        assert site.last


async def test_headers_of_the_engine_pass_except_those_of_its_connection(site: Site) -> None:
    headers = [
        ("content-type", "application/json"),
        ("x-engine-thing", "kept"),
        ("x-workflow-pool", "forged"),
        ("server", "engine"),
        ("x-request-id", "the engine's"),
    ]
    site.engines["default"].answer = lambda exchange: exchange.whole(WHOLE, headers=headers)
    reply = await site.post(chat(), X_Request_Id="mine")
    assert reply.headers["x-engine-thing"] == "kept"
    assert reply.headers.get_list("x-workflow-pool") == ["default"]
    assert reply.headers.get_list("x-request-id") == ["mine"]
    assert "engine" not in reply.headers.get("server", "")


async def test_a_large_body_passes_whole(site: Site) -> None:
    text = "long " * 600_000
    assert (await site.post(chat(text))).status_code == 200
    assert site.last.document["messages"][0]["content"] == text


async def test_an_event_that_is_cut_inside_a_character_arrives_whole(site: Site) -> None:
    event = 'data: {"choices":[{"index":0,"delta":{"content":"größte 🍵"}}]}\n\n'.encode()
    pieces = [event[:50], event[50:56], event[56:63], event[63:], CHUNKS[2] + CHUNKS[3]]
    site.engines["default"].answer = lambda exchange: exchange.pieces(pieces)
    reply = await site.post(chat(stream=True))
    assert reply.content == event + CHUNKS[2] + CHUNKS[3]
