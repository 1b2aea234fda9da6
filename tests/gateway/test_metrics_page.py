"""The page of the metrics, the list in the code and what a gateway shows: the same names, types and labels."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.metrics import METRICS
from tests.gateway import shop
from tests.gateway.support import CHAT, chat

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
ROW = re.compile(r"^\| `(cortex_\w+)` \| (\w+) \| (.*?) ?\| (.+) \|$", re.MULTILINE)
NAME = re.compile(r"\bcortex_\w+")
promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is not installed"
)


def rows() -> dict[str, tuple[str, tuple[str, ...]]]:
    return {name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels, _ in ROW.findall(PAGE)}


def examples() -> list[str]:
    """The page's queries, each on one line."""
    blocks = re.findall(r"^```promql\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return [" ".join(one.split()) for block in blocks for one in re.split(r"\n(?=\S)", block.strip())]


def test_the_page_has_every_metric_with_its_type_and_its_labels_and_no_other() -> None:
    assert rows() == {metric.name: (metric.kind, metric.labels) for metric in METRICS}


def test_no_metric_is_on_the_page_twice() -> None:
    assert len(ROW.findall(PAGE)) == len(METRICS)


def test_names_follow_the_conventions() -> None:
    for metric in METRICS:
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert bool(metric.buckets) == (metric.kind == "histogram"), metric.name
        assert list(metric.buckets) == sorted(set(metric.buckets)), metric.name
        assert not {"tenant", "run"} & set(metric.labels), metric.name


@pytest.mark.parametrize("query", examples())
def test_an_example_asks_for_what_there_is(query: str) -> None:
    known = {metric.name for metric in METRICS} | {
        metric.name + part
        for metric in METRICS
        if metric.kind == "histogram"
        for part in ("_bucket", "_sum", "_count")
    }
    assert set(NAME.findall(query)) <= known
    labels = {label for metric in METRICS for label in metric.labels} | {"le", "instance"}
    asked = re.findall(r"(\w+)(?:=~?|!=)\"", query) + re.findall(r"\bby \(([^)]*)\)", query)
    assert {label for words in asked for label in words.replace(",", " ").split()} <= labels


@promtool
def test_the_examples_are_queries(tmp_path: Path) -> None:
    lines = ["groups:", "  - name: page", "    rules:"]
    for number, query in enumerate(examples()):
        lines += [f"      - record: page:example:{number}", f"        expr: {query!r}"]
    path = tmp_path / "page.yaml"
    path.write_text("\n".join(lines) + "\n")
    checked = subprocess.run(["promtool", "check", "rules", str(path)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


async def test_a_gateway_shows_what_the_list_says(tmp_path: Path) -> None:
    async with shop.shop(tmp_path) as site:
        await asyncio.gather(
            *(
                site.up.http.post(CHAT, json=chat(text) | {"model": "workflow/shop"})
                for text in (shop.RIGHT, shop.EMPTY)
            )
        )
        text = (await site.up.http.get("/metrics")).text
    shown = {
        family.name + "_total" * (family.type == "counter"): family
        for family in text_string_to_metric_families(text)
        if family.name.startswith("cortex_")
    }
    assert {name: family.type for name, family in shown.items()} == {metric.name: metric.kind for metric in METRICS}
    for metric in METRICS:
        for sample in shown[metric.name].samples:
            assert sorted(sample.labels.keys() - {"le"}) == sorted(metric.labels), metric.name
    assert "process_cpu_seconds_total" in text
    assert "python_gc_collections_total" in text


@promtool
async def test_promtool_finds_nothing_wrong_with_what_a_gateway_shows_under_load(tmp_path: Path) -> None:
    async with shop.shop(tmp_path) as site:
        place = {"type": 'a "quoted" \\ name', "stage": "größer"}
        questions = (shop.RIGHT, shop.REPAIRED, shop.JUDGED, shop.HOPELESS)
        await asyncio.gather(
            *(site.up.http.post(CHAT, json=chat(text) | {"model": "workflow/shop"}) for text in questions),
            site.up.http.post(CHAT, json=chat(max_tokens=2) | {"model": "generate", "workflow": place}),
            site.up.http.post("/v1/sql", json={"sql": "DROP TABLE orders"}),
        )
        page = (await site.up.http.get("/metrics")).content
    checked = await asyncio.to_thread(
        subprocess.run, ["promtool", "check", "metrics"], input=page, capture_output=True, check=False
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")
    assert 'stage="größer",workflow="a \\"quoted\\" \\\\ name"'.encode() in page
