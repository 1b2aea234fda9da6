"""Profiles: the step time that a calibration leaves in a file, and what is wrong with files that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from backends.emulated.model import StepTime
from backends.emulated.options import EmulatedOptions
from backends.emulated.profile import ProfileError, read_step_time

TIME = {"fixed": 0.01, "prefill_token": 0.0001, "decode_sequence": 0, "context_token": 1e-8}


def test_a_profile_gives_an_engine_its_step_time(tmp_path: Path) -> None:
    file = tmp_path / "engine.json"
    file.write_text(json.dumps({"version": 1, "step_time": TIME, "machine": "a desk"}))
    step_time = read_step_time(file)
    assert step_time == StepTime(fixed=0.01, prefill_token=0.0001, decode_sequence=0.0, context_token=1e-8)
    options = EmulatedOptions(profile=str(file), block_size=32)
    assert options.engine_config().step_time == step_time
    assert options.engine_config().block_size == 32
    assert f"--profile={file}" in options.flags()
    with pytest.raises(ValueError, match="profile and decode_step both say how long a step takes"):
        EmulatedOptions(profile=str(file), decode_step=0.5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not JSON", "is not JSON"),
        ("[]", "must hold a JSON object"),
        (json.dumps({"step_time": TIME}), "version: is missing"),
        (json.dumps({"version": 2, "step_time": TIME}), "version: this file has 2, and version 1 is needed"),
        (json.dumps({"version": True, "step_time": TIME}), "version: this file has True"),
        (json.dumps({"version": 1}), "step_time: is missing"),
        (json.dumps({"version": 1, "step_time": 3}), "step_time: must be an object"),
        (json.dumps({"version": 1, "step_time": {"fixed": 0.01}}), "step_time.prefill_token: is missing"),
        (json.dumps({"version": 1, "step_time": TIME | {"fixd": 1}}), "step_time.fixd: no such field"),
        (json.dumps({"version": 1, "step_time": TIME | {"fixed": -1}}), "step_time.fixed: must be a number of sec"),
        (json.dumps({"version": 1, "step_time": TIME | {"fixed": "9"}}), "step_time.fixed: must be a number of sec"),
        (json.dumps({"version": 1, "step_time": dict.fromkeys(TIME, 0)}), "step_time: a step must take time"),
    ],
)
def test_a_file_that_is_no_profile_is_named_with_its_field(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "engine.json"
    file.write_text(content)
    with pytest.raises(ProfileError) as caught:
        EmulatedOptions(profile=str(file))
    assert str(caught.value).startswith(f"{file}: {message}")


def test_a_profile_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"none\.json: cannot be read"):
        read_step_time(tmp_path / "none.json")
