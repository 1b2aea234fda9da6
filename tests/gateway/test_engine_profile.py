"""A pool of emulated engines that run as a calibrated server does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gateway.cli import read_config
from gateway.compose import compose
from gateway.config import ConfigError

PROFILE = {
    "version": 1,
    "step_time": {"fixed": 0.01, "prefill_token": 0.0001, "decode_sequence": 0.0, "context_token": 0.0},
}


def site(folder: Path, profile: object, **backend: object) -> Path:
    """A configuration with one pool, beside its profile."""
    (folder / "engine.json").write_text(json.dumps(profile))
    pool = {"model": "m", "backend": {"name": "emulated", "profile": "engine.json", **backend}}
    file = folder / "config.yaml"
    file.write_text(json.dumps({"insecure": True, "pools": {"default": pool}}))
    return file


async def test_a_pool_may_name_a_profile(tmp_path: Path) -> None:
    gateway = await compose(read_config(site(tmp_path, PROFILE), {}))
    async with gateway.running():
        assert "default" in gateway.config.pools


async def test_a_profile_of_another_version_is_named_with_the_pool(tmp_path: Path) -> None:
    config = read_config(site(tmp_path, PROFILE | {"version": 7}), {})
    with pytest.raises(ConfigError) as caught:
        await compose(config)
    told = f"{tmp_path}/engine.json: pools.default.backend.profile: version: this file has 7, and version 1 is needed"
    assert str(caught.value) == told


def test_a_pool_cannot_have_both_a_profile_and_a_step_time(tmp_path: Path) -> None:
    file = site(tmp_path, PROFILE, decode_step="20ms")
    with pytest.raises(ConfigError, match=r"pools\.default\.backend\.decode_step: the profile says how long"):
        read_config(file, {})
