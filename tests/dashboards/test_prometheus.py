"""A real Prometheus under the load of the demo: the query of every panel has an answer, and every alert can fire."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from PIL import Image

from dashboards.board import Query
from dashboards.boards import BOARDS
from dashboards.pictures import main
from dashboards.series import Span, series_of
from tests.dashboards.load import busy
from tests.dashboards.monitoring import needs_prometheus
from tests.dashboards.promql import asked
from tests.dashboards.test_alerts import alerts

pytestmark = [
    needs_prometheus,
    pytest.mark.untraced,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(180),
]
PATIENCE = 90.0
"""Seconds in which everything must have happened, on a machine with much else to do; on an idle one it takes 20."""
QUIET = {
    ("Journal steps lost", "{{instance}}"): "the journal loses nothing",
    ("vLLM: preemptions", "{{instance}}"): "no engine has so little memory that it takes any away",
    ("Parked calls", "{{pool}}"): "the gate holds nobody back for long enough to be seen for sure",
    ("Artifacts and readers", "readers"): "a reader is there for moments",
    ("vLLM: running and waiting", "{{instance}} waiting"): "and that is so here, too",
    ("Queued inside the engines", "{{engine}}"): "calls wait inside an engine for moments",
}
"""Queries that may answer 0 all the time, each with the reason."""

Unanswered = dict[tuple[str, str], Query]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    async with busy(tmp_path_factory.mktemp("load"), at_once=8) as http:
        yield http


async def unanswered(http: httpx.AsyncClient, queries: Unanswered, span: Span) -> Unanswered:
    """Those without a value, and those that are 0 all the time and should not be."""
    left = {}
    for place, query in queries.items():
        values = [value for series in await series_of(http, query, span) for _, value in series.points]
        if not (any(values) or (values and place in QUIET)):
            left[place] = query
    return left


async def test_the_query_of_every_panel_has_an_answer(http: httpx.AsyncClient) -> None:
    begun = time.time()
    left = {
        (panel.title, query.legend): query for board in BOARDS for panel in board.panels() for query in panel.queries
    }
    assert QUIET.keys() <= left.keys()
    while left and time.time() - begun < PATIENCE:
        await asyncio.sleep(1)  # Prometheus looks once a second
        left = await unanswered(http, left, Span(start=begun, end=time.time()))
    assert left == {}, "no answer to " + ", ".join(f"{title} ({legend})" for title, legend in left)


async def test_there_are_series_for_every_selector_of_every_alert(http: httpx.AsyncClient) -> None:
    silent = []
    for rule in alerts():
        for one in asked(rule["expr"]):
            reply = await http.get("/api/v1/series", params={"match[]": one.matchers})
            if not reply.raise_for_status().json()["data"]:
                silent.append(f"{rule['alert']}: {one.matchers}")
    assert silent == []


async def test_prometheus_evaluates_every_alert(http: httpx.AsyncClient) -> None:
    groups = (await http.get("/api/v1/rules")).raise_for_status().json()["data"]["groups"]
    told = {rule["name"]: (rule["health"], rule.get("lastError", "")) for group in groups for rule in group["rules"]}
    assert told == {rule["alert"]: ("ok", "") for rule in alerts()}


async def test_a_query_that_prometheus_does_not_take_is_an_error(http: httpx.AsyncClient) -> None:
    with pytest.raises(httpx.HTTPStatusError):
        await series_of(http, Query("sum(", ""), Span(start=time.time() - 5, end=time.time()))


async def test_a_picture_is_drawn_of_what_prometheus_answers(http: httpx.AsyncClient, tmp_path: Path) -> None:
    await main(["--prometheus", str(http.base_url), "--minutes", "0.3", "--board", "sql", "--out", str(tmp_path)])
    with Image.open(tmp_path / "sql.png") as drawn:
        assert (drawn.format, drawn.width) == ("PNG", 1036)
        assert len(drawn.getcolors() or []) > 20, "nothing is drawn in it"
