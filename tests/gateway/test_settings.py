"""What a right configuration becomes: typed values, with what the file leaves out filled in."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from gateway.backendspecs import DuckDb, Emulated, Vllm
from gateway.config import Config, PolicySpec, load
from gateway.settings import Policies, Pool

GOOD = """\
server: {max_body: 10MB}
admin: {token: hush-1}
auth:
  salt: "${SALT:-}"
  keys: [{key: "${KEY}", tenant: team-a, workflow: nl2sql}]
timeouts: {head: 20s}
pools:
  default:
    model: tiny
    backend: {name: vllm, api_key: hush-3, attach: [http://gpu-a:8000]}
    policies: {priority: {name: edf}, filters: []}
  spare: {model: tiny, backend: {name: emulated, script: "${SCRIPT:-}"}}
  warehouse: {backend: {name: duckdb, databases: {sales: sales.duckdb}}}
models: {"gpt-4o": spare, "gpt-*": default, "*-mini": spare}
workflows:
  nl2sql:
    stages:
      generate: {prompt: ask.md, visits: 4}
      execute: {pool: warehouse, tool: execute_sql}
      verify: {pool: spare, outcomes: {error: WRONG}}
      answer: {render: ask.md}
    edges:
      - {from: start, to: generate}
      - {from: generate, to: execute}
      - {from: execute, on: ok, to: verify}
      - {from: execute, on: [error, empty], to: generate}
      - {from: verify, to: answer}
policies:
  layout: isolated
  priority: {name: fcfs}
  scorers: [{name: free_work, weight: 1}]
"""

Load = Callable[..., Config]


@pytest.fixture(name="load_text")
def _load_text(tmp_path: Path) -> Load:
    """Load a configuration given as text; its folder holds one template, `ask.md`."""
    (tmp_path / "ask.md").write_text("You write SQL.\n{{question}}\n")

    def load_text(text: str, **environ: str) -> Config:
        door = "" if "auth:" in text else "\ninsecure: true\n"
        (tmp_path / "config.yaml").write_text(text + door)
        return load(tmp_path / "config.yaml", {"KEY": "hush-2", **environ})

    return load_text


def test_a_template_is_read_at_load_and_filled_in_one_pass(load_text: Load) -> None:
    prompt = load_text(GOOD).workflows["nl2sql"].stages["generate"].prompt
    assert prompt is not None
    assert prompt.variables == {"question"}
    assert prompt.fill({"question": "{{sql}}?", "sql": "x"}) == "You write SQL.\n{{sql}}?\n"
    assert prompt.fill({}) == "You write SQL.\n\n"


def test_a_right_file_becomes_typed_values(load_text: Load, tmp_path: Path) -> None:
    config = load_text(GOOD)
    assert config.server.max_body == 10_000_000
    assert config.timeouts.head == 20.0
    assert config.auth.keys[0].workflow == "nl2sql"
    assert [config.pools[name].kind for name in ("default", "warehouse")] == ["llm", "sql"]
    backend = config.pools["warehouse"].backend
    assert isinstance(backend, DuckDb)
    assert backend.databases == {"sales": tmp_path / "sales.duckdb"}
    workflow = config.workflows["nl2sql"]
    assert [stage.kind for stage in workflow.stages.values()] == ["llm", "sql", "llm", "render"]
    assert [stage.pool for stage in workflow.stages.values()] == ["default", "warehouse", "spare", None]
    assert workflow.edges[1].sources == ("generate",)
    assert workflow.edges[1].on == ()
    assert workflow.edges[3].on == ("error", "empty")
    assert workflow.stages["verify"].outcomes["error"].search("it is WRONG")


def test_the_number_of_engines_follows_from_the_backend(load_text: Load) -> None:
    def engines(backend: str, rest: str = "") -> tuple[int, int, int]:
        pool = load_text(f"pools: {{p: {{model: m, backend: {backend}{rest}}}}}").pools["p"].engines
        return pool.min, pool.start, pool.max

    attached = "{name: vllm, attach: [http://a:1, http://b:1, http://c:1]}"
    assert engines(attached) == (1, 3, 3)
    assert engines(attached, ", engines: {max: 2}") == (1, 2, 2)
    assert engines(attached, ", engines: {start: 1}") == (1, 1, 3)
    assert engines("{name: emulated}") == (1, 1, 1)
    assert engines("{name: emulated}", ", engines: {min: 2, max: 4}") == (2, 2, 4)
    assert engines("{name: emulated}", ", engines: {min: 0, start: 3}") == (0, 3, 3)


def test_a_sql_worker_gets_one_call_at_a_time(load_text: Load) -> None:
    config = load_text(GOOD)
    assert config.pools["warehouse"].concurrency.sequences == 1
    assert config.pools["default"].concurrency.sequences == 32


def test_an_attached_address_may_end_in_v1_or_not(load_text: Load) -> None:
    for url in ("http://gpu-a:8000", "http://gpu-a:8000/", "http://gpu-a:8000/v1", "http://gpu-a:8000/v1/"):
        backend = load_text(GOOD.replace("http://gpu-a:8000", url)).pools["default"].backend
        assert isinstance(backend, Vllm)
        assert backend.attach == ("http://gpu-a:8000",)
    backend = load_text(GOOD.replace("http://gpu-a:8000", "http://proxy/team-a/v1")).pools["default"].backend
    assert isinstance(backend, Vllm)
    assert backend.attach == ("http://proxy/team-a",)


def test_an_empty_variable_leaves_an_optional_path_out(load_text: Load, tmp_path: Path) -> None:
    def script(**environ: str) -> Path | None:
        backend = load_text(GOOD, **environ).pools["spare"].backend
        assert isinstance(backend, Emulated)
        return backend.script

    assert script() is None
    assert script(SCRIPT="ask.md") == tmp_path / "ask.md"


def test_a_name_that_agents_have_hard_coded_goes_to_the_first_pool_that_fits(load_text: Load) -> None:
    config = load_text(GOOD)
    found = [config.alias(model) for model in ("gpt-4o", "gpt-4o-mini", "o4-mini", "llama")]
    assert found == ["spare", "default", "spare", None]


def test_a_pools_policies_go_before_those_of_all_pools(load_text: Load) -> None:
    config = load_text(GOOD)
    of_default, of_spare = config.policies_of("default"), config.policies_of("spare")
    assert of_default.priority == PolicySpec("edf", {})
    assert of_default.filters == ()
    assert of_default.scorers == of_spare.scorers == (PolicySpec("free_work", {"weight": 1}),)
    assert of_spare.priority == PolicySpec("fcfs", {})
    assert of_spare.filters is None


def test_a_configuration_cannot_be_changed(load_text: Load) -> None:
    config = load_text(GOOD)
    with pytest.raises(ValidationError):
        config.server.port = 1
    with pytest.raises(TypeError):
        config.pools["x"] = config.pools["default"]  # type: ignore[index]
    with pytest.raises(TypeError):
        config.workflows["nl2sql"].stages["verify"].outcomes["ok"] = re.compile("")  # type: ignore[index]


def test_secrets_do_not_show_in_what_is_printed(load_text: Load) -> None:
    config = load_text(GOOD, SALT="hush-4")
    assert (config.admin.token, config.auth.salt) == ("hush-1", "hush-4")
    assert "hush" not in repr(config)


def test_an_empty_salt_is_drawn_anew_at_each_load(load_text: Load) -> None:
    first, second = load_text(GOOD).auth.salt, load_text(GOOD).auth.salt
    assert len(first) >= 32
    assert first != second


def test_parts_can_be_made_without_a_file() -> None:
    pool = Pool(model="m", backend=Emulated(name="emulated", script=None))
    policies = Policies(priority=PolicySpec("edf", {}))
    config = Config(pools={"default": pool}, policies=policies)
    assert config.pools["default"].engines.max == 1
    assert config.policies_of("default").priority == PolicySpec("edf", {})
