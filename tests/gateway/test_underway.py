"""The runs under way: in which order they are shown, how many, and what is said to be left of their time."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from backends.emulated.options import EmulatedOptions
from backends.emulated.server import serve
from policies.profiles import Profiles
from tests.gateway.support import CHAT, Running, attached, chat, error_of, running, settled, until, written

TOKEN = {"Authorization": "Bearer secret"}
SLOW = EmulatedOptions(decode_step=0.05)


def site(url: str, **more: Any) -> str:
    return written({"default": attached(url)}, admin={"token": "secret"}, policies={"gate": {"name": "open"}}, **more)


async def call(up: Running, run: str, deadline: int | None, **more: Any) -> None:
    headers = {"X-Workflow-Type": "w", "X-Workflow-Id": run, "X-Workflow-Stage": "s"}
    if deadline is not None:
        headers["X-Workflow-Deadline-Ms"] = str(deadline)
    await up.http.post(CHAT, json=chat(**more), headers=headers)


async def listed(up: Running, query: str) -> list[dict[str, Any]]:
    reply = await up.http.get(f"/admin/runs{query}", headers=TOKEN)
    assert reply.status_code == 200
    runs: list[dict[str, Any]] = reply.json()["runs"]
    return runs


async def test_runs_with_the_least_slack_come_first_and_those_that_may_be_over_last(tmp_path: Path) -> None:
    async with serve(SLOW) as server, running(tmp_path, site(server.url)) as up:
        for run, deadline in (("idle", 60_000), ("unbounded", None), ("late", 1)):
            await call(up, run, deadline, max_tokens=1)
        runs = (("far", 500_000), ("near", 100_000), ("no deadline", None))
        calls = [asyncio.create_task(call(up, *run, max_tokens=2000)) for run in runs]
        await until(lambda: up.gateway.runtime.dispatcher.calls == 3, "three open calls")
        names = [run["id"] for run in await listed(up, "?order=slack")]
        assert names == ["near", "far", "no deadline", "idle", "unbounded", "late"]
        assert [run["id"] for run in await listed(up, "?order=slack&limit=2")] == ["near", "far"]
        by_age = [run["id"] for run in await listed(up, "?order=age")]
        assert by_age[3:] == ["idle", "unbounded", "late"]
        assert set(by_age[:3]) == {"far", "near", "no deadline"}
        assert [run["id"] for run in await listed(up, "")][3:] == ["late", "unbounded", "idle"]
        for one in calls:
            one.cancel()
        await asyncio.wait(calls)
        await settled(up.gateway, server)


async def test_slack_is_what_the_call_at_hand_and_what_follows_it_will_leave(tmp_path: Path) -> None:
    async with serve(SLOW) as server, running(tmp_path, site(server.url)) as up:
        for number in range(12):
            await call(up, f"run {number}", 60_000, max_tokens=2)
        task = asyncio.create_task(call(up, "open", 60_000, max_tokens=2000))
        await until(lambda: up.gateway.runtime.dispatcher.calls == 1, "an open call")
        found = {run["id"]: run for run in await listed(up, "?order=slack")}
        taken = found["open"]["deadline_in_s"] - found["open"]["slack_s"]
        assert 0.05 < taken < 10, "what a call here has been seen to take"
        assert found["run 0"]["slack_s"] == found["run 0"]["deadline_in_s"], "it has no call open"
        task.cancel()
        await asyncio.wait([task])
        await settled(up.gateway, server)


def test_to_ask_what_is_ahead_of_a_run_teaches_nothing() -> None:
    profiles = Profiles({}, {})
    assert profiles.ahead("never seen", "s", 1) == (0.0, 0.0)
    assert profiles.dump()["workflows"] == []


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("order=best", "order: must be one of latest, slack, age, and not 'best'"),
        ("limit=0", "limit: must be a whole number from 1 to 1000"),
        ("limit=1001", "limit: must be a whole number from 1 to 1000"),
        ("limit=ten", "limit: must be a whole number from 1 to 1000"),
        ("limit=²", "limit: must be a whole number from 1 to 1000"),
    ],
)
async def test_an_order_or_a_limit_that_there_is_not_is_named(tmp_path: Path, query: str, said: str) -> None:
    async with running(tmp_path, site("http://127.0.0.1:1")) as up:
        reply = await up.http.get(f"/admin/runs?{query}", headers=TOKEN)
        assert (reply.status_code, error_of(reply)["message"]) == (400, said)
