"""Stage isolation against its rivals: what is asked, how each contender is configured, and what is made of it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from backends.capabilities import KvSource
from backends.emulated.model import StepTime
from bench.fidelity import Engines, Lengths, Prediction, predicted, setup, simulated
from bench.fidelity import bars as bars_of_predictions
from bench.fidelity import main as fidelity
from bench.isolation.__main__ import main
from bench.isolation.cells import (
    ADAPTIVE,
    BORROWING,
    CALLS,
    CELLS,
    CLIENTS,
    CONTENDERS,
    FIX,
    FULL,
    GENERATE,
    ISOLATED,
    ROUND_ROBIN,
    UNBALANCED,
    Cell,
    full,
    quick,
)
from bench.isolation.drive import configuration, pools
from bench.isolation.engines import NoEngines, Servers
from bench.isolation.flows import DATA, PARTICULAR, PREAMBLE, SCHEMA, Ask, flows, shared, texts
from bench.isolation.plots import draw
from bench.isolation.rows import Row, read, write
from bench.isolation.table import sections
from bench.isolation.verdict import bars
from bench.policies.table import markdown
from gateway.blueprints import blueprint, complaint
from gateway.config import load
from simulator.lineup import Contender, scenario

FAST = StepTime(fixed=0.002, prefill_token=0.00001, decode_sequence=0.0001, context_token=0.0)
SLOW = Engines(StepTime(fixed=0.012, prefill_token=0.0004, decode_sequence=0.001, context_token=2e-7), overhead=0.01)
NOWHERE = Path("/nowhere")
URLS = ["http://127.0.0.1:1", "http://127.0.0.1:2"]


async def four_bytes(text: str) -> int:
    return -(-len(text.encode()) // 4)


def a_row(contender: str, *, cell: Cell = FULL, repetition: int = 0, **changed: object) -> Row:
    made = Row(
        schemas=cell.schemas,
        repairs=cell.repairs,
        blocks=cell.blocks,
        contender=contender,
        repetition=repetition,
        wall=20.0,
        runs=[2.0 + repetition / 10, 4.0 + repetition / 10],
        calls=[1.0, 1.2, 2.0, 2.2],
        firsts=[0.5, 0.5, 1.0, 1.0],
        prompts=[[2090, 2100], [2080, 2070]],
        shared=[[[800, 2000], [800, 2000]], [[800, 2000], [800, 2000]]],
        cached_tokens=6000,
        calls_of=[2, 2],
        prefill_of=[1000, 1000],
        decode_of=[48, 48],
        kv_mean=100.0,
        kv_peak=200.0,
        cached=700,
        preemptions=0,
    )
    return replace(made, **changed)  # type: ignore[arg-type]  # fields of a row


def alike(prompts: list[list[int]]) -> Lengths:
    """Prompts that share 800 tokens with their stage, and 2000 with those about the same database."""
    return Lengths(prompts, [[[800, 2000] for _ in run] for run in prompts])


def everybody(cell: Cell = FULL, repetitions: int = 3) -> list[Row]:
    return [a_row(one.name, cell=cell, repetition=number) for number in range(repetitions) for one in CONTENDERS]


def changing(rows: list[Row], contender: str, **changed: object) -> list[Row]:
    return [replace(row, **changed) if row.contender == contender else row for row in rows]  # type: ignore[arg-type]


def word(rows: list[Row], part: str) -> str:
    return next(bar.word for bar in bars(rows) if part in bar.asks)


# --- what is asked ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [NOWHERE, DATA], ids=["generated", "recorded"])
async def test_prompts_begin_with_the_stage_and_the_schema_and_end_with_what_nobody_shares(data: Path) -> None:
    if data is DATA and not DATA.is_dir():
        pytest.skip(f"no recorded schemas in {DATA}")
    told = await texts(8, four_bytes, data)
    for text in told.preambles.values():
        assert PREAMBLE - 2 <= await four_bytes(text) <= PREAMBLE
    for text in told.schemas:
        assert SCHEMA - 2 <= await four_bytes(text) <= SCHEMA
    assert len(set(told.schemas)) == 8
    asks = [ask for flow in flows(UNBALANCED, 0, told) for ask in flow.calls]
    assert {ask.system for ask in asks} == {
        told.preambles[stage] + "\n" + schema for stage in (GENERATE, FIX) for schema in told.schemas
    }
    assert len({ask.user[:20] for ask in asks}) == len(asks)
    lengths = [await four_bytes(ask.user) for ask in asks]
    assert 0.8 * PARTICULAR < sum(lengths) / len(lengths) < 1.4 * PARTICULAR


@pytest.mark.parametrize("schemas", [1, 3])
async def test_what_prompts_begin_with_alike_is_counted_in_their_tokens(schemas: int) -> None:
    cell = Cell(schemas=schemas, repairs=1, blocks=240)
    made = flows(cell, 0, await texts(schemas, four_bytes, NOWHERE))

    async def characters(ask: Ask) -> list[int]:
        return list(f"<{ask.system}><{ask.user}".encode())

    found = await shared(made, characters)
    systems = [[ask.system for ask in flow.calls] for flow in made]
    for flow, alike in zip(systems, found, strict=True):
        for system, (preamble, whole) in zip(flow, alike, strict=True):
            assert preamble == PREAMBLE if schemas == 1 else abs(preamble - 4 * PREAMBLE) < 60
            assert 0 <= whole - len(f"<{system}><[0-") <= 5


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
async def test_each_cell_has_enough_calls_and_asks_about_each_database_as_often(cell: Cell) -> None:
    told = await texts(cell.schemas, four_bytes, NOWHERE)
    made = flows(cell, 0, told)
    assert made == flows(cell, 0, told)
    assert made != flows(cell, 1, told)
    assert CALLS <= sum(len(flow.calls) for flow in made) < CALLS + 1 + cell.repairs
    assert [ask.stage for ask in made[0].calls] == [GENERATE, *[FIX] * cell.repairs]
    often = Counter(flow.schema for flow in made)
    assert len(often) == cell.schemas
    assert max(often.values()) - min(often.values()) <= 1


def test_every_contender_meets_every_cell_and_repetitions_interleave() -> None:
    for plan in (full(), quick()):
        trials = [trial for blocks in plan.memories for trial in plan.trials(blocks)]
        assert len(set(trials)) == len(trials) == len(plan.cells) * len(CONTENDERS) * plan.repetitions
        for blocks in plan.memories:
            numbers = [trial.repetition for trial in plan.trials(blocks)]
            assert numbers == sorted(numbers), "all contenders have had a repetition before the next one begins"
    firsts = [next(trial for trial in full().trials(400) if trial.repetition == number) for number in range(3)]
    assert len({trial.contender.name for trial in firsts}) == 3


# --- contenders ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", [FULL, UNBALANCED], ids=lambda cell: cell.name)
@pytest.mark.parametrize("contender", CONTENDERS, ids=lambda contender: contender.name)
def test_the_gateway_is_told_the_very_policies_that_the_simulator_runs(
    contender: Contender, cell: Cell, tmp_path: Path
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        json.dumps({"insecure": True, "pools": pools(URLS, cell, "model"), **configuration(contender, cell)})
    )
    live = blueprint(load(path, {}, complaint))
    simulated_ = scenario(setup(cell, [], SLOW.step_time), contender).blueprint
    assert live.policies == simulated_.policies
    assert live.gate == simulated_.gate
    assert live.workflows == simulated_.workflows
    for name, pool in live.pools.items():
        other = simulated_.pools[name]
        assert pool.limits == other.limits
        assert set(pool.lenders or (name,)) == set(other.lenders or (name,))
    lending = any(len(pool.lenders) > 1 for pool in live.pools.values())
    assert lending == (contender.layout != "isolated")


def test_an_environment_without_vllm_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NoEngines, match="has no vLLM: run `make vllm`"):
        Servers(environment=tmp_path, gpu=False).prepare(tmp_path)
    assert main(["--quick", "--vllm", str(tmp_path)]) == 1
    assert "has no vLLM" in capsys.readouterr().err


def test_servers_on_a_gpu_share_it_and_make_their_weights_up() -> None:
    source = KvSource(endpoint="ipc:///tmp/kv", replay="ipc:///tmp/kv-again", topic="kv")
    for gpu in (False, True):
        options = Servers(environment=Path("/venv"), gpu=gpu).options(Path("/model"), 240, source)
        words = list(options.command)
        assert words[:3] == ["/venv/bin/vllm", "serve", "/model"]
        assert words[words.index("--num-gpu-blocks-override") + 1] == "240"
        assert json.loads(words[words.index("--kv-events-config") + 1])["endpoint"] == source.endpoint
        assert ("--load-format" in words) == gpu
        assert ("OMP_NUM_THREADS" in options.env) == (not gpu)
        assert options.gpus == (0.5 if gpu else 0.0)
        assert options.env["VLLM_SERVER_DEV_MODE"] == "1", "caches are emptied before each trial"


# --- the whole, on emulated engines ----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_measurement_writes_rows_table_and_plots_and_the_simulator_foretells_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = tmp_path / "engine.json"
    step_time = {name: getattr(FAST, name) for name in StepTime.__dataclass_fields__}
    profile.write_text(json.dumps({"version": 1, "step_time": step_time, "request_overhead": 0.004}))
    words = ["--emulated", str(profile), "--only", "1,1,104", "--contenders", ISOLATED, ADAPTIVE]
    assert main([*words, "--repetitions", "1", "--out", str(tmp_path), "--journals", str(tmp_path / "j")]) == 0
    said = capsys.readouterr()
    assert "1 schema, 1 repair, 104 blocks, 1: isolated: " in said.err
    _, rows = read(tmp_path / "rows.json")
    assert [row.contender for row in rows] == [ISOLATED, ADAPTIVE]
    isolated = rows[0]
    assert sum(isolated.calls_of) == CALLS
    assert isolated.calls_of == [CALLS // 2] * 2
    assert isolated.decode_of == [24 * CALLS // 2] * 2
    assert 0.85 < isolated.hits < 0.95
    assert 62 <= isolated.kv_peak <= 2 * 104
    assert len(list((tmp_path / "j").glob("*.jsonl"))) == 2
    assert "| isolated |" in (tmp_path / "table.md").read_text()
    assert {path.name for path in tmp_path.glob("*.svg")} == {"prefill.svg", "kv.svg", "times.svg"}
    fidelity([str(tmp_path)])
    assert "the simulator predicts prefill tokens within 5%" in capsys.readouterr().out
    foretold = predicted(isolated, Engines(FAST, 0.004))
    assert foretold.prefill == pytest.approx(isolated.prefill, rel=0.1)


@pytest.mark.slow
def test_what_was_measured_can_be_shown_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = everybody() + everybody(UNBALANCED)
    write(tmp_path / "rows.json", "a machine", rows)
    assert read(tmp_path / "rows.json") == ("a machine", rows)
    assert main(["--again", str(tmp_path / "rows.json"), "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert said.count("\nshared, round-robin ") == 2
    assert "MISSED: isolated computes at most 0.55 times" in said
    assert main(["--again", str(tmp_path / "rows.json"), "--strict"]) == 1


@pytest.mark.parametrize("text", ["{}", '{"about": "", "rows": [{"wall": 1}]}', "nothing"])
def test_a_file_of_another_kind_is_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.json").write_text(text)
    assert main(["--again", str(tmp_path / "rows.json")]) == 1
    assert fidelity([str(tmp_path)]) == 1
    assert capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "9,9,9"], "no cell is called 9,9,9; there are 1,1,400, "),
        (["--calibrate"], "--calibrate needs --out"),
        (["--contenders", "nobody"], "invalid choice"),
    ],
)
def test_a_wrong_option_is_named(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(words)
    assert message in capsys.readouterr().err


# --- what is made of it ----------------------------------------------------------------------------------------


def test_a_row_says_hits_work_and_times() -> None:
    row = a_row(ISOLATED, prefill_of=[1500, 500], decode_of=[100, 100])
    assert row.prefill == 2000
    assert row.hits == pytest.approx(6000 / 8340)
    assert row.busier == pytest.approx(1600 / 2200)
    assert row.rate == 0.2
    assert (row.run(0.5), row.run(0.95), row.call(0.5)) == (2.0, 4.0, 1.2)


@pytest.mark.parametrize(("share", "said"), [(0.55, "holds"), (0.56, "MISSED")])
def test_isolation_has_to_compute_little_more_than_half_of_what_round_robin_does(share: float, said: str) -> None:
    rows = changing(everybody(), ROUND_ROBIN, prefill_of=[5000, 5000])
    assert word(changing(rows, ISOLATED, prefill_of=[round(10_000 * share), 0]), "0.55 times") == said


@pytest.mark.parametrize(("mean", "said"), [(80.0, "holds"), (81.0, "MISSED")])
def test_isolation_has_to_hold_less_memory(mean: float, said: str) -> None:
    assert word(changing(everybody(), ISOLATED, kv_mean=mean), "KV blocks in use") == said


@pytest.mark.parametrize(("prefill", "said"), [(2100, "holds"), (2101, "MISSED")])
def test_adaptive_has_to_compute_about_as_little_as_the_best_in_every_cell(prefill: int, said: str) -> None:
    rows = everybody() + changing(everybody(UNBALANCED), ADAPTIVE, prefill_of=[prefill, 0])
    assert word(rows, "1.05 times") == said


@pytest.mark.parametrize(("cached", "said"), [(5400, "holds"), (5300, "MISSED")])
def test_borrowing_has_to_keep_the_hit_rate(cached: int, said: str) -> None:
    assert word(changing(everybody(), BORROWING, cached_tokens=cached), "keeps at least 90%") == said


@pytest.mark.parametrize(("prefill", "said"), [([1200, 800], "holds"), ([1300, 800], "MISSED")])
def test_borrowing_has_to_even_out_what_isolation_leaves_uneven(prefill: list[int], said: str) -> None:
    rows = changing(everybody(UNBALANCED), BORROWING, prefill_of=prefill, decode_of=[0, 0])
    assert word(rows, "busier engine") == said


@pytest.mark.parametrize(("behind", "said"), [(0.25, "holds"), (0.5, "MISSED")])
def test_adaptive_may_be_slower_by_no_more_than_the_best_one_varies(behind: float, said: str) -> None:
    rows = changing(everybody(), ADAPTIVE, runs=[1.25 + behind])
    for number, seconds in enumerate((1.0, 1.25, 1.25)):
        rows = [
            replace(row, runs=[seconds]) if (row.contender, row.repetition) == (ISOLATED, number) else row
            for row in rows
        ]
    assert word(rows, "median time of a run") == said


def test_times_measured_once_are_not_judged_and_absent_cells_and_contenders_are_left_out() -> None:
    once = everybody(repetitions=1)
    assert word(once, "median time of a run") == "not judged"
    assert not any(UNBALANCED.name in bar.asks for bar in bars(once))
    alone = [row for row in once if row.contender == ISOLATED]
    assert bars(alone) == []
    assert "| isolated |" in markdown(sections(alone, "a machine"))


def test_the_table_shows_medians_with_least_and_most_where_they_differ() -> None:
    rows = everybody()
    rows[0] = replace(rows[0], kv_mean=120.0)
    line = next(
        line for line in markdown(sections(rows, "")).splitlines() if line.startswith("| shared, round-robin")
    )
    assert "| 100 (100–120) |" in line
    assert "| 2,000 |" in line
    assert "| 700 |" in line
    blind = [replace(row, cached=None) for row in rows]
    assert "| cached |" not in markdown(sections(blind, ""))


@pytest.mark.slow
def test_pictures_are_drawn_of_one_cell_and_of_many(tmp_path: Path) -> None:
    for number, rows in enumerate(
        [everybody(repetitions=1), [row for cell in CELLS[:4] for row in everybody(cell, 2)]]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        written = draw(folder, rows)
        assert len(written) == 6
        assert all(path.stat().st_size > 5000 for path in written)


# --- what the simulator foretells ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.untraced
@pytest.mark.parametrize("name", [ROUND_ROBIN, ADAPTIVE])
def test_a_simulated_loop_is_closed(name: str) -> None:
    """A run begins when another has ended, and never are there more than clients."""
    contender = next(one for one in CONTENDERS if one.name == name)
    cell = Cell(schemas=3, repairs=1, blocks=240)
    result = simulated(cell, 0, alike([[2090, 2085] for _ in range(cell.runs)]), contender, SLOW)
    begun = sorted(run.at for run in result.runs)
    ends = sorted(run.at + run.latency for run in result.runs)
    assert begun[:CLIENTS] == [0.0] * CLIENTS
    assert begun[CLIENTS:] == ends[: len(begun) - CLIENTS]
    changes = sorted([(at, 1) for at in begun] + [(end, -1) for end in ends])
    assert max(sum(step for _, step in changes[: place + 1]) for place in range(len(changes))) <= CLIENTS
    assert all(one <= other for one, other in pairwise(begun))


@pytest.mark.slow
def test_the_simulator_shows_what_isolation_saves() -> None:
    prompts = [[2090, 2085] for _ in range(FULL.runs)]
    by_name = {one.name: one for one in CONTENDERS}
    isolated, spread = (
        simulated(FULL, 0, alike(prompts), by_name[name], SLOW).total.prefill_tokens
        for name in (ISOLATED, ROUND_ROBIN)
    )
    assert isolated <= 0.55 * spread


def prediction(row: Row) -> Prediction:
    return Prediction(row, row.prefill, row.run(0.5))


def test_a_prediction_that_is_far_off_is_named() -> None:
    row = a_row(ISOLATED)
    near = replace(prediction(row), prefill=2050, run=2.2)
    assert [bar.word for bar in bars_of_predictions([near])] == ["holds", "holds"]
    far = bars_of_predictions([near, replace(prediction(a_row(ADAPTIVE)), prefill=1880, run=2.4)])
    assert [bar.word for bar in far] == ["MISSED", "MISSED"]
    assert far[0].found == (f"at worst -6.0%: {FULL.name}, adaptive",)
