"""Two real vLLM servers with a small model of random weights, started once by the project's own launcher."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Self

import aiohttp
import pytest

from backends.launcher import CPU_ARGS, ON_A_CPU, LaunchedServers, LaunchOptions, vllm_command
from backends.vllm import HttpEngine, connections

ROOT = Path(__file__).parents[2]
VLLM = Path(os.environ.get("CORTEX_VLLM", ROOT / ".vllm"))
MODEL = "tiny"
SIZE = ("--hidden", "512", "--layers", "6")
BLOCK, BLOCKS, LONGEST = 32, 400, 2560
ENVIRONMENT = {**ON_A_CPU, "VLLM_SERVER_DEV_MODE": "1"}  # sleep
ARGS = [
    *(*CPU_ARGS, "--max-model-len", str(LONGEST), "--num-gpu-blocks-override", str(BLOCKS)),
    *("--enable-request-id-headers", "--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small model."""
    folder = tmp_path_factory.mktemp("model")
    python = VLLM / "bin" / "python"
    assert python.exists(), f"{VLLM} has no vLLM: run `make vllm`"
    subprocess.run([python, ROOT / "deploy/vllm/make_model.py", folder, *SIZE], check=True, capture_output=True)
    return folder


def options(model: Path, *more: str) -> LaunchOptions:
    """How a server of the model is started."""
    program = [str(VLLM / "bin" / "vllm"), "serve"]
    command = vllm_command(command=program, model=str(model), served=MODEL, args=[*ARGS, *more], priority=True)
    return LaunchOptions(command=command, env=ENVIRONMENT, ready=300.0)


class Pair:
    """Two servers on a loop of their own, so that the tests' loops may come and go."""

    def __init__(self, chosen: LaunchOptions) -> None:
        self._options = chosen
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._ended = asyncio.Event()
        self._up: Future[list[str]] = Future()
        self.urls: list[str] = []

    def start(self) -> None:
        self._thread.start()
        self._task = asyncio.run_coroutine_threadsafe(self._run(), self._loop)
        self.urls = self._up.result(timeout=600)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._task.result(timeout=60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _run(self) -> None:
        try:
            async with connections(2.0) as session:
                cluster = LaunchedServers(self._options, connect=lambda url: HttpEngine(url, session))
                try:
                    engines = await asyncio.gather(*(cluster.start(f"real/{number}") for number in range(2)))
                    self._up.set_result([engine.url for engine in engines if isinstance(engine, HttpEngine)])
                    await self._ended.wait()
                finally:
                    await cluster.aclose()
        except BaseException as error:
            if not self._up.done():
                self._up.set_exception(error)
            raise


class Relay:
    """A port that leads to a server until it is closed: the server itself is for the tests that come after."""

    def __init__(self, url: str) -> None:
        self._target = url.removeprefix("http://").rpartition(":")
        self._passing: set[asyncio.Task[None]] = set()
        self.url = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        self._server.close()
        for task in self._passing:
            task.cancel()
        await asyncio.gather(*self._passing, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._passing.add(task)
        task.add_done_callback(self._passing.discard)
        theirs, ours = await asyncio.open_connection(self._target[0], int(self._target[2]))
        try:
            await asyncio.gather(_pass(reader, ours), _pass(theirs, writer))
        except (ConnectionError, asyncio.CancelledError):
            pass  # either side may go first
        finally:
            ours.close()
            writer.close()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(65536):
        writer.write(piece)
        await writer.drain()
    writer.close()


@pytest.fixture(scope="session")
def pair(model: Path) -> Iterator[Pair]:
    """Two servers that are ready."""
    made = Pair(options(model))
    made.start()
    yield made
    made.stop()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with connections(2.0) as made:
        yield made
