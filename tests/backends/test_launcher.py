"""Servers that are started as engines: real processes, an emulated engine's most of them."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import pytest

from backends.base import BackendError
from backends.gpus import Gpus, devices_of_this_machine
from backends.launcher import HOST, LaunchedServers, LaunchOptions, vllm_command
from backends.vllm import HttpEngine, connections

EMULATED = (sys.executable, "-m", "backends.emulated", "--model", "m")


class Serving(Protocol):
    def __call__(
        self, command: Sequence[str] = EMULATED, machine: Gpus | None = None, **options: Any
    ) -> LaunchedServers: ...


@pytest.fixture
async def servers() -> AsyncIterator[Serving]:
    """Makes clusters, and ends them."""
    made: list[LaunchedServers] = []
    async with connections(2.0) as session:

        def make(command: Sequence[str] = EMULATED, machine: Gpus | None = None, **options: Any) -> LaunchedServers:
            chosen = LaunchOptions(command=command, **{"grace": 1.0, "ready": 20.0, **options})
            made.append(LaunchedServers(chosen, connect=lambda url: HttpEngine(url, session), gpus=machine))
            return made[-1]

        yield make
        for cluster in made:
            await cluster.aclose()


def script(text: str) -> tuple[str, ...]:
    return sys.executable, "-c", text


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def gone(pid: int, within: float = 10.0) -> bool:
    deadline = time.monotonic() + within
    while alive(pid) and time.monotonic() < deadline:  # noqa: ASYNC110 - the kernel sends no event
        await asyncio.sleep(0.02)
    return not alive(pid)


async def test_servers_start_on_ports_of_their_own_answer_and_end(servers: Serving) -> None:
    cluster = servers()
    one, two = await asyncio.gather(cluster.start("p/0"), cluster.start("p/1"))
    assert isinstance(one, HttpEngine)
    assert isinstance(two, HttpEngine)
    assert one.url != two.url
    for engine in (one, two):
        assert (await engine.report()).running == 0
    await cluster.stop("p/0")
    with pytest.raises(BackendError):
        await one.check()
    await two.check()
    await cluster.aclose()
    await cluster.aclose()
    with pytest.raises(BackendError):
        await two.check()


async def test_a_server_that_ends_by_itself_is_noticed_and_can_be_started_again(
    servers: Serving,
) -> None:
    cluster = servers()
    engine = await cluster.start("p/0")
    assert isinstance(engine, HttpEngine)
    ended = asyncio.create_task(cluster.ended("p/0"))
    with pytest.raises(BackendError, match="there already"):
        await cluster.start("p/0")
    port = engine.url.rpartition(":")[2]
    os.kill(_server_at(port), signal.SIGKILL)
    await asyncio.wait_for(ended, 10)
    await cluster.stop("p/0")
    await (await cluster.start("p/0")).report()
    await cluster.aclose()


def _server_at(port: str) -> int:
    return next(
        int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _listens(entry, port)
    )


def _listens(entry: Path, port: str) -> bool:
    """Whether this process is the server at this port and not its keeper."""
    try:
        words = (entry / "cmdline").read_bytes().decode().split("\0")
    except OSError:
        return False
    return port in words and "backends.emulated" in words and "backends.keeper" not in words


async def test_what_a_server_said_last_is_in_the_log_when_it_does_not_start(
    servers: Serving, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    failing = script("import sys; print('no such model: x'); sys.exit(3)")
    cluster = servers(failing, logs=tmp_path / "logs")
    with pytest.raises(BackendError, match="status 3"):
        await cluster.start("p/0")
    assert "no such model: x" in caplog.text
    assert "no such model: x" in (tmp_path / "logs" / "p-0.log").read_text()
    with pytest.raises(BackendError, match="status 127"):
        await servers(("/no/such/command",)).start("p/0")
    assert "/no/such/command: No such file" in caplog.text
    await cluster.aclose()


async def test_a_server_that_is_never_ready_is_ended(servers: Serving, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    cluster = servers(
        script(f"import os, time; open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(60)"),
        ready=1.0,
    )
    with pytest.raises(BackendError, match="not ready within 1 s"):
        await cluster.start("p/0")
    assert await gone(int(note.read_text()))


async def test_starts_take_turns(servers: Serving) -> None:
    cluster = servers(stagger=0.4)
    began = time.monotonic()
    await asyncio.gather(*(cluster.start(f"p/{number}") for number in range(3)))
    assert time.monotonic() - began >= 0.8
    await cluster.aclose()


async def test_a_start_that_is_cancelled_leaves_no_process(servers: Serving, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    cluster = servers(script(f"import os, time; open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(60)"))
    starting = asyncio.create_task(cluster.start("p/0"))
    while not (note.exists() and note.read_text()):  # noqa: ASYNC110 - another process writes it
        await asyncio.sleep(0.01)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert await gone(int(note.read_text()))


FAMILY = """
import os, signal, subprocess, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer
signal.signal(signal.SIGTERM, signal.SIG_IGN)
children = [subprocess.Popen(["sleep", "600"], start_new_session=own) for own in (False, True)]
open({note!r}, "w").write(" ".join(str(pid) for pid in [os.getpid(), *(child.pid for child in children)]))
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *_): pass
HTTPServer(("127.0.0.1", int(sys.argv[-1])), Handler).serve_forever()
"""
"""A server that does not heed SIGTERM, with processes in its session and out of it."""


async def test_a_stubborn_server_ends_with_all_that_it_has_started(servers: Serving, tmp_path: Path) -> None:
    note = tmp_path / "pids"
    cluster = servers(script(FAMILY.format(note=str(note))), grace=0.3)
    await cluster.start("p/0")
    pids = [int(pid) for pid in note.read_text().split()]
    assert len(pids) == 3
    assert all(map(alive, pids))
    await cluster.aclose()
    assert [await gone(pid) for pid in pids] == [True] * 3


GATEWAY = """
import asyncio, os, sys
from backends.launcher import LaunchedServers, LaunchOptions
from backends.vllm import HttpEngine, connections
async def main():
    async with connections(2.0) as session:
        options = LaunchOptions(command=[sys.executable, "-c", {family!r}], grace=0.3)
        await LaunchedServers(options, connect=lambda url: HttpEngine(url, session)).start("p/0")
        print("up", flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_nothing_outlives_a_gateway_however_it_ends(tmp_path: Path, number: signal.Signals) -> None:
    note = tmp_path / "pids"
    text = GATEWAY.format(family=FAMILY.format(note=str(note)))
    process = await asyncio.create_subprocess_exec(*script(text), stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    assert await process.stdout.readline() == b"up\n"
    pids = [int(pid) for pid in note.read_text().split()]
    process.send_signal(number)
    await process.communicate()
    assert [await gone(pid) for pid in pids] == [True] * 3


async def test_each_server_sees_the_gpus_that_it_was_given(servers: Serving, tmp_path: Path) -> None:
    text = FAMILY.replace("{note!r}", "os.environ['NOTE']").replace(
        'write(" ".join', 'write(os.environ["CUDA_VISIBLE_DEVICES"] or " ".join'
    )
    gpus, seen = Gpus(("0", "1", "2")), tmp_path / "seen"
    cluster = servers(script(text), machine=gpus, grace=0.1, gpus=2, env={"NOTE": str(seen)})
    await cluster.start("p/0")
    assert seen.read_text() == "0,1"
    with pytest.raises(BackendError, match="2 of 3 GPUs cannot be had"):
        await cluster.start("p/1")
    await cluster.stop("p/0")
    await cluster.start("p/1")


def test_shares_fill_a_device_before_they_take_another() -> None:
    gpus = Gpus(("0", "1"))
    held = [gpus.take(0.5) for _ in range(4)]
    assert [one.devices for one in held] == [("0",), ("0",), ("1",), ("1",)]
    with pytest.raises(BackendError):
        gpus.take(0.5)
    held[2].give_back()
    held[2].give_back()
    assert gpus.take(0.5).devices == ("1",)
    held[0].give_back()
    with pytest.raises(BackendError):
        gpus.take(1)
    held[1].give_back()
    with pytest.raises(BackendError):
        gpus.take(1, among=["1"])
    assert gpus.take(1).environment == {"CUDA_VISIBLE_DEVICES": "0"}
    assert Gpus(()).take(0).environment == {}


def test_the_gpus_of_a_machine_are_those_that_may_be_seen(tmp_path: Path) -> None:
    assert devices_of_this_machine({"CUDA_VISIBLE_DEVICES": "3, GPU-5"}) == ("3", "GPU-5")
    assert devices_of_this_machine({"CUDA_VISIBLE_DEVICES": ""}) == ()
    for name in ("nvidia10", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert devices_of_this_machine({}, tmp_path) == ("0", "1")


def test_the_command_of_a_vllm_server_tells_what_is_asked_of_it() -> None:
    base = ["vllm", "serve", "/m", "--host", HOST, "--served-model-name", "m", "--enable-prompt-tokens-details"]

    def command(priority: bool = False, gpus: float = 0.0, args: Sequence[str] = ()) -> list[str]:
        found = vllm_command(
            command=["vllm", "serve"], model="/m", served="m", args=args, priority=priority, gpus=gpus
        )
        assert found[: len(base)] == base
        return found[len(base) :]

    assert command() == command(gpus=1) == []
    assert command(priority=True, args=["--x"]) == ["--scheduling-policy", "priority", "--x"]
    assert command(gpus=0.5) == ["--gpu-memory-utilization", "0.45"]
    assert command(gpus=4) == ["--tensor-parallel-size", "4"]


async def test_a_log_that_cannot_be_written_takes_no_gpu(servers: Serving, tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file")
    machine = Gpus(("0",))
    cluster = servers(machine=machine, gpus=1, logs=tmp_path / "logs")
    for _ in range(2):
        with pytest.raises((BackendError, OSError)):
            await cluster.start("p/0")
    assert machine.take(1)
