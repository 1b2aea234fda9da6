"""Takes from a worker process what its kernel lets a process without rights give away: the network, and files.

The order: the namespace first, since a process with threads cannot change it; then Landlock, by which only the named
folders can be read and nothing can be written; the filter of system calls last, since it denies what the others
need. Each holds in the threads that are started after it. What the kernel does not have or does not allow is left
out: a worker is never kept from starting.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from stat import S_ISDIR
from typing import TYPE_CHECKING, Final

import orjson

from backends.sql import answers, seccomp

if TYPE_CHECKING:
    from backends.sql.process import Child

_ANSWER: Final = 5.0  # seconds

_NO_NEW_PRIVILEGES: Final = 38
_NEW_USER: Final = 0x10000000
_NEW_NETWORK: Final = 0x40000000

# Landlock has the same numbers on every machine.
_CREATE_RULESET: Final = 444
_ADD_RULE: Final = 445
_RESTRICT_SELF: Final = 446
_ASK_VERSION: Final = 1
_BENEATH: Final = 1
_READ_FILE: Final = 1 << 2
_READ_FOLDER: Final = 1 << 3
_FILE_RIGHTS: Final = (13, 14, 15, 15, 16)
"""How many rights over files the versions 1 to 5 know, and all later ones so far."""
_TCP: Final = 0b11  # bind, connect

_MACHINE: Final = ("/proc/self/cgroup", "/sys/fs/cgroup", "/sys/devices/system/cpu")
"""What the engine and the C library read of memory and processors. DuckDB 2.0 aborts without the first of them."""
_SCOPES: Final = 0b11  # abstract sockets, signals


@dataclass(frozen=True, slots=True, kw_only=True)
class Confinement:
    """What is in force. `landlock` is its version, 0 for none."""

    landlock: int = 0
    seccomp: bool = False
    network_namespace: bool = False

    def __str__(self) -> str:
        parts = (
            f"landlock v{self.landlock}" if self.landlock else "no landlock",
            "seccomp" if self.seccomp else "no seccomp",
            "network namespace" if self.network_namespace else "no network namespace",
        )
        return ", ".join(parts)


def confine(readable: Iterable[str]) -> Confinement:
    """Confine this process and all its later threads, for good. `readable`: folders, with all beneath them."""
    if sys.platform != "linux":
        return Confinement()
    libc = ctypes.CDLL(None, use_errno=True)
    network_namespace = _leave_network(libc)
    if libc.prctl(_NO_NEW_PRIVILEGES, *(ctypes.c_ulong(word) for word in (1, 0, 0, 0))) != 0:
        return Confinement(network_namespace=network_namespace)
    landlock = _restrict_files(libc, [*readable, *code_folders(), *_MACHINE])
    return Confinement(landlock=landlock, seccomp=seccomp.install(libc), network_namespace=network_namespace)


def code_folders() -> list[str]:
    """Where Python and its packages lie: some modules are imported only when a value of their type comes up."""
    paths = sysconfig.get_paths()
    own = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    return sorted({os.path.realpath(paths[name]) for name in ("stdlib", "platstdlib", "purelib", "platlib")} | {own})


def _leave_network(libc: ctypes.CDLL) -> bool:
    """Go to a network of its own, which has no devices.

    Root goes alone: in a user namespace of its own it could no longer read files that belong to others.
    """
    flags = _NEW_NETWORK if os.geteuid() == 0 else _NEW_NETWORK | _NEW_USER
    left: int = libc.unshare(flags)
    return left == 0


def _restrict_files(libc: ctypes.CDLL, readable: Iterable[str]) -> int:
    """The version of Landlock in force, 0 for none."""
    version: int = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _ASK_VERSION)
    if version < 1:
        return 0
    rights = (1 << _FILE_RIGHTS[min(version, len(_FILE_RIGHTS)) - 1]) - 1
    handled = struct.pack("=QQQ", rights, _TCP, _SCOPES)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset: int = libc.syscall(_CREATE_RULESET, handled, ctypes.c_size_t(size), 0)
    if ruleset < 0:
        return 0
    try:
        for path in readable:
            _allow_reading(libc, ruleset, path)
        restricted: int = libc.syscall(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    return version if restricted == 0 else 0


def _allow_reading(libc: ctypes.CDLL, ruleset: int, path: str) -> None:
    with contextlib.suppress(OSError):  # what is not there cannot be read
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        is_folder = S_ISDIR(os.fstat(place).st_mode)
        rights = _READ_FILE | _READ_FOLDER if is_folder else _READ_FILE
        libc.syscall(_ADD_RULE, ruleset, _BENEATH, struct.pack("=Qi", rights, place), 0)
        if is_folder:  # a file under /proc stays open: forgotten by the kernel, it would come back as another one
            os.close(place)


async def confinement_of(worker: Child) -> tuple[str, Mapping[str, str]]:
    """What is in force in a worker with nothing in hand, in its own words, and which databases it could not open.

    Raises BackendError.
    """
    _, body = answers.split(await worker.ask(b'{"op":"confinement"}', _ANSWER))
    said = orjson.loads(body)
    return str(said["confinement"]), dict(said["amiss"])
