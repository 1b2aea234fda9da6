"""Each framework's example in an environment of its own, against a gateway that runs: what it prints, and as which
calls the gateway understood it; and what it would have understood had they said nothing of themselves."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import NamedTuple

import pytest
import pytest_asyncio

from bench.inference_overlay import least_in_flight, linked, score
from tests.clients.live import ENVIRONMENTS, ROOT, Json, Live, live, printed
from tests.clients.relay import Exchange, Relay, relaying
from tests.clients.silent import flow

pytestmark = pytest.mark.asyncio(loop_scope="module")

EXAMPLES = ROOT / "examples" / "clients"
STAGES = ["plan", "research", "write"]
FLIGHT = 12
QUIET: Mapping[str, str] = MappingProxyType(
    {
        "CREWAI_DISABLE_TELEMETRY": "true",
        "CREWAI_TRACING_ENABLED": "false",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LANGSMITH_TRACING": "false",
        "OTEL_SDK_DISABLED": "true",
        "HF_HUB_OFFLINE": "1",
        # Whatever would still reach out finds nobody.
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "HTTP_PROXY": "http://127.0.0.1:9",
        "NO_PROXY": "127.0.0.1",
    }
)


class Client(NamedTuple):
    """An example: the environment that it runs in, and the channel that names its workflow."""

    environment: str
    source: str = "header"


CLIENTS: Mapping[str, Client] = MappingProxyType(
    {
        "langgraph_agent.py": Client("openai3"),
        "openai_agents.py": Client("openai3"),
        "pydantic_ai_agent.py": Client("openai3"),
        "smolagents_agent.py": Client("openai3", "path"),
        "anthropic_agent.py": Client("openai3"),
        "llama_index_agent.py": Client("openai2"),
        "crewai_agent.py": Client("openai2", "path"),
        "litellm_agent.py": Client("litellm"),
        "dspy_agent.py": Client("litellm", "alias"),
        "ai_sdk_agent.mjs": Client("node"),
    }
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Live]:
    async with live(tmp_path_factory.mktemp("gateway"), EXAMPLES / "gateway.yaml") as gateway:
        yield gateway


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def relay(gateway: Live) -> AsyncIterator[Relay]:
    async with relaying(gateway.url) as relay:
        yield relay


@pytest.fixture(scope="module")
def recorded() -> dict[str, Sequence[Exchange]]:
    """What each example has sent and got, of those that ran before."""
    return {}


async def said(example: str, url: str, key: str, home: Path) -> dict[str, str]:
    """What an example prints, by the word before the first colon of each line."""
    folder = ENVIRONMENTS / CLIENTS[example].environment
    assert (folder / ".done").exists(), f"there is no {folder}: run `make test-clients`"
    if example.endswith(".mjs"):  # Node looks for packages beside the file
        shutil.copy(EXAMPLES / example, folder)
        words = ["node", str(folder / example)]
    else:
        words = [str(folder / "bin" / "python"), str(EXAMPLES / example)]
    environ = {"PATH": os.environ["PATH"], "HOME": str(home), "CORTEX_URL": url, "CORTEX_API_KEY": key}
    text = await printed(*words, folder=home, environ={**environ, **QUIET})
    return dict(line.partition(": ")[::2] for line in text.splitlines() if ": " in line)


def stages(run: Json) -> list[tuple[str, int]]:
    """The stages of a run in the order in which it came to them, and how many calls it made there."""
    return [(stage, len(list(calls))) for stage, calls in groupby(run["trace"], key=lambda call: call["stage"])]


@pytest.mark.parametrize("example", CLIENTS)
async def test_an_example_gets_its_answers_and_the_gateway_knows_its_run(
    gateway: Live, relay: Relay, recorded: dict[str, Sequence[Exchange]], tmp_path: Path, example: str
) -> None:
    before = len(relay.seen)
    lines = await said(example, relay.url, gateway.key, tmp_path)
    recorded[example] = relay.seen[before:]
    assert lines["plan"] == "Look up the temperature in Oslo and in Lima."
    # Said only to who quotes what the tool has told of both.
    assert lines["research"] == "Oslo has 4 degrees, Lima has 19."
    streamed = re.fullmatch(r"It is warmer in Lima: 19 degrees, against 4 in Oslo\. \((\d+) pieces\)", lines["write"])
    assert streamed
    assert int(streamed[1]) > 1

    run = await gateway.run(lines["run"])
    assert (run["workflow"], run["tenant"]) == ("trip", "clients")
    names, (once, calls, last) = zip(*stages(run), strict=True)
    assert list(names) == STAGES
    assert (once, last) == (1, 1)
    assert calls >= 3  # two calls of the tool, and the answer
    assert {call["source"] for call in run["trace"]} == {CLIENTS[example].source}
    assert [call["outcome"] for call in run["trace"]] == ["ok"] * len(run["trace"]), run["trace"]


async def test_an_example_with_a_wrong_key_is_told_so(relay: Relay, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="401"):
        await said("pydantic_ai_agent.py", relay.url, "somebody-elses", tmp_path)


async def test_runs_and_stages_would_be_found_if_no_example_named_any(
    recorded: dict[str, Sequence[Exchange]],
) -> None:
    if recorded.keys() != CLIENTS.keys():
        pytest.skip("needs every example to have run before")
    chance = Random(1)
    flows = [flow(exchanges, chance) for exchanges in recorded.values() for _ in range(10)]
    chance.shuffle(flows)
    assert least_in_flight(flows, FLIGHT) >= 10
    found = score(linked(flows, FLIGHT))
    assert found.f1 >= 0.98, found
    assert found.purity >= 0.95, found
    assert found.stages <= len(CLIENTS) * len(STAGES), found
