"""From a configuration to what schedules: pools that lend, graphs, policies with their parameters."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from backends.emulated.server import serve
from gateway.blueprints import PRIOR_SERVICE, blueprint
from gateway.cli import main, read_config
from gateway.compose import compose
from gateway.settings import Config
from policies.blueprint import Blueprint
from policies.budget import Adaptive, Fixed
from policies.catalog import GATE, Named, PolicySet, make_all
from policies.gate import Aimd
from policies.priority import Edf, LeastSlack
from policies.routing.filters import KvBelow
from policies.routing.scorers import FreeWork, PrefixAffinity
from tests.gateway import shop
from tests.gateway.support import MODEL, attached, chat, metric, running, settled, written

CHAT = "/v1/chat/completions"
ROOT = Path(__file__).parents[2]


def config(folder: Path, text: str) -> Config:
    path = folder / "cortex.yaml"
    path.write_text(text)
    return read_config(path, {})


def plan(folder: Path, pools: Mapping[str, object], **sections: Any) -> Blueprint:
    return blueprint(config(folder, written(pools, **sections)), seed=4)


def llm(model: str = MODEL, **more: object) -> dict[str, object]:
    return {"model": model, "backend": {"name": "emulated"}, **more}


# --- layouts --------------------------------------------------------------------------------------------------


def lenders(folder: Path, layout: str | None) -> dict[str, tuple[str, ...]]:
    pools: dict[str, object] = {
        "a": llm(),
        "b": llm(lends_to=["a"]),
        "c": llm(),
        "keeper": llm(lends_to=[]),
        "small": llm("another"),
        "sql": shop.warehouse(folder),
        "sql2": shop.warehouse(folder, databases={"other": str(folder / "shop.duckdb")}),
    }
    policies = {"layout": layout} if layout else {}
    return {name: spec.lenders for name, spec in plan(folder, pools, policies=policies).pools.items()}


def test_isolated_pools_serve_their_own_calls_alone(tmp_path: Path) -> None:
    names = ("a", "b", "c", "keeper", "small", "sql", "sql2")
    assert lenders(tmp_path, "isolated") == {name: (name,) for name in names}


@pytest.mark.parametrize("layout", ["shared", "adaptive", None])
def test_pools_of_one_model_serve_each_other_as_far_as_they_lend(tmp_path: Path, layout: str | None) -> None:
    assert lenders(tmp_path, layout) == {
        "a": ("a", "b", "c"),
        "b": ("a", "b", "c"),
        "c": ("a", "c"),
        "keeper": ("a", "c", "keeper"),
        "small": ("small",),
        "sql": ("sql",),
        "sql2": ("sql2",),
    }


def test_how_pools_lend_goes_with_the_layout_and_may_be_given_parameters(tmp_path: Path) -> None:
    def lends(**policies: object) -> set[Named]:
        pools = {"a": llm(), "b": llm(), "sql": shop.warehouse(tmp_path)}
        return {chosen.borrowing for chosen in plan(tmp_path, pools, policies=policies).policies.values()}

    assert lends() == lends(layout="adaptive") == {Named(name="gated")}
    assert lends(layout="shared") == {Named(name="always")}
    assert lends(borrowing={"name": "gated", "kv": 0.5}) == {Named(name="gated", params=(("kv", 0.5),))}


@pytest.mark.parametrize(("layout", "served"), [("isolated", {"a": 8, "b": 0}), ("shared", {"a": 4, "b": 4})])
async def test_the_layout_decides_whose_engines_take_a_call(
    tmp_path: Path, layout: str, served: dict[str, int]
) -> None:
    async with serve(shop.FAST) as one, serve(shop.FAST) as two:
        policies = {"layout": layout, "scorers": [{"name": "round_robin"}]}
        text = written({"a": attached(one.url), "b": attached(two.url)}, policies=policies)
        async with running(tmp_path, text) as up:
            body = {**chat(max_tokens=2), "model": "a"}
            replies = [await up.http.post(CHAT, json=body) for _ in range(8)]
            by_pool = [reply.headers["x-workflow-pool"] for reply in replies]
            assert {pool: by_pool.count(pool) for pool in served} == served
            assert {pool: metric(up.gateway, "cortex_attempts_total", pool=pool) for pool in served} == served
            await settled(up.gateway, one, two)


# --- pools and graphs -----------------------------------------------------------------------------------------


def test_a_pool_keeps_its_bounds_and_what_its_engines_take(tmp_path: Path) -> None:
    pools = {
        "llm": llm(engines={"min": 0, "start": 2, "max": 5}, concurrency={"sequences": 7, "work": 900}),
        "real": attached("http://127.0.0.1:1", "http://127.0.0.1:2"),
        "told": attached("http://127.0.0.1:3") | {"concurrency": {"kv_tokens": 90_000}},
        "sql": shop.warehouse(tmp_path, workers=3),
    }
    made = plan(tmp_path, pools, limits={"queue_calls": 9, "queue_bytes": "1MB", "attempts": 2, "run_idle": "1m"})
    spec = made.pools["llm"]
    assert (spec.minimum, spec.start, spec.maximum, spec.kind, spec.model) == (0, 2, 5, "llm", MODEL)
    assert (spec.limits.sequences, spec.limits.work, spec.limits.kv_tokens) == (7, 900.0, 2048 * 16)
    assert (spec.queue_calls, spec.queue_bytes, spec.prior_service) == (9, 1_000_000, PRIOR_SERVICE["llm"])
    real = made.pools["real"]
    assert (real.minimum, real.start, real.maximum, real.limits.kv_tokens) == (1, 2, 2, None)
    assert made.pools["told"].limits.kv_tokens == 90_000
    sql = made.pools["sql"]
    assert (sql.kind, sql.limits.sequences, sql.start, sql.prior_service) == ("sql", 1, 3, PRIOR_SERVICE["sql"])
    assert (made.limits.attempts, made.limits.run_idle, made.seed) == (2, 60.0, 4)


def test_a_graph_keeps_its_stages_edges_and_deadline(tmp_path: Path) -> None:
    pools = {stage: llm() for stage in shop.STAGES} | {"warehouse": shop.warehouse(tmp_path)}
    graph = plan(tmp_path, pools, **shop.sections(tmp_path, visits=2)).workflows["shop"]
    assert graph.deadline == 60.0
    assert {name: (stage.kind, stage.pool, stage.visits) for name, stage in graph.stages.items()} == {
        "retrieve": ("sql", "warehouse", 3),
        "generate": ("llm", "generate", 2),
        "execute": ("sql", "warehouse", 3),
        "verify": ("llm", "verify", 2),
        "fix": ("llm", "fix", 2),
        "answer": ("render", "", 3),
    }
    assert graph.first() == "retrieve"
    assert [graph.following("execute", fate) for fate in ("ok", "error", "empty", "timeout")] == [
        "verify",
        "fix",
        "fix",
        "fix",
    ]
    assert (graph.following("fix", "ok"), graph.following("answer", "ok")) == ("execute", None)


async def test_a_workflow_of_several_calls_at_once_is_for_clients_that_drive_themselves(tmp_path: Path) -> None:
    (tmp_path / "ask.md").write_text("{{question}}")
    stage = {"pool": "a", "prompt": str(tmp_path / "ask.md")}
    stages = {"plan": stage, "left": stage, "right": stage}
    edges = [{"from": "start", "to": "plan"}, {"from": "plan", "to": "left"}]
    beside = {"from": "plan", "to": "right", "parallel": True, "chance": 0.5}
    workflows = {
        "line": {"stages": {"plan": stage, "left": stage}, "edges": edges},
        "fan": {"stages": stages, "edges": [*edges, beside]},
        "wide": {"stages": {"plan": stage, "left": {**stage, "width": 2.5}}, "edges": edges},
    }
    made = plan(tmp_path, {"a": llm()}, workflows=workflows).workflows
    assert made["wide"].stages["left"].width == 2.5
    assert made["fan"].beside("plan") == [("right", 0.5)]
    async with (
        serve(shop.FAST) as server,
        running(tmp_path, written({"a": attached(server.url)}, workflows=workflows)) as up,
    ):
        listed = [model["id"] for model in (await up.http.get("/v1/models")).json()["data"]]
        assert [name for name in listed if name.startswith("workflow/")] == ["workflow/line"]
        for name, why in (
            ("fan", "edges that are taken in parallel"),
            ("wide", "'left' makes several calls at once"),
        ):
            reply = await up.http.post(CHAT, json={**chat(), "model": f"workflow/{name}"})
            assert reply.status_code == 400
            assert why in reply.json()["error"]["message"]
        await settled(up.gateway, server)


# --- policies -------------------------------------------------------------------------------------------------


def test_parameters_reach_the_policies_in_seconds_and_a_pool_may_have_its_own(tmp_path: Path) -> None:
    everywhere = {
        "layout": "isolated",
        "priority": {"name": "least_slack", "patience": "2m", "quantum": "500ms", "optimism": 0.25},
        "scorers": [{"name": "free_work", "weight": 3}, {"name": "prefix_affinity"}],
        "filters": [{"name": "kv_below", "use": 0.9}],
        "picker": {"name": "two_choices"},
        "admission": {"name": "queue_bound"},
    }
    own = {"priority": {"name": "edf", "patience": "10s"}, "budget": {"name": "adaptive", "mean": "500ms"}}
    made = plan(tmp_path, {"a": llm(), "b": llm(policies=own)}, policies=everywhere)
    one, other = make_all(made.policies["a"]), make_all(made.policies["b"])
    assert one.priority == LeastSlack(patience=120.0, quantum=0.5, optimism=0.25)
    assert other.priority == Edf(patience=10.0)
    assert (one.budget, other.budget) == (Fixed(), Adaptive(mean=0.5))
    for policies in (one, other):
        assert policies.routing.filters[1:] == (KvBelow(use=0.9),)
        assert policies.routing.scorers == ((3.0, FreeWork()), (1.0, PrefixAffinity()))
        assert type(policies.routing.picker).__name__ == "TwoChoices"
        assert type(policies.admission).__name__ == "QueueBound"


def test_what_is_not_named_is_the_catalogs_own_choice(tmp_path: Path) -> None:
    made = plan(tmp_path, {"a": llm()})
    assert made.policies["a"] == replace(PolicySet(), borrowing=Named(name="gated"))
    assert made.gate == GATE


def test_one_gate_holds_for_all_pools(tmp_path: Path) -> None:
    gate = {"name": "aimd", "period": "500ms", "start": 3}
    made = plan(tmp_path, {"a": llm(), "b": llm()}, policies={"gate": gate})
    assert made.gate == Named(name="aimd", params=(("period", 0.5), ("start", 3.0)))
    assert made.dispatcher().gate.policy == Aimd(period=0.5, start=3.0)


@pytest.mark.parametrize(
    ("policies", "place", "words"),
    [
        ({"priority": {"name": "luck"}}, "policies.priority", "no priority policy named 'luck' (there are fcfs, edf"),
        ({"priority": {"name": "edf", "haste": 3}}, "policies.priority", "no parameter 'haste'"),
        (
            {"priority": {"name": "edf", "patienc": "30s"}},
            "policies.priority",
            "policy 'edf' has no parameter 'patienc' (it has patience",
        ),
        ({"scorers": [{"name": "free_work", "weight": -1}]}, "policies.scorers[0]", "weight: must not be negative"),
        ({"priority": {"name": "edf", "patience": 30}}, "policies.priority", "patience"),
        ({"priority": {"name": "edf", "patience": "soon"}}, "policies.priority", "patience"),
        ({"priority": {"name": "least_slack", "optimism": "1s"}}, "policies.priority", "optimism: must be a number"),
        ({"scorers": [{"name": "free_work"}, {"name": "x"}]}, "policies.scorers[1]", "no scorers policy named 'x'"),
        ({"scorers": [{"name": "free_work", "weight": "much"}]}, "policies.scorers[0]", "weight"),
        ({"filters": [{"name": "kv_below", "use": True}]}, "policies.filters[0]", "use: must be a number"),
        ({"picker": {"name": "best", "weight": 2}}, "policies.picker", "no parameter 'weight'"),
        ({"layout": "adaptively"}, "policies.layout", "must be 'isolated', 'shared' or 'adaptive'"),
        ({"budget": {"name": "lavish"}}, "policies.budget", "no budget policy named 'lavish' (there are fixed"),
        ({"budget": {"name": "adaptive", "p95": 5}}, "policies.budget", "p95: 5 has no unit"),
        ({"gate": {"name": "aimd", "window": 5}}, "policies.gate", "policy 'aimd' has no parameter 'window'"),
        ({"gate": {"name": "ajar"}}, "policies.gate", "no gate policy named 'ajar' (there are open, aimd"),
        ({"borrowing": {"name": "gated", "kv": "90%"}}, "policies.borrowing", "kv: must be a number"),
        ({"borrowing": {"name": "gated", "gated": 1}}, "policies.borrowing", "no parameter 'gated'"),
        ({"borrowing": {"name": "never"}}, "policies.borrowing", "no borrowing policy named 'never'"),
    ],
)
def test_a_policy_that_does_not_exist_is_one_line_with_file_line_and_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], policies: dict[str, Any], place: str, words: str
) -> None:
    for inside in (False, True):
        if inside and {"layout", "gate", "borrowing"} & policies.keys():
            continue
        pool = llm(policies=policies) if inside else llm()
        document = {"insecure": True, "pools": {"a": pool}} | ({} if inside else {"policies": policies})
        path = tmp_path / "cortex.yaml"
        path.write_text(yaml.safe_dump(json.loads(json.dumps(document)), sort_keys=False))
        assert main(["check", str(path)]) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.count("\n") == 1
        where, _, rest = shown.err.partition(": ")
        assert where.startswith(f"{path}:")
        line = path.read_text().splitlines()[int(where.rpartition(":")[2]) - 1]
        assert rest.startswith(f"pools.a.{place}" if inside else place), shown.err
        assert words in rest
        assert line.strip()


# --- the whole ------------------------------------------------------------------------------------------------


def test_the_reference_configuration_is_fine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(ROOT / "config.yaml")]) == 0
    assert capsys.readouterr().out.endswith("config.yaml: ok (5 pools, 1 workflow)\n")


def test_check_looks_at_the_configuration_beside_it_as_serve_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["check"]) == 0
    assert capsys.readouterr().out.startswith("config.yaml: ok")


async def test_a_gateway_that_never_runs_leaves_nothing_open(tmp_path: Path) -> None:
    gateway = await compose(config(tmp_path, written({"a": llm()})))
    for close in gateway.closers:
        await close()
    await gateway.runtime.aclose()
    assert len(asyncio.all_tasks()) == 1


async def test_two_gateways_from_one_configuration_draw_different_chances(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    seeds = set()
    for _ in range(2):
        gateway = await compose(config(tmp_path, written({"a": llm()}, server={"port": 0, "journal": str(path)})))
        for close in gateway.closers:
            await close()
        await gateway.runtime.aclose()
        seeds.add(json.loads(path.read_text().splitlines()[0])["blueprint"]["seed"])
    assert len(seeds) == 2


def test_the_demo_needs_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo"]) == 2
    assert "checkout" in capsys.readouterr().err
