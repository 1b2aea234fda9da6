"""A child process that answers one request at a time over its pipes and can be killed at any moment.

A frame is four bytes of length, big end first, then that many bytes. The parent's first frame is the child's
configuration; the child answers it when it is ready, and then every request with one frame, before which it may send
parts: frames whose length has its highest bit set. A third pipe tells the child which request to give up: its number,
from 0, in four bytes. The answer to that one then comes early.

A pipe holds 64 kB, and the parent reads ahead by about as much: a child whose parts nobody takes waits. The child's
end is `backends.sql.serving`. It is started afresh, never forked: the parent has threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections import deque
from collections.abc import Iterator
from typing import Final, cast

from backends.base import BackendError
from backends.patience import Patience
from backends.sql.serving import LENGTH, PART, READY

MAX_FRAME: Final = 64 * 1024 * 1024
_AHEAD: Final = 64 * 1024
_ENDING: Final = 1.0
"""Seconds from the end of a child's last word to its own."""


class _Line(asyncio.SubprocessProtocol):
    """What a child says, frame by frame. One reader at a time."""

    def __init__(self) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.closed = False
        self._bytes = bytearray()
        self._frames: deque[tuple[bytes, bool]] = deque()
        self._held = 0
        self._paused = False
        self._reader: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.SubprocessTransport, transport)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self._bytes += data
        while (frame := self._cut()) is not None:
            self._frames.append(frame)
            self._held += len(frame[0])
        if self._frames:
            self._wake()
            if self._held > _AHEAD and not self._paused:
                self._paused = True
                self._pipe().pause_reading()

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        if fd == 1:
            self.closed = True
            self._wake()

    def process_exited(self) -> None:
        self.closed = True
        self._wake()
        if not self.ended.done():
            self.ended.set_result(None)

    async def next(self) -> tuple[bytes, bool]:
        """The next frame, and whether it is an answer and not a part. Raises EOFError when the child has ended."""
        while not self._frames:
            if self.closed:
                raise EOFError
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        frame = self._frames.popleft()
        self._held -= len(frame[0])
        if self._paused and self._held <= _AHEAD:
            self._paused = False
            if not self.closed:
                self._pipe().resume_reading()
        return frame

    def _cut(self) -> tuple[bytes, bool] | None:
        """The first frame of what has come, if it is whole."""
        if len(self._bytes) < LENGTH.size:
            return None
        (head,) = LENGTH.unpack_from(self._bytes)
        length = head & ~PART
        if length > MAX_FRAME:
            self.closed = True  # it does not keep to the protocol
            return None
        end = LENGTH.size + length
        if len(self._bytes) < end:
            return None
        frame = bytes(self._bytes[LENGTH.size : end])
        del self._bytes[:end]
        return frame, not head & PART

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _pipe(self) -> asyncio.ReadTransport:
        return cast(asyncio.ReadTransport, self._transport.get_pipe_transport(1))


class Child:
    """The parent's end. One request at a time; after any failure only `kill` is left.

    A wait that was cancelled can be taken up again by `receive`.
    """

    def __init__(self, transport: asyncio.SubprocessTransport, line: _Line, interrupts: int) -> None:
        self._transport = transport
        self._line = line
        self._to_child = cast(asyncio.WriteTransport, transport.get_pipe_transport(0))
        self._interrupts: int | None = interrupts
        self._sent = 0

    @classmethod
    async def spawn(cls, module: str, configuration: bytes, *, timeout: float) -> Child:
        """Run a module that calls `serve`, and wait until it is ready. Raises BackendError."""
        try:
            reading, writing = os.pipe()
        except OSError:
            raise BackendError("a process cannot be started", trouble="refused", retryable=True) from None
        os.set_blocking(writing, False)
        try:
            transport, line = await asyncio.get_running_loop().subprocess_exec(
                _Line,
                *(sys.executable, "-m", module, str(reading)),
                stdin=PIPE,
                stdout=PIPE,
                stderr=DEVNULL,
                start_new_session=True,
                pass_fds=(reading,),
            )
        except BaseException as error:
            os.close(writing)
            if not isinstance(error, OSError):
                raise
            raise BackendError("a process cannot be started", trouble="refused", retryable=True) from None
        finally:
            os.close(reading)
        child = cls(transport, line, writing)
        try:
            answer = await child.ask(configuration, timeout)
            if answer != READY:
                raise BackendError(answer.decode(errors="replace"), trouble="refused", retryable=True)
        except BaseException:
            await child.kill()
            raise
        return child

    @property
    def pid(self) -> int:
        return self._transport.get_pid()

    @property
    def alive(self) -> bool:
        return not self._line.closed

    @property
    def ended_by(self) -> int | None:
        """The signal that has ended it."""
        code = self._transport.get_returncode()
        return -code if code is not None and code < 0 else None

    def send(self, request: bytes) -> None:
        """Send a request whose frames are to be fetched with `receive`."""
        self._sent += 1
        self._to_child.write(LENGTH.pack(len(request)) + request)

    async def ask(self, request: bytes, timeout: float) -> bytes:
        """Send a request and wait for its answer, `timeout` seconds in all. Parts are passed over.

        Raises BackendError: `timeout`, or `broken` when the child ended.
        """
        self.send(request)
        return await self.answer(timeout)

    async def answer(self, timeout: float) -> bytes:
        """The answer to the request in hand, what is left of its parts passed over. Raises BackendError as `ask`."""
        with _troubles(), Patience(timeout):
            while True:
                frame, last = await self._line.next()
                if last:
                    return frame

    async def receive(self, timeout: float) -> tuple[bytes, bool]:
        """The next frame, and whether it is the answer and not a part. Raises BackendError as `ask` does."""
        with _troubles(), Patience(timeout):
            return await self._line.next()

    def interrupt(self) -> None:
        """Ask the child to give up the request in hand. Its answer is still to be read."""
        if self._interrupts is not None:
            with contextlib.suppress(OSError):
                os.write(self._interrupts, LENGTH.pack(self._sent - 2))  # the configuration was no request

    async def kill(self) -> None:
        """End the process and wait until it is gone, even where whoever waits is cancelled. Idempotent."""
        try:
            if self._line.closed:  # to kill what is ending may lose how it ended
                self._hang_up()
                await asyncio.wait([self._line.ended], timeout=_ENDING)
        finally:
            with contextlib.suppress(ProcessLookupError):
                self._transport.kill()
            self._hang_up()  # not before: it would begin to end
            try:
                await asyncio.wait([self._line.ended])
            finally:  # a killed process is gone in a moment, and nobody else would wait for it
                await asyncio.wait([self._line.ended])
                self._transport.close()

    def _hang_up(self) -> None:
        if self._interrupts is not None:
            os.close(self._interrupts)
            self._interrupts = None


@contextlib.contextmanager
def _troubles() -> Iterator[None]:
    try:
        yield
    except TimeoutError:
        raise BackendError("no answer in time", trouble="timeout", retryable=False) from None
    except EOFError:
        raise BackendError("the child ended", trouble="broken", retryable=False) from None
