"""From a configuration file and the environment to a checked `Config`, or to one line that says what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from gateway.consistency import Fault, faults
from gateway.fields import MISSING, Folder, PolicySpec
from gateway.settings import Config, PoolPolicies
from gateway.yamlfile import ConfigError, Document, Place, read

__all__ = ["Config", "ConfigError", "Override", "PolicyCheck", "PolicySpec", "load"]

PolicyCheck = Callable[[str, PolicySpec], str | None]
"""What is wrong with a policy in a slot of the catalog (`priority`, `scorers`, ...), or None."""


@dataclass(frozen=True, slots=True)
class Override:
    """A value that an option of the command line (`--port`) puts in the place of the file's own."""

    option: str
    section: str
    key: str
    value: object


def load(
    path: Path,
    environ: Mapping[str, str],
    check: PolicyCheck | None = None,
    overrides: Sequence[Override] = (),
) -> Config:
    """Read and check a configuration. Raises ConfigError for the first mistake, by line.

    What each key holds is checked first, then what must agree between keys, then the policies by `check`.
    Overrides are checked as what stands in the file is; an error in one names its option. Prompts are read here;
    databases are not touched.
    """
    document = _overridden(read(path, environ), overrides)
    try:
        config = Config.model_validate(document.tree, context=Folder(path.absolute().parent))
    except ValidationError as error:
        found = error.errors(include_url=False)
        raise _first(document, [(_place(document, one), one["msg"]) for one in found]) from None
    if complaints := list(faults(config)):
        raise _first(document, complaints)
    if check and (complaints := list(_policy_faults(config, check))):
        raise _first(document, complaints)
    return config


def _overridden(document: Document, overrides: Sequence[Override]) -> Document:
    tree, lines = dict(document.tree), dict(document.lines)
    options: dict[Place, str] = {}
    for one in overrides:
        section = tree.get(one.section, {})
        if isinstance(section, dict):  # anything else is refused as the section that it is not
            tree[one.section] = {**section, one.key: one.value}
            place = (one.section, one.key)
            lines |= {place[:1]: document.line(place[:1]), place: document.line(place)}
            options[place] = one.option
    return replace(document, tree=tree, lines=lines, overridden=options)


def _first(document: Document, found: Iterable[Fault]) -> ConfigError:
    return min((document.error(*fault) for fault in found), key=lambda error: error.line or 0)


def _place(document: Document, error: ErrorDetails) -> Place:
    """Where in the file pydantic found an error: its steps without those that name a type or a key as such."""
    place: Place = ()
    for step in error["loc"]:
        if (*place, step) in document.lines:
            place = (*place, step)
    return (*place, error["loc"][-1]) if error["type"] == MISSING else place


def _policy_faults(config: Config, check: PolicyCheck) -> Iterator[Fault]:
    owners: dict[Place, PoolPolicies] = {("policies",): config.policies}
    owners |= {("pools", name, "policies"): pool.policies for name, pool in config.pools.items()}
    for place, policies in owners.items():
        for slot, index, spec in policies.specs():
            if complaint := check(slot, spec):
                yield (*place, slot, *(() if index is None else (index,))), complaint
