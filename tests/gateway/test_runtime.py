"""What the dispatcher decides is carried out: waiting calls are told, engines come and go, nothing is left behind."""

from __future__ import annotations

import asyncio
import itertools
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from backends.emulated.server import EmulatedServer, serve
from gateway.compose import compose
from gateway.config import load
from gateway.runtime import Clock, RefusedCall, Runtime
from policies.calls import Call, Outcome
from policies.events import Scaled
from tests.gateway.shop import FAST, warehouse
from tests.gateway.support import MODEL, attached, chat, children, running, settled, until, written

CHAT = "/v1/chat/completions"
DONE = Outcome(fate="ok")
EMULATED: dict[str, object] = {"name": "emulated", "time_scale": 1000.0}


@asynccontextmanager
async def one_slot(folder: Path, **limits: object) -> AsyncIterator[tuple[Runtime, EmulatedServer]]:
    async with serve(FAST) as server:
        text = written({"default": attached(server.url, sequences=1)}, limits=limits)
        async with running(folder, text) as up:
            yield up.gateway.runtime, server
            await settled(up.gateway, server)


def call(runtime: Runtime, name: str) -> Call:
    return Call(id=name, pool="default", run=name, arrived=runtime.now())


def slots(runtime: Runtime) -> list[str]:
    return [slot.call for engine in runtime.dispatcher.fleet for slot in engine.slots.values()]


# --- tickets --------------------------------------------------------------------------------------------------


async def test_a_ticket_waits_for_its_turn(tmp_path: Path) -> None:
    async with one_slot(tmp_path) as (runtime, _), runtime.ticket(call(runtime, "a")) as first:
        start = await first.start()
        assert start.engine == "default/0"
        async with runtime.ticket(call(runtime, "b")) as second:
            waiting = asyncio.create_task(second.start())
            await asyncio.sleep(0)
            assert not waiting.done()
            first.finished(start.attempt, DONE)
            assert (await waiting).call == "b"
            assert slots(runtime) == ["b"]


async def test_a_slot_granted_to_a_waiter_that_is_cancelled_in_the_same_step_is_not_lost(tmp_path: Path) -> None:
    async with one_slot(tmp_path) as (runtime, _):

        async def wait(name: str) -> None:
            async with runtime.ticket(call(runtime, name)) as ticket:
                start = await ticket.start()
                ticket.finished(start.attempt, DONE)

        for cancel_first in (True, False):
            async with runtime.ticket(call(runtime, "first")) as first:
                start = await first.start()
                waiter = asyncio.create_task(wait("cancelled"))
                third = asyncio.create_task(wait("third"))
                await asyncio.sleep(0)
                assert runtime.dispatcher.calls == 3
                if cancel_first:
                    waiter.cancel()
                first.finished(start.attempt, DONE)
                assert slots(runtime) == ["cancelled"]
                waiter.cancel()
                await asyncio.gather(waiter, return_exceptions=True)
                assert waiter.cancelled()
                await third
                assert slots(runtime) == []


async def test_a_call_that_finds_the_queue_full_is_told_when_to_come_again(tmp_path: Path) -> None:
    async with one_slot(tmp_path, queue_calls=1) as (runtime, _), runtime.ticket(call(runtime, "a")) as first:
        await first.start()
        async with runtime.ticket(call(runtime, "b")):
            with pytest.raises(RefusedCall) as refusal:
                async with runtime.ticket(call(runtime, "c")) as third:
                    await third.start()
            assert refusal.value.reason == "queue_full"
            assert refusal.value.retry_after is not None
            assert refusal.value.retry_after > 0
            assert runtime.dispatcher.calls == 2


async def test_a_failed_attempt_that_is_final_ends_the_call(tmp_path: Path) -> None:
    async with one_slot(tmp_path) as (runtime, _):
        async with runtime.ticket(call(runtime, "a")) as ticket:
            start = await ticket.start()
            ticket.failed(start.attempt, "broken", final=True)
            assert runtime.dispatcher.calls == 0
        assert slots(runtime) == []


async def test_a_call_whose_answer_is_known_moves_its_run_and_nothing_else(tmp_path: Path) -> None:
    async with one_slot(tmp_path) as (runtime, _):
        runtime.recalled(call(runtime, "a"), Outcome(fate="ok", source="cache"))
        (run,) = runtime.dispatcher.runs
        assert (run.calls, run.open, slots(runtime)) == (1, {}, [])


# --- engines --------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_an_engine_that_does_not_start_is_tried_again_until_it_does(tmp_path: Path) -> None:
    port = free_port()
    async with running(tmp_path, written({"default": attached(f"http://127.0.0.1:{port}")})) as up:
        reply = await up.http.get("/ready")
        assert reply.status_code == 503
        assert "default" in reply.json()["error"]["message"]
        early = await up.http.post(CHAT, json=chat())
        assert early.status_code == 503
        assert int(early.headers["retry-after"]) >= 1
        async with serve(FAST, port=port) as server:
            await until(lambda: not up.gateway.runtime.ready(), "the engine")
            assert (await up.http.get("/ready")).status_code == 200
            assert (await up.http.post(CHAT, json=chat(max_tokens=2))).status_code == 200
            await settled(up.gateway, server)


async def test_a_start_that_fails_in_an_unforeseen_way_is_tried_again_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nowhere"))
    async with running(tmp_path, written({"default": {"model": MODEL, "backend": EMULATED}})) as up:
        assert up.gateway.runtime.ready() == ["default"]
        monkeypatch.undo()
        await until(lambda: not up.gateway.runtime.ready(), "the engine")


async def test_a_start_that_keeps_failing_is_tried_ever_less_often(tmp_path: Path) -> None:
    text = written({"default": attached(f"http://127.0.0.1:{free_port()}")})
    async with running(tmp_path, text) as up:
        tried: list[float] = []
        original = up.gateway.runtime._launch

        async def launch(pool: str, name: str) -> None:
            tried.append(time.monotonic())
            await original(pool, name)

        up.gateway.runtime._launch = launch  # type: ignore[method-assign]
        await until(lambda: len(tried) == 3, "three more tries")
        pauses = [later - earlier for earlier, later in itertools.pairwise(tried)]
        assert pauses[0] > 0.6
        assert pauses[1] > 1.5 * pauses[0]


async def test_an_engine_that_is_no_longer_wanted_when_it_has_started_is_ended(tmp_path: Path) -> None:
    pool = {"model": MODEL, "backend": EMULATED, "engines": {"min": 1, "max": 2}}
    before = children("backends.emulated")
    async with running(tmp_path, written({"default": pool})) as up:
        runtime = up.gateway.runtime
        runtime.handle(Scaled(pool="default", engines=2))
        await until(lambda: len(children("backends.emulated") - before) == 2, "the second process")
        runtime.handle(Scaled(pool="default", engines=1))
        assert [engine.name for engine in runtime.dispatcher.fleet] == ["default/0"]
        await until(lambda: len(children("backends.emulated") - before) == 1, "the end of the second process")
        assert list(runtime.engines) == ["default/0"]
        assert (await up.http.post(CHAT, json=chat(max_tokens=2))).status_code == 200
        await settled(up.gateway)
    assert children("backends.emulated") == before


@pytest.mark.parametrize("retired", [False, True])
@pytest.mark.parametrize("kind", ["emulated", "sql.worker"])
async def test_a_gateway_that_ends_while_an_engine_starts_leaves_no_process(
    tmp_path: Path, kind: str, retired: bool
) -> None:
    llm = {"model": MODEL, "backend": EMULATED}
    pool = {**(llm if kind == "emulated" else warehouse(tmp_path)), "engines": {"min": 1, "max": 2}}
    before = children(f"backends.{kind}")
    async with running(tmp_path, written({"default": pool})) as up:
        up.gateway.runtime.handle(Scaled(pool="default", engines=2))
        await until(lambda: len(children(f"backends.{kind}") - before) == 2, "the second process")
        if retired:
            up.gateway.runtime.handle(Scaled(pool="default", engines=1))
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("engine ")]
    assert children(f"backends.{kind}") == before


async def test_calls_that_are_left_when_the_engines_have_ended_give_back_what_they_hold(tmp_path: Path) -> None:
    async with serve(FAST) as server:
        path = tmp_path / "config.yaml"
        path.write_text(written({"default": attached(server.url, sequences=1)}))
        gateway = await compose(load(path, {}), seed=1)
        runtime = gateway.runtime
        async with gateway.running(), runtime.ticket(call(runtime, "a")) as first:
            start = await first.start()
            async with runtime.ticket(call(runtime, "b")) as second:
                await runtime.aclose()
                first.failed(start.attempt, "broken", final=True)
                assert (await second.start()).call == "b"
            runtime.handle(Scaled(pool="default", engines=1))
        assert runtime.dispatcher.calls == 0
        assert slots(runtime) == []


# --- time -----------------------------------------------------------------------------------------------------


def test_the_clock_does_not_follow_the_wall_clock_when_that_jumps(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    assert abs(clock() - time.time()) < 1.0
    before = clock()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert before <= clock() < before + 60
