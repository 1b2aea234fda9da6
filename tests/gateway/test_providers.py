"""Pools of hosted models in a gateway: their configuration, and calls that go through what stands in for LiteLLM."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from unittest import mock

import pytest

from backends.emulated.options import EmulatedOptions
from backends.emulated.server import serve
from gateway.cli import read_config
from gateway.compose import compose
from gateway.config import ConfigError
from gateway.gateway import Gateway
from tests.gateway.support import CHAT, chat, running, until, written

STAND_IN = Path(__file__).parents[1] / "backends" / "standin"


def hosted(**backend: object) -> dict[str, object]:
    return {"model": "writer", "backend": {"name": "litellm", "model": "openai/cortex-emulated", **backend}}


def written_tokens(gateway: Gateway) -> float:
    gateway.metrics.refresh()
    samples = (sample for family in gateway.metrics.registry.collect() for sample in family.samples)
    return sum(sample.value for sample in samples if sample.name == "cortex_stage_output_tokens_total")


def refused(folder: Path, **backend: object) -> str:
    path = folder / "config.yaml"
    path.write_text(written({"writer": hosted(**backend)}))
    with pytest.raises(ConfigError) as caught:
        read_config(path, {})
    return str(caught.value).partition(": ")[2]


async def test_a_hosted_model_is_asked_like_any_other_and_metered(tmp_path: Path) -> None:
    async with serve(EmulatedOptions(faults=True)) as server:
        pools = {
            "writer": hosted(api_base=f"{server.url}/v1", api_key="k"),
            "broke": hosted(
                accounts=[{"api_base": f"{server.url}/v1", "api_key": "k"}],
                params={"extra_headers": {"x-emulated-fault": "status=401"}},
            )
            | {"model": "broke"},
        }
        with mock.patch.dict(os.environ, {"PYTHONPATH": str(STAND_IN)}):
            async with running(tmp_path, written(pools)) as up:
                reply = await up.http.post(CHAT, json=chat(model="writer", max_tokens=5, mock_response="made up"))
                assert reply.status_code == 200, reply.text
                assert reply.json()["choices"][0]["message"]["content"] != "made up"
                assert reply.json()["usage"]["completion_tokens"] == 5
                stream = await up.http.post(CHAT, json=chat(model="writer", max_tokens=5, stream=True))
                assert stream.text.endswith("data: [DONE]\n\n")
                await until(lambda: written_tokens(up.gateway) == 10, "the tokens of both answers")
                refusal = await up.http.post(CHAT, json=chat(model="broke", max_tokens=5))
                assert refusal.status_code == 502, "a wrong key is the gateway's affair and not the client's"
                assert "fault" not in refusal.text


async def test_a_gateway_does_not_start_without_litellm_for_its_hosted_models(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(written({"writer": hosted()}))
    with pytest.raises(ConfigError, match=r"pools\.writer\.backend: there is no LiteLLM .*litellm\.lock"):
        await compose(read_config(path, {}))
    assert "litellm" not in sys.modules


def test_each_account_is_an_engine_with_its_own_arguments_before_the_common_ones(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    accounts = [{"api_key": "${KEY}", "params": {"top_k": "${NUMBER}"}}, {"api_base": "https://eu.example.com"}]
    path.write_text(written({"writer": hosted(accounts=accounts, api_key="common", params={"top_k": 1, "a": [1]})}))
    pool = read_config(path, {"KEY": "own", "NUMBER": "3"}).pools["writer"]
    assert (pool.engines.min, pool.engines.start, pool.engines.max) == (1, 2, 2)
    assert pool.backend.name == "litellm"
    model = {"model": "openai/cortex-emulated", "a": [1]}
    assert pool.backend.calls() == [
        {**model, "api_key": "own", "top_k": 3},
        {**model, "api_key": "common", "top_k": 1, "api_base": "https://eu.example.com"},
    ]
    assert "own" not in repr(pool)
    assert "common" not in repr(pool)


@pytest.mark.parametrize(
    ("backend", "complaint"),
    [
        ({"params": {"fallbacks": []}}, "params: fallbacks cannot be set here"),
        ({"accounts": [{"params": {"model": "x"}}]}, "accounts[0].params: model cannot be set here"),
        ({"accounts": []}, "accounts: must not be empty"),
        ({"api_base": "example.com"}, "api_base: must be an address such as https://api.openai.com/v1"),
        ({"model": ""}, "model: must not be empty"),
        ({"keys": 1}, "keys: no such key (keys: api_base, api_key, params, name, model, accounts, python, ready)"),
    ],
)
def test_a_wrong_key_is_named(tmp_path: Path, backend: dict[str, object], complaint: str) -> None:
    assert refused(tmp_path, **backend) == f"pools.writer.backend.{complaint}"
