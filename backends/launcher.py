"""Starts servers that speak OpenAI's API, such as `vllm serve`, as engines of a pool, and ends them with it.

Each server is the command of a keeper (`backends.keeper`), on a port and on GPUs of its own, and writes into a file
of its own. It is ready when its `/health` says so. Whether an ended one is started again, and when, is for the
scheduler to say; starts take turns, since most of one is reading and compiling, which two do no faster.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from backends.base import BackendError, Engine
from backends.gpus import Gpus, Held

_log = logging.getLogger("cortex.engines")

HOST: Final = "127.0.0.1"
TAIL_LINES: Final = 20
_TAIL_BYTES: Final = 16_384
_ASK_EVERY: Final = 0.25
OFFLINE: Final[Mapping[str, str]] = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_HOST_IP": "127.0.0.1",
}
"""The environment of a vLLM server that asks nobody for anything."""
ON_A_CPU: Final[Mapping[str, str]] = {**OFFLINE, "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
CPU_ARGS: Final = (
    *("--enforce-eager", "--dtype", "float32", "--block-size", "32"),
    *("--kv-cache-memory-bytes", "64M", "--max-num-seqs", "16"),
)
"""What makes vLLM's CPU build fit for small servers side by side, a core each. In float32: many a CPU has no
instructions for bfloat16, and takes seven times as long with it."""
KV_EVENTS: Final = (
    '{"enable_kv_cache_events": true, "publisher": "zmq", '
    '"endpoint": "ipc://{folder}/{port}.kv", "replay_endpoint": "ipc://{folder}/{port}.replay"}'
)
"""Prompts can be read from these events: they go through files that nobody else may open."""
_END_MOST: Final = 10.0
"""Seconds that a keeper has, beyond its grace, to end what it keeps."""


class Launched(Engine, Protocol):
    """An engine that can be asked whether it is ready."""

    async def check(self) -> None:
        """Raises BackendError while it is not."""
        ...


class Sleep(Protocol):
    """How servers are put to sleep, by their address, and woken. Both raise BackendError where that fails."""

    async def sleep(self, url: str) -> None: ...

    async def wake(self, url: str) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchOptions:
    """How a pool's servers are started. Times in seconds.

    `command` is completed by `--port` and a number; in it `{port}` is that number too, and `{folder}` a folder that
    nobody else may enter. `env` comes on top of the gateway's own environment. `gpus` are
    those of one server as `Gpus.take` has them, `devices` those that may be chosen. A server has `ready` seconds to
    become ready, `grace` to end; `stagger` lie between two starts. Up to `asleep` of those that are stopped sleep
    instead. `logs` is the folder of their output, one of our own making where there is none.
    """

    command: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    gpus: float = 0.0
    devices: Sequence[str] = ()
    ready: float = 600.0
    grace: float = 10.0
    stagger: float = 0.0
    asleep: int = 0
    logs: Path | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class _Server:
    """A server by its keeper's process; `engine` once it is ready."""

    process: Process
    url: str
    output: Path
    gpus: Held
    engine: Launched | None = None


class LaunchedServers:
    """The servers of one pool. `connect` makes the engine that speaks to a URL; without `sleep` none is put to it."""

    def __init__(
        self,
        options: LaunchOptions,
        *,
        connect: Callable[[str], Launched],
        gpus: Gpus | None = None,
        sleep: Sleep | None = None,
    ) -> None:
        self._options = options
        self._sleep = sleep
        self._connect = connect
        self._gpus = gpus if gpus is not None else Gpus(())
        self._servers: dict[str, _Server | None] = {}
        self._asleep: list[_Server] = []
        self._bed = asyncio.Lock()
        self._turn = asyncio.Lock()
        self._next_start = 0.0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    async def start(self, name: str) -> Engine:
        """Wake or start a server, and wait until it is ready. Raises BackendError, also when the name is taken."""
        if name in self._servers:
            raise BackendError(f"the engine {name} is there already", trouble="refused", retryable=False)
        self._servers[name] = None
        try:
            while (sleeper := await self._sleeper()) is not None:
                self._servers[name] = sleeper
                if (woken := await self._woken(name, sleeper)) is not None:
                    return woken
            await self._take_turn()
            server = self._servers[name] = await self._spawn(name)
            server.engine = await self._ready(name, server)
        except BaseException:
            # Shielded, for a cancelled start must not leave a process behind.
            await asyncio.shield(self._stop(name))
            raise
        return server.engine

    async def ended(self, name: str) -> None:
        """Return when the server has ended, or at once for a name that is not there."""
        server = self._servers.get(name)
        if server is not None:
            await server.process.wait()
            _log.warning("engine ended engine=%s status=%s%s", name, server.process.returncode, _tail(server.output))

    async def stop(self, name: str) -> None:
        """Put the server of this name to sleep, or end it. Unknown names are ignored."""
        server = self._servers.get(name)
        if server is not None and await self._sleeps(name, server):
            self._servers.pop(name, None)
        else:
            await self._stop(name)

    async def aclose(self) -> None:
        """End all servers. Idempotent."""
        asleep, self._asleep = self._asleep, []
        await asyncio.gather(*map(self._stop, list(self._servers)), *map(self._end, asleep))
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    async def _stop(self, name: str) -> None:
        """End the server of this name. It keeps its name until it has ended, so that `aclose` finds it."""
        server = self._servers.get(name)
        if server is not None:
            await self._end(server)
        self._servers.pop(name, None)

    async def _end(self, server: _Server) -> None:
        if server.engine is not None:
            await server.engine.aclose()
        await _end(server.process, self._options.grace)
        server.gpus.give_back()

    async def _sleeps(self, name: str, server: _Server) -> bool:
        """Put a server to sleep, if it is one of those that shall be and can."""
        async with self._bed:
            if self._sleep is None or server.engine is None or len(self._asleep) >= self._options.asleep:
                return False
            try:
                await server.engine.check()  # one that hangs would take two minutes not to go to sleep
                await self._sleep.sleep(server.url)
            except BackendError as error:
                _log.warning("engine cannot sleep engine=%s reason=%s", name, error)
                return False
            await server.engine.aclose()
            server.engine = None
            self._asleep.append(server)
        _log.info("engine sleeps engine=%s pid=%d", name, server.process.pid)
        return True

    async def _sleeper(self) -> _Server | None:
        """A server that sleeps, or is just being put to sleep."""
        async with self._bed:
            return self._asleep.pop() if self._asleep else None

    async def _woken(self, name: str, server: _Server) -> Launched | None:
        """The engine of a server that slept; one that does not wake is ended."""
        assert self._sleep is not None
        try:
            await self._sleep.wake(server.url)
        except BackendError as error:
            _log.warning("engine did not wake engine=%s reason=%s%s", name, error, _tail(server.output))
            self._servers[name] = None
            await self._end(server)
            return None
        _log.info("engine wakes engine=%s pid=%d output=%s", name, server.process.pid, server.output)
        server.engine = self._connect(server.url)
        return server.engine

    async def _take_turn(self) -> None:
        async with self._turn:
            loop = asyncio.get_running_loop()
            await asyncio.sleep(max(0.0, self._next_start - loop.time()))
            self._next_start = loop.time() + self._options.stagger

    async def _spawn(self, name: str) -> _Server:
        options, port = self._options, _free_port()
        gpus = self._gpus.take(options.gpus, options.devices)
        try:
            output = self._output(name)
            command = [*(self._filled(word, port) for word in options.command), "--port", str(port)]
            with output.open("ab") as file:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "backends.keeper", str(options.grace), *command),
                    stdin=PIPE,
                    stdout=file,
                    stderr=file,
                    env={**os.environ, **options.env, **gpus.environment},
                    start_new_session=True,  # a Ctrl-C in the terminal is for the gateway
                )
        except BaseException as error:
            gpus.give_back()
            if isinstance(error, OSError):
                raise BackendError(
                    f"a server cannot be started: {error}", trouble="refused", retryable=True
                ) from None
            raise
        _log.info("engine starts engine=%s pid=%d output=%s", name, process.pid, output)
        return _Server(process=process, url=f"http://{HOST}:{port}", output=output, gpus=gpus)

    async def _ready(self, name: str, server: _Server) -> Launched:
        """Wait until the server says that it is. Its last words go to the log, not into the error."""
        engine = self._connect(server.url)
        ended = asyncio.ensure_future(server.process.wait())
        try:
            async with asyncio.timeout(self._options.ready):
                while not ended.done():
                    with contextlib.suppress(BackendError):
                        await engine.check()
                        return engine
                    await asyncio.wait([ended], timeout=_ASK_EVERY)
        except TimeoutError:
            _log.error("engine was not ready in time engine=%s%s", name, _tail(server.output))
            raise BackendError(
                f"the server was not ready within {self._options.ready:g} s", trouble="timeout", retryable=False
            ) from None
        finally:
            ended.cancel()
        status = server.process.returncode
        _log.error("engine did not start engine=%s status=%s%s", name, status, _tail(server.output))
        raise BackendError(f"the server ended with status {status}", trouble="broken", retryable=False)

    def _filled(self, word: str, port: int) -> str:
        if "{folder}" in word:
            word = word.replace("{folder}", str(self._private()))
        return word.replace("{port}", str(port))

    def _private(self) -> Path:
        self._folder = self._folder or tempfile.TemporaryDirectory(prefix="cortex-")
        return Path(self._folder.name)

    def _output(self, name: str) -> Path:
        if self._options.logs is not None:
            folder = self._options.logs
            folder.mkdir(parents=True, exist_ok=True)
        else:
            folder = self._private()
        return folder / f"{name.replace('/', '-')}.log"


async def _end(process: Process, grace: float) -> None:
    """Let the keeper end its command, and kill it where it does not."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        async with asyncio.timeout(grace + _END_MOST):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _free_port() -> int:
    """A port that nobody listens at now. Where somebody else takes it first, the server ends and is started anew."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _tail(output: Path) -> str:
    """The last lines that a server has written, each on a line of its own."""
    try:
        with output.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return "".join(f"\n  {line}" for line in lines[-TAIL_LINES:])


def vllm_command(
    *,
    command: Sequence[str],
    model: str,
    served: str,
    args: Sequence[str],
    priority: bool,
    gpus: float = 0.0,
    sleeps: bool = False,
    kv_events: bool = False,
) -> list[str]:
    """The command of a vLLM server that tells what the gateway asks of it; `args` come last and win.

    A share of a GPU is so much of its memory, less a tenth for what is not counted; several GPUs share each layer.
    """
    words = [*command, model, "--host", HOST, "--served-model-name", served, "--enable-prompt-tokens-details"]
    if priority:
        words += ["--scheduling-policy", "priority"]
    if sleeps:
        words.append("--enable-sleep-mode")
    if kv_events:
        words += ["--kv-events-config", KV_EVENTS]
    if 0 < gpus < 1:
        words += ["--gpu-memory-utilization", f"{0.9 * gpus:.3g}"]
    elif gpus > 1:
        words += ["--tensor-parallel-size", f"{gpus:g}"]
    return [*words, *args]
