"""Every surface of real vLLM servers through a gateway: what they have, and what they do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.support import Running, error_of, running, settled
from tests.vllm.conftest import MODEL, Pair
from tests.vllm.test_real_gateway import ADMIN, text_of

ASK: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5},
    "/v1/completions": {"prompt": "hi", "max_tokens": 5},
    "/v1/responses": {"input": "hi", "instructions": "Be brief.", "max_output_tokens": 5},
    "/v1/messages": {"messages": [{"role": "user", "content": "hi"}], "system": "Be brief.", "max_tokens": 5},
}


async def trace(up: Running, run: str) -> dict[str, Any]:
    told = (await up.http.get(f"/admin/runs/{run}", headers=ADMIN)).json()
    call: dict[str, Any] = told["runs"][0]["trace"][0]
    return call


async def test_a_server_tells_what_it_can_be_spoken_to_by(pair: Pair, tmp_path: Path) -> None:
    async with running(tmp_path, text_of(pair)) as up:
        engines = (await up.http.get("/admin/engines", headers=ADMIN)).json()["engines"]
        for engine in engines:
            assert {"chat", "completions", "responses", "messages", "tokenize"} <= set(engine["can"]["surfaces"])
            assert "rerank" not in engine["can"]["surfaces"]
        reply = await up.http.post("/v1/rerank", json={"model": MODEL, "query": "a", "documents": ["b"]})
        assert (reply.status_code, error_of(reply)["code"]) == (404, "not_found")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ASK)
async def test_a_surface_is_answered_and_counted(pair: Pair, tmp_path: Path, path: str, stream: bool) -> None:
    async with running(tmp_path, text_of(pair)) as up:
        reply = await up.http.post(path, json={"model": MODEL, "stream": stream, **ASK[path]}, timeout=60)
        assert reply.status_code == 200, reply.text
        assert "event: error" not in reply.text
        call = await trace(up, reply.headers["x-workflow-id"])
        assert (call["end"], call["outcome"]) == ("finished", "ok")
        assert call["output_tokens"] > 0
        if not stream or path in ("/v1/responses", "/v1/messages"):
            assert call["prompt_tokens"] > 0
        await settled(up.gateway)


async def test_tokens_are_counted_and_counted_back(pair: Pair, tmp_path: Path) -> None:
    async with running(tmp_path, text_of(pair)) as up:
        tokens = (await up.http.post("/tokenize", json={"model": MODEL, "prompt": "hello there"})).json()["tokens"]
        back = await up.http.post("/detokenize", json={"model": MODEL, "tokens": tokens})
        assert "hello there" in back.json()["prompt"]
        ask = {"model": MODEL, "messages": [{"role": "user", "content": "hello there"}], "max_tokens": 5}
        counted = await up.http.post("/v1/messages/count_tokens", json=ask)
        assert counted.json()["input_tokens"] > 2


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
async def test_a_conversation_that_goes_on_is_one_run(pair: Pair, tmp_path: Path, path: str) -> None:
    async with running(tmp_path, text_of(pair)) as up:
        first = await up.http.post(path, json={"model": MODEL, **ASK[path]}, timeout=60)
        key = "input" if path == "/v1/responses" else "messages"
        said = (
            first.json()["output"] if key == "input" else [{"role": "assistant", "content": first.json()["content"]}]
        )
        before = [{"role": "user", "content": "hi"}]
        more = {**ASK[path], key: [*before, *said, {"role": "user", "content": "and now?"}]}
        second = await up.http.post(path, json={"model": MODEL, **more}, timeout=60)
        assert second.status_code == 200, second.text
        assert second.headers["x-workflow-id"] == first.headers["x-workflow-id"]
        assert second.headers["x-workflow-source"] == "inferred"


async def test_an_error_of_the_engine_is_its_own(pair: Pair, tmp_path: Path) -> None:
    async with running(tmp_path, text_of(pair)) as up:
        reply = await up.http.post(
            "/v1/messages",
            json={
                "model": MODEL,
                "max_tokens": 10**6,
                **{k: v for k, v in ASK["/v1/messages"].items() if k != "max_tokens"},
            },
        )
        assert reply.status_code == 400
        assert json.loads(reply.content)["type"] == "error"
