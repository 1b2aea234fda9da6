from __future__ import annotations

import csv
import io
import math
from typing import Any

import pytest

from simulator.campaign import Finding, StageTimes
from simulator.report import comma_separated, markdown, rows, seconds, text


def a_finding(entrant: str = "cortex", rate: float = 1.0, seed: int = 1, **given: Any) -> Finding:
    usual: dict[str, Any] = {
        "attainment": 0.9,
        "goodput": 0.8,
        "p50": 20.0,
        "p95": 40.0,
        "p99": 60.0,
        "wait": 0.5,
        "prefill": 1000,
        "hits": 0.75,
        "refused": 0,
        "stages": {"generate": StageTimes(wait=1.0, service=10.0), "execute": StageTimes(wait=0.0, service=0.2)},
        "kv_use": {"generate": [(0.0, 0.1), (100.0, 0.4)], "light": [(0.0, 0.0), (100.0, 0.2)]},
    }
    return Finding(entrant=entrant, rate=rate, seed=seed, **usual | given)


def test_a_row_has_the_means_over_the_seeds_and_the_attainments_interval() -> None:
    found = rows(
        [
            a_finding(seed=seed, attainment=value, p95=10 * seed, stages={"s": StageTimes(wait=seed, service=1.0)})
            for seed, value in ((1, 0.8), (2, 0.9), (3, 1.0))
        ]
    )
    (row,) = found
    assert row.seeds == 3
    assert row.attainment == pytest.approx(0.9)
    assert row.p95 == pytest.approx(20.0)
    assert row.margin == pytest.approx(4.30 * 0.1 / math.sqrt(3))
    assert row.stages["s"].wait == pytest.approx(2.0)


def test_a_stage_that_only_one_seed_had_is_that_seeds() -> None:
    rare = {"fix": StageTimes(wait=3.0, service=4.0)}
    (row,) = rows([a_finding(seed=1, stages={}), a_finding(seed=2, stages=rare)])
    assert row.stages == rare


def test_a_single_seed_has_no_margin_and_a_single_run_without_end_no_quantile() -> None:
    found = rows([a_finding(p95=math.inf), a_finding("edf", wait=math.nan)])
    table = text(found).splitlines()
    assert "±" not in text(found)
    assert " – " in table[2]
    assert " none " in table[3]


def test_the_table_parts_the_loads_and_keeps_the_order() -> None:
    found = rows([a_finding(name, rate) for rate in (1.0, 2.5) for name in ("cortex", "edf")])
    lines = text(found).splitlines()
    assert [line.split()[:2] for line in lines[2:]] == [
        ["1", "cortex"],
        ["1", "edf"],
        [],
        ["2.5", "cortex"],
        ["2.5", "edf"],
    ]
    assert len({len(line) for line in lines if line}) == 1, "columns are aligned"


def test_the_markdown_has_waits_and_services_by_stage() -> None:
    page = markdown("a title", rows([a_finding(), a_finding("edf", stages={})]))
    assert page.startswith("# a title\n\n| runs/s | contender | in time |")
    assert "| 1 | cortex | 1.00 s | 0.00 s |\n| 1 | edf |  |  |" in page
    assert "| 1 | cortex | 10.0 s | 0.20 s |" in page
    for table in page.split("\n\n"):
        assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) <= 1


def test_the_comma_separated_table_has_plain_numbers() -> None:
    found = rows([a_finding(p99=math.inf), a_finding("edf", stages={})])
    first, second = csv.DictReader(io.StringIO(comma_separated(found)))
    assert (first["entrant"], float(first["attainment"]), float(first["wait_generate"])) == ("cortex", 0.9, 1.0)
    assert float(first["service_execute"]) == 0.2
    assert float(first["p99"]) == math.inf
    assert math.isnan(float(second["wait_generate"]))
    assert math.isnan(float(first["margin"]))


def test_seconds_have_three_figures() -> None:
    assert [seconds(value) for value in (0.1234, 12.34, 123.4)] == ["0.12 s", "12.3 s", "123 s"]
