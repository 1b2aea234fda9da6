"""Every surface through a whole gateway: what goes through as it came, and what the gateway makes of it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from backends.emulated.options import EmulatedOptions
from backends.emulated.server import EmulatedServer, serve
from gateway.openai.payload import Endpoint, parse
from gateway.openai.prompt import told
from tests.gateway import shop
from tests.gateway.recorder import recording
from tests.gateway.support import MODEL, Running, attached, error_of, metric, running, settled, written

FAST = EmulatedOptions(time_scale=1000.0, faults=True)
ADMIN = {"token": "${ADMIN}"}
TOKEN = {"Authorization": "Bearer secret-of-the-admin"}
TOOL = {"type": "object", "properties": {"city": {"type": "string"}}}
ASK: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "<<echo:hello there>>"}]},
    "/v1/completions": {"prompt": "<<echo:hello there>>"},
    "/v1/responses": {"input": "<<echo:hello there>>", "instructions": "Be brief."},
    "/v1/messages": {"messages": [{"role": "user", "content": "<<echo:hello there>>"}], "max_tokens": 50},
}
COMPARE: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"input": ["one", "two"]},
    "/v1/rerank": {"query": "a cat", "documents": ["a dog", "a cat"]},
    "/v1/score": {"text_1": "a cat", "text_2": ["a dog", "a cat"]},
}


@asynccontextmanager
async def surfaces(
    folder: Path, *options: EmulatedOptions, **sections: Any
) -> AsyncIterator[tuple[Running, list[EmulatedServer]]]:
    """A gateway over an engine for each of the options."""
    async with serve(options[0]) as one, serve(options[-1]) as two:
        servers = [one, two][: len(options)]
        pools = {"default": attached(*(server.url for server in servers))}
        text = written(pools, **{"admin": ADMIN, **sections})
        async with running(folder, text, {"ADMIN": "secret-of-the-admin"}, report_every=60) as up:
            yield up, servers
            await settled(up.gateway, *servers)


@pytest.mark.parametrize("path", [*ASK, *COMPARE])
async def test_an_answer_is_the_engines_own(tmp_path: Path, path: str) -> None:
    body = {"model": MODEL, **(ASK | COMPARE)[path]}
    async with surfaces(tmp_path, FAST) as (up, [server]):
        reply = await up.http.post(path, json=body)
        assert reply.status_code == 200, reply.text
        assert (reply.headers["x-workflow-pool"], reply.headers["x-workflow-engine"]) == ("default", "default/0")
        async with httpx.AsyncClient(trust_env=False) as http:
            own = (await http.post(server.url + path, json=body)).json()
        assert reply.json().keys() == own.keys()
        if path in ASK:
            assert "hello there" in reply.text
            surface = {"/v1/chat/completions": "chat"}.get(path, path.rpartition("/")[2])
            assert metric(up.gateway, "cortex_requests_total", endpoint=surface, status="200") == 1
        [run] = await of_run(up, reply)
        [call] = run["trace"]
        assert (call["end"], call["outcome"], call["attempts"][0]["engine"]) == ("finished", "ok", "default/0")
        assert call["prompt_tokens"] > 0


async def of_run(up: Running, reply: httpx.Response) -> list[dict[str, Any]]:
    """What the gateway tells of the run of a reply."""
    told = await up.http.get(f"/admin/runs/{reply.headers['x-workflow-id']}", headers=TOKEN)
    runs: list[dict[str, Any]] = told.json()["runs"]
    return runs


@pytest.mark.parametrize("path", ASK)
async def test_a_stream_goes_through_event_for_event_and_is_counted(tmp_path: Path, path: str) -> None:
    body = {"model": MODEL, "stream": True, **ASK[path]}
    async with surfaces(tmp_path, FAST) as (up, _):
        async with up.http.stream("POST", path, json=body) as reply:
            text = "".join([piece async for piece in reply.aiter_text()])
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert not any(data.get("type") == "error" for data in map(json.loads, data_of(text)))
        [run] = await of_run(up, reply)
        [call] = run["trace"]
        assert call["end"] == "finished"
        assert call["output_tokens"] > 0
        if path in ("/v1/responses", "/v1/messages"):
            assert call["prompt_tokens"] > 0  # chat tells of it only where it is asked to


def data_of(text: str) -> list[str]:
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [line for line in lines if line != "[DONE]"]


TURNS: dict[str, tuple[dict[str, Any], str]] = {
    "/v1/responses": (
        {
            "instructions": "You plan.",
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "weather?"}]},
                {"type": "reasoning", "summary": []},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
                {"type": "function_call", "call_id": "1", "name": "look", "arguments": '{"city": "Bonn"}'},
                {"type": "function_call_output", "call_id": "1", "output": '{"error": "no such city"}'},
            ],
            "tools": [{"type": "function", "name": "look", "parameters": TOOL}],
        },
        "error",
    ),
    "/v1/messages": (
        {
            "system": [{"type": "text", "text": "You plan."}],
            "messages": [
                {"role": "user", "content": "weather?"},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "hm", "signature": ""},
                        {"type": "text", "text": "I look."},
                        {"type": "tool_use", "id": "1", "name": "look", "input": {"city": "Bonn"}},
                    ],
                },
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "[]"}]},
            ],
            "tools": [{"name": "look", "input_schema": TOOL}],
            "max_tokens": 20,
        },
        "empty",
    ),
}


@pytest.mark.parametrize("path", TURNS)
async def test_what_tools_answered_is_read_wherever_it_stands(tmp_path: Path, path: str) -> None:
    document, ended = TURNS[path]
    surface: Endpoint = "responses" if path == "/v1/responses" else "messages"
    payload = parse(json.dumps({"model": MODEL, **document}).encode(), endpoint=surface)
    assert told(payload) == ended
    assert [message["role"] for message in payload.messages] == ["system", "user", "assistant", "tool"]
    [call] = payload.messages[2]["tool_calls"]
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("look", {"city": "Bonn"})
    assert payload.tools == ("look",)
    async with surfaces(tmp_path, FAST) as (up, _):
        reply = await up.http.post(path, json={"model": MODEL, **document})
        assert reply.status_code == 200, reply.text


async def test_a_response_is_kept_where_it_was_made_and_goes_on_there(tmp_path: Path) -> None:
    async with surfaces(tmp_path, FAST, FAST) as (up, servers):
        for number in range(6):
            first = await up.http.post("/v1/responses", json={"model": MODEL, "input": f"<<echo:say {number}>>"})
            name, engine = first.json()["id"], first.headers["x-workflow-engine"]
            again = {
                "model": MODEL,
                "input": "<<echo:go on>>",
                "previous_response_id": name,
                "stream": number % 2 > 0,
            }
            second = await up.http.post("/v1/responses", json=again)
            assert second.status_code == 200, second.text
            assert second.headers["x-workflow-engine"] == engine
            kept = await up.http.get(f"/v1/responses/{name}")
            assert kept.json() == first.json()
            assert kept.headers["x-workflow-engine"] == engine
            assert (await up.http.delete(f"/v1/responses/{name}")).status_code == 200
            gone = await up.http.get(f"/v1/responses/{name}")
            assert gone.status_code == 404
        assert all(server.engine for server in servers)


async def test_a_response_that_only_its_engine_remembers_is_found_by_the_only_tenant(tmp_path: Path) -> None:
    async with surfaces(tmp_path, FAST, FAST) as (up, servers):
        async with httpx.AsyncClient(trust_env=False) as http:
            made = await http.post(servers[1].url + "/v1/responses", json={"model": MODEL, "input": "hello"})
        found = await up.http.get(f"/v1/responses/{made.json()['id']}")
        assert found.json() == made.json()
        cancel = await up.http.post("/v1/responses/resp_nowhere/cancel")
        assert cancel.status_code == 404


@pytest.mark.parametrize(
    "name", ["..", "%2e%2e", "x%3Fy=1", "x%23y", "%0d%0aHost:x", "x%20y", "a%2Fb", "ü", "x" * 300]
)
async def test_no_id_of_a_response_leads_to_another_path_of_an_engine(tmp_path: Path, name: str) -> None:
    async with recording() as engine:
        text = written({"default": attached(engine.url)})
        async with running(tmp_path, text, report_every=60) as up:
            before = len(engine.questions)
            for method, below in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")):
                reply = await up.http.request(method, f"/v1/responses/{name}{below}")
                assert reply.status_code in (404, 405)
            assert (len(engine.questions), engine.seen) == (before, [])


async def test_a_response_of_another_tenant_is_nobodys(tmp_path: Path) -> None:
    auth = {"keys": [{"tenant": name, "key": f"key-of-{name}"} for name in ("alice", "bob")]}
    alice, bob = ({"authorization": f"Bearer key-of-{name}"} for name in ("alice", "bob"))
    async with surfaces(tmp_path, FAST, auth=auth) as (up, _):
        made = await up.http.post("/v1/responses", json={"model": MODEL, "input": "a secret"}, headers=alice)
        name = made.json()["id"]
        again = {"model": MODEL, "input": "go on", "previous_response_id": name}
        for headers, status in ((alice, 200), (bob, 404)):
            assert (await up.http.get(f"/v1/responses/{name}", headers=headers)).status_code == status
            assert (await up.http.post("/v1/responses", json=again, headers=headers)).status_code == status
        assert (await up.http.delete(f"/v1/responses/{name}", headers=bob)).status_code == 404
        assert (await up.http.delete(f"/v1/responses/{name}", headers=alice)).status_code == 200


async def test_no_worker_for_sql_is_asked_about_a_response(tmp_path: Path) -> None:
    async with shop.shop(tmp_path) as site:
        for method, below in (("GET", ""), ("DELETE", ""), ("POST", "/cancel")):
            reply = await site.up.http.request(method, f"/v1/responses/resp_unknown{below}")
            assert (reply.status_code, error_of(reply)["message"]) == (404, "no response named 'resp_unknown'")


async def test_who_may_not_use_what_is_not_counted_may_not_have_it_done_in_the_background(tmp_path: Path) -> None:
    keys = [{"tenant": "few", "key": "few", "tokens": "2000/m"}, {"tenant": "all", "key": "all"}]
    async with surfaces(tmp_path, FAST, auth={"keys": keys}) as (up, _):
        for key, status in (("few", 403), ("all", 200)):
            ask = {"model": MODEL, "input": "hi", "background": True}
            reply = await up.http.post("/v1/responses", json=ask, headers={"authorization": f"Bearer {key}"})
            assert reply.status_code == status, reply.text


async def test_names_that_a_configuration_maps_are_models_too(tmp_path: Path) -> None:
    async with surfaces(tmp_path, FAST, models={"gpt-4o": "default", "gpt-*": "default"}) as (up, _):
        listed = (await up.http.get("/v1/models")).json()["data"]
        assert [model["id"] for model in listed] == [MODEL, "gpt-4o"]
        assert (await up.http.get("/v1/models/gpt-4o")).status_code == 200


async def test_tokens_are_counted_without_a_place_in_an_engine(tmp_path: Path) -> None:
    async with surfaces(tmp_path, FAST) as (up, [server]):
        prompt = await up.http.post("/tokenize", json={"model": MODEL, "prompt": "hello there"})
        tokens = prompt.json()["tokens"]
        back = await up.http.post("/detokenize", json={"model": MODEL, "tokens": tokens})
        assert back.json()["prompt"] == "hello there"
        counted = await up.http.post("/v1/messages/count_tokens", json={"model": MODEL, **ASK["/v1/messages"]})
        assert counted.json()["input_tokens"] > 0
        assert server.engine.running == 0
        nameless = await up.http.post("/v1/messages/count_tokens", json={"messages": []})
        assert (nameless.status_code, nameless.json()["error"]["message"]) == (400, "model: is required")


async def test_what_a_pools_engines_do_not_have_is_a_clear_404(tmp_path: Path) -> None:
    chat_alone = EmulatedOptions(time_scale=1000.0, surfaces="chat")
    async with surfaces(tmp_path, chat_alone) as (up, _):
        for path in ("/v1/responses", "/v1/embeddings"):
            reply = await up.http.post(path, json={"model": MODEL, **(ASK | COMPARE)[path]})
            assert (reply.status_code, error_of(reply)["code"]) == (404, "not_found")
            assert "do not serve" in error_of(reply)["message"]
        reply = await up.http.post("/v1/messages", json={"model": MODEL, **ASK["/v1/messages"]})
        assert reply.json() == {
            "type": "error",
            "error": {
                "type": "not_found_error",
                "message": "the engines of pool 'default' do not serve messages (all of them serve: chat)",
            },
        }


async def test_one_whole_workflow_is_walked_through_chat_alone(tmp_path: Path) -> None:
    async with surfaces(tmp_path, FAST) as (up, _):
        reply = await up.http.post("/v1/responses", json={"model": "workflow/any", "input": "?"})
        assert (reply.status_code, error_of(reply)["param"]) == (400, "model")


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/v1/responses", {"input": 5}, "input: must be a string or a list of items"),
        ("/v1/responses", {}, "input: is required"),
        ("/v1/responses", {"input": ["x"]}, "input[0]: must be an object"),
        ("/v1/responses", {"input": [{"type": "message"}]}, "input[0].role: must be a string"),
        ("/v1/responses", {"input": "x", "instructions": 5}, "instructions: must be a string"),
        ("/v1/responses", {"input": "x", "previous_response_id": 5}, "previous_response_id: must be a string"),
        ("/v1/messages", {"messages": []}, "messages: must be a list with at least one message"),
        ("/v1/messages", {"messages": [5]}, "messages[0]: must be an object"),
        ("/v1/messages", {"messages": [{}]}, "messages[0].role: must be a string"),
        ("/v1/messages", {}, "messages: is required"),
        (
            "/v1/messages",
            {"messages": [{"role": "user"}], "system": 5},
            "system: must be a string or a list of blocks",
        ),
        ("/v1/embeddings", {}, "input: is required"),
        ("/v1/rerank", {"query": "x"}, "documents: is required"),
        ("/v1/score", {"queries": "x"}, "documents: is required"),
        ("/v1/score", {}, "text_1: is required"),
    ],
)
async def test_a_wrong_body_is_answered_in_the_words_of_its_surface(
    tmp_path: Path, path: str, body: dict[str, Any], words: str
) -> None:
    async with surfaces(tmp_path, FAST) as (up, _):
        reply = await up.http.post(path, json={"model": MODEL, **body})
        assert (reply.status_code, reply.json()["error"]["message"]) == (400, words)
        assert ("type" in reply.json()) == (path == "/v1/messages")


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
async def test_a_stream_that_breaks_ends_with_an_error_of_its_surface(tmp_path: Path, path: str) -> None:
    async with surfaces(tmp_path, FAST) as (up, _):
        body = {"model": MODEL, "stream": True, **ASK[path]}
        reply = await up.http.post(path, json=body, headers={"X-Emulated-Fault": "die_after=9"})
        assert reply.status_code == 200
        *_, name, data = [line for line in reply.text.splitlines() if line]
        assert name == "event: error"
        last = json.loads(data.removeprefix("data: "))
        assert last["type"] == "error"
        if path == "/v1/responses":
            assert last["sequence_number"] == len(data_of(reply.text)) - 1
        else:
            assert last["error"]["type"] == "api_error"


async def test_threads_are_refused_in_the_words_that_anthropics_clients_recover_from(tmp_path: Path) -> None:
    async with surfaces(tmp_path, FAST) as (up, _):
        body = {"model": MODEL, "thread": {"type": "create"}, **ASK["/v1/messages"]}
        reply = await up.http.post("/v1/messages", json=body)
        assert (reply.status_code, error_of(reply)["type"]) == (400, "invalid_request_error")
        assert error_of(reply)["details"] == {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}


def test_functions_in_a_namespace_are_tools_too() -> None:
    tools = [
        {"type": "namespace", "name": "agents", "tools": [{"type": "function", "name": "spawn"}]},
        {"name": "look"},
    ]
    body = json.dumps({"model": MODEL, "input": "hi", "tools": tools}).encode()
    assert parse(body, endpoint="responses").tools == ("spawn", "look")


@pytest.mark.parametrize("model", [None, MODEL])
async def test_models_are_listed_in_the_shape_of_whoever_asks(tmp_path: Path, model: str | None) -> None:
    async with surfaces(tmp_path, FAST) as (up, _):
        path = f"/v1/models/{model}" if model else "/v1/models"
        listed = (await up.http.get(path)).json()
        theirs = (await up.http.get(path, headers={"anthropic-version": "2023-06-01"})).json()
        if model is None:
            assert theirs["has_more"] is False
            assert (theirs["first_id"], theirs["last_id"]) == (MODEL, MODEL)
            listed, theirs = listed["data"][0], theirs["data"][0]
        assert (listed["object"], listed["id"]) == ("model", MODEL)
        assert (theirs["type"], theirs["id"], theirs["display_name"]) == ("model", MODEL, MODEL)
        assert datetime.fromisoformat(theirs["created_at"]).timestamp() == listed["created"]


async def test_an_unknown_run_is_not_told_of(tmp_path: Path) -> None:
    async with surfaces(tmp_path, FAST) as (up, _):
        assert (await up.http.get("/admin/runs/nobody", headers=TOKEN)).status_code == 404
