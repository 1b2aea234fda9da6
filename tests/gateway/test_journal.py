"""Every decision on record, and taken again from the record: on a gateway that is given a hard time."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import os
import random
import resource
import signal
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from backends.emulated.options import EmulatedOptions
from backends.emulated.server import EmulatedServer, serve
from gateway.journal import HELD_MOST, Journal, blueprint_of, replay, steps
from policies.blueprint import Blueprint
from policies.catalog import Named, PolicySet
from policies.dispatcher import Dispatcher, Limits
from policies.events import Scaled, Woken
from policies.pool import EngineLimits, PoolSpec
from policies.retries import MOST
from tests.gateway import shop
from tests.gateway.support import (
    MODEL,
    Running,
    attached,
    chat,
    children,
    metric,
    running,
    settled,
    until,
    written,
)

CHAT = "/v1/chat/completions"
ADMIN = {"Authorization": "Bearer secret"}
RUNS = 200


# --- a live gateway -------------------------------------------------------------------------------------------


class Storm:
    """Many clients with plans of their own: some leave, some meet faults, some ask for whole workflows."""

    def __init__(self, up: Running, seed: int) -> None:
        self.up = up
        self.chance = random.Random(seed)
        self.seen: Counter[str] = Counter()

    async def blow(self, runs: int) -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=self.up.url, timeout=60, trust_env=False, limits=limits) as http:
            plans = [self.chance.choice(PLANS) for _ in range(runs)]
            await asyncio.gather(*(self._run(http, plan, number) for number, plan in enumerate(plans)))

    async def _run(self, http: httpx.AsyncClient, plan: str, number: int) -> None:
        headers = {"X-Workflow-Type": "shop", "X-Workflow-Id": f"run-{number}"}
        question = self.chance.choice([shop.RIGHT, shop.REPAIRED, shop.HOPELESS])
        patience = self.chance.uniform(0.0, 0.15)
        match plan:
            case "walk":
                await self._send(http, "walk", CHAT, asking("workflow/shop", question, number), headers)
            case "walk and leave":
                await self._leave(http, patience, CHAT, asking("workflow/shop", question, number), headers)
            case "tools":
                here = {**headers, "X-Workflow-Stage": "generate", "X-Workflow-Tools": "intercept"}
                body = asking("generate", f"TASK generate\nQuestion: {question}", number)
                await self._send(http, "tools", CHAT, {**body, "tools": shop.TOOLS}, here)
            case "sql":
                sql = self.chance.choice(
                    [shop.COUNT, shop.MISSPELT, f"SELECT {number % 7} AS n", "DROP TABLE orders"]
                )
                await self._send(http, "sql", "/v1/sql", {"sql": sql}, headers)
            case "sql and leave":
                await self._leave(http, patience, "/v1/sql", {"sql": SLOW_SQL}, headers)
            case "read and leave":
                body = chat("<<echo:abc >>", max_tokens=2000, stream=True)
                async with http.stream("POST", CHAT, json=body, headers=headers) as reply:
                    async for chunk in reply.aiter_raw():
                        if b"abc" in chunk:
                            self.seen["left within"] += 1
                            break
            case "fault":
                fault = self.chance.choice(["die_before", "refuse", "die_after=3", "status=500", "garbage_after=2"])
                body = {**chat("x", max_tokens=20), "stream": number % 2 == 0}
                await self._send(http, "fault", CHAT, body, {**headers, "X-Emulated-Fault": fault})
            case _:
                for step in range(3):
                    body = {**chat("y" * 50 * step, max_tokens=20), "stream": step == 1}
                    final = {"X-Workflow-Final": "true"} if step == 2 else {}
                    await self._send(http, "chat", CHAT, body, {**headers, **final})

    async def _send(self, http: httpx.AsyncClient, what: str, path: str, body: Any, headers: dict[str, str]) -> None:
        reply = await http.post(path, json=body, headers=headers)
        assert reply.status_code in (200, 400, 429, 500, 502, 503), reply.text
        self.seen[f"{what} {reply.status_code}"] += 1

    async def _leave(
        self, http: httpx.AsyncClient, after: float, path: str, body: Any, headers: dict[str, str]
    ) -> None:
        try:
            await http.post(path, json=body, headers=headers, timeout=httpx.Timeout(60, read=after))
            self.seen["stayed"] += 1
        except httpx.ReadTimeout:
            self.seen["left"] += 1


PLANS = ("walk", "walk", "walk and leave", "tools", "sql", "sql and leave", "read and leave", "fault", "chat", "chat")
SLOW_SQL = "SELECT sum(a.i * b.i) AS s FROM range(20000) AS a(i), range(20000) AS b(i)"


def asking(model: str, question: str, number: int) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": question}], "stream": number % 3 == 0}


async def disturb(up: Running, storm: asyncio.Task[None]) -> None:
    """What an operator and bad luck do meanwhile: one engine is killed, one drained, and the pool's size changes."""

    async def busy(pool: str, attempts: int) -> None:
        await until(
            lambda: metric(up.gateway, "cortex_attempts_total", pool=pool) > attempts, f"work in {pool}", within=30
        )

    async def admin(path: str, **body: object) -> None:
        reply = await up.http.post(path, json=body, headers=ADMIN)
        assert reply.status_code == 200, reply.text

    fleet = up.gateway.runtime.dispatcher.fleet
    await busy("default", 10)
    before = {engine.name for engine in fleet.of("default")}
    os.kill(min(children("backends.emulated")), signal.SIGKILL)
    await until(lambda: not before <= {engine.name for engine in fleet.of("default")}, "that it is given up")
    await busy("warehouse", 20)
    await admin("/admin/engines/warehouse/0/drain")
    sizes = itertools.cycle([3, 1, 2])
    for _ in range(6):
        await admin("/admin/pools/default/scale", engines=next(sizes))
        await asyncio.wait([storm], timeout=0.2)


@pytest.mark.slow
@pytest.mark.untraced
async def test_two_hundred_troubled_runs_lose_nothing_and_replay_to_the_same_decisions(tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    options = EmulatedOptions(decode_step=0.002, prefill_rate=1e6, faults=True)
    async with AsyncExitStack() as stack:
        engines: dict[str, list[EmulatedServer]] = {
            stage: [
                await stack.enter_async_context(serve(options, script=shop.knowing(), model=MODEL)) for _ in range(2)
            ]
            for stage in shop.STAGES
        }
        servers = [server for pair in engines.values() for server in pair]
        llm: dict[str, object] = {
            stage: attached(*(server.url for server in pair), sequences=3) for stage, pair in engines.items()
        }
        spawned = {"name": "emulated", "decode_step": "2ms", "prefill_rate": 1e6, "faults": True}
        llm["default"] = {
            "model": MODEL,
            "backend": spawned,
            "engines": {"min": 1, "start": 2, "max": 3},
            "concurrency": {"sequences": 3},
        }
        house = {**shop.warehouse(tmp_path, workers=1), "engines": {"min": 1, "start": 2, "max": 2}}
        text = written(
            {**llm, "warehouse": house},
            **shop.sections(tmp_path),
            admin={"token": "secret"},
            server={"port": 0, "journal": str(journal)},
            policies={
                "layout": "adaptive",
                "borrowing": {"name": "gated", "load": 1, "most": 0.9},
                "gate": {"name": "aimd", "period": "100ms", "start": 10, "step": 20},
                "budget": {"name": "adaptive", "period": "200ms", "start": 1500, "least": 500, "most": 4000},
                "picker": {"name": "two_choices"},
                "priority": {"name": "least_slack", "patience": "5s"},
            },
        )
        async with running(tmp_path, text) as up:
            storm = Storm(up, seed=7)
            blowing = asyncio.create_task(storm.blow(RUNS))
            await disturb(up, blowing)
            await blowing
            await settled(up.gateway, *servers)
            dispatcher = up.gateway.runtime.dispatcher
            assert all(0 <= left <= MOST for left in dispatcher._retries._saved.values())
            await until(lambda: not up.gateway.runtime.ready(), "an engine in each pool", within=30)
            for engine in dispatcher.fleet:
                assert (len(engine.slots), engine.work) == (0, 0.0)
            assert up.gateway.runtime.journal_dropped == 0
            reply = await up.http.post(CHAT, json=chat("after the storm", max_tokens=4))
            assert reply.status_code == 200
    assert {"walk 200", "tools 200", "sql 200", "sql 400", "chat 200", "left", "left within"} <= storm.seen.keys()
    assert any(what.startswith("fault") and not what.endswith("200") for what in storm.seen)
    check_record(journal)


def check_record(journal: Path) -> None:
    records = [orjson.loads(raw) for _, raw in steps(journal)]
    events = Counter(record["event"][0] for record in records)
    assert len(records) > 1500
    assert {"Arrived", "Joined", "Left", "Finished", "Failed", "Scaled", "Drained", "EngineUp", "EngineGone"} <= set(
        events
    )
    actions = Counter(action[0] for record in records for action in record["actions"])
    assert {"Start", "Abort", "Launch", "Retire"} <= set(actions)
    assert borrowed(records) > 20
    blueprint = blueprint_of(journal)
    assert blueprint.gate.name == "aimd"
    assert blueprint.policies["default"].picker.name == "two_choices"
    assert blueprint.policies["default"].priority.params == (("patience", 5.0),)
    assert blueprint.workflows["shop"].deadline == 60.0
    again = blueprint.dispatcher()
    assert replay(journal, again) is None
    assert again.calls == 0
    # The record holds the decisions, not just something that any dispatcher would repeat.
    changes: list[dict[str, Any]] = [
        {"scorers": (Named(name="prefix_affinity", weight=0.0), Named(name="free_work", weight=1.0))},
        {"priority": Named(name="least_slack", params=(("quantum", 5.0),))},
        {"budget": otherwise(blueprint.policies["default"].budget, start=500.0, most=500.0)},
        {"borrowing": otherwise(blueprint.policies["default"].borrowing, most=0.1)},
    ]
    others = [
        dataclasses.replace(
            blueprint,
            policies={name: dataclasses.replace(chosen, **change) for name, chosen in blueprint.policies.items()},
        )
        for change in changes
    ]
    for other in (*others, dataclasses.replace(blueprint, gate=otherwise(blueprint.gate, start=11.0))):
        divergence = replay(journal, other.dispatcher())
        assert divergence is not None
        assert divergence.recorded != divergence.replayed


def otherwise(named: Named, **params: float) -> Named:
    """The same policy with some of its parameters changed."""
    return dataclasses.replace(named, params=tuple((dict(named.params) | params).items()))


def borrowed(records: list[Any]) -> int:
    """How many attempts went to an engine of another pool than the call's."""
    arrived = [record["event"][1]["call"] for record in records if record["event"][0] == "Arrived"]
    pools = {call["id"]: call["pool"] for call in arrived}
    starts = [action[1] for record in records for action in record["actions"] if action[0] == "Start"]
    return sum(start["engine"].rpartition("/")[0] != pools[start["call"]] for start in starts)


# --- the file -------------------------------------------------------------------------------------------------


def plan() -> Blueprint:
    pool = PoolSpec(name="p", limits=EngineLimits(sequences=2))
    return Blueprint(pools={"p": pool}, workflows={}, policies={"p": PolicySet()}, limits=Limits())


def recorded(path: Path, steps_taken: int = 3) -> Journal:
    journal = Journal(path, {"blueprint": plan()})
    dispatcher = plan().dispatcher()
    for number in range(steps_taken):
        event = Scaled(pool="p", engines=1) if number == 0 else Woken()
        journal.record(event, dispatcher.handle(event, float(number)), float(number))
    return journal


def test_a_journal_holds_what_its_dispatcher_was_made_from(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    recorded(path).close()
    assert blueprint_of(path) == plan()
    assert isinstance(blueprint_of(path).dispatcher(), Dispatcher)
    assert len(list(steps(path))) == 3
    assert replay(path, plan().dispatcher()) is None


def test_the_journal_of_the_start_before_is_kept_beside_the_new_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, earlier = tmp_path / "journal.jsonl", tmp_path / "journal.jsonl.1"
    caplog.set_level("INFO")
    for taken in (3, 2, 1):
        recorded(path, steps_taken=taken).close()
        kept = [len(list(steps(file))) for file in (path, earlier) if file.exists()]
        assert kept == ([3] if taken == 3 else [taken, taken + 1])
    assert caplog.messages == [f"the earlier journal is now {earlier}"] * 2
    assert sorted(tmp_path.iterdir()) == [path, earlier]


def test_steps_reach_the_disk_with_a_flush_or_when_many_are_held(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = recorded(path)
    assert path.read_bytes() == b""
    journal.flush()
    assert len(list(steps(path))) == 3
    event = Scaled(pool="p" * 1000, engines=1)
    for _ in range(HELD_MOST // 1000 + 1):
        journal.record(event, [], 9.0)
    assert len(list(steps(path))) > 200
    journal.close()
    journal.close()
    assert journal.dropped == 0


def test_a_full_disk_drops_steps_and_counts_them(caplog: pytest.LogCaptureFixture) -> None:
    journal = recorded(Path("/dev/full"), steps_taken=5)
    assert journal.dropped == 0
    journal.flush()
    assert journal.dropped == 6, "five steps and the header"
    journal.record(Woken(), [], 1.0)
    journal.flush()
    journal.close()
    assert journal.dropped == 7
    assert len(caplog.records) == 1


def test_a_disk_that_fills_up_leaves_a_journal_that_replays_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = recorded(path)
    journal.flush()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 100, hard))
    try:
        for number in range(10):
            journal.record(Woken(), [], 10.0 + number)
        journal.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    written_steps = len(list(steps(path))) - 3
    assert 0 < written_steps < 10
    assert journal.dropped == 10 - written_steps
    journal.record(Woken(), [], 30.0)
    journal.close()
    assert len(list(steps(path))) == 3 + written_steps
    assert replay(path, plan().dispatcher()) is None


def test_a_line_that_a_crash_cut_off_is_no_step(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    recorded(path).close()
    path.write_bytes(path.read_bytes()[:-5])
    assert len(list(steps(path))) == 2
    assert replay(path, plan().dispatcher()) is None


@pytest.mark.parametrize("text", [b"", b"{}\n", b"[]\n", b'{"cortex": 3}\n', b'{"cortex": 99, "blueprint": {}}\n'])
def test_a_file_that_is_no_journal_is_refused(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "journal"
    path.write_bytes(text)
    with pytest.raises(ValueError):  # noqa: PT011 - pydantic's and orjson's are ValueErrors with words of their own
        blueprint_of(path)


def test_a_replay_names_the_first_step_that_comes_out_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    recorded(path).close()
    larger = dataclasses.replace(
        plan(), pools={"p": dataclasses.replace(plan().pools["p"], name="p", minimum=2, maximum=2)}
    )
    divergence = replay(path, larger.dispatcher())
    assert divergence is not None
    assert divergence.line == 2
    assert divergence.recorded.count("Launch") == 1
    assert divergence.replayed.count("Launch") == 2


async def test_what_the_journal_drops_is_in_the_metrics(tmp_path: Path) -> None:
    async with serve(shop.FAST) as server:
        text = written({"default": attached(server.url)}, server={"port": 0, "journal": "/dev/full"})
        async with running(tmp_path, text) as up:
            await until(lambda: metric(up.gateway, "cortex_journal_dropped") > 0, "a step that is dropped")
            reply = await up.http.post(CHAT, json=chat(max_tokens=2))
            assert reply.status_code == 200
            await settled(up.gateway, server)
