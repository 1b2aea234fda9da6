"""Pictures of boards, from series that are given."""

from __future__ import annotations

import pytest

from dashboards.board import Query, Unit
from dashboards.boards import BOARDS
from dashboards.pictures import Drawn, picture, said
from dashboards.series import Series, Span, called

SPAN = Span(start=1000.0, end=1060.0)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.934, "percentunit", "93.4 %"),
        (0.0, "s", "0 s"),
        (-2.5, "s", "-2.5 s"),
        (0.0125, "s", "12.5 ms"),
        (0.00025, "s", "250 µs"),
        (1234.0, "reqps", "1.23 k/s"),
        (12.0, "ops", "12/s"),
        (240e6, "bytes", "240 MB"),
        (3.0, "short", "3"),
    ],
)
def test_a_value_is_said_with_its_unit(value: float, unit: Unit, text: str) -> None:
    assert said(value, unit) == text


def test_a_series_is_called_by_its_labels() -> None:
    series = Series({"pool": "sql-fixer"}, ((1000.0, 1.0),))
    assert called(Query("x", "{{pool}} to {{borrower}}"), series) == "sql-fixer to "


def test_a_span_stands_for_the_variables_of_grafana() -> None:
    expr = 'sum(rate(x{pool=~"$pool"}[$__rate_interval])) / sum(rate(y[$__range]))'
    assert SPAN.fill(expr) == 'sum(rate(x{pool=~".*"}[15s])) / sum(rate(y[60s]))'


def test_every_panel_has_its_title_and_says_where_it_has_no_data() -> None:
    board = BOARDS[0]
    texts = [text.get_text() for text in picture(board, {panel.title: [] for panel in board.panels()}, SPAN).texts]
    assert texts.count("No data") == len(list(board.panels()))
    assert {board.title, *(row.title for row in board.rows), *(panel.title for panel in board.panels())} <= {*texts}


def test_a_figure_takes_the_colour_of_the_limit_that_it_has_reached() -> None:
    board = BOARDS[0]
    shares = {0.99: "#73bf69", 0.92: "#ff9830", 0.5: "#f2495c"}
    for share, color in shares.items():
        found: dict[str, Drawn] = {panel.title: [] for panel in board.panels()}
        found["SLO attainment"] = [("", Series({}, ((1060.0, share),)))]
        (text,) = (
            text for text in picture(board, found, SPAN).texts if text.get_text() == said(share, "percentunit")
        )
        assert text.get_color() == color
