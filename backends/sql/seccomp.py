"""The system calls that a worker may not make, as a filter that the kernel runs on each of them.

A list of what is denied and not of what is allowed: what Python, the C library and the engine call changes with each
version, and a worker that fails of an update would be switched off as a whole. What is denied is what starts a
process, reaches the network or another process, changes a file or its name, or changes the system. Threads may be
started: the filter holds in them too.

Numbers are those of the kernel's tables `unistd_64.h` (x86_64) and `asm-generic/unistd.h` (aarch64).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_X86: Final = 0
_ARM: Final = 1
_MACHINES: Final = {"x86_64": (_X86, 0xC000003E), "aarch64": (_ARM, 0xC00000B7)}
"""By the kernel's name: the column of the table below, and how the kernel tells its calls from foreign ones."""

# name: (x86_64, aarch64); None where a machine has no such call
_DENIED: Final[dict[str, tuple[int | None, int | None]]] = {
    # network
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "accept": (43, 202), "accept4": (288, 242), "sendto": (44, 206), "sendmsg": (46, 211), "sendmmsg": (307, 269),
    # a queue of calls that no filter sees
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    # processes, its own and others
    "execve": (59, 221), "execveat": (322, 281), "fork": (57, None), "vfork": (58, None), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kill": (62, 129), "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "pidfd_send_signal": (424, 424),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438),
    # files: making, naming, changing
    "creat": (85, None), "mkdir": (83, None), "mkdirat": (258, 34), "mknod": (133, None), "mknodat": (259, 33),
    "link": (86, None), "linkat": (265, 37), "symlink": (88, None), "symlinkat": (266, 36), "rename": (82, None),
    "renameat": (264, 38), "renameat2": (316, 276), "unlink": (87, None), "unlinkat": (263, 35), "rmdir": (84, None),
    "truncate": (76, 45), "ftruncate": (77, 46), "fallocate": (285, 47), "memfd_create": (319, 279),
    "open_by_handle_at": (304, 265), "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53),
    "fchmodat2": (452, 452), "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14),
    "lremovexattr": (198, 15), "fremovexattr": (199, 16), "utime": (132, None), "utimes": (235, None),
    "futimesat": (261, None), "utimensat": (280, 88),
    # the system
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "move_mount": (429, 429),
    "open_tree": (428, 428), "fsopen": (430, 430), "fsmount": (432, 432), "mount_setattr": (442, 442),
    "unshare": (272, 97), "setns": (308, 268), "bpf": (321, 280), "perf_event_open": (298, 241),
    "userfaultfd": (323, 282), "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225),
    "acct": (163, 89), "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266),
    "adjtimex": (159, 171), "sethostname": (170, 161), "setdomainname": (171, 162), "iopl": (172, None),
    "ioperm": (173, None), "setrlimit": (160, 164),
}  # fmt: skip

# Their arguments lie in memory, where no filter looks. Told that there are none, the C library uses the old ones.
_UNKNOWN: Final[dict[str, tuple[int | None, int | None]]] = {"clone3": (435, 435), "openat2": (437, 437)}

_CLONE_THREAD: Final = 0x10000
_WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

_LOAD: Final = 0x20  # a word of the call's description
_EQUAL: Final = 0x15
_AT_LEAST: Final = 0x35
_ANY_BIT: Final = 0x45
_RETURN: Final = 0x06
_ALLOW: Final = 0x7FFF0000
_KILL: Final = 0x80000000
_FAIL: Final = 0x00050000
_X32: Final = 0x40000000
_NUMBER_AT: Final = 0
_MACHINE_AT: Final = 4
_ARGUMENTS_AT: Final = 16


@dataclass(frozen=True, slots=True)
class _Conditional:
    """A call that is allowed by the low half of one of its arguments: compared with `value`, it must say `wanted`."""

    numbers: tuple[int | None, int | None]
    argument: int
    comparison: int
    value: int
    wanted: bool


def _conditional(pid: int) -> tuple[_Conditional, ...]:
    return (
        _Conditional((2, None), 1, _ANY_BIT, _WRITING, False),  # open: for reading
        _Conditional((257, 56), 2, _ANY_BIT, _WRITING, False),  # openat: for reading
        _Conditional((56, 220), 0, _ANY_BIT, _CLONE_THREAD, True),  # clone: a thread
        _Conditional((234, 131), 0, _EQUAL, pid, True),  # tgkill: itself, as abort does
        _Conditional((302, 261), 2, _EQUAL, 0, True),  # prlimit64: asking, not setting
    )


def install(libc: ctypes.CDLL) -> bool:
    """Put the filter on every thread of this process, for good. Needs `no_new_privs`. False where it cannot be."""
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        return False
    code = program(*machine, pid=os.getpid())
    count = len(code) // 8
    text = ctypes.create_string_buffer(code, len(code))
    description = struct.pack("HxxxxxxP", count, ctypes.addressof(text))
    number = (317, 277)[machine[0]]
    set_filter, on_every_thread = 1, 1
    installed: int = libc.syscall(
        ctypes.c_long(number), ctypes.c_ulong(set_filter), ctypes.c_ulong(on_every_thread), description
    )
    return installed == 0


def program(column: int, machine: int, *, pid: int) -> bytes:
    """The filter for one machine and process, in the kernel's instructions of eight bytes."""
    return b"".join(_instructions(column, machine, pid))


def _instructions(column: int, machine: int, pid: int) -> Iterator[bytes]:
    yield _step(_LOAD, _MACHINE_AT)
    yield _step(_EQUAL, machine, skip_if=1)
    yield _step(_RETURN, _KILL)  # calls of another machine's table, which has other numbers
    yield _step(_LOAD, _NUMBER_AT)
    if column == _X86:
        yield _step(_AT_LEAST, _X32, skip_unless=1)
        yield _step(_RETURN, _FAIL | errno.ENOSYS)  # the same calls by other numbers
    for table, error in ((_DENIED, errno.EPERM), (_UNKNOWN, errno.ENOSYS)):
        for numbers in table.values():
            if (number := numbers[column]) is not None:
                yield _step(_EQUAL, number, skip_unless=1)
                yield _step(_RETURN, _FAIL | error)
    for rule in _conditional(pid):
        if (number := rule.numbers[column]) is not None:
            yield _step(_EQUAL, number, skip_unless=4)
            yield _step(_LOAD, _ARGUMENTS_AT + 8 * rule.argument)
            yield _step(rule.comparison, rule.value, skip_if=int(rule.wanted), skip_unless=int(not rule.wanted))
            yield _step(_RETURN, _FAIL | errno.EPERM)
            yield _step(_RETURN, _ALLOW)
    yield _step(_RETURN, _ALLOW)


def _step(code: int, value: int, *, skip_if: int = 0, skip_unless: int = 0) -> bytes:
    return struct.pack("HBBI", code, skip_if, skip_unless, value)
