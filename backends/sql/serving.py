"""The child's end of `backends.sql.process`: takes one request at a time from its pipe and answers it.

It lives no longer than its parent: a thread of its own reads the pipe of interrupts, also while a request runs, and
ends the process when that pipe closes. A request is read by the thread that runs it: to hand each over would cost as
much as a short statement does.
"""

from __future__ import annotations

import itertools
import os
import struct
import sys
import threading
from collections.abc import Callable
from typing import BinaryIO, Final, Protocol

LENGTH: Final = struct.Struct(">I")
PART: Final = 1 << 31
READY: Final = b"ready"

Part = Callable[[bytes], None]


class Service(Protocol):
    """What a child does."""

    def handle(self, request: bytes, part: Part) -> bytes:
        """Answer one request. Whatever it raises ends the process.

        What is given to `part`, from whichever thread, goes ahead of the answer; it waits while the parent is slow.
        """
        ...

    def begin(self) -> None:
        """A request is about to be handled: what `interrupt` says from now on concerns it."""
        ...

    def interrupt(self) -> None:
        """Make `handle` return soon, also where it has not got far yet. Called from another thread."""
        ...


class StartFailed(Exception):
    """The child cannot do its work with this configuration; the message goes to the parent."""


class _Hand:
    """The request in hand, by its number: an interrupt that comes late must not hit the next one."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._changing = threading.Lock()
        self._number: int | None = None
        self._given_up = -1

    def take(self, number: int) -> bool:
        """Take a request up, unless it is given up already."""
        with self._changing:
            if self._given_up == number:
                return False
            self._number = number
            self._service.begin()
            return True

    def drop(self) -> None:
        with self._changing:
            self._number = None

    def give_up(self, number: int) -> None:
        with self._changing:
            self._given_up = number
            if self._number == number:
                self._service.interrupt()


def serve(start: Callable[[bytes], Service]) -> None:
    """Never returns. `start` takes the configuration and may raise StartFailed."""
    requests, answers = _take_pipes()
    configuration = _read(requests)
    if configuration is None:
        os._exit(0)
    try:
        service = start(configuration)
    except StartFailed as error:
        _write(answers, str(error).encode())
        os._exit(1)
    hand = _Hand(service)
    interrupts = os.fdopen(int(sys.argv[1]), "rb")
    threading.Thread(target=_heed, args=(interrupts, hand), daemon=True).start()
    _write(answers, READY)
    writing = threading.Lock()

    def part(frame: bytes) -> None:
        with writing:
            _write(answers, frame, PART)

    for number in itertools.count():
        request = _read(requests)
        if request is None:
            os._exit(0)
        answer = service.handle(request, part) if hand.take(number) else b""
        hand.drop()
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


def _heed(interrupts: BinaryIO, hand: _Hand) -> None:
    while len(number := interrupts.read(LENGTH.size)) == LENGTH.size:
        hand.give_up(*LENGTH.unpack(number))
    os._exit(0)


def _read(pipe: BinaryIO) -> bytes | None:
    head = pipe.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(head)
    body = pipe.read(length)
    return body if len(body) == length else None


def _write(pipe: BinaryIO, frame: bytes, mark: int = 0) -> None:
    pipe.write(LENGTH.pack(len(frame) | mark) + frame)
    pipe.flush()
