"""Configurations: what a right one becomes, and the one line that a wrong one is answered with."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from gateway.backendspecs import Emulated
from gateway.config import Config, ConfigError, Override, PolicySpec, load
from gateway.keyrules import KEYS

GOOD = """\
server:
  port: 8080
  max_body: 10MB
admin: {token: secret}
auth:
  keys:
    - {key: "${K1}", tenant: team-a, workflow: nl2sql}
    - {key: "${K2}", tenant: team-b, priority: {min: -2, max: 2}}
timeouts: {head: 20s}
pools:
  default:
    model: tiny
    backend:
      name: vllm
      attach: [http://gpu-a:8000]
    lends_to: [spare]
  spare: {model: tiny, backend: {name: emulated, num_gpu_blocks: 64}}
  large: {model: huge, backend: {name: emulated}}
  warehouse:
    backend: {name: duckdb, databases: {sales: sales.duckdb}}
    engines: {min: 1, max: 4}
models: {"gpt-*": default}
workflows:
  nl2sql:
    slo: {deadline: 8s}
    tools: {execute_sql: pass}
    stages:
      generate: {prompt: ask.md, tools: [execute_sql], visits: 4}
      execute: {pool: warehouse, tool: execute_sql}
      verify: {pool: spare, outcomes: {error: WRONG}}
      answer: {render: ask.md}
    edges:
      - {from: start, to: generate}
      - {from: generate, to: execute}
      - {from: execute, on: ok, to: verify, chance: 0.7}
      - {from: execute, on: [error, empty], to: generate, chance: 0.3}
      - {from: verify, to: answer}
policies:
  priority: {name: fcfs}
  scorers: [{name: free_work, weight: 1}]
"""

KEYED = {"K1": "k-1", "K2": "k-2"}
Load = Callable[..., Config]


@pytest.fixture(name="load_text")
def _load_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Load a configuration given as text; its folder holds one template, `ask.md`. What has no keys needs none."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ask.md").write_text("You write SQL.\n{{question}}\n")

    def load_text(text: str, **environ: str) -> Config:
        door = "" if "auth:" in text else "\ninsecure: true\n"
        Path("config.yaml").write_text(text + door)
        return load(Path("config.yaml"), {**KEYED, **environ})

    return load_text


def changed(old: str, new: str) -> str:
    assert GOOD.count(old) == 1, f"{old!r} must be there once"
    return GOOD.replace(old, new)


def complaint(load_text: Load, text: str, **environ: str) -> str:
    """The line that a configuration is refused with."""
    with pytest.raises(ConfigError) as caught:
        load_text(text, **environ)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What was changed, what it was changed to, and what is said of it: the mistakes that people make most.
MISTAKES = [
    ("  port: 8080", "  prot: 8080",
     "2: server.prot: no such key (keys: host, port, allowed_hosts, max_body, max_header, max_header_count, "
     "graceful_shutdown, keep_alive, log_level, journal)"),
    ("  port: 8080", "  port: eighty", "2: server.port: must be a whole number, not 'eighty'"),
    ("  port: 8080", "  port: 8080.5", "2: server.port: must be a whole number, not the number 8080.5"),
    ("  port: 8080", "  port: true", "2: server.port: must be a whole number, not true"),
    ("  port: 8080", "  port: '8080'", "2: server.port: must be a whole number, not '8080'"),
    ("  port: 8080", "  port: 80800", "2: server.port: must be at most 65535"),
    ("  port: 8080", "  log_level: loud",
     "2: server.log_level: must be 'debug', 'info', 'warning' or 'error', not 'loud'"),
    ("  port: 8080", "  host: 0.0.0.0\n  host: 0.0.0.0",
     "3: server.host: the key stands here a second time (first on line 2)"),
    ("10MB", "10", "3: server.max_body: 10 has no unit; write a size such as 10MB, 512MiB or 64kB"),
    ("10MB", "ten", "3: server.max_body: must be a size such as 10MB, 512MiB or 64kB"),
    ("10MB", "0", "3: server.max_body: must be more than 0"),
    ("{token: secret}", "{token: 12345}", "4: admin.token: must be text, not the number 12345"),
    ("{token: secret}", "", "4: admin: must be a mapping (key: value), not nothing"),
    ("  keys:\n", "  keyz:\n", "6: auth.keyz: no such key (keys: file, keys, salt)"),
    ('key: "${K1}", ', "", "7: auth.keys[0].hash: missing: `cortex keys hash` makes one"),
    ("${K2}", "${K1}", "8: auth.keys[1].key: the same key stands further up"),
    ('"${K2}"', "k-2",
     "8: auth.keys[1].key: a key itself does not belong in a file: give its hash instead, as `cortex keys hash` "
     "prints it, or an environment variable, as ${NAME}"),
    ("team-a", "team a",
     "7: auth.keys[0].tenant: a name has letters, digits, '.', '_' and '-', at most 64, beginning with one of the "
     "first two"),
    ("workflow: nl2sql}", "workflow: sql}", "7: auth.keys[0].workflow: no workflow named 'sql' (workflows: nl2sql)"),
    ("secret", "k-2", "8: auth.keys[1].key: is the admin token: a client would have the admin API"),
    ("{min: -2, max: 2}", "{min: 3, max: 2}", "8: auth.keys[1].priority: min is above max"),
    ("20s", "20", "9: timeouts.head: 20 has no unit; write a duration such as 8s, 250ms, 2m or 1h"),
    ("${K2}", "${NOT_SET:-}", "8: auth.keys[1].key: must not be empty"),
    ("deadline: 8s", "target: 1e999", "25: workflows.nl2sql.slo.target: must be a number, not the number inf"),
    ("20s", "20 seconds", "9: timeouts.head: must be a duration such as 8s, 250ms, 2m or 1h"),
    ("20s", "-20s", "9: timeouts.head: must be a duration such as 8s, 250ms, 2m or 1h"),
    ("    model: tiny\n    backend:\n", "    backend:\n",
     "11: pools.default.model: missing: no engine can serve a pool of language models without one"),
    ("name: vllm", "name: vlm",
     "13: pools.default.backend: nothing is named 'vlm' here (names: 'vllm', 'emulated', 'duckdb', 'litellm')"),
    ("name: vllm", "api_key: x", "13: pools.default.backend: needs a name, as in {name: vllm}"),
    ("attach: [http://gpu-a:8000]", "launch: {gpus: 1.5}",
     "15: pools.default.backend.launch.gpus: must be a share of one GPU, such as 0.5, or a whole number of them"),
    ("attach: [http://gpu-a:8000]", "launch: {commnad: [vllm]}",
     "15: pools.default.backend.launch.commnad: no such key (keys: command, model, args, env, gpus, devices, ready, "
     "stagger, grace, asleep, logs)"),
    ("attach: [http://gpu-a:8000]", "salt: true",
     "13: pools.default.backend: needs attach, addresses of servers that run elsewhere, or launch, and not both"),
    ("attach: [http://gpu-a:8000]", "attach: [http://gpu-a:8000]\n      launch: {}",
     "13: pools.default.backend: needs attach, addresses of servers that run elsewhere, or launch, and not both"),
    ("[http://gpu-a:8000]", "[]", "15: pools.default.backend.attach: must not be empty"),
    ("[http://gpu-a:8000]", "http://gpu-a:8000",
     "15: pools.default.backend.attach: must be a list, not 'http://gpu-a:8000'"),
    ("http://gpu-a:8000", "gpu-a:8000",
     "15: pools.default.backend.attach[0]: must be an address such as http://gpu-a:8000"),
    ("http://gpu-a:8000", "http://gpu-a:80000",
     "15: pools.default.backend.attach[0]: must be an address such as http://gpu-a:8000"),
    ("http://gpu-a:8000", "http://me:pw@gpu-a:8000",
     "15: pools.default.backend.attach[0]: must be a plain address, without user, query or fragment; give a key "
     "as api_key"),
    ("[http://gpu-a:8000]", "[http://gpu-a:8000, http://gpu-a:8000/]",
     "15: pools.default.backend.attach[1]: the same address stands further up"),
    *[("http://gpu-a:8000", f"http://gpu-a:8000{path}",
       "15: pools.default.backend.attach[0]: must be the server's address, such as http://gpu-a:8000, and not that "
       "of one of its paths") for path in ("/v1/v1", "/v1/chat/completions", "/v1/models/")],
    ("    lends_to: [spare]", "    engines: {min: 2}",
     "16: pools.default.engines.min: 2 engines, but attach lists only 1"),
    ("[spare]", "[spaer]",
     "16: pools.default.lends_to[0]: no pool named 'spaer' (pools: default, spare, large, warehouse)"),
    ("[spare]", "[default]", "16: pools.default.lends_to[0]: a pool cannot lend to itself"),
    ("[spare]", "[warehouse]", "16: pools.default.lends_to[0]: 'warehouse' is a SQL pool; an LLM pool is needed"),
    ("[spare]", "[large]",
     "16: pools.default.lends_to[0]: its model is huge, not tiny: engines are lent to pools of the same model"),
    ("    engines: {min: 1, max: 4}", "    lends_to: [spare]",
     "21: pools.warehouse.lends_to[0]: a SQL pool cannot lend"),
    ("num_gpu_blocks: 64", "script: no.json", "17: pools.spare.backend.script: no such file: no.json"),
    ("num_gpu_blocks: 64", "num_gpu_blocks: 63",
     "17: pools.spare.backend.num_gpu_blocks: the blocks hold 1008 tokens in all, and an engine needs 1024"),
    ("num_gpu_blocks: 64", "num_gpu_blocks: 64, block_size: 8",
     "17: pools.spare.backend.num_gpu_blocks: the blocks hold 512 tokens in all, and an engine needs 1024"),
    ("num_gpu_blocks: 64", "max_num_batched_tokens: 63",
     "17: pools.spare.backend.max_num_batched_tokens: max_num_batched_tokens (63) must not be below max_num_seqs "
     "(64): each sequence needs one a step"),
    ("num_gpu_blocks: 64", "max_num_seqs: 4096",
     "17: pools.spare.backend.max_num_seqs: max_num_batched_tokens (2048) must not be below max_num_seqs (4096): "
     "each sequence needs one a step"),
    ("num_gpu_blocks: 64", "max_model_len: 1", "17: pools.spare.backend.max_model_len: must be at least 2"),
    ("num_gpu_blocks: 64", "decode_step: 10",
     "17: pools.spare.backend.decode_step: 10 has no unit; write a duration such as 8s, 250ms, 2m or 1h"),
    ("    backend: {name: duckdb", "    model: x\n    backend: {name: duckdb",
     "20: pools.warehouse.model: a SQL pool has no model"),
    ("{sales: sales.duckdb}", "{sales: sales.duckdb}, memory: 15.9MB",
     "20: pools.warehouse.backend.memory: must be at least 16MB"),
    ("{sales: sales.duckdb}", "{sales: sales.duckdb}, timeout: 0",
     "20: pools.warehouse.backend.timeout: must be more than 0"),
    ("{sales: sales.duckdb}", "{}", "20: pools.warehouse.backend.databases: must not be empty"),
    ("{sales: sales.duckdb}", "{sales: ''}", "20: pools.warehouse.backend.databases.sales: must not be empty"),
    ("{min: 1, max: 4}", "{min: 1, max: 0}", "21: pools.warehouse.engines.max: must be at least 1"),
    ("{min: 1, max: 4}", "{min: 5, max: 4}", "21: pools.warehouse.engines: must be min <= start <= max, not 5, 5, 4"),
    ("    engines: {min: 1, max: 4}", "    concurrency: {sequences: 2}",
     "21: pools.warehouse.concurrency: not for SQL pools: a worker runs one statement at a time"),
    ('"gpt-*": default', '"gpt-*": big',
     "22: models.gpt-*: no pool named 'big' (pools: default, spare, large, warehouse)"),
    ('"gpt-*": default', '"gpt-4.1": warehouse',
     '22: models."gpt-4.1": \'warehouse\' is a SQL pool; an LLM pool is needed'),
    ("execute_sql: pass", "execute_sql: intercepted",
     "26: workflows.nl2sql.tools.execute_sql: must be 'pass', 'ahead' or 'intercept', not 'intercepted'"),
    ("execute_sql: pass", "search: intercept",
     "26: workflows.nl2sql.tools.search: no tool named 'search' (tools: execute_sql, describe_tables)"),
    ("{execute_sql: pass}", "{exec_sql: ahead}",
     "26: workflows.nl2sql.tools.exec_sql: no tool named 'exec_sql' (tools: execute_sql, describe_tables)"),
    ("{execute_sql: pass}", "{describe_tables: intercept}",
     "26: workflows.nl2sql.tools.describe_tables: intercept needs a stage with tool: describe_tables"),
    ("{execute_sql: pass}", "intercept",
     "26: workflows.nl2sql.tools: must be a mapping (key: value), not 'intercept'"),
    ("{sales: sales.duckdb}", "[sales]",
     "20: pools.warehouse.backend.databases: must be a mapping (key: value), not a list"),
    ("    engines: {min: 1, max: 4}", "  other: {backend: {name: duckdb, databases: {sales: new.duckdb}}}",
     "21: pools.other.backend.databases.sales: the same name as pools.warehouse.backend.databases.sales: callers "
     "name a database, not its pool"),
    ("  port: 8080", "  allowed_hosts: [http://gateway]",
     "2: server.allowed_hosts[0]: must be the name of a host, such as gateway.internal, without scheme and port"),
    ("prompt: ask.md", "prompt: asks.md", "28: workflows.nl2sql.stages.generate.prompt: no such file: asks.md"),
    ("prompt: ask.md", "prompt: .", "28: workflows.nl2sql.stages.generate.prompt: . cannot be read"),
    ("prompt: ask.md", "prompt: [ask.md]", "28: workflows.nl2sql.stages.generate.prompt: must be a path, not a list"),
    ("prompt: ask.md", "database: sales",
     "28: workflows.nl2sql.stages.generate.database: an LLM stage has no database"),
    ("tools: [execute_sql]", "tools: [run_sql]",
     "28: workflows.nl2sql.stages.generate.tools[0]: must be 'execute_sql' or 'describe_tables', not 'run_sql'"),
    ("pool: warehouse, tool", "tool",
     "29: workflows.nl2sql.stages.execute: no pool is given, and the one it falls to will not do: 'default' is an "
     "LLM pool; a SQL tool needs a SQL pool"),
    ("pool: warehouse", "pool:", "29: workflows.nl2sql.stages.execute.pool: must be the name of a pool, not nothing"),
    (", tool: execute_sql}", "}",
     "29: workflows.nl2sql.stages.execute.pool: 'warehouse' is a SQL pool; an LLM pool is needed"),
    ("tool: execute_sql}", "tool: execute_sql, database: sale}",
     "29: workflows.nl2sql.stages.execute.database: no database named 'sale' (databases: sales)"),
    ("tool: execute_sql}", "tool: execute_sql, prompt: ask.md}",
     "29: workflows.nl2sql.stages.execute.prompt: a SQL stage has no prompt"),
    ("tool: execute_sql}", "tool: execute_sql, recall: 1h}",
     "29: workflows.nl2sql.stages.execute.recall: a SQL stage has no recall"),
    ("pool: spare", "pool: spare, recall: 25h",
     "30: workflows.nl2sql.stages.verify.recall: must be at most 24h"),
    ("pool: spare", "pool: spare, recall: yes",
     "30: workflows.nl2sql.stages.verify.recall: must be a duration such as 8s, 250ms, 2m or 1h"),
    ("pool: spare", "pool: spares",
     "30: workflows.nl2sql.stages.verify.pool: no pool named 'spares' (pools: default, spare, large, warehouse)"),
    ("error: WRONG", "error: '[WRONG'",
     "30: workflows.nl2sql.stages.verify.outcomes.error: not a regular expression: unterminated character set at "
     "position 0"),
    ("error: WRONG", "error: 5",
     "30: workflows.nl2sql.stages.verify.outcomes.error: must be a regular expression, not the number 5"),
    ("error: WRONG", "wrong: WRONG",
     "30: workflows.nl2sql.stages.verify.outcomes.wrong: must be 'ok', 'error', 'empty' or 'timeout', not 'wrong'"),
    ("render: ask.md", "render: ask.md, pool: spare",
     "31: workflows.nl2sql.stages.answer.pool: a stage that renders the answer has no pool"),
    ("      answer: {", "      start: {",
     "31: workflows.nl2sql.stages.start: 'start' is where every run begins and cannot name a stage"),
    ("- {from: start, to: generate}", "- {from: begin, to: generate}",
     "33: workflows.nl2sql.edges[0].from: no stage named 'begin' (stages: start, generate, execute, verify, answer)"),
    ("      - {from: start, to: generate}\n", "",
     "32: workflows.nl2sql.edges: no edge from 'start': a run would never begin"),
    ("      - {from: start, to: generate}\n", "",
     "32: workflows.nl2sql.edges: no edge from 'start': a run would never begin"),
    ("from: start, to", "to", "33: workflows.nl2sql.edges[0].from: missing, and has no default"),
    ("from: generate, ", "from: [generate, fix], ",
     "34: workflows.nl2sql.edges[1].from: no stage named 'fix' (stages: start, generate, execute, verify, answer)"),
    ("on: ok, to: verify", "on: ok, to: verfy",
     "35: workflows.nl2sql.edges[2].to: no stage named 'verfy' (stages: generate, execute, verify, answer)"),
    ("on: ok,", "on: okay,",
     "35: workflows.nl2sql.edges[2].on: must be 'ok', 'error', 'empty' or 'timeout', not 'okay'"),
    ("[error, empty]", "[error, void]",
     "36: workflows.nl2sql.edges[3].on[1]: must be 'ok', 'error', 'empty' or 'timeout', not 'void'"),
    ("chance: 0.3", "chance: 0.31",
     "36: workflows.nl2sql.edges[3].chance: the chances of the edges from 'execute' add up to 1.01, more than 1"),
    ("[error, empty], to: generate, chance: 0.3", "[error, empty, timeout], to: generate, chance: 0.2",
     "36: workflows.nl2sql.edges[3].chance: the edges from 'execute' take every outcome, but their chances add up "
     "to 0.9, less than 1; for runs that end there leave out an outcome"),
    ("{from: verify, to: answer}", "{from: verify, to: answer, chance: 0.5}",
     "37: workflows.nl2sql.edges[4].chance: the edges from 'verify' take every outcome, but their chances add up "
     "to 0.5, less than 1; for runs that end there leave out an outcome"),
    (", visits: 4}", "}",
     "28: workflows.nl2sql.stages.generate.visits: stands in a loop in which no stage says how often a run may come "
     "there (visits)"),
    ("answer: {render: ask.md}", "answer: {render: ask.md, width: 2}",
     "31: workflows.nl2sql.stages.answer.width: a stage that renders the answer has no width"),
    (", visits: 4}", ", visits: 4, width: 0.5}",
     "28: workflows.nl2sql.stages.generate.width: must be at least 1"),
    ("policies:\n", "state: {lifetime: 25h}\npolicies:\n", "38: state.lifetime: is more than state.longest"),
    ("policies:\n", "state: {longest: 25h}\npolicies:\n", "38: state.longest: must be at most 24h"),
    *(("policies:\n", f"state: {{redis: '{address}'}}\npolicies:\n",
       "38: state.redis: must be an address such as redis://127.0.0.1:6379/0")
      for address in ("redis://localhost:99999/0", "redis://localhost:0", "http://localhost", "redis://a b")),
    ("chance: 0.3", "chance: 30", "36: workflows.nl2sql.edges[3].chance: must be at most 1"),
    ("to: generate, chance: 0.3", "to: start, chance: 0.3",
     "36: workflows.nl2sql.edges[3].to: no edge can lead back to 'start'"),
    ("[http://gpu-a:8000]", "5", "15: pools.default.backend.attach: must be a list, not the number 5"),
    ("attach: [", "attatch: [",
     "15: pools.default.backend.attatch: no such key (keys: name, attach, launch, api_key, priority, salt, "
     "kv_events, tokenize)"),
    ("sales: sales.duckdb", "sales: 5",
     "20: pools.warehouse.backend.databases.sales: must be a path, not the number 5"),
    ("  port: 8080", "  journal: [a]", "2: server.journal: must be a path, not a list"),
    ("      - {from: verify, to: answer}\n", "",
     "31: workflows.nl2sql.stages.answer: no edges lead here from 'start'"),
    ("{name: fcfs}", "fcfs", "39: policies.priority: must be a mapping with a name, such as {name: ...}, not 'fcfs'"),
    ("{name: fcfs}", "{patience: 3s}", "39: policies.priority: needs a name, as in {name: ...}"),
    ("[{name: free_work, weight: 1}]", "{name: free_work}", "40: policies.scorers: must be a list, not a mapping"),
    ("policies:\n", "policies:\n  layout: adaptiv\n",
     "39: policies.layout: must be 'isolated', 'shared' or 'adaptive', not 'adaptiv'"),
    ("policies:\n", "policies:\n  layout: isolated\n  borrowing: {name: gated}\n",
     "40: policies.borrowing: only for layout: adaptive, and it is isolated"),
    ("policies:\n", "policies:\n  borrowing: {name: always}\n  layout: shared\n",
     "39: policies.borrowing: only for layout: adaptive, and it is shared"),
    ("policies:\n", "policies:\n  gate: aimd\n",
     "39: policies.gate: must be a mapping with a name, such as {name: ...}, not 'aimd'"),
    *[("    lends_to: [spare]", f"    policies: {{{slot}: {value}}}",
       f"16: pools.default.policies.{slot}: holds for all pools together; set it in policies")
      for slot, value in (("gate", "{name: aimd}"), ("borrowing", "{name: gated}"), ("layout", "shared"))],
    ("    lends_to: [spare]", "    policies: {budgets: {name: fixed}}",
     "16: pools.default.policies.budgets: no such key (keys: priority, admission, budget, filters, scorers, picker)"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "said"), MISTAKES, ids=[f"{said[:60]}" for _, _, said in MISTAKES])
def test_a_mistake_is_named_with_its_line_and_path(load_text: Load, old: str, new: str, said: str) -> None:
    assert complaint(load_text, changed(old, new)) == f"config.yaml:{said}"


@pytest.mark.parametrize("layout", ["", "layout: adaptive", "layout: shared"])
def test_pools_that_share_engines_have_one_priority_policy(load_text: Load, layout: str) -> None:
    def ordered(spare: str, large: str = "fcfs", layout: str = layout) -> str:
        text = changed("num_gpu_blocks: 64}}", f"num_gpu_blocks: 64}}, policies: {{priority: {{name: {spare}}}}}}}")
        alone = f"backend: {{name: emulated}}, policies: {{priority: {{name: {large}}}}}}}"
        return text.replace("backend: {name: emulated}}", alone).replace("policies:\n ", f"policies:\n  {layout}\n ")

    assert complaint(load_text, ordered("edf")) == (
        "config.yaml:17: pools.spare.policies.priority: 'default' has another, and they share engines "
        f"(layout: {layout.removeprefix('layout: ') or 'adaptive'}); set policies.priority"
    )
    for fine in (ordered("fcfs"), ordered("fcfs", "edf"), ordered("edf", layout="layout: isolated")):
        assert load_text(fine).pools["spare"].policies.priority is not None
    keeping = ordered("edf").replace("lends_to: [spare]", "lends_to: []")
    assert "'default' has another" in complaint(load_text, keeping), "it still borrows"
    load_text(keeping.replace("64}, policies", "64}, lends_to: [], policies"))


def test_pools_may_share_a_priority_policy_that_is_not_that_of_all(load_text: Load) -> None:
    own = "policies: {priority: {name: edf}}"
    text = changed("    lends_to: [spare]", f"    {own}").replace("64}}", f"64}}, {own}}}")
    assert load_text(text).policies_of("spare") == load_text(text).policies_of("default")


@pytest.mark.parametrize("junk", ["", "7", "[[x]]", "{name: {name: x}}"])
def test_whatever_stands_in_a_line_it_is_read_or_answered_with_one_line(load_text: Load, junk: str) -> None:
    lines = GOOD.splitlines()
    said = []
    for index, line in enumerate(lines):
        spoiled = re.sub(r"(?<=:) .*|(?<=:)$", f" {junk}", line, count=1)
        try:
            load_text("\n".join([*lines[:index], spoiled, *lines[index + 1 :]]))
        except ConfigError as error:
            said.append(str(error))
    assert len(said) > 20
    for one in said:
        assert re.fullmatch(r"config\.yaml:\d+: .+", one)


def test_the_first_of_several_mistakes_is_named(load_text: Load) -> None:
    text = changed("8080", "x").replace("10MB", "y").replace("team-b", "")
    assert complaint(load_text, text).startswith("config.yaml:2: server.port:")
    text = changed('"gpt-*": default', '"gpt-*": nowhere').replace("verify, chance", "nowhere, chance")
    assert complaint(load_text, text).startswith("config.yaml:22: models.gpt-*:")


def test_without_keys_only_a_loopback_host_is_allowed(load_text: Load) -> None:
    pools = "pools:\n  default: {model: m, backend: {name: emulated}}\n"
    for host in ("127.0.0.1", "127.8.8.8", "'::1'", "localhost"):
        load_text(f"server: {{host: {host}}}\n{pools}")
    for host in ("0.0.0.0", "192.168.1.5", "gateway.example"):
        assert complaint(load_text, f"server: {{host: {host}}}\n{pools}") == (
            f"config.yaml:1: server.host: {host} can be reached from outside, so callers need a key: "
            f"{KEYS}, in the place of insecure"
        )
    load_text(f"server: {{host: 0.0.0.0}}\nauth: {{keys: [{{key: '${{K1}}', tenant: t}}]}}\n{pools}")


@pytest.mark.parametrize("server", ["server: {host: 127.0.0.1, port: 8080}\n", "server: {}\n", ""])
def test_what_options_put_in_the_files_place_is_checked_as_the_file_is(tmp_path: Path, server: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"{server}insecure: true\npools:\n  default: {{model: m, backend: {{name: emulated}}}}\n")

    def given(host: object = "::1", port: object = 9) -> Config:
        overrides = [Override("--host", "server", "host", host), Override("--port", "server", "port", port)]
        return load(path, {}, overrides=overrides)

    assert (given().server.host, given().server.port) == ("::1", 9)
    for wrong, said in (
        ({"port": 99999}, "--port: must be at most 65535"),
        ({"port": -1}, "--port: must be at least 0"),
        ({"host": ""}, "--host: must not be empty"),
        (
            {"host": "0.0.0.0"},
            f"--host: 0.0.0.0 can be reached from outside, so callers need a key: {KEYS}, in the place of insecure",
        ),
    ):
        with pytest.raises(ConfigError) as caught:
            given(**wrong)
        assert str(caught.value) == said


@pytest.mark.usefixtures("load_text")
def test_an_option_does_not_hide_a_mistake_of_the_file() -> None:
    for text, said in (
        (changed("server:\n  port: 8080\n  max_body: 10MB\n", "server: 5\n"), "1: server: must be a mapping"),
        (changed("10MB", "10"), "3: server.max_body: 10 has no unit"),
    ):
        Path("config.yaml").write_text(text)
        with pytest.raises(ConfigError, match=f"^config.yaml:{said}"):
            load(Path("config.yaml"), KEYED, overrides=[Override("--port", "server", "port", 9)])


def test_a_file_without_pools_is_refused(load_text: Load) -> None:
    assert complaint(load_text, "server: {}\n") == "config.yaml:1: pools: missing, and has no default"
    assert complaint(load_text, "pools: {}\n") == "config.yaml:1: pools: must not be empty"


def test_a_stage_without_a_pool_needs_a_default_one(load_text: Load) -> None:
    text = "pools:\n  a: {model: m, backend: {name: emulated}}\n"
    text += "workflows:\n  w:\n    stages: {s: {}}\n    edges: [{from: start, to: s}]\n"
    assert complaint(load_text, text) == (
        "config.yaml:5: workflows.w.stages.s: no pool is given, and the one it falls to will not do: "
        "no pool named 'default' (pools: a)"
    )


def test_a_sql_stage_names_its_database_where_there_are_several(load_text: Load) -> None:
    text = changed("{sales: sales.duckdb}", "{sales: sales.duckdb, hr: hr.duckdb}")
    assert complaint(load_text, text) == (
        "config.yaml:29: workflows.nl2sql.stages.execute.database: missing: the pool has several databases "
        "(sales, hr)"
    )
    config = load_text(text.replace("tool: execute_sql}", "tool: execute_sql, database: hr}"))
    assert config.workflows["nl2sql"].stages["execute"].database == "hr"


def test_an_unknown_variable_in_a_template_is_named_with_the_templates_line(load_text: Load, tmp_path: Path) -> None:
    (tmp_path / "bad.md").write_text("one\ntwo {{ sql }} {{tabel}}\n")
    assert complaint(load_text, changed("prompt: ask.md", "prompt: bad.md")) == (
        "config.yaml:28: workflows.nl2sql.stages.generate.prompt: bad.md:2: no variable named 'tabel' "
        "(variables: question, schema, sql, error, rows, row_count, columns, answer, database, history)"
    )
    (tmp_path / "bad.md").write_bytes(b"\xff")
    assert "bad.md is not UTF-8 text" in complaint(load_text, changed("prompt: ask.md", "prompt: bad.md"))


def test_paths_start_from_the_files_folder_not_from_the_working_one(load_text: Load, tmp_path: Path) -> None:
    load_text(GOOD)
    (tmp_path / "sub").mkdir()
    for name in ("config.yaml", "ask.md"):
        (tmp_path / name).rename(tmp_path / "sub" / name)
    journal = (tmp_path / "sub" / "config.yaml").read_text().replace("  port: 8080", "  journal: logs/j.jsonl")
    (tmp_path / "sub" / "config.yaml").write_text(journal)
    assert load(Path("sub/config.yaml"), KEYED).server.journal == tmp_path / "sub" / "logs" / "j.jsonl"


def test_a_variable_takes_the_type_that_its_key_wants(load_text: Load) -> None:
    text = changed("8080", "${PORT}").replace("20s", '"${HEAD:-30s}"').replace("secret", '"${TOKEN:-}"')
    text = text.replace("num_gpu_blocks: 64", 'faults: "${FAULTS}", prefill_rate: "${RATE}"')
    text = text.replace("weight: 1", 'weight: "${WEIGHT:-2.5}", tags: ["${FAULTS}", {a: "${PORT}"}]')
    config = load_text(text, PORT="9000", FAULTS="true", RATE="1e4", TOKEN="0123")
    assert (config.server.port, config.timeouts.head, config.admin.token) == (9000, 30.0, "0123")
    emulated = config.pools["spare"].backend
    assert isinstance(emulated, Emulated)
    assert (emulated.faults, emulated.prefill_rate) == (True, 10_000.0)
    assert config.policies.scorers is not None
    assert config.policies.scorers[0].params == {"weight": 2.5, "tags": [True, {"a": 9000}]}
    assert complaint(load_text, text, PORT="http", FAULTS="true", RATE="1") == (
        "config.yaml:2: server.port: must be a whole number, not 'http'"
    )


def test_what_a_check_has_against_a_policy_is_said_at_its_place(load_text: Load) -> None:
    own = "    lends_to: [spare]\n    policies: {scorers: [{name: a}, {name: odd}]}"
    load_text(changed("    lends_to: [spare]", own))
    asked: list[tuple[str, str, Mapping[str, object]]] = []

    def check(slot: str, spec: PolicySpec) -> str | None:
        asked.append((slot, spec.name, spec.params))
        return f"no {slot} named 'odd'" if spec.name == "odd" else None

    with pytest.raises(ConfigError) as caught:
        load(Path("config.yaml"), KEYED, check)
    assert str(caught.value) == "config.yaml:17: pools.default.policies.scorers[1]: no scorers named 'odd'"
    assert ("priority", "fcfs", {}) in asked
    assert ("scorers", "free_work", {"weight": 1}) in asked
    assert isinstance(load(Path("config.yaml"), KEYED, lambda slot, spec: None), Config)


def test_parallel_edges_have_chances_of_their_own(load_text: Load) -> None:
    text = changed("{from: verify, to: answer}", "{from: verify, to: answer, parallel: true, chance: 0.5}")
    config = load_text(text.replace("chance: 0.3}", "chance: 0.9, parallel: true}"))
    assert [edge.parallel for edge in config.workflows["nl2sql"].edges] == [False, False, False, True, True]


def test_a_loop_needs_only_one_stage_that_says_how_often(load_text: Load) -> None:
    assert load_text(GOOD).workflows["nl2sql"].stages["execute"].visits == 3
