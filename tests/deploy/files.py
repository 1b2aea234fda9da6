"""What stands in deploy/: read for the tests, with nothing taken for granted but that it is there."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from backends.emulated.options import EmulatedOptions, add_flags, options_from

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SECRETS = {
    "CORTEX_API_KEY": "key",
    "CORTEX_ADMIN_TOKEN": "token",
    "CORTEX_SCRAPE_KEY": "scrape",
    "CORTEX_SALT": "salt",
}


@dataclass(frozen=True, slots=True)
class Instruction:
    """A line of the Dockerfile, those that go on joined."""

    word: str
    rest: str

    @property
    def words(self) -> list[str]:
        """The command of an exec form. Raises ValueError for a line that a shell would run."""
        command = json.loads(self.rest)
        assert isinstance(command, list)
        return [str(word) for word in command]


def dockerfile() -> list[list[Instruction]]:
    """The instructions of each stage, FROM first; what stands before the first stage is left out."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    lines = (line.strip() for line in text.splitlines())
    stages: list[list[Instruction]] = []
    for line in lines:
        if line and not line.startswith("#"):
            word, _, rest = line.partition(" ")
            if word == "FROM":
                stages.append([])
            if stages:
                stages[-1].append(Instruction(word, rest.strip()))
    return stages


def one(stage: list[Instruction], word: str) -> Instruction:
    """The only instruction of its kind."""
    (found,) = (each for each in stage if each.word == word)
    return found


def variables(stage: list[Instruction]) -> dict[str, str]:
    """What ENV sets."""
    pairs = (pair.partition("=") for each in stage if each.word == "ENV" for pair in shlex.split(each.rest))
    return {name: value for name, _, value in pairs}


def context() -> list[str]:
    """The paths that .dockerignore lets into the build."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*", "what is not named is left out"
    return [line.removeprefix("!") for line in rules if line.startswith("!")]


def compose() -> dict[str, Any]:
    """compose.yaml, its variables as they stand."""
    document: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return document


def documents(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a YAML file."""
    yield from yaml.safe_load_all(path.read_text())


def emulated(words: list[str]) -> tuple[EmulatedOptions, dict[str, str]]:
    """What the command of an emulated engine asks for: its options, and where it listens and under which name."""
    assert words[:3] == ["python", "-m", "backends.emulated"]
    parser = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    add_flags(parser)
    parsed, rest = parser.parse_known_args(words[3:])
    place = dict(word.removeprefix("--").split("=") for word in rest)
    assert set(place) == {"host", "port", "model"}
    return options_from(parsed), place
