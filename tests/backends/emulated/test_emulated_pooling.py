"""Embeddings, scores and tokens of the emulated engine, and the choice of its surfaces."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from backends.emulated.options import SURFACES, EmulatedOptions
from backends.emulated.pooling import score, vector
from tests.backends.emulated.speaking import speaking

LONG = {"input": "word " * 4000, "model": "cortex-emulated"}
PATHS = {
    "chat": ["/v1/chat/completions"],
    "completions": ["/v1/completions"],
    "responses": ["/v1/responses"],
    "messages": ["/v1/messages", "/v1/messages/count_tokens"],
    "embeddings": ["/v1/embeddings"],
    "rerank": ["/v1/rerank", "/v2/rerank", "/rerank", "/v1/score", "/score"],
    "tokenize": ["/tokenize", "/detokenize"],
}


def test_texts_that_share_words_are_near_each_other() -> None:
    def near(one: str, other: str) -> float:
        return sum(a * b for a, b in zip(vector(one), vector(other), strict=True))

    assert near("the red house", "house, the red!") == pytest.approx(1)
    assert near("the red house", "the red boat") > near("the red house", "a blue boat")
    for text in ("", "...", "x", "größer"):
        for width in (1, 2, 256):
            assert sum(part * part for part in vector(text, width)) == pytest.approx(1)


def test_a_score_is_the_share_of_the_querys_words() -> None:
    assert [score("red house", text) for text in ("House red", "a red boat", "boat", "")] == [1, 0.5, 0, 0]
    assert score("?", "?") == 0


async def test_the_best_documents_come_first() -> None:
    documents = ["a boat", "a red house", {"text": "a red boat"}]
    async with speaking() as client:
        told = await client.json("/v1/rerank", {"query": "red house", "documents": documents})
        best = await client.json("/rerank", {"query": "red house", "documents": documents, "top_n": 1})
        again = await client.json("/v2/rerank", {"query": "red house", "documents": documents, "top_n": 1})
    assert [(one["index"], one["relevance_score"]) for one in told["results"]] == [(1, 1.0), (2, 0.5), (0, 0.0)]
    assert told["results"][1]["document"] == {"text": "a red boat"}
    assert best["results"] == again["results"] == told["results"][:1]
    assert told["usage"]["prompt_tokens"] == told["usage"]["total_tokens"] > 10


async def test_one_text_is_scored_with_each_of_others_and_many_pair_by_pair() -> None:
    async with speaking() as client:

        async def scores(**body: Any) -> list[float]:
            return [one["score"] for one in (await client.json("/v1/score", body))["data"]]

        assert await scores(text_1="red house", text_2="red") == [0.5]
        assert await scores(queries="red house", documents=["red", "house red"]) == [0.5, 1]
        assert await scores(data_1=["red", "blue"], data_2=["red", "red"]) == [1, 0]


async def test_what_is_computed_is_load_and_a_client_that_leaves_takes_it_away() -> None:
    async with speaking(EmulatedOptions(max_num_batched_tokens=64)) as client:
        engine = client.server.engine
        leaving = asyncio.create_task(client.send("/v1/embeddings", {"input": [LONG["input"], "more " * 4000]}))
        while not engine.running:
            await client.send("/health", method="GET")
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        while not engine.idle:
            await client.send("/health", method="GET")
    async with speaking() as client:
        first = await client.json("/v1/embeddings", LONG)
        read = await client.send("/metrics", method="GET")
    assert (
        f'vllm:prompt_tokens_total{{engine="0",model_name="cortex-emulated"}} {first["usage"]["prompt_tokens"]}'
        in (read[1].decode())
    )


async def test_tokens_become_text_again() -> None:
    async with speaking() as client:
        told = await client.json("/tokenize", {"prompt": "größer als", "return_token_strs": True})
        plain = await client.json("/tokenize", {"prompt": "größer als"})
        back = await client.json("/detokenize", {"tokens": told["tokens"]})
    assert back == {"prompt": "größer als"}
    assert plain == told | {"token_strs": None}
    assert told["token_strs"] == ["grö", "ßer", " als"]
    assert told["count"] == 3


WRONG: list[tuple[str, object, int, str]] = [
    ("/v1/embeddings", {}, 400, "input"),
    ("/v1/embeddings", {"input": []}, 400, "input"),
    ("/v1/embeddings", {"input": ["x", 1]}, 400, "input"),
    ("/v1/embeddings", {"input": "x", "dimensions": 0}, 400, "dimensions"),
    ("/v1/embeddings", {"input": "x", "encoding_format": "hex"}, 400, "encoding_format"),
    ("/v1/embeddings", {"input": "x", "priority": "high"}, 400, "priority"),
    ("/v1/embeddings", {"input": "x", "model": "gone"}, 404, "model"),
    ("/v1/embeddings", {"input": "x" * 2000}, 400, "input_tokens"),
    ("/rerank", {"documents": ["x"]}, 400, "query"),
    ("/rerank", {"query": "x"}, 400, "documents"),
    ("/rerank", {"query": "x", "documents": ["x"], "top_n": -1}, 400, "top_n"),
    ("/score", {"text_1": "x"}, 400, "text_1"),
    ("/score", {"text_1": ["x", "y"], "text_2": ["x"]}, 400, "text_1"),
    ("/detokenize", {"tokens": ["x"]}, 400, "tokens"),
]


async def test_a_bad_request_names_the_field() -> None:
    async with speaking(EmulatedOptions(max_model_len=100)) as client:
        for path, body, status, param in WRONG:
            error = (await client.json(path, body, status=status))["error"]
            assert error["param"] == param, (path, body)
        assert client.server.engine.idle


async def test_a_fault_comes_before_a_vector_is_computed() -> None:
    async with speaking(EmulatedOptions(faults=True)) as client:
        told = await client.json("/v1/embeddings", LONG, status=503, headers={"X-Emulated-Fault": "refuse"})
        assert told["error"]["code"] == 503
        assert client.server.engine.idle


@pytest.mark.parametrize("has", [*SURFACES, ",".join(SURFACES)])
async def test_a_surface_that_an_engine_has_is_405_and_one_that_it_has_not_is_404(has: str) -> None:
    async with speaking(EmulatedOptions(surfaces=has)) as client:
        for surface, paths in PATHS.items():
            for path in paths:
                status, told = await client.send(path, method="GET")
                there = surface in has.split(",")
                assert status == (405 if there else 404), path
                assert json.loads(told) == {"detail": "Method Not Allowed" if there else "Not Found"}


def test_a_surface_that_does_not_exist_is_named() -> None:
    with pytest.raises(ValueError, match=r"surfaces: no surface named 'chats' \(surfaces: chat, "):
        EmulatedOptions(surfaces="chat,chats")
