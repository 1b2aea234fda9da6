"""Runs one command, and lets nothing of it outlive whoever started it: `python -m backends.keeper GRACE COMMAND …`.

A server may start processes of its own which do not notice that it was killed. The keeper holds all of them: it is
told to end by the end of its standard input, which comes however its parent ends, or by SIGTERM. Then the command's
session gets SIGTERM, after GRACE seconds SIGKILL, and so does whatever has left the session. The keeper ends with the
command's status, 128 and the number where that was a signal.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Final

_CHILD_SUBREAPER: Final = 36
_DEATH_SIGNAL: Final = 1
_EVERY: Final = 0.05


def main(grace: float, command: list[str]) -> int:
    """Run the command until it ends or is to be ended."""
    _control(_CHILD_SUBREAPER, 1)  # what its processes leave behind comes here
    ending, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    child = _spawn(command)
    status = None
    while status is None:
        ready, _, _ = select.select([0, ending], [], [])
        status = _reaped(child)
        if status is None and (0 in ready or set(os.read(ending, 4096)) - {signal.SIGCHLD}):
            status = _ended(child, grace)
    _sweep()
    return status


def _spawn(command: list[str]) -> int:
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        _control(_DEATH_SIGNAL, signal.SIGKILL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.execvp(command[0], command)  # noqa: S606
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
    os._exit(127)


def _ended(child: int, grace: float) -> int:
    """End the command's session, gently at first."""
    _signal_all(child, signal.SIGTERM)
    deadline = time.monotonic() + grace
    while (status := _reaped(child)) is None:
        if time.monotonic() > deadline:
            _signal_all(child, signal.SIGKILL)
        time.sleep(_EVERY)
    return status


def _sweep() -> None:
    """End what is left of the command's processes; all of them are our children by now, or will be."""
    while left := _children():
        for child in left:
            _signal_all(child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(_EVERY)


def _children() -> list[int]:
    try:
        return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    except OSError:  # another system, or a kernel that does not tell
        return []


def _signal_all(child: int, number: int) -> None:
    for send in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            send(child, number)


def _reaped(child: int) -> int | None:
    """How the command ended, if it has; others that came here are let go on the way."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return 0
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        if not pid:
            return None


def _control(option: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):  # on Linux only
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
