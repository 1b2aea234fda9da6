"""A pool whose servers the gateway starts: it serves, grows, shrinks, replaces what dies, leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from tests.gateway.support import CHAT, MODEL, Running, chat, children, running, until, written

ADAPTER = (
    "import os, sys; os.execv(sys.executable,"
    f" [sys.executable, '-m', 'backends.emulated', '--dev-mode', '--model', '{MODEL}', '--port', sys.argv[-1]])"
)
"""An emulated engine in the place of a vLLM server: it takes the port and no other option."""
TOKEN = {"Authorization": "Bearer admin"}


def launched(folder: Path, most: int = 3, **more: object) -> str:
    launch = {
        "command": [sys.executable, "-c", ADAPTER],
        "gpus": 0,
        "grace": "1s",
        "logs": str(folder / "logs"),
        **more,
    }
    pool = {"model": MODEL, "backend": {"name": "vllm", "launch": launch}, "engines": {"min": 1, "max": most}}
    return written({"default": pool}, admin={"token": "admin"})


def ready(up: Running) -> list[str]:
    return [engine.name for engine in up.gateway.runtime.dispatcher.fleet if engine.status == "ready"]


def servers() -> set[int]:
    return children("backends.keeper")


async def test_servers_are_started_used_scaled_and_ended(tmp_path: Path) -> None:
    before = servers()
    async with running(tmp_path, launched(tmp_path)) as up:
        assert (await up.http.post(CHAT, json=chat(max_tokens=2))).status_code == 200
        for wanted in (3, 1):
            reply = await up.http.post("/admin/pools/default/scale", json={"engines": wanted}, headers=TOKEN)
            assert reply.status_code == 200
            await until(lambda wanted=wanted: len(ready(up)) == wanted, f"{wanted} engines")  # type: ignore[misc]
        assert (await up.http.post(CHAT, json=chat(max_tokens=2))).status_code == 200
        await until(lambda: len(servers() - before) == 1, "one server")
        assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == [f"default-{n}.log" for n in range(3)]
    assert servers() == before


async def test_a_server_that_dies_is_replaced(tmp_path: Path) -> None:
    before = servers()
    async with running(tmp_path, launched(tmp_path, most=1)) as up:
        (keeper,) = servers() - before
        (first,) = ready(up)
        (server,) = children("backends.emulated", parent=keeper)
        os.kill(server, signal.SIGKILL)
        await until(lambda: ready(up) not in ([first], []), "another engine")
        assert (await up.http.post(CHAT, json=chat(max_tokens=2))).status_code == 200
    assert servers() == before


async def test_a_server_that_is_not_needed_sleeps_until_it_is(tmp_path: Path) -> None:
    before = servers()
    async with running(tmp_path, launched(tmp_path, most=2, asleep=1)) as up:
        started = set[int]()
        for wanted in (2, 1, 2):
            await up.http.post("/admin/pools/default/scale", json={"engines": wanted}, headers=TOKEN)
            await until(lambda wanted=wanted: len(up.gateway.runtime.engines) == len(ready(up)) == wanted, "engines")  # type: ignore[misc]
            started = started or servers() - before
            assert servers() - before == started
        assert sorted(ready(up)) != ["default/0", "default/1"]
        (woken,) = set(ready(up)) - {"default/0", "default/1"}
        (awake,) = set(ready(up)) - {woken}
        await up.http.post(f"/admin/engines/{awake}/drain", headers=TOKEN)
        reply = await up.http.post(CHAT, json=chat(max_tokens=2))
        assert (reply.status_code, reply.headers["x-workflow-engine"]) == (200, woken)
    assert servers() == before


def slow_from_now_on(flag: Path) -> list[str]:
    """A server that takes long to come up once there is a flag."""
    wait = f"import os, time\nif os.path.exists({str(flag)!r}): time.sleep(60)\n"
    return [sys.executable, "-c", wait + ADAPTER]


async def test_a_start_that_is_not_wanted_any_more_ends_at_once(tmp_path: Path) -> None:
    flag, before = tmp_path / "slow", servers()
    async with running(tmp_path, launched(tmp_path, command=slow_from_now_on(flag))) as up:
        flag.touch()
        await up.http.post("/admin/pools/default/scale", json={"engines": 2}, headers=TOKEN)
        await until(lambda: len(servers() - before) == 2, "the second server's start")
        await up.http.post("/admin/pools/default/scale", json={"engines": 1}, headers=TOKEN)
        await until(lambda: len(servers() - before) == 1, "its end")
        assert (await up.http.post(CHAT, json=chat(max_tokens=2))).status_code == 200
    assert servers() == before


async def test_a_gateway_that_waits_for_its_first_server_can_be_stopped(tmp_path: Path) -> None:
    flag, before = tmp_path / "slow", servers()
    flag.touch()
    path = tmp_path / "config.yaml"
    path.write_text(launched(tmp_path, command=slow_from_now_on(flag)))
    command = (sys.executable, "-m", "gateway", "serve", "--config", str(path))
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL)
    await until(lambda: bool(children("backends.keeper", parent=process.pid)), "its server's start", within=30)
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(20):
        assert await process.wait() == 0
    assert servers() == before
