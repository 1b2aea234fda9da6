"""The alerts: that each can fire at all, does, and clears."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import dashboards
from tests.dashboards.vocabulary import known, mistakes

FOLDER = Path(dashboards.__file__).parent
RULES, TESTS = FOLDER / "alerts.yaml", FOLDER / "alerts.test.yaml"
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed: apt-get install prometheus"
)


def alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False, cwd=FOLDER)


@needs_promtool
def test_prometheus_takes_the_rules() -> None:
    done = promtool("check", "rules", RULES)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_every_alert_fires_and_clears_as_its_test_says() -> None:
    done = promtool("test", "rules", TESTS)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_the_tests_notice_an_alert_that_does_not_fire(tmp_path: Path) -> None:
    rules = yaml.safe_load(RULES.read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule["expr"] = "vector(1) > 2"
    (tmp_path / RULES.name).write_text(yaml.safe_dump(rules))
    shutil.copy(TESTS, tmp_path)
    done = promtool("test", "rules", tmp_path / TESTS.name)
    assert done.returncode != 0
    assert {
        rule["alert"] for rule in alerts() if f"alertname: {rule['alert']}," not in done.stdout + done.stderr
    } == set()


def test_every_alert_has_a_test_in_which_it_fires_and_one_later_in_which_it_does_not() -> None:
    for rule in alerts():
        seen = [
            bool(one["exp_alerts"])
            for test in yaml.safe_load(TESTS.read_text())["tests"]
            for one in test["alert_rule_test"]
            if one["alertname"] == rule["alert"]
        ]
        assert True in seen, f"{rule['alert']} never fires"
        assert False in seen[seen.index(True) :], f"{rule['alert']} never clears"


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_an_alert_looks_at_metrics_and_labels_that_exist(rule: dict[str, Any]) -> None:
    assert list(mistakes(rule["expr"], known())) == []


def test_an_alert_that_cannot_fire_is_noticed() -> None:
    less = {name: labels for name, labels in known().items() if name != "cortex_engine_ends_total"}
    silent = [rule["alert"] for rule in alerts() if list(mistakes(rule["expr"], less))]
    assert silent == ["CortexEngineFlapping"]


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_an_alert_says_what_is_wrong_and_how_urgent_it_is(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"].keys() == {"summary", "description"}
    assert rule["annotations"]["description"].endswith(".")


def test_examples_on_the_page_of_metrics_that_warn_are_the_alerts_own() -> None:
    page = (FOLDER.parent / "docs" / "metrics.md").read_text()
    blocks = re.findall(r"```promql\n(.*?)```", page, re.DOTALL)
    warning = [line for block in blocks for line in block.splitlines() if re.search(r" (>|==) \d", line)]
    assert len(warning) == 2
    assert set(warning) <= {" ".join(rule["expr"].split()) for rule in alerts()}


def test_the_page_about_alerts_has_each_of_them() -> None:
    page = (FOLDER.parent / "docs" / "dashboards.md").read_text()
    assert [rule["alert"] for rule in alerts() if f"`{rule['alert']}`" not in page] == []
