"""The frameworks' examples, the page that lists them, their tests and what is installed for them say the same."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from gateway.cli import read_config
from tests.agents.programs import PROGRAMS
from tests.clients.live import ROOT
from tests.clients.test_clients import CLIENTS, EXAMPLES

PAGE = (ROOT / "docs" / "clients.md").read_text()
LOCKS = {path.stem: path for path in (ROOT / "tests" / "clients").glob("*.lock")}
NODE, AGENTS = ROOT / "tests" / "clients" / "node", ROOT / "tests" / "agents"
CONFIGURATIONS = (EXAMPLES / "gateway.yaml", AGENTS / "gateway.yaml")


def table(first: str) -> list[list[str]]:
    """The rows of every table on the page whose first heading this is."""
    rows: list[list[str]] = []
    for block in re.findall(r"(?:^\|.*\n)+", PAGE, re.MULTILINE):
        heading, _, *lines = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in block.splitlines()]
        rows += lines if heading[0] == first else []
    assert rows
    return rows


def packages(text: str) -> list[tuple[str, str]]:
    """Names with their versions: `langgraph 1.2.22, langchain-openai 1.7.3`."""
    return [(name, version) for name, _, version in (part.partition(" ") for part in text.split(", "))]


def pinned(folder: Path) -> dict[str, str]:
    """What a package.json asks for."""
    wanted: dict[str, str] = json.loads((folder / "package.json").read_text())["dependencies"]
    return wanted


def linked(cell: str) -> str:
    found = re.fullmatch(r"\[(.+)\]\(\.\./examples/clients/\1\)", cell)
    assert found, cell
    return found[1]


def test_every_example_has_its_test_and_its_rows() -> None:
    files = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".mjs")}
    assert files == CLIENTS.keys()
    assert [linked(row[3]) for row in table("framework")] == [row[0] for row in table("example")]
    assert {row[0] for row in table("example")} == files


def test_the_page_has_the_versions_that_are_installed() -> None:
    for row in table("framework"):
        environment = CLIENTS[linked(row[3])].environment
        for name, version in packages(row[1]):
            if environment == "node":
                assert pinned(NODE)[name] == version
            else:
                assert f"{name}=={version} \\" in LOCKS[environment].read_text(), name
    assert dict(pair for row in table("agent") for pair in packages(row[1])) == pinned(AGENTS)
    assert len(table("agent")) == len(PROGRAMS)


def test_the_page_has_the_channel_of_each_example() -> None:
    assert {row[0]: row[3] for row in table("example")} == {name: f"`{one.source}`" for name, one in CLIENTS.items()}


def test_make_sets_up_every_environment() -> None:
    makefile = (ROOT / "Makefile").read_text()
    found = re.search(r"^test-clients:.*\n.*\$\(patsubst %,\$\(CLIENTS\)/%/\.done,([\w ]+)\)", makefile, re.MULTILINE)
    assert found
    assert set(found[1].split()) == {one.environment for one in CLIENTS.values()} == {*LOCKS, "node"}


@pytest.mark.parametrize("path", [*LOCKS.values(), NODE / "package-lock.json", AGENTS / "package-lock.json"])
def test_a_lock_names_no_place_to_get_packages_from(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"index-url|find-links|\"resolved\"", text)
    if path.suffix == ".lock":
        assert all("--hash=sha256:" in entry for entry in re.split(r"\n(?=\S)", text.strip()))
    else:
        entries: dict[str, Any] = json.loads(text)["packages"]
        assert all("integrity" in entry for name, entry in entries.items() if name)


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.parent.name)
def test_the_gateways_of_the_tests_are_configured_well(path: Path) -> None:
    assert read_config(path, {}).pools
