"""The command as a process: how it starts, what it says, and that it leaves nothing behind however it ends."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.cli import main
from tests.gateway.shop import COUNT, warehouse
from tests.gateway.support import MODEL, chat, children, until, written

pytestmark = pytest.mark.traced

CHAT = "/v1/chat/completions"
START = 30.0
"""Seconds that a gateway may take to come up on a machine that is busy with other things."""


@dataclass(slots=True)
class Command:
    """A `cortex serve` that listens."""

    process: Process
    url: str = ""
    said: list[str] = field(default_factory=list)

    def offspring(self) -> set[int]:
        return children("backends.", self.process.pid)

    async def read(self, until_line: str) -> None:
        """Read its log up to a line that holds the words."""
        assert self.process.stderr
        async with asyncio.timeout(START):
            while line := (await self.process.stderr.readline()).decode():
                self.said.append(line.rstrip())
                if until_line in line:
                    return
        raise AssertionError(f"it ended without {until_line!r}: {self.said}")


def configuration(folder: Path, **server: Any) -> Path:
    pool = {"model": MODEL, "backend": {"name": "emulated", "decode_step": "10ms"}, "engines": {"min": 1, "max": 2}}
    path = folder / "cortex.yaml"
    path.write_text(
        written({"default": pool, "warehouse": warehouse(folder)}, server={"port": 0, **server}, workflows={"w": {}})
    )
    return path


@asynccontextmanager
async def command(*words: str, **environ: str) -> AsyncIterator[Command]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", *words), stderr=PIPE, stdout=PIPE, env={**os.environ, **environ}
    )
    try:
        yield Command(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@asynccontextmanager
async def serving(folder: Path, **server: Any) -> AsyncIterator[tuple[Command, httpx.AsyncClient]]:
    async with command("serve", "--config", str(configuration(folder, **server))) as cortex:
        await cortex.read("point your OpenAI client at")
        found = re.search(r"base_url=(http://\S+)/v1", cortex.said[-1])
        assert found
        cortex.url = found[1]
        async with httpx.AsyncClient(base_url=cortex.url, timeout=START, trust_env=False) as http:
            yield cortex, http


async def ran(*words: str, **environ: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a command that ends by itself."""
    async with command(*words, **environ) as cortex:
        async with asyncio.timeout(START):
            out, err = await cortex.process.communicate()
        assert cortex.process.returncode is not None
        return cortex.process.returncode, out.decode(), err.decode()


def alive(pids: set[int]) -> set[int]:
    return {pid for pid in pids if Path(f"/proc/{pid}").exists() and not _zombie(pid)}


def _zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


async def test_it_starts_says_what_is_up_and_finishes_an_open_stream_when_it_is_told_to_stop(tmp_path: Path) -> None:
    async with serving(tmp_path) as (cortex, http):
        said = "\n".join(cortex.said)
        assert re.search(r"pool default +1 of 1 engines ready \(max 2\), model cortex-emulated", said)
        assert re.search(r"pool warehouse +1 of 1 engines ready \(max 1\)", said)
        assert re.search(r"workflow w", said)
        assert f"listening on {cortex.url}" in said
        assert (await http.get("/ready")).json() == {"status": "ready"}
        assert (await http.post("/v1/sql", json={"sql": COUNT})).json()["rows"] == [[4]]
        offspring = cortex.offspring()
        assert len(offspring) == 3, "an engine, a worker, and the reader of statements"
        body = chat("<<echo:abc >>", max_tokens=150, stream=True)
        async with http.stream("POST", CHAT, json=body) as reply:
            lines = reply.aiter_lines()
            while "abc" not in await anext(lines):
                pass
            cortex.process.terminate()
            rest = [line async for line in lines]
        assert rest[-2:] == ["data: [DONE]", ""]
        assert sum('"content"' in line for line in rest) > 100
        await cortex.read("stopping, 1 calls open")
        await cortex.read("cortex stopped")
        async with asyncio.timeout(START):
            assert await cortex.process.wait() == 0
        assert alive(offspring) == set()


async def test_a_stream_that_outlasts_the_grace_ends_with_an_error_and_not_in_silence(tmp_path: Path) -> None:
    async with serving(tmp_path, graceful_shutdown="1s") as (cortex, http):
        offspring = cortex.offspring()
        async with http.stream("POST", CHAT, json=chat("<<echo:abc >>", max_tokens=30_000, stream=True)) as reply:
            lines = reply.aiter_lines()
            while "abc" not in await anext(lines):
                pass
            cortex.process.terminate()
            rest = [line async for line in lines]
        assert json.loads(rest[-2].removeprefix("data: "))["error"]["message"] == "the gateway is shutting down"
        async with asyncio.timeout(START):
            assert await cortex.process.wait() == 0
        assert alive(offspring) == set()


async def test_while_it_ends_it_is_not_ready_and_takes_no_new_connection(tmp_path: Path) -> None:
    async with serving(tmp_path) as (cortex, http):
        body = chat("<<echo:abc >>", max_tokens=200, stream=True)
        async with http.stream("POST", CHAT, json=body) as reply:
            lines = reply.aiter_lines()
            while "abc" not in await anext(lines):
                pass
            cortex.process.send_signal(signal.SIGINT)

            async def refused() -> bool:
                try:
                    async with httpx.AsyncClient(trust_env=False) as other:
                        return (await other.get(f"{cortex.url}/ready")).status_code == 503
                except httpx.TransportError:
                    return True

            async with asyncio.timeout(START):
                while not await refused():  # noqa: ASYNC110 - what is waited for happens in another process
                    await asyncio.sleep(0.01)
            assert [line async for line in lines][-2:] == ["data: [DONE]", ""]
        async with asyncio.timeout(START):
            assert await cortex.process.wait() == 0


async def test_a_gateway_that_is_killed_takes_its_engines_and_workers_with_it(tmp_path: Path) -> None:
    body = chat("<<echo:abc >>", max_tokens=20_000, stream=True)
    async with serving(tmp_path) as (cortex, http), http.stream("POST", CHAT, json=body) as reply:
        assert reply.status_code == 200
        offspring = cortex.offspring()
        assert len(offspring) == 3
        cortex.process.kill()
        await cortex.process.wait()
        await until(lambda: not alive(offspring), "the end of all its processes", within=START)


async def test_a_port_that_is_taken_is_said_in_one_line_and_before_anything_is_started(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        path = configuration(tmp_path, journal=str(journal))
        status, out, err = await ran("serve", "--config", str(path), "--port", str(port))
    assert (status, out) == (2, "")
    assert err == f"cannot listen on 127.0.0.1:{port}: Address already in use\n"
    assert not journal.exists()


@pytest.mark.parametrize(("option", "value"), [("--port", "99999"), ("--host", "0.0.0.0")])
def test_an_option_is_checked_as_the_file_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    assert main(["serve", "--config", str(configuration(tmp_path)), option, value]) == 2
    shown = capsys.readouterr()
    assert (shown.out, shown.err.count("\n")) == ("", 1)
    assert shown.err.startswith(f"{option}: ")


def test_check_warns_of_a_database_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = configuration(tmp_path)
    missing = tmp_path / "shop.duckdb"
    missing.unlink()
    assert main(["check", str(path)]) == 0
    assert capsys.readouterr() == (
        f"{path}: ok (2 pools, 1 workflow)\n",
        f"warning: pools.warehouse.backend.databases.shop: no such file: {missing}\n",
    )


def test_check_warns_of_a_folder_without_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = configuration(tmp_path)
    (tmp_path / "shop.duckdb").unlink()
    (tmp_path / "shop.duckdb" / "orders").mkdir(parents=True)
    (tmp_path / "shop.duckdb" / "_unfinished.parquet").touch()
    assert main(["check", str(path)]) == 0
    assert "shop: no Parquet file in this folder, so it has no tables: " in capsys.readouterr().err
    (tmp_path / "shop.duckdb" / "orders" / "1.parquet").touch()
    assert main(["check", str(path)]) == 0
    assert capsys.readouterr().err == ""


def test_the_command_says_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("cortex 0.")


async def test_check_says_yes_in_one_line_and_no_in_one(tmp_path: Path) -> None:
    path = configuration(tmp_path)
    assert await ran("check", str(path)) == (0, f"{path}: ok (2 pools, 1 workflow)\n", "")
    path.write_text("pools:\n  default:\n    model: m\n    backend: {name: vlm}\n")
    status, out, err = await ran("check", str(path))
    assert (status, out) == (2, "")
    assert err.startswith(f"{path}:4: pools.default.backend: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "words", [("check", "nowhere.yaml"), ("serve", "nowhere.yaml"), ("serve", "--config", "nowhere.yaml")]
)
def test_a_file_that_is_not_there_is_said_in_one_line(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    shown = capsys.readouterr()
    assert (shown.out, shown.err.count("\n")) == ("", 1)
    assert "nowhere.yaml" in shown.err


async def test_a_journal_that_cannot_be_opened_is_said_in_one_line(tmp_path: Path) -> None:
    path = configuration(tmp_path, journal=str(tmp_path / "nowhere" / "journal"))
    status, out, err = await ran("serve", "--config", str(path))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "server.journal" in err


@pytest.mark.parametrize("words", [(), ("serve", "--nonsense"), ("serve", "--port", "x")])
def test_a_command_that_makes_no_sense_is_refused_with_what_does(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert "usage: cortex" in capsys.readouterr().err


async def test_a_command_that_does_not_exist_is_refused_by_the_ones_that_do() -> None:
    status, out, err = await ran("fly")
    assert (status, out) == (2, "")
    assert "usage: cortex" in err
    assert all(word in err for word in ("serve", "check", "demo"))
