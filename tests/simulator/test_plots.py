from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from simulator.campaign import Finding, StageTimes
from tests.simulator.test_report import a_finding

plots = pytest.importorskip("simulator.plots", exc_type=ImportError)

NAMES = ("cortex", "edf", "plas")


def some(rates: Sequence[float], seeds: int, names: Sequence[str] = NAMES) -> list[Finding]:
    return [
        a_finding(name, rate, seed, attainment=1.0 - 0.1 * rate - 0.02 * seed)
        for rate in rates
        for seed in range(1, seeds + 1)
        for name in names
    ]


def chart(findings: Sequence[Finding]) -> Any:
    return plots.Chart("nl2sql", findings, plots.rows(findings))


def said(figure: Any) -> str:
    """All text in a figure."""
    return "\n".join(text.get_text() for text in figure.findobj(lambda one: hasattr(one, "get_text")))


def words(path: Path) -> str:
    """The text in an SVG, in the order in which it was drawn."""
    return "\n".join(re.findall(r">([^<>\n]+)</t", path.read_text()))


@pytest.mark.parametrize("rates", [[1.0], [1.0, 2.0, 3.0]])
def test_every_picture_is_written_in_both_formats_and_names_its_contenders(
    tmp_path: Path, rates: list[float]
) -> None:
    written = plots.draw(tmp_path, "nl2sql", some(rates, 3))
    assert {path.name for path in written} == {
        f"{name}.{kind}" for name in ("attainment", "latency", "kv_use", "waits") for kind in ("svg", "png")
    }
    for path in written:
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG")
        else:
            said = words(path)
            assert all(name in said for name in NAMES)
            assert "nl2sql" in said
    assert "runs that met their deadline" in words(tmp_path / "attainment.svg")
    assert "95 % confidence over the seeds" in words(tmp_path / "attainment.svg")
    assert f"at {rates[-1]:g} runs/s" in words(tmp_path / "waits.svg")


@pytest.mark.slow
def test_the_same_findings_give_the_same_files(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
        plots.draw(folder, "nl2sql", some([1.0, 2.0], 1))
    for path in folders[0].iterdir():
        assert path.read_bytes() == (folders[1] / path.name).read_bytes()


def test_two_seeds_make_no_interval() -> None:
    assert "confidence" in said(plots.attainment(chart(some([1.0, 2.0], 3))))
    assert "confidence" not in said(plots.attainment(chart(some([1.0, 2.0], 2))))
    assert "confidence" not in said(plots.attainment(chart(some([1.0], 2))))


def test_the_attainment_is_drawn_at_its_load() -> None:
    (axes,) = plots.attainment(chart(some([1.0, 2.0], 1, ["edf"]))).axes
    line = next(line for line in axes.lines if line.get_label() == "edf")
    assert list(line.get_xdata()) == [1.0, 2.0]
    assert list(line.get_ydata()) == [pytest.approx(0.88), pytest.approx(0.78)]
    low, high = axes.get_ylim()
    assert low < 0.78
    assert high > 1.0


def test_a_quantile_that_no_run_reached_has_no_point() -> None:
    found = [a_finding("edf", 1.0, p95=30.0), a_finding("edf", 2.0, p95=math.inf)]
    p50, p95 = plots.latency(chart(found)).axes
    assert [len(axes.lines[0].get_xdata()) for axes in (p50, p95)] == [2, 1]
    (alone,) = plots.latency(chart(found[1:])).axes
    assert sum(len(line.get_xdata()) for line in alone.lines if line.get_marker() == "o") == 2, "p50 and p99"


def test_pictures_without_anything_to_show_are_left_out(tmp_path: Path) -> None:
    written = plots.draw(tmp_path, "sql alone", [a_finding(kv_use={}, stages={})])
    assert {path.stem for path in written} == {"attainment", "latency"}


@pytest.mark.slow
def test_many_contenders_have_lines_of_their_own_and_the_curves_say_whose_they_are() -> None:
    names = [f"contender {number}" for number in range(30)]
    drawn = chart(some([1.0, 2.0], 1, names))
    assert len({drawn.look(name) for name in names}) == 30
    assert f"the first {plots.CURVES_MOST} contenders" in said(plots.kv_use(drawn))
    assert all(name in said(plots.attainment(drawn)) for name in names)


def test_a_long_simulation_has_its_time_in_minutes() -> None:
    for last, unit, drawn in ((200.0, "seconds", 200.0), (1200.0, "minutes", 20.0)):
        figure = plots.kv_use(chart([a_finding(kv_use={"a": [(0.0, 0.1), (last, 0.2)]})]))
        assert unit in said(figure)
        assert figure.axes[0].lines[0].get_xdata()[-1] == drawn


def test_a_cell_says_its_seconds_and_nothing_where_a_stage_was_not_reached() -> None:
    found = [a_finding("a", stages={"s": StageTimes(wait=0.004, service=123.4)}), a_finding("b", stages={})]
    queue, engine = plots.waits(chart(found)).axes
    assert [text.get_text() for text in queue.texts] == ["0", ""]
    assert [text.get_text() for text in engine.texts] == ["123", ""]
