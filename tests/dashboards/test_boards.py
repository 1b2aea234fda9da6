"""The boards: that the files are what the code writes, and that every query asks for what is there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models

import dashboards
from dashboards.__main__ import main
from dashboards.board import Board, Query
from dashboards.boards import BOARDS
from dashboards.grafana import written
from tests.dashboards.promql import TARGET, asked, filled
from tests.dashboards.vocabulary import Vocabulary, known, mistakes

FOLDER = Path(dashboards.__file__).parent
each_board = pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return known()


def read(board: Board) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((FOLDER / f"{board.name}.json").read_text())
    return document


def panels(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    return (panel for panel in document["panels"] if panel["type"] != "row")


def wrong(document: dict[str, Any], vocabulary: Vocabulary) -> list[str]:
    """What is wrong with the queries of a board, each with the title of its panel."""
    return [
        f"{panel['title']}: {mistake}"
        for panel in panels(document)
        for target in panel["targets"]
        for mistake in mistakes(filled(target["expr"]), vocabulary)
    ]


def test_the_files_are_what_the_code_writes(tmp_path: Path) -> None:
    main(["--out", str(tmp_path)])
    for path in sorted(tmp_path.iterdir()):
        assert path.read_bytes() == (FOLDER / path.name).read_bytes(), f"{path.name} is old: run `make dashboards`"
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in FOLDER.glob("*.json")}


@each_board
def test_every_query_names_metrics_and_labels_that_exist(board: Board, vocabulary: Vocabulary) -> None:
    assert wrong(read(board), vocabulary) == []


@each_board
def test_a_panel_whose_metric_is_gone_is_named(board: Board, vocabulary: Vocabulary) -> None:
    document = read(board)
    panel = next(panels(document))
    gone = asked(filled(panel["targets"][0]["expr"]))[0].metric
    less = {name: labels for name, labels in vocabulary.items() if name != gone}
    assert f"{panel['title']}: there is no metric {gone}" in wrong(document, less)


def test_a_label_that_is_gone_is_named_with_its_panel(vocabulary: Vocabulary) -> None:
    less = dict(vocabulary) | {"cortex_loans_total": frozenset({"pool"})}
    pools = next(board for board in BOARDS if board.name == "pools")
    assert wrong(read(pools), less) == ["Borrowed capacity: cortex_loans_total has no label borrower"]


@each_board
def test_a_query_that_does_not_parse_is_told_with_its_panel(board: Board) -> None:
    row = board.rows[0]
    panel = replace(row.panels[0], queries=(Query("sum by (pool (cortex_engines)"),))
    broken = replace(board, rows=(replace(row, panels=(panel,)),))
    assert wrong(json.loads(written(broken)), {}) == [f"{panel.title}: unclosed left parenthesis"]


@each_board
def test_a_legend_uses_labels_of_its_query(board: Board) -> None:
    for panel in board.panels():
        for query in panel.queries:
            labels = TARGET.union(*(one.labels for one in asked(filled(query.expr))))
            assert set(re.findall(r"{{(\w+)}}", query.legend)) <= labels | {"instance"}, panel.title


@each_board
def test_every_panel_says_what_it_shows_and_in_which_unit(board: Board) -> None:
    titles = [panel["title"] for panel in panels(read(board))]
    assert len(set(titles)) == len(titles)
    for panel in panels(read(board)):
        assert len(panel["description"]) > 15, panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


@each_board
def test_the_rows_are_full_and_no_panel_lies_on_another(board: Board) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in read(board)["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert max(x for x, _ in cells) < 24, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len(taken) == 24 * (1 + max(y for _, y in taken)), "a row has a hole"


@each_board
def test_variables_are_used_and_everything_used_is_a_variable(board: Board, vocabulary: Vocabulary) -> None:
    document = read(board)
    declared = {one["name"]: one for one in document["templating"]["list"]}
    used = {
        name
        for panel in panels(document)
        for target in panel["targets"]
        for name in re.findall(r"\$(\w+)", target["expr"])
    }
    assert used - {"__rate_interval", "__range"} == declared.keys() - {"datasource"}
    for name in declared.keys() - {"datasource"}:
        assert declared[name]["multi"]
        assert declared[name]["includeAll"]
        source = re.fullmatch(r"label_values\((\w+), (\w+)\)", declared[name]["query"])
        assert source is not None
        assert source[2] in vocabulary[source[1]] | TARGET


@each_board
def test_the_files_survive_a_reading_by_the_sdk(board: Board) -> None:
    document = read(board)
    again = json.loads(json.dumps(models.Dashboard.from_json(document), cls=JSONEncoder))
    assert again == document
