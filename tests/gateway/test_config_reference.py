"""The reference file and its page: they have every key that there is, and the page's defaults are the real ones."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, cast, get_args, get_origin

import pytest
from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

from gateway.backendspecs import Emulated
from gateway.blueprints import blueprint
from gateway.config import PolicySpec, load
from gateway.fields import Part
from gateway.settings import Config, Policies
from gateway.yamlfile import plain
from policies.catalog import make_all, parameters

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| `([^`]+)` \| .+? \| (.+?) \| .*\|$")


def parts(annotation: object, path: str) -> Iterator[tuple[type[Part], str]]:
    """The mappings with fixed keys that a field leads to, each with the path to its keys."""
    if isinstance(annotation, type) and issubclass(annotation, Part):
        yield annotation, path
    elif get_origin(annotation) is Annotated:
        yield from parts(get_args(annotation)[0], path)
    else:
        origin = get_origin(annotation)
        suffix = "[]" if origin is tuple else ".NAME" if origin is Mapping else ""
        for argument in get_args(annotation):
            yield from parts(argument, path + suffix)


def keys(part: type[Part], path: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key of a configuration in the page's spelling, with what is declared of it."""
    for name, field in part.model_fields.items():
        key = f"{path}.{field.alias or name}".lstrip(".")
        yield key, field
        for inner, inner_path in parts(field.annotation, key):
            yield from keys(inner, inner_path)


KEYS = list(keys(Config))
PAGE = (ROOT / "docs" / "configuration.md").read_text()
DEFAULTS = {found[1]: found[2] for line in PAGE.split("\n") if (found := ROW.match(line))}


def test_the_reference_file_is_right_as_it_is() -> None:
    config = load(ROOT / "config.yaml", {})
    assert set(config.pools) == {"default", "sql-generator", "sql-fixer", "sql-verifier", "warehouse"}
    backend = config.pools["default"].backend
    assert isinstance(backend, Emulated)
    assert backend.script == ROOT / "examples/nl2sql/script.json"
    nl2sql = config.workflows["nl2sql"]
    for name in ("generate", "verify", "fix"):
        assert nl2sql.stages[name].prompt is not None
    assert config.alias("gpt-5") == "default"
    assert config.auth.keys == ()
    assert config.admin.token == ""


def test_the_reference_files_policies_are_in_the_catalog() -> None:
    def check(slot: str, spec: PolicySpec) -> str | None:
        asked.append(spec.name)
        known = {*parameters(slot, spec.name), "weight"}
        return None if known >= spec.params.keys() else f"{spec.name} has only {known}"

    asked: list[str] = []
    load(ROOT / "config.yaml", {}, check)
    assert {"gated", "working_set", "least_slack", "predicted_wait", "fixed", "least_delay", "best"} <= set(asked)


def test_the_reference_files_policies_are_those_of_a_file_without_any() -> None:
    config = load(ROOT / "config.yaml", {})
    said, unsaid = blueprint(config), blueprint(config.model_copy(update={"policies": Policies()}))
    for name in config.pools:
        assert make_all(said.policies[name]) == make_all(unsaid.policies[name])
    assert (said.gate, said.pools) == (unsaid.gate, unsaid.pools)


def test_the_walk_finds_the_keys_of_every_depth() -> None:
    names = {key for key, _ in KEYS}
    assert {
        "server.port",
        "auth.keys[].priority.min",
        "pools.NAME.backend.attach",
        "workflows.NAME.edges[].from",
    } <= names
    assert len(names) > 100


@pytest.mark.parametrize("key", sorted({key for key, _ in KEYS}))
def test_every_key_is_on_the_page(key: str) -> None:
    assert key in DEFAULTS or f"\n## `{key}`\n" in PAGE


@pytest.mark.parametrize("key", sorted(DEFAULTS))
def test_the_page_has_no_key_that_does_not_exist(key: str) -> None:
    assert key in {known for known, _ in KEYS}


@pytest.mark.parametrize("key", sorted({key.rpartition(".")[2] for key, _ in KEYS}))
def test_every_key_is_in_the_reference_file(key: str) -> None:
    assert re.search(rf"(^|[\s{{]){re.escape(key)}:", (ROOT / "config.yaml").read_text(), re.MULTILINE)


@pytest.mark.parametrize(("key", "field"), [(key, field) for key, field in KEYS if key in DEFAULTS])
def test_the_pages_default_is_the_real_one(key: str, field: FieldInfo) -> None:
    told = DEFAULTS[key]
    assert (told == "required") == field.is_required()
    if told.startswith("`"):
        kind = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        adapter = TypeAdapter(cast("type[object]", kind))
        assert adapter.validate_python(plain(told.strip("`"))) == field.default
    elif told == "none":
        assert field.default is None
