"""Coding agents as they are published, headless and unchanged: one task each, in which a sub-agent calls a tool, and
what the gateway understood of it. The engines are emulated, and `script.json` has what they say."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from pathlib import Path

import pytest
import pytest_asyncio

from tests.agents.programs import PROGRAMS, surroundings
from tests.clients.live import ENVIRONMENTS, Json, Live, live, printed

pytestmark = pytest.mark.asyncio(loop_scope="module")

COMMANDS = ENVIRONMENTS / "agents" / "node_modules" / ".bin"
TASK = "Ask a helper which password stands in secret.txt."


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Live]:
    async with live(tmp_path_factory.mktemp("gateway"), Path(__file__).with_name("gateway.yaml")) as gateway:
        yield gateway


async def said(agent: str, gateway: Live, folder: Path, **more: str) -> str:
    """What an agent prints that is given the task, in a folder with the file that it is about."""
    assert COMMANDS.exists(), f"there is no {COMMANDS}: run `make test-agents`"
    home, work = folder / "home", folder / "work"
    home.mkdir()
    work.mkdir()
    (work / "secret.txt").write_text("The password is swordfish.\n")
    start = PROGRAMS[agent](home, gateway.url, gateway.key, TASK)
    return await printed(*start.words, folder=work, environ={**surroundings(home, COMMANDS), **start.environ, **more})


async def ran(agent: str, gateway: Live, folder: Path, **more: str) -> Json:
    """The run that the gateway has seen while an agent did the task."""
    before = {run["id"] for run in await gateway.runs()}
    text = await said(agent, gateway, folder, **more)
    assert "The password is swordfish." in text  # said only to who quotes what the helper has read
    (run,) = [run for run in await gateway.runs() if run["id"] not in before]
    return run


def stages(calls: Collection[Json]) -> set[str]:
    return {call["stage"] for call in calls}


@pytest.mark.parametrize("agent", PROGRAMS)
async def test_an_agent_and_its_helper_are_one_run_and_stages_of_their_own(
    gateway: Live, tmp_path: Path, agent: str
) -> None:
    run = await ran(agent, gateway, tmp_path)
    calls = run["trace"]
    assert (run["workflow"], run["tenant"]) == (agent, "clients")
    assert {call["source"] for call in calls} == {agent}
    assert [call["outcome"] for call in calls] == ["ok"] * len(calls)

    helper = [call for call in calls if call["parent"]]
    assert {call["parent"] for call in helper} == {run["id"]}
    assert len({call["agent"] for call in helper}) == 1
    assert len(helper) == 2  # the call of the tool, and what it found
    own = [call for call in calls if not call["parent"]]
    assert helper[0]["agent"] not in {call["agent"] for call in own}

    assert "" not in stages(calls)
    assert len(stages(helper)) == 1
    assert stages(helper).isdisjoint(stages(own))
    # opencode asks for a title in the session of the conversation.
    assert len(stages(own)) == (2 if agent == "opencode" else 1)
    if agent == "codex":  # names them itself
        assert (stages(own), stages(helper)) == ({"turn"}, {"collab_spawn"})


async def test_claude_code_names_its_stages_where_it_is_told_to(gateway: Live, tmp_path: Path) -> None:
    run = await ran("claude-code", gateway, tmp_path, CLAUDE_CODE_GATEWAY_HINT_HEADERS="1")
    assert [call["stage"] for call in run["trace"]] == ["main", "general-purpose", "general-purpose", "main"]
