"""The examples in the documentation run as they stand there, against the configuration that is shipped."""

from __future__ import annotations

import asyncio
import re
import shutil
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from examples.nl2sql import database
from tests.gateway.test_lifecycle import START, command

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT = Path(__file__).parents[2]
PAGES = ("api.md", "sql.md", "state.md")
CURL = """
set -eo pipefail
curl() {
    case "$*" in
        */events*) timeout 1 curl "$@" || [ $? = 124 ] ;;  # has no end of its own
        *) command curl --fail-with-body --max-time 20 "$@" && echo ;;
    esac
}
"""


def examples(page: str) -> list[str]:
    """The shell blocks of a page that ask a gateway for something."""
    blocks = re.findall(r"^```(?:sh|bash)\n(.*?)^```", (ROOT / "docs" / page).read_text(), re.MULTILINE | re.DOTALL)
    return [block for block in blocks if "curl" in block]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def address(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """Where `cortex serve` listens with the reference configuration."""
    folder = tmp_path_factory.mktemp("shipped")
    shutil.copy(ROOT / "config.yaml", folder)
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "data").mkdir()
    await asyncio.to_thread(database.make, folder / "data" / "sales.duckdb")
    async with command("serve", str(folder / "config.yaml"), CORTEX_PORT="0") as cortex:
        await cortex.read("point your OpenAI client at")
        found = re.search(r"base_url=http://(\S+)/v1", cortex.said[-1])
        assert found
        yield found[1]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize(("page", "block"), [(page, block) for page in PAGES for block in examples(page)])
async def test_every_curl_of_a_page_is_answered(address: str, page: str, block: str) -> None:
    script = CURL + re.sub(r"(?:localhost|127\.0\.0\.1):8080", address, block)
    shell = await asyncio.create_subprocess_exec("bash", "-c", script, stdout=PIPE, stderr=STDOUT)
    async with asyncio.timeout(START):
        said, _ = await shell.communicate()
    assert shell.returncode == 0, f"{page}: {block}{said.decode()}"
    # A response that went well says that it has no error: null.
    assert not re.search(rb'"error": ?[^n]', said), f"{page}: {block}{said.decode()}"
    assert said.strip()


@pytest.mark.parametrize("page", PAGES)
async def test_every_page_has_examples(page: str) -> None:
    assert examples(page)


@pytest.mark.parametrize("page", [path.name for path in (ROOT / "docs").glob("*.md")])
async def test_commands_of_a_page_are_run_by_the_environments_own_python(page: str) -> None:
    text = (ROOT / "docs" / page).read_text()
    blocks = re.findall(r"^```(?:sh|bash)\n(.*?)^```|^((?: {4}.*\n)+)", text, re.MULTILINE | re.DOTALL)
    lines = [line.strip() for pair in blocks for block in pair for line in block.splitlines()]
    assert not [line for line in lines if re.match(r"(?:python|pytest)\b", line)]
