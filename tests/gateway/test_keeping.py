"""What was learned outlives a restart; a file that cannot be used is no reason not to start."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import orjson
import pytest

from backends.emulated.server import serve
from gateway.journal import blueprint_of, replay
from gateway.keeping import ProfileFile, kept
from policies.calls import Outcome
from policies.profiles import VERSION, Profiles
from tests.gateway.shop import FAST
from tests.gateway.support import attached, chat, running, settled, until, written
from tests.policies.making import a_call

CHAT = "/v1/chat/completions"
AT = {"X-Workflow-Type": "report", "X-Workflow-Stage": "draft", "X-Workflow-Final": "true"}
GRAPH = {"report": {"stages": {"draft": {}}, "edges": [{"from": "start", "to": "draft"}]}}


def text(url: str, path: Path, **more: Any) -> str:
    profiles = {"path": str(path), "every": "1h"}
    return written({"default": attached(url)}, workflows=GRAPH, **{"profiles": profiles} | more)


def learned(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = orjson.loads(path.read_bytes())
    return data


async def asked(folder: Path, config: str, calls: int) -> dict[str, Any]:
    """Start a gateway, ask it, end it; what it believed of the stage in the end."""
    async with running(folder, config) as up:
        for _ in range(calls):
            assert (await up.http.post(CHAT, json=chat(max_tokens=2), headers=AT)).status_code == 200
        await settled(up.gateway)
        views = {view.stage: view.profile for view in up.gateway.runtime.dispatcher.profiles.stages()}
        return {stage: (profile.count, profile.known) for stage, profile in views.items()}


async def test_what_was_learned_is_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "profiles.json"
    async with serve(FAST) as server:
        assert await asked(tmp_path, text(server.url, path), 4) == {"draft": (4, True)}
        assert learned(path)["version"] == VERSION
        assert await asked(tmp_path, text(server.url, path), 1) == {"draft": (5, True)}
    assert {"profiles.json", "config.yaml"} == set(os.listdir(tmp_path)), "the new file is now the file"


async def test_a_journal_holds_what_was_known_at_its_start_and_replays(tmp_path: Path) -> None:
    path, journal = tmp_path / "profiles.json", tmp_path / "journal.jsonl"
    async with serve(FAST) as server:
        await asked(tmp_path, text(server.url, path), 4)
        before = learned(path)
        config = text(server.url, path, server={"port": 0, "journal": str(journal)})
        await asked(tmp_path, config, 3)
    blueprint = blueprint_of(journal)
    assert blueprint.profiles == before
    assert replay(journal, blueprint.dispatcher()) is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"version": 99}', "version: is 99"),
        (b'{"version": 1, "profiles": 5}', "profiles: must be a list"),
        (b'{"version": 1, "prof', "unexpected end"),
        (b"[1]", "version: missing"),
        (b"", "empty document"),
    ],
)
async def test_a_file_that_cannot_be_used_is_named_in_a_warning_and_learning_begins_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes, words: str
) -> None:
    path = tmp_path / "profiles.json"
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING, "cortex.profiles"):
        assert kept(path) is None
    (record,) = caplog.records
    assert str(path) in record.getMessage()
    assert words in record.getMessage()


async def test_a_gateway_starts_over_a_damaged_file_and_replaces_it(tmp_path: Path) -> None:
    path = tmp_path / "profiles.json"
    path.write_bytes(b"not even JSON")
    async with serve(FAST) as server:
        assert await asked(tmp_path, text(server.url, path), 1) == {"draft": (1, False)}
    assert learned(path)["version"] == VERSION


def test_nothing_is_kept_where_nothing_was_or_shall_be(tmp_path: Path) -> None:
    assert kept(None) is None
    assert kept(tmp_path / "not there") is None


async def test_profiles_are_saved_every_so_often(tmp_path: Path) -> None:
    path = tmp_path / "profiles.json"
    async with serve(FAST) as server:
        config = text(server.url, path, profiles={"path": str(path), "every": "10ms"})
        async with running(tmp_path, config) as up:
            assert (await up.http.post(CHAT, json=chat(max_tokens=2), headers=AT)).status_code == 200
            await until(lambda: path.exists() and len(learned(path)["profiles"]) == 3, "the three profiles of a call")
            await settled(up.gateway)


async def test_a_file_that_cannot_be_written_is_a_warning_and_the_next_time_is_another_chance(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    profiles = Profiles({}, {})
    profiles.observe(a_call(), 1, Outcome(fate="ok", total=1.0))
    path = tmp_path / "folder" / "profiles.json"
    keeper = ProfileFile(profiles, path, every=1.0)
    with caplog.at_level(logging.WARNING, "cortex.profiles"):
        await keeper.save()
    (record,) = caplog.records
    assert f"{path}: No such file" in record.getMessage()
    path.parent.mkdir()
    await keeper.save()
    assert kept(path) == profiles.dump()
