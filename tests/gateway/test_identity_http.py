"""Identity as a client and an engine see it, on a gateway that listens."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.gateway.recorder import Recorder, recording
from tests.gateway.support import CHAT, Running, attached, chat, metric, running, written
from tests.gateway.test_identity_vendors import CLAUDE, CONTEXT, OPENCODE, SPAWNED, UUID

pytestmark = pytest.mark.asyncio(loop_scope="module")

WORKFLOW = {
    "stages": {"generate": {"pool": "default", "prompt": "prompt.md"}, "answer": {"render": "prompt.md"}},
    "edges": [{"from": "start", "to": "generate"}, {"from": "generate", "to": "answer"}],
}


class Site:
    """A gateway before one engine."""

    def __init__(self, up: Running, engine: Recorder) -> None:
        self.up = up
        self.engine = engine

    async def ask(self, headers: dict[str, str], body: object = None, *, key: str = "key-a") -> dict[str, str]:
        """What the reply says of the call, by the ends of the headers' names."""
        document = body if body is not None else chat()
        content = document if isinstance(document, bytes) else json.dumps(document).encode()
        reply = await self.up.http.post(CHAT, content=content, headers={**headers, "Authorization": f"Bearer {key}"})
        assert reply.status_code == 200, reply.text
        return {name: reply.headers.get(f"x-workflow-{name}", "") for name in ("id", "stage", "source")}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    (folder / "prompt.md").write_text("Question: {question}")
    keys = [{"key": "key-a", "tenant": "a"}, {"key": "key-b", "tenant": "b"}]
    async with recording() as engine:
        text = written(
            {"default": attached(engine.url)},
            workflows={"nl2sql": WORKFLOW},
            auth={"keys": keys},
            inference={"enabled": False},  # only what clients say is asked for here
        )
        async with running(folder, text) as up:
            yield Site(up, engine)


async def test_the_reply_and_the_metrics_say_which_channel_spoke(site: Site) -> None:
    assert await site.ask(CLAUDE) == {"id": UUID, "stage": "", "source": "claude-code"}
    assert await site.ask(SPAWNED) == {"id": UUID, "stage": "collab_spawn", "source": "codex"}
    assert await site.ask({"X-Session-ID": "s1"}) == {"id": "s1", "stage": "", "source": "session"}
    assert await site.ask({"X-Workflow-Id": "mine"}) == {"id": "mine", "stage": "", "source": "header"}
    gateway = site.up.gateway
    for source in ("claude-code", "codex", "session", "header"):
        assert metric(gateway, "cortex_identity_total", source=source) == 1


@pytest.mark.parametrize("headers", [CLAUDE, SPAWNED, OPENCODE, {"traceparent": "00-ab-cd-01", "baggage": "a=b"}])
async def test_a_vendors_headers_reach_the_engine_as_they_came(site: Site, headers: dict[str, str]) -> None:
    await site.ask(headers)
    got = site.engine.last
    assert {name: got.header(name) for name in headers} == headers


async def test_an_engine_is_told_the_clients_own_session_else_the_run(site: Site) -> None:
    await site.ask({"x-session-id": "ses_child", "x-parent-session-id": "ses_root"})
    assert site.engine.last.header("X-Session-ID") == "ses_child"
    await site.ask(CLAUDE)
    assert site.engine.last.header("X-Session-ID") == UUID


async def test_a_sub_agents_run_is_remembered_for_its_own_tenant(site: Site) -> None:
    spawned = {**OPENCODE, "x-session-id": "ses_leaf", "x-parent-session-id": "ses_branch"}
    await site.ask({**OPENCODE, "x-session-id": "ses_branch", "x-parent-session-id": "ses_trunk"})
    assert (await site.ask(spawned))["id"] == "ses_trunk"
    assert (await site.ask(spawned, key="key-b"))["id"] == "ses_branch"


async def test_another_routers_context_is_cut_out_of_the_body_and_nothing_else(site: Site) -> None:
    extra = json.dumps({"top": [1, 2], "agentic_context": CONTEXT}).encode()
    body = b'{"messages": [{"role":"user","content":"hi"}],  "vllm_xargs":%b, "model" : "cortex-emulated", "x":1.50}'
    told = await site.ask({}, body % extra)
    assert told == {"id": "task-a:lead", "stage": "subagent", "source": "vllm-router"}
    got = site.engine.last
    salt = got.document["cache_salt"].encode()
    assert got.body == (body % b'{"top":[1,2]}').replace(b"{", b'{"cache_salt":"%b",' % salt, 1)


async def test_a_foreign_object_in_the_body_stays_there(site: Site) -> None:
    more: dict[str, Any] = {"nvext": {"agent_context": {"session_id": "s"}}, "metadata": {"session_id": "m"}}
    assert (await site.ask({}, chat(**more)))["source"] == "dynamo"
    got = site.engine.last.document
    assert {name: got[name] for name in more} == more


async def test_a_stage_that_a_vendor_names_and_no_model_serves_is_no_error(site: Site) -> None:
    named = {"Helicone-Session-Id": "h1", "Helicone-Session-Name": "nl2sql", "Helicone-Session-Path": "/x/answer"}
    assert (await site.ask(named))["source"] == "helicone"


@pytest.mark.parametrize("run", ["zwölf", "€-7", "会话-1"])
async def test_a_session_in_any_script_comes_back_as_it_was_named(site: Site, run: str) -> None:
    told = await site.ask({}, chat(conversation=run))
    assert told["source"] == "conversation"
    assert told["id"] == run
    assert site.engine.last.header("X-Session-ID") is not None
