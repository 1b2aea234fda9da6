"""What the kernel takes from a worker, each part alone and all together, in processes that confine themselves."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import socket
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.sql import sandbox, seccomp
from backends.sql.engine import SqlCluster
from backends.sql.options import LAYERS, SqlOptions
from backends.sql.process import Child
from backends.sql.sandbox import Confinement
from backends.sql.worker import confine
from tests.backends.sql.hostile import SECRET, Hostile, prepare, statements

ROOT = Path(__file__).parents[3]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has these")

# Says of each thing that a process may try whether it worked, by the main thread and by one started later.
_TRIES = """
import os, socket, subprocess, sys, threading
from backends.sql import sandbox

folder = sys.argv[1]

def address(family, kind):
    with socket.socket(family, kind) as made:
        made.connect(("127.0.0.1", int(sys.argv[2])))

def thread():
    other = threading.Thread(target=str)
    other.start()
    other.join()

def run():
    for name, attempt in {
        "connect": lambda: address(socket.AF_INET, socket.SOCK_STREAM),
        "read in": lambda: open(f"{folder}/allowed/ok.csv").close(),
        "list in": lambda: os.listdir(f"{folder}/allowed"),
        "read out": lambda: open(f"{folder}/secret/s.csv").close(),
        "list out": lambda: os.listdir(f"{folder}/secret"),
        "read environ": lambda: open("/proc/self/environ").close(),
        "write in": lambda: open(f"{folder}/allowed/ok.csv", "a").close(),
        "create in": lambda: open(f"{folder}/allowed/new", "w").close(),
        "create out": lambda: open(f"{folder}/secret/new", "w").close(),
        "remove": lambda: os.unlink(f"{folder}/allowed/spare"),
        "chmod": lambda: os.chmod(f"{folder}/allowed/ok.csv", 0o600),
        "run": lambda: subprocess.run(["true"], check=True),
        "fork": lambda: os.fork() or os._exit(0),
        "signal": lambda: os.kill(os.getppid(), 0),
        "memory file": lambda: os.memfd_create("x"),
        "thread": thread,
        "code": lambda: open(os.__file__).close(),
    }.items():
        try:
            attempt()
        except OSError as error:
            print(name, "-", error.errno, sep="|")
        else:
            print(name, "ok", 0, sep="|")

print(sandbox.confine([f"{folder}/allowed"]))
run()
later = threading.Thread(target=run)
later.start()
later.join()
"""
_WITHOUT_SECCOMP = "from backends.sql import seccomp\nseccomp.install = lambda libc: False\n"
_WITHOUT_LANDLOCK = "from backends.sql import sandbox\nsandbox._restrict_files = lambda libc, readable: 0\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    prepare(tmp_path)
    (tmp_path / "allowed" / "spare").touch()
    return tmp_path


def _run(script: str, *arguments: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def _allowed(script: str, folder: Path) -> tuple[str, set[str]]:
    """What is in force, and what worked; asserts that a later thread may do just what the first one may."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        force, *lines = _run(script, str(folder), str(server.getsockname()[1]))
    half = len(lines) // 2
    worked = [{line.split("|")[0] for line in part if "|ok|" in line} for part in (lines[:half], lines[half:])]
    assert worked[0] - {"remove"} == worked[1] - {"remove"}
    return force, worked[0]


@LINUX
def test_a_confined_process_reads_its_folders_starts_threads_and_does_nothing_else(folder: Path) -> None:
    force, allowed = _allowed(_TRIES, folder)
    if "no landlock" in force or "no seccomp" in force:
        pytest.skip(f"this kernel allows only: {force}")
    assert allowed == {"read in", "list in", "thread", "code"}
    assert (folder / "allowed" / "ok.csv").read_text() == f"a\n{SECRET}\n"
    assert not (folder / "allowed" / "new").exists()


@LINUX
def test_landlock_alone_keeps_to_the_folders_and_makes_no_file(folder: Path) -> None:
    force, allowed = _allowed(_WITHOUT_SECCOMP + _TRIES, folder)
    if "no landlock" in force:
        pytest.skip(f"this kernel allows only: {force}")
    assert "no seccomp" in force
    assert not allowed & {"read out", "list out", "read environ", "write in", "create in", "create out", "remove"}
    assert allowed >= {"read in", "list in", "thread", "chmod", "memory file"}


@LINUX
def test_the_filter_alone_denies_network_processes_and_changes(folder: Path) -> None:
    force, allowed = _allowed(_WITHOUT_LANDLOCK + _TRIES, folder)
    if "no seccomp" in force:
        pytest.skip(f"this kernel allows only: {force}")
    assert "no landlock" in force
    assert allowed == {"read in", "list in", "read out", "list out", "read environ", "thread", "code"}


async def test_a_worker_says_what_is_in_force(options: SqlOptions) -> None:
    for layers, words in [(LAYERS, _in_force_here()), (LAYERS - {"sandbox"}, str(Confinement()))]:
        asked = replace(options, layers=layers)
        worker = await Child.spawn("backends.sql.worker", asked.to_json(), timeout=20)
        assert await sandbox.confinement_of(worker) == (words, {})
        await worker.kill()


def _in_force_here() -> str:
    """What this machine allows, as a process says that confines itself."""
    (line,) = _run("from backends.sql.sandbox import confine\nprint(confine([]))\n")
    return line


async def test_a_pool_logs_once_what_is_in_force(options: SqlOptions, caplog: pytest.LogCaptureFixture) -> None:
    cluster = SqlCluster(options)
    with caplog.at_level("INFO", logger="cortex.sql"):
        for name in ("a", "b"):
            await cluster.start(name)
    await cluster.aclose()
    assert caplog.messages == [f"sql worker: {_in_force_here()}"]


@LINUX
def test_what_is_confined_already_can_be_confined_again() -> None:
    twice = "from backends.sql.sandbox import confine\nprint(confine([]))\nprint(confine(['/nowhere']))\n"
    first, second = _run(twice)
    if "no seccomp" in first:
        pytest.skip(f"this kernel allows only: {first}")
    assert "no network namespace" in second  # the filter denies to leave for another one


@pytest.mark.slow
@pytest.mark.untraced
@LINUX
def test_duckdb_without_any_setting_reaches_nothing_from_a_confined_process(folder: Path) -> None:
    """The sandbox by itself: every hostile statement as it came, at an engine that would do as it is told."""
    reaching = [_text(each, folder) for each in statements() if each.reaches]
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    (folder / "statements").write_text("\0".join(reaching))
    script = """
import resource, sys, threading
import duckdb
from backends.sql import sandbox
texts = open(sys.argv[1]).read().split("\\0")
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
force = sandbox.confine([])
print(force)
for text in texts:
    # One for each: what one of them sets, another would meet. Installing retries for seconds what the kernel denies.
    connection = duckdb.connect(config={"autoinstall_known_extensions": "false"})
    connection.execute("create table t as select 1 as id, 1 as g, 'a' as name")
    watch = threading.Timer(0.2, connection.interrupt)
    watch.start()
    try:
        print(repr(connection.execute(text).fetchmany(5)))
    except duckdb.Error as error:
        print(type(error).__name__)
    watch.cancel()
    connection.close()
print("end")
"""
    force, *answers = _run(script, str(folder / "statements"))
    (folder / "statements").unlink()
    if "no landlock" in force:
        pytest.skip(f"this kernel allows only: {force}")
    assert answers[-1] == "end"
    assert not [line for line in answers if SECRET in line or "root:" in line]
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def _text(hostile: Hostile, folder: Path) -> str:
    return hostile.text(folder).replace("\0", " ")


def test_a_kernel_that_refuses_everything_confines_nothing_and_fails_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def __init__(self, *_: object, **__: object) -> None:
            self.allowed = 0

        def prctl(self, *_: object) -> int:
            return -1 if self.allowed < 1 else 0

        def unshare(self, *_: object) -> int:
            return -1

        def syscall(self, number: object, *_: object) -> int:
            return -1

    monkeypatch.setattr(ctypes, "CDLL", Refusing)
    assert sandbox.confine(["/"]) == Confinement()
    monkeypatch.setattr(Refusing, "prctl", lambda *_: 0)
    assert sandbox.confine(["/"]) == Confinement()
    monkeypatch.setattr(Refusing, "syscall", lambda _self, _number, first=None, *_: 3 if first is None else -1)
    assert sandbox.confine(["/"]) == Confinement()
    monkeypatch.setattr(platform, "machine", lambda: "pdp11")
    assert sandbox.confine(["/"]) == Confinement()
    monkeypatch.setattr(sys, "platform", "beos")
    assert sandbox.confine(["/"]) == Confinement()


@pytest.mark.parametrize(
    ("version", "size", "rights"), [(1, 8, 13), (3, 8, 15), (4, 16, 15), (5, 16, 16), (9, 24, 16)]
)
def test_an_older_kernel_is_asked_only_for_what_it_knows(
    version: int, size: int, rights: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[object, ...]] = []

    class Kernel:
        def syscall(self, number: int, *arguments: object) -> int:
            asked.append((number, *arguments))
            if number == 444:
                return version if arguments[0] is None else os.open(os.devnull, os.O_RDONLY)
            return 0

    libc: Any = Kernel()
    assert sandbox._restrict_files(libc, [str(tmp_path), "/nowhere"]) == version
    _, ruleset, rule, restrict = asked
    handled, length = ruleset[1:3]
    assert isinstance(length, ctypes.c_size_t)
    assert length.value == size
    assert isinstance(handled, bytes)
    assert struct.unpack_from("=Q", handled)[0] == (1 << rights) - 1
    assert (rule[0], restrict[0]) == (445, 446)
    monkeypatch.setattr(Kernel, "syscall", lambda _self, number, *_: {446: -1, 444: os.dup(0)}.get(number, 0))
    assert sandbox._restrict_files(libc, []) == 0


def test_the_limits_of_a_worker_come_before_its_sandbox(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[object] = []
    monkeypatch.setattr(resource, "setrlimit", lambda which, bounds: done.append((which, bounds[0])))
    monkeypatch.setattr(sandbox, "confine", lambda readable: done.append(list(readable)))
    options = SqlOptions(databases={"file": str(scratch), "folder": str(scratch.parent)}, address_space=2**31)
    confine(options)
    bounds: dict[int, int] = dict(each for each in done[:-1] if isinstance(each, tuple))
    assert bounds.pop(resource.RLIMIT_NOFILE) <= 512
    assert bounds == {resource.RLIMIT_AS: 2**31, resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0}
    assert done[-1] == [str(scratch.parent)] * 2
    done.clear()
    assert confine(replace(options, layers=frozenset())) == Confinement()
    assert done == []


def test_what_is_in_force_is_one_line() -> None:
    assert str(Confinement()) == "no landlock, no seccomp, no network namespace"
    whole = Confinement(landlock=6, seccomp=True, network_namespace=True)
    assert str(whole) == "landlock v6, seccomp, network namespace"


_THREAD = 0x3D0F00
_ALLOW, _EPERM, _ENOSYS, _KILL = 0x7FFF0000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS, 0x80000000


@pytest.mark.parametrize(
    ("machine", "call", "arguments", "verdict"),
    [
        ("x86_64", 0, (), _ALLOW),  # read
        ("x86_64", 41, (2, 1, 0), _EPERM),  # socket
        ("x86_64", 59, (), _EPERM),  # execve
        ("x86_64", 56, (_THREAD,), _ALLOW),  # clone
        ("x86_64", 56, (17,), _EPERM),
        ("x86_64", 435, (), _ENOSYS),  # clone3
        ("x86_64", 2, (0, os.O_RDONLY | 0o2000000), _ALLOW),  # open
        ("x86_64", 2, (0, os.O_WRONLY), _EPERM),
        ("x86_64", 257, (0, 0, os.O_RDONLY), _ALLOW),  # openat
        ("x86_64", 257, (0, 0, os.O_RDONLY | os.O_CREAT), _EPERM),
        ("x86_64", 257, (0, 0, os.O_RDWR), _EPERM),
        ("x86_64", 234, (7, 8, 6), _ALLOW),  # tgkill
        ("x86_64", 234, (9, 8, 6), _EPERM),
        ("x86_64", 302, (0, 7, 0, 1), _ALLOW),  # prlimit64
        ("x86_64", 302, (0, 7, 0x7FFE1000, 0), _EPERM),
        ("x86_64", 0x40000000 | 41, (), _ENOSYS),  # socket by its other number
        ("aarch64", 63, (), _ALLOW),  # read
        ("aarch64", 198, (2, 1, 0), _EPERM),  # socket
        ("aarch64", 221, (), _EPERM),  # execve
        ("aarch64", 220, (_THREAD,), _ALLOW),  # clone
        ("aarch64", 220, (17,), _EPERM),
        ("aarch64", 56, (0, 0, os.O_RDONLY), _ALLOW),  # openat
        ("aarch64", 56, (0, 0, os.O_RDWR), _EPERM),
        ("aarch64", 41, (), _EPERM),  # pivot_root here, socket there
        ("aarch64", 57, (), _ALLOW),  # close here, fork there
    ],
)
def test_the_filter_decides_by_machine_number_and_arguments(
    machine: str, call: int, arguments: tuple[int, ...], verdict: int
) -> None:
    column, audit = seccomp._MACHINES[machine]
    program = seccomp.program(column, audit, pid=7)
    assert _verdict(program, audit, call, arguments) == verdict
    assert _verdict(program, audit ^ 1, call, arguments) == _KILL


def _verdict(program: bytes, audit: int, call: int, arguments: tuple[int, ...]) -> int:
    """Run a filter as the kernel does."""
    data = struct.pack("=IIQ6Q", call, audit, 0, *arguments, *(0,) * (6 - len(arguments)))
    steps = list(struct.iter_unpack("HBBI", program))
    word = place = 0
    while True:
        code, skip_if, skip_unless, value = steps[place]
        place += 1
        if code == 0x06:
            return int(value)
        if code == 0x20:
            (word,) = struct.unpack_from("=I", data, value)
        else:
            holds = {0x15: word == value, 0x35: word >= value, 0x45: bool(word & value)}[code]
            place += skip_if if holds else skip_unless
