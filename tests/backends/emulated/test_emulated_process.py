"""The engine as a process of its own: its command line, its end, and the cluster that spawns it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import fields
from pathlib import Path

import aiohttp
import pytest

from backends.base import BackendError, Request
from backends.emulated.cluster import EmulatedCluster
from backends.emulated.faults import COUNTED, PLAIN
from backends.emulated.options import EmulatedOptions
from backends.vllm import HttpEngine
from policies.calls import Call

SCRIPT = {
    "tasks": {"generate": "SQL"},
    "marker": "Question:",
    "entries": {"how many?": [{"task": "generate", "say": "forty-two"}]},
}


@asynccontextmanager
async def process(*flags: str) -> AsyncIterator[tuple[Process, str]]:
    """A running engine and its URL; it is killed when it has not ended by itself."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "backends.emulated", *flags, stdin=PIPE, stdout=PIPE, stderr=PIPE
    )
    assert child.stdout
    try:
        ready = json.loads(await child.stdout.readline())
        assert ready == {"event": "ready", "url": ready["url"], "model": "tiny"}
        yield child, ready["url"]
    finally:
        if child.returncode is None:
            child.kill()
        await child.communicate()


async def test_the_command_serves_its_script_until_it_is_told_to_stop(tmp_path: Path) -> None:
    file = tmp_path / "script.json"
    file.write_text(json.dumps(SCRIPT))
    async with process("--model=tiny", f"--script={file}", "--max-model-len=500", "--seed=3") as (child, url):
        async with aiohttp.ClientSession() as session:
            async with session.get(url + "/v1/models") as response:
                assert (await response.json())["data"][0]["max_model_len"] == 500
            async with session.post(url + "/v1/completions", json={"prompt": "SQL\nQuestion: how many?"}) as response:
                assert (await response.json())["choices"][0]["text"] == "forty-two"
        child.terminate()
        assert await child.wait() == 0
        assert child.stderr
        assert await child.stderr.read() == b""


async def test_the_process_ends_when_its_parent_is_gone() -> None:
    async with process("--model=tiny", "--with-parent") as (child, _):
        assert child.stdin
        child.stdin.write(b"not the end\n")
        child.stdin.close()
        assert await child.wait() == 0


async def test_the_process_can_be_made_to_crash() -> None:
    async with process("--model=tiny", "--faults") as (child, url), aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await session.post(url + "/emulated/exit")
        assert await child.wait() == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--block-size=0"], "block_size must be at least 1"),
        (["--time-scale=0"], "time_scale must be above 0"),
        (["--decode-step=-1"], "decode_step must not be negative"),
        (["--max-model-len=1"], "max_model_len must be at least 2"),
        (["--script=/nowhere/script.json"], "/nowhere/script.json: cannot be read"),
        (["--host=203.0.113.1"], "Cannot assign requested address"),
    ],
)
def test_a_start_that_cannot_be_says_why(flags: list[str], message: str) -> None:
    command = [sys.executable, "-m", "backends.emulated", *flags]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert message in ended.stderr.splitlines()[-1]
    assert ended.stdout == ""


@asynccontextmanager
async def cluster(options: EmulatedOptions) -> AsyncIterator[EmulatedCluster]:
    async with aiohttp.ClientSession() as session:
        engines = EmulatedCluster(model="tiny", options=options, connect=lambda url: HttpEngine(url, session))
        try:
            yield engines
        finally:
            await engines.aclose()


async def test_a_cluster_starts_engines_that_work_and_stops_them() -> None:
    async with cluster(EmulatedOptions(num_gpu_blocks=50, faults=True)) as engines:
        engine, other = await asyncio.gather(engines.start("one"), engines.start("two"))
        assert list(engines.urls()) == ["one", "two"]
        body = b'{"prompt": "<<echo:hello>>"}'
        call, headers = Call(id="c", pool="p", run="r", arrived=0.0), (("content-type", "application/json"),)
        request = Request(call=call, path="/v1/completions", body=body, headers=headers)
        async with engine.open(request) as reply:
            assert reply.status == 200
            assert json.loads(b"".join([chunk async for chunk in reply.chunks]))["choices"][0]["text"] == "hello"
        report = await engine.report()
        assert (report.running, report.waiting, report.kv_use) == (0, 0, 0.0)
        assert report.counters["generation_tokens"] == 2
        with pytest.raises(BackendError, match="there already"):
            await engines.start("one")
        await engines.stop("one")
        await engines.stop("unknown")
        with pytest.raises(BackendError):
            await engine.report()
        assert (await other.report()).counters["generation_tokens"] == 0
        assert list(engines.urls()) == ["two"]
        await engines.aclose()
        with pytest.raises(BackendError):
            await other.report()
        await engines.start("one")


async def test_an_engine_that_cannot_start_is_an_error_without_its_paths(caplog: pytest.LogCaptureFixture) -> None:
    async with cluster(EmulatedOptions(script="/nowhere/script.json")) as engines:
        with pytest.raises(BackendError) as caught:
            await engines.start("one")
        assert str(caught.value) == "the engine one did not start"
        assert not caught.value.retryable
        assert "/nowhere/script.json: cannot be read" in caplog.text
        assert not engines.urls()


async def test_a_start_that_is_given_up_leaves_no_process_behind() -> None:
    async with cluster(EmulatedOptions()) as engines:
        start = asyncio.create_task(engines.start("one"))
        while not (children := await asyncio.to_thread(children_of, os.getpid())):
            pass
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        assert not children & children_of(os.getpid())
        assert not engines.urls()
        await engines.start("one")


@pytest.mark.parametrize("stubborn", [True, False])
async def test_an_engine_that_does_not_end_when_asked_is_made_to(
    stubborn: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backends.emulated.cluster.GRACE", 0.2 if stubborn else 60)
    caplog.set_level(logging.WARNING)
    async with cluster(EmulatedOptions()) as engines:
        before = children_of(os.getpid())
        await engines.start("one")
        (child,) = children_of(os.getpid()) - before
        assert os.getpgid(child) == child  # a Ctrl-C in the terminal does not reach it
        # A stopped process leaves SIGTERM pending; only SIGKILL reaches it.
        os.kill(child, signal.SIGSTOP if stubborn else signal.SIGKILL)
        await engines.stop("one")
        assert child not in children_of(os.getpid())
    assert "ended with status -9" in caplog.text


def children_of(parent: int) -> set[int]:
    """The live child processes, from /proc."""
    found: set[int] = set()
    for task in Path(f"/proc/{parent}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that ended meanwhile; the others have its children
            found.update(int(child) for child in (task / "children").read_text().split())
    return found


def test_flags_and_options_are_one_list() -> None:
    options = EmulatedOptions(seed=5, script="a b.json", faults=True)
    flags = options.flags()
    assert "--script=a b.json" in flags
    assert "--faults" in flags
    assert "--seed=5" in flags
    assert not any("script" in flag or "faults" in flag for flag in EmulatedOptions().flags())


def test_every_flag_and_every_fault_is_in_the_documentation() -> None:
    page = (Path(__file__).parents[3] / "docs" / "emulated.md").read_text()
    rows = {row.split("`")[1]: row for row in page.splitlines() if row.startswith("| `")}
    for option in fields(EmulatedOptions):
        row = rows["--" + option.name.replace("_", "-")]
        assert option.metadata["help"] in row.replace("`", "")
        if type(option.default) in (int, float):
            assert float(row.split("|")[2]) == option.default
    assert {*PLAIN, *(f"{name}=N" for name in COUNTED)} <= set(rows)
