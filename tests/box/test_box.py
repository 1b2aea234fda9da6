"""The container without a container: the Dockerfile's own steps in a root of their own, and what they end in as it is
run there: by a user without rights, on files that can only be read.

What Docker does is done by `layers.sh` with overlayfs and a mount namespace, for which this has to be root.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.deploy.files import ROOT, SECRETS, compose, context, dockerfile, one, variables

BUILD, IMAGE = dockerfile()
LAYERS = Path(__file__).with_name("layers.sh")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
LIBRARY = "/var/lib/cortex"
START = 60.0
"""Seconds that a process may take to come up on a machine that is busy with other things."""
AUTH = {"Authorization": f"Bearer {SECRETS['CORTEX_API_KEY']}"}
CHAT = "/v1/chat/completions"

pytestmark = [pytest.mark.untraced, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]


@dataclass(frozen=True, slots=True)
class Box:
    """A root that is up, and what can be done in it."""

    folder: Path
    holder: Process

    @property
    def data(self) -> Path:
        return self.folder / "data"

    async def start(self, *words: str, **environ: str) -> Process:
        """A process as the image has it run: its user, its variables, and those given."""
        user, _, group = one(IMAGE, "USER").rest.partition(":")
        rights = ["--clear-groups", "--bounding-set=-all", "--no-new-privs"]
        enter = ["nsenter", f"--target={self.holder.pid}", "--mount", "--root", "--wd=/"]
        return await asyncio.create_subprocess_exec(
            *(*enter, "setpriv", f"--reuid={user}", f"--regid={group}", *rights, *words),
            stdout=PIPE,
            stderr=PIPE,
            env={**variables(IMAGE), **environ},
        )

    async def ran(self, *words: str, **environ: str) -> tuple[int | None, str]:
        """Status of a process that ends by itself, and all that it says."""
        process = await self.start(*words, **environ)
        async with asyncio.timeout(START):
            out, err = await process.communicate()
        return process.returncode, (out + err).decode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a box whose image is built: by what the Dockerfile says, step by step."""
    if os.geteuid() != 0:
        pytest.skip("only root may make a root of its own")
    fit = "import ensurepip, sys; sys.exit(sys.version_info < (3, 11))"
    if subprocess.run(["python3", "-c", fit], env={"PATH": PATH}, check=False, stderr=-3).returncode:
        pytest.skip(f"no python3 of at least 3.11 with venv in {PATH}")
    folder = tmp_path_factory.mktemp("box")
    for name in ("build/src", "image", "work", "root", "data", "tmp"):
        (folder / name).mkdir(parents=True)
    (folder / "tmp").chmod(0o1777)
    if (tried := layered(folder, "true")).returncode:
        pytest.skip(f"this machine lets nobody lay one root over another: {tried.stderr.decode().strip()}")
    copy_context(folder / "build/src")
    for step in (each for each in BUILD if each.word == "RUN"):
        done = layered(folder, *step.words)
        assert done.returncode == 0, f"{step.rest}\n{done.stderr.decode()[-4000:]}"
    for copied in (each for each in IMAGE if each.word == "COPY"):
        *_, source, target = copied.rest.split()
        (folder / "image" / target.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        (folder / "build" / source.lstrip("/")).rename(folder / "image" / target.lstrip("/"))
    os.chown(folder / "data", *(int(number) for number in one(IMAGE, "USER").rest.split(":")))
    yield folder
    shutil.rmtree(folder)


def layered(folder: Path, *command: str) -> subprocess.CompletedProcess[bytes]:
    environ = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "HOME"))}
    words = ["unshare", "--mount", "sh", str(LAYERS), str(folder), "build", *command]
    return subprocess.run(words, capture_output=True, check=False, timeout=800, env={**environ, "PATH": PATH})


def copy_context(target: Path) -> None:
    for name in context():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, target / name)


@asynccontextmanager
async def box_of(folder: Path) -> AsyncIterator[Box]:
    up = ["sh", "-c", "echo up; exec sleep infinity"]
    words = ["unshare", "--mount", "sh", str(LAYERS), str(folder), "image", *up]
    holder = await asyncio.create_subprocess_exec(*words, stdout=PIPE, env={"PATH": PATH})
    assert holder.stdout
    try:
        assert await holder.stdout.readline() == b"up\n"
        yield Box(folder, holder)
    finally:
        holder.kill()
        await holder.wait()


@asynccontextmanager
async def engine(box: Box) -> AsyncIterator[str]:
    """An emulated engine as compose.yaml starts it, but on a free port of the loopback; gives its address."""
    words = compose()["services"]["emulated-1"]["command"]
    own = [word for word in words if not word.startswith(("--host", "--port"))]
    assert len(own) == len(words) - 2
    process = await box.start(*own)
    assert process.stdout
    try:
        async with asyncio.timeout(START):
            yield json.loads(await process.stdout.readline())["url"]
    finally:
        process.terminate()
        await process.communicate()


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway that listens, in its box."""

    process: Process
    url: str
    said: list[str]


@asynccontextmanager
async def gateway(box: Box, **environ: str) -> AsyncIterator[Gateway]:
    """What the image runs by itself, before two engines of its own."""
    async with AsyncExitStack() as stack:
        engines = {f"CORTEX_ENGINE_{number}": await stack.enter_async_context(engine(box)) for number in (1, 2)}
        loopback = {"CORTEX_HOST": "127.0.0.1", "CORTEX_PORT": "0", "CORTEX_REDIS": "redis://127.0.0.1:1/0"}
        process = await box.start(*one(IMAGE, "CMD").words, **SECRETS, **engines, **loopback, **environ)
        said = []
        try:
            async with asyncio.timeout(START):
                assert process.stderr
                while found := (await process.stderr.readline()).decode():
                    said.append(found.rstrip())
                    if address := re.search(r"base_url=(http://\S+)/v1", found):
                        yield Gateway(process, address[1], said)
                        return
            raise AssertionError(f"it ended: {said}")
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()


def status_of(pid: int) -> Mapping[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


async def test_it_answers_by_a_user_without_rights_on_files_that_can_only_be_read(folder: Path) -> None:
    async with box_of(folder) as box, gateway(box) as cortex, httpx.AsyncClient(base_url=cortex.url) as http:
        for target in ("/opt/cortex/x", "/etc/x", "/x"):
            assert (await box.ran("touch", target)) == (1, f"touch: cannot touch '{target}': Read-only file system\n")
        status = status_of(cortex.process.pid)
        assert status["Uid"].split() == ["65532"] * 4
        assert int(status["CapEff"], 16) == 0

        probe = one(IMAGE, "HEALTHCHECK").rest.partition(" CMD ")[2]
        port = cortex.url.rpartition(":")[2]
        assert await box.ran(*json.loads(probe), CORTEX_PORT=port) == (0, "")
        assert (await http.get("/ready")).json() == {"status": "ready"}

        question = {"messages": [{"role": "user", "content": "What was our total revenue in 2024?"}]}
        plain = await http.post(CHAT, json={"model": "coder", **question}, headers=AUTH, timeout=START)
        assert plain.status_code == 200
        assert plain.json()["choices"][0]["message"]["content"]
        walked = await http.post(CHAT, json={"model": "workflow/nl2sql", **question}, headers=AUTH, timeout=START)
        assert walked.status_code == 200
        assert re.search(r"\d{6}", walked.json()["choices"][0]["message"]["content"]), "the rows of a real database"

        cortex.process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(cortex.process.wait(), START) == 0
        assert [path.name for path in box.data.iterdir()] == ["profiles.json"]
        assert list((folder / "tmp").iterdir()) == []


async def test_a_stream_ends_whole_when_the_container_is_told_to_stop(folder: Path) -> None:
    body = {
        "model": "coder",
        "messages": [{"role": "user", "content": "<<echo:abc >>"}],
        "max_tokens": 150,
        "stream": True,
    }
    async with box_of(folder) as box, gateway(box) as cortex, httpx.AsyncClient(base_url=cortex.url) as http:
        async with http.stream("POST", CHAT, json=body, headers=AUTH, timeout=START) as reply:
            lines = reply.aiter_lines()
            while '"content"' not in await anext(lines):
                pass
            cortex.process.send_signal(signal.SIGTERM)
            assert [line async for line in lines][-2:] == ["data: [DONE]", ""]
        assert await asyncio.wait_for(cortex.process.wait(), START) == 0


async def test_it_serves_without_a_folder_that_it_may_write_and_says_so(folder: Path) -> None:
    async with box_of(folder) as box, gateway(box, CORTEX_DATA="/opt/cortex/data") as cortex:
        async with httpx.AsyncClient(base_url=cortex.url) as http:
            assert (await http.get("/ready")).status_code == 200
        cortex.process.send_signal(signal.SIGTERM)
        assert cortex.process.stderr
        said = (await cortex.process.stderr.read()).decode()
        assert "profiles cannot be kept in /opt/cortex/data/profiles.json: Read-only file system" in said
        assert await asyncio.wait_for(cortex.process.wait(), START) == 0


async def test_a_journal_that_cannot_be_written_is_said_in_one_line(folder: Path) -> None:
    pools = {"default": {"model": "m", "backend": {"name": "emulated"}}}
    server = {"port": 0, "journal": "/opt/cortex/journal.jsonl"}
    (folder / "tmp/config.yaml").write_text(json.dumps({"server": server, "insecure": True, "pools": pools}))
    async with box_of(folder) as box:
        status, said = await box.ran("cortex", "serve", "--config", "/tmp/config.yaml")
    assert (status, said.count("\n")) == (2, 1)
    assert "server.journal" in said
    assert "Read-only file system" in said
