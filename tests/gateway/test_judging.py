"""The gateway reads what a verdict means, so that a client need not tell it that its run is over."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.judging import Judge, Outcomes, judged
from policies.runs import Run
from tests.gateway.shop import JUDGED, RIGHT, Shop, shop
from tests.gateway.support import CHAT, MODEL, metric

OUTCOMES: Outcomes = {"error": re.compile("^WRONG"), "empty": re.compile("nothing")}
AT_VERIFY = {"X-Workflow-Type": "shop", "X-Workflow-Stage": "verify", "X-Workflow-Id": "one"}
FINE = f"TASK verify\nQuestion: {RIGHT}\n"
WRONG = f"TASK verify\nmin(amount)\nQuestion: {JUDGED}\n"


def ended(site: Shop, outcome: str) -> float:
    return metric(site.up.gateway, "cortex_runs_ended_total", workflow="shop", outcome=outcome)


def runs(site: Shop) -> list[Run]:
    return list(site.up.gateway.runtime.dispatcher.runs)


async def verified(site: Shop, content: str, **more: Any) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": content}], **more}
    assert (await site.up.http.post(CHAT, json=body, headers=AT_VERIFY)).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_a_verdict_after_which_nothing_follows_ends_the_run(tmp_path: Path, stream: bool) -> None:
    async with shop(tmp_path) as site:
        await verified(site, FINE, stream=stream)
        assert runs(site) == []
        assert ended(site, "in_time") == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_verdict_that_asks_for_a_repair_is_the_outcome_of_its_stage(tmp_path: Path, stream: bool) -> None:
    async with shop(tmp_path) as site:
        await verified(site, WRONG, stream=stream)
        (run,) = runs(site)
        assert (list(run.history), run.last) == ([("verify", "error")], "ok")
        await verified(site, FINE, stream=stream)
        assert runs(site) == []
        assert ended(site, "in_time") == 1


def test_a_verdict_at_the_end_of_however_long_an_answer_is_heard() -> None:
    judge = Judge({"error": re.compile("WRONG$")})
    for text in (*["x" * 1024] * 1100, "WRONG"):
        judge.chunk({"choices": [{"index": 0, "delta": {"content": text}}]})
    assert judge.verdict == "error"


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_is_recalled_is_a_verdict_too(tmp_path: Path, stream: bool) -> None:
    async with shop(tmp_path, recall="1h") as site:
        for number in (1, 2):
            await verified(site, FINE, stream=stream, temperature=0)
            assert runs(site) == []
            assert ended(site, "in_time") == number
        assert metric(site.up.gateway, "cortex_completion_lookups_total", pool="verify", cache="hit") == 1


async def test_a_walked_run_ends_once(tmp_path: Path) -> None:
    async with shop(tmp_path) as site:
        body = {"model": "workflow/shop", "messages": [{"role": "user", "content": RIGHT}]}
        assert (await site.up.http.post(CHAT, json=body)).status_code == 200
        assert runs(site) == []
        assert sum(ended(site, outcome) for outcome in ("in_time", "late", "broken", "abandoned")) == 1


def test_the_first_pattern_that_is_found_is_the_outcome() -> None:
    assert judged("WRONG: nothing", OUTCOMES) == "error"
    assert judged("there is nothing", OUTCOMES) == "empty"
    assert judged("not WRONG", OUTCOMES) == "ok"


@pytest.mark.parametrize(
    "document",
    [None, [], {}, {"choices": None}, {"choices": []}, {"choices": ["x"]}, {"choices": [{"message": None}]}],
)
def test_what_says_nothing_is_fine(document: object) -> None:
    assert Judge(OUTCOMES).whole(document) == "ok"


def test_the_first_choice_counts_and_plain_completions_have_a_text() -> None:
    other = {"index": 1, "delta": {"content": "nothing"}}
    said = [{"index": 0, "delta": {"content": "WR"}}, other, {"index": 0, "text": "ONG"}]
    events = [b"data: " + orjson.dumps({"choices": [choice]}) + b"\n\n" for choice in said]
    assert Judge(OUTCOMES).events([b": a comment\n\n", *events, b"data: [DONE]\n\n"]) == "error"
