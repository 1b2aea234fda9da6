"""The comparison of policies: what it plans, what it concludes, and that it says the same twice."""

from __future__ import annotations

import csv
import math
import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from bench.policies.__main__ import main
from bench.policies.field import MIXED, NL2SQL, full, quick, trials
from bench.policies.rows import Measured, Row, kind
from bench.policies.table import comma_separated, markdown, sections, text
from bench.policies.verdict import Bar, bars, best_published
from simulator.compare import Sustained
from simulator.lineup import CORTEX, LINEUP, ON_OURS, PUBLISHED

PLAN = replace(quick(None), trials=tuple(trial for trial in trials(None) if trial.name in (NL2SQL, MIXED)))
TINY = ["--seeds", "2", "--size", "0.05", "--jobs", "1"]


def a_row(
    contender: str, attainment: float, *, workload: str = NL2SQL, ours: float = 0.95, prefill: float = 1e6
) -> Row:
    return Row(
        workload=workload,
        load=0.9,
        contender=contender,
        kind=kind(contender),
        attainment=attainment,
        margin=0.01,
        ahead=attainment - ours,
        ahead_margin=0.005,
        goodput=0.8,
        p50=30.0,
        p95=math.inf,
        prefill=prefill,
        hits=0.7,
        refused=0.0,
    )


def a_place(
    workload: str = NL2SQL, attained: Mapping[str, float] | None = None, prefill: Mapping[str, float] | None = None
) -> list[Row]:
    """Everybody at 90 % and cortex at 95 %, with a million prefill tokens, except for those that are given."""
    share = {name: 0.95 if LINEUP[name] in CORTEX else 0.9 for name in LINEUP}
    share |= attained or {}
    spent = dict.fromkeys(LINEUP, 1e6) | dict(prefill or {})
    return [
        a_row(name, value, workload=workload, ours=share["cortex"], prefill=spent[name])
        for name, value in share.items()
    ]


def judged(rows: list[Row], sustained: Mapping[str, float] | None = None) -> dict[str, Bar]:
    """The bars by a word of what they ask."""
    found = dict.fromkeys((one.name for one in PUBLISHED), Sustained(0.5, 0.6))
    found |= {name: Sustained(rate, rate + 0.1) for name, rate in (sustained or {}).items()}
    made = bars(Measured(rows=rows, sustained={NL2SQL: found} if sustained else {}))
    words = {"sustains": "sustains", "points behind": "behind", "better of": "layouts", "ahead of both": "mixed"}
    return {word: bar for bar in made for part, word in words.items() if part in bar.asks}


@pytest.mark.parametrize(("ours", "passed"), [(0.99, True), (0.89, True), (0.87, False), (0.0, False)])
def test_the_default_has_to_sustain_a_tenth_more_than_the_best_baseline(ours: float, passed: bool) -> None:
    bar = judged(a_place(), {"cortex": ours, "edf": 0.8, "srpt-oracle": 2.0})["sustains"]
    assert bar.passed is passed
    assert f"{ours / 0.8:.2f} times: cortex {ours:g} runs/s, edf 0.8 runs/s" in bar.found[0]


def test_where_no_baseline_sustains_the_lowest_load_the_default_has_to() -> None:
    nobody = {one.name: 0.0 for one in PUBLISHED}
    assert judged(a_place(), nobody | {"cortex": 0.7})["sustains"].passed
    assert not judged(a_place(), nobody | {"cortex": 0.0})["sustains"].passed


def test_a_load_that_was_not_searched_for_is_not_judged() -> None:
    assert set(judged(a_place())) == {"behind", "layouts"}
    assert set(judged(a_place(MIXED))) == {"behind", "layouts", "mixed"}


def test_a_place_where_a_baseline_is_more_than_three_points_ahead_is_named() -> None:
    bar = judged([*a_place(NL2SQL, {"edf": 0.99}), *a_place("fan-out", {"plas": 0.97})])["behind"]
    assert not bar.passed
    assert bar.found == ("nl2sql at 0.9 runs/s: edf +4.0 ± 0.5 points to cortex",)


def test_neither_an_oracle_nor_a_baseline_on_our_routing_counts_as_the_best() -> None:
    rows = [
        replace(row, attainment=1.0) if row.kind not in ("published", "cortex") else row
        for row in a_place(NL2SQL, {"llf": 0.93})
    ]
    assert best_published(rows).contender == "llf"
    assert {row.kind for row in rows} == {"cortex", "published", "published, oracle", "on ours", "on ours, oracle"}
    bar = judged(rows)["behind"]
    assert bar.passed
    assert bar.found == ("nl2sql at 0.9 runs/s: llf -2.0 ± 0.5 points to cortex",)


@pytest.mark.parametrize(
    ("attained", "prefill", "passed"),
    [
        ({"cortex-isolated": 0.99}, {}, True),
        ({"cortex-shared": 1.0, "cortex": 0.94}, {}, False),
        ({"cortex": 0.8}, {}, False),
        ({}, {"cortex-isolated": 0.96e6}, True),
        ({}, {"cortex-shared": 0.94e6}, False),
        ({}, {"cortex": 0.5e6}, True),
    ],
)
def test_the_adaptive_layout_has_to_keep_within_a_twentieth_of_the_better_one(
    attained: dict[str, float], prefill: dict[str, float], passed: bool
) -> None:
    bar = judged(a_place(NL2SQL, attained, prefill))["layouts"]
    assert bar.passed is passed
    assert len(bar.found) == 1


def test_the_layouts_worst_place_comes_first() -> None:
    bar = judged([*a_place(NL2SQL, {"cortex": 0.89}), *a_place("fan-out", {"cortex": 0.7}), *a_place("coding")])[
        "layouts"
    ]
    assert [line.partition(" ")[0] for line in bar.found] == ["fan-out", "nl2sql"]
    assert "0.737 times the attainment, 1.000 times the prefill tokens" in bar.found[0]


@pytest.mark.parametrize(
    ("isolated", "shared", "prefill", "passed"),
    [(0.9, 0.94, 0.9e6, True), (0.9, 0.95, 0.9e6, False), (0.96, 0.9, 0.9e6, False), (0.9, 0.94, 1e6, False)],
)
def test_where_tenants_mix_the_adaptive_layout_has_to_be_ahead_of_both(
    isolated: float, shared: float, prefill: float, passed: bool
) -> None:
    rows = a_place(MIXED, {"cortex-isolated": isolated, "cortex-shared": shared}, {"cortex": prefill})
    assert judged(rows)["mixed"].passed is passed


def test_nothing_in_time_anywhere_is_judged_all_the_same() -> None:
    nobody = [replace(row, attainment=0.0, ahead=0.0, prefill=0.0) for row in a_place()]
    found = judged(nobody)
    assert found["behind"].passed
    assert found["layouts"].passed


def measured() -> Measured:
    found = {one.name: Sustained(0.5, 0.6) for one in (*CORTEX, *PUBLISHED)}
    found |= {"cortex": Sustained(1.43, math.inf), "edf": Sustained(0.0, 0.7)}
    return Measured(rows=[*a_place(NL2SQL, {"llf": 0.93}), *a_place(MIXED)], sustained={NL2SQL: found})


def at_the_loads_of_the_plan(rows: Measured) -> Measured:
    loads = {trial.name: PLAN.loads(trial)[0] for trial in PLAN.trials}
    return replace(rows, rows=[replace(row, load=loads[row.workload]) for row in rows.rows])


def test_the_table_marks_what_each_row_is_and_how_far_it_is_from_the_default() -> None:
    said = text(sections(PLAN, at_the_loads_of_the_plan(measured()), ["a machine"]))
    assert max(map(len, said.splitlines())) <= 160
    lines = {line.split("  ")[0]: line for line in said.splitlines() if " ± " in line}
    assert lines.keys() >= LINEUP.keys()
    assert "90.0 % ± 1.0" in lines["hexgen on ours"]
    assert "-5.0 ± 0.5" in lines["hexgen on ours"]
    assert lines["hexgen on ours"].endswith("on ours")
    assert lines["srpt-oracle"].endswith("published, oracle")
    assert any(line.startswith("llf ") and line.endswith("published, the best") for line in said.splitlines())
    assert "a machine" in said


def test_a_highest_load_says_where_it_was_lost() -> None:
    said = text(sections(PLAN, at_the_loads_of_the_plan(measured()), []))
    rows = said.partition("Highest load at 95% in time")[2].splitlines()
    found = {
        line.split("  ")[0]: line.split()[1:-1] for line in rows if line.startswith(("cortex ", "edf ", "atlas "))
    }
    assert found == {"cortex": ["above", "1.43"], "edf": ["below", "0.7"], "atlas": ["0.5", "(0.6)"]}


def test_markdown_and_csv_hold_what_the_terminal_shows() -> None:
    found = at_the_loads_of_the_plan(measured())
    made = sections(PLAN, found, [])
    written = markdown(made)
    assert [line[4:] for line in written.splitlines() if line.startswith("### ")] == [one.title for one in made]
    assert all(f"| {' | '.join(cells)} |" in written.splitlines() for one in made for cells in one.grid)
    assert all(f"- {line.strip()}" in written for one in made for line in one.says)
    rows = list(csv.DictReader(comma_separated(found).splitlines()))
    assert len(rows) == 2 * len(LINEUP)
    assert float(rows[0]["attainment"]) == 0.95
    assert float(rows[0]["p95"]) == math.inf
    assert (rows[0]["contender"], rows[0]["sustained"], rows[0]["not_sustained"]) == ("cortex", "1.43", "inf")
    assert {row["sustained"] for row in rows if row["workload"] == MIXED} == {""}


def test_ten_seeds_and_three_loads_are_met_by_all_and_the_middle_one_by_baselines_on_our_routing_too() -> None:
    plan = full(None)
    assert len(plan.seeds) == 10
    assert max(plan.seeds) < 101, "parameters are tuned on seeds from 101 on"
    cells = list(plan.cells())
    assert len(cells) == len(set(cells)) == 5 * 10 * (3 * len((*CORTEX, *PUBLISHED)) + len(ON_OURS))
    for trial in plan.trials:
        assert len(trial.loads) == 3
        assert list(trial.rungs) == sorted(set(trial.rungs))
        assert {cell.contender for cell in cells if cell.rate == trial.middle} >= LINEUP.keys()
    assert len(list(quick(None).cells())) == 5 * 3 * len(LINEUP)


@pytest.mark.untraced
@pytest.mark.parametrize("name", [trial.name for trial in trials(None)])
def test_a_workload_goes_to_another_process_and_is_drawn_there_alike(name: str) -> None:
    trial = next(one for one in trials(None) if one.name == name).sized(0.1)
    there = pickle.loads(pickle.dumps(trial))
    drawn = trial(trial.middle, 1)
    assert there(trial.middle, 1).workload == drawn.workload
    assert len(drawn.workload.runs) == trial.runs


def test_recorded_sessions_are_taken_where_there_are_some() -> None:
    folder = Path(__file__).parents[3] / "shared" / "data" / "coding_sessions"
    if not folder.is_dir():
        pytest.skip(f"no recorded coding sessions in {folder}")
    told = {trial.name: trial.told for trial in trials(folder)}
    assert "recorded," in told["coding"]
    assert "drawn with the statistics" in {trial.name: trial.told for trial in trials(None)}["coding"]


@pytest.mark.slow
def test_the_same_seeds_give_the_same_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("one", "two"):
        assert main(["--quick", "--only", "fan-out", *TINY, "--out", str(tmp_path / folder)]) == 0
    said = capsys.readouterr()
    assert "python -m bench.policies --quick --only fan-out --seeds 2 --size 0.05" in said.out
    assert "table: 62 of 62" in said.err
    one, two = ((tmp_path / folder / "policies.csv").read_text() for folder in ("one", "two"))
    assert one == two
    assert len(one.splitlines()) == 1 + len(LINEUP)
    assert (tmp_path / "one" / "policies.md").read_text().count("\n| hexgen on ours |") == 1


@pytest.mark.slow
def test_a_missed_bar_is_an_error_only_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    strict = main(["--quick", "--only", "nl2sql", *TINY, "--seeds", "1", "--first-seed", "101", "--strict"])
    said = capsys.readouterr().out
    assert strict == int("FAILED: " in said)
    assert "Highest load at 95% in time" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "poetry"], "no workload is called poetry; there are nl2sql, "),
        (["--sessions", "/nowhere"], "there are no recordings"),
        (["--seeds", "0"], "--seeds must be"),
        (["--size", "0"], "--size must be"),
        (["--jobs", "0"], "--jobs must be"),
    ],
)
def test_a_wrong_option_is_named(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(words)
    assert message in capsys.readouterr().err
