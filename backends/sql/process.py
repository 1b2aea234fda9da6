"""A child process that answers one request at a time over its pipes and can be killed at any moment.

A frame is four bytes of length, big end first, then that many bytes. The parent's first frame is the child's
configuration; the child answers it when it is ready, and then every request with one frame, before which it may send
parts: frames whose length has its highest bit set. An empty frame asks the child to give up the request in hand,
whose answer then comes early.

A pipe holds 64 kB, and the parent reads ahead by about as much: a child whose parts nobody takes waits.

The child lives no longer than its parent: a thread of its own reads the pipe, also while a request runs, and ends
the process when the pipe closes. It is started afresh, never forked: the parent has threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import struct
import sys
import threading
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable, Iterator
from typing import BinaryIO, Final, Protocol

from backends.base import BackendError

MAX_FRAME: Final = 64 * 1024 * 1024
_LENGTH: Final = struct.Struct(">I")
_PART: Final = 1 << 31
_READY: Final = b"ready"

Part = Callable[[bytes], None]


class Service(Protocol):
    """What a child does."""

    def handle(self, request: bytes, part: Part) -> bytes:
        """Answer one request. Whatever it raises ends the process.

        What is given to `part`, from whichever thread, goes ahead of the answer; it waits while the parent is slow.
        """
        ...

    def interrupt(self) -> None:
        """Make `handle` return soon. Called from another thread, also when nothing is in hand."""
        ...


class StartFailed(Exception):
    """The child cannot do its work with this configuration; the message goes to the parent."""


class Child:
    """The parent's end. One request at a time; after any failure only `kill` is left.

    A wait that was cancelled can be taken up again by `receive`: no frame is ever read by half.
    """

    def __init__(self, process: Process) -> None:
        if process.stdin is None or process.stdout is None:
            raise ValueError("a child needs both its pipes")
        self._process = process
        self._to_child = process.stdin
        self._from_child = process.stdout
        self._head: int | None = None

    @classmethod
    async def spawn(cls, module: str, configuration: bytes, *, timeout: float) -> Child:
        """Run a module that calls `serve`, and wait until it is ready. Raises BackendError."""
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", module, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, start_new_session=True
            )
        except OSError:
            raise BackendError("a process cannot be started", trouble="refused", retryable=True) from None
        child = cls(process)
        try:
            answer = await child.ask(configuration, timeout)
            if answer != _READY:
                raise BackendError(answer.decode(errors="replace"), trouble="refused", retryable=True)
        except BaseException:
            await child.kill()
            raise
        return child

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.returncode is None and not self._from_child.at_eof()

    async def ask(self, request: bytes, timeout: float) -> bytes:
        """Send a request and wait for its answer, `timeout` seconds in all. Parts are passed over.

        Raises BackendError: `timeout`, or `broken` when the child ended.
        """
        with _troubles():
            async with asyncio.timeout(timeout):
                await self._send(request)
                return await self._answer()

    async def send(self, request: bytes, timeout: float) -> None:
        """Send a request whose frames are to be fetched with `receive`. Raises BackendError as `ask` does."""
        with _troubles():
            async with asyncio.timeout(timeout):
                await self._send(request)

    async def answer(self, timeout: float) -> bytes:
        """The answer to the request in hand, what is left of its parts passed over. Raises BackendError as `ask`."""
        with _troubles():
            async with asyncio.timeout(timeout):
                return await self._answer()

    async def receive(self, timeout: float) -> tuple[bytes, bool]:
        """The next frame, and whether it is the answer and not a part. Raises BackendError as `ask` does."""
        with _troubles():
            async with asyncio.timeout(timeout):
                return await self._receive()

    async def _send(self, request: bytes) -> None:
        self._to_child.write(_LENGTH.pack(len(request)) + request)
        await self._to_child.drain()

    async def _answer(self) -> bytes:
        while True:
            frame, last = await self._receive()
            if last:
                return frame

    async def _receive(self) -> tuple[bytes, bool]:
        if self._head is None:
            (self._head,) = _LENGTH.unpack(await self._from_child.readexactly(_LENGTH.size))
        length = self._head & ~_PART
        if length > MAX_FRAME:
            raise BackendError("the child does not keep to the protocol", trouble="broken", retryable=False)
        frame = await self._from_child.readexactly(length)
        last = not self._head & _PART
        self._head = None
        return frame, last

    def interrupt(self) -> None:
        """Ask the child to give up the request in hand. Its answer is still to be read."""
        with contextlib.suppress(OSError):
            self._to_child.write(_LENGTH.pack(0))

    async def kill(self) -> None:
        """End the process and wait until it is gone. Idempotent."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._to_child.close()
        await self._process.wait()
        with contextlib.suppress(OSError):
            await self._to_child.wait_closed()


@contextlib.contextmanager
def _troubles() -> Iterator[None]:
    try:
        yield
    except TimeoutError:
        raise BackendError("no answer in time", trouble="timeout", retryable=False) from None
    except (asyncio.IncompleteReadError, OSError):
        raise BackendError("the child ended", trouble="broken", retryable=False) from None


def serve(start: Callable[[bytes], Service]) -> None:
    """The child's end: never returns. `start` takes the configuration and may raise StartFailed."""
    requests, answers = _take_pipes()
    configuration = _read(requests)
    if configuration is None:
        os._exit(0)
    try:
        service = start(configuration)
    except StartFailed as error:
        _write(answers, str(error).encode())
        os._exit(1)
    _write(answers, _READY)
    waiting: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests, waiting, service), daemon=True).start()
    writing = threading.Lock()

    def part(frame: bytes) -> None:
        with writing:
            _write(answers, frame, _PART)

    while True:
        answer = service.handle(waiting.get(), part)
        with writing:
            _write(answers, answer)


def _take_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Keep the pipes for frames only: whatever else reads or prints gets the null device."""
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    return requests, answers


def _listen(requests: BinaryIO, waiting: queue.SimpleQueue[bytes], service: Service) -> None:
    while (frame := _read(requests)) is not None:
        if frame:
            waiting.put(frame)
        else:
            service.interrupt()
    os._exit(0)


def _read(pipe: BinaryIO) -> bytes | None:
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    body = pipe.read(length)
    return body if len(body) == length else None


def _write(pipe: BinaryIO, frame: bytes, mark: int = 0) -> None:
    pipe.write(_LENGTH.pack(len(frame) | mark) + frame)
    pipe.flush()
