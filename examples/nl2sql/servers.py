"""The two vLLM servers of the demo on real engines: started here with a small model of random weights, or given."""

from __future__ import annotations

import asyncio
import re
import tempfile
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from backends.base import BackendError
from backends.launcher import CPU_ARGS, ON_A_CPU, LaunchedServers, LaunchOptions, vllm_command
from backends.vllm import HttpEngine, connections

HERE = Path(__file__).parent
MAKE_MODEL = HERE.parents[1] / "deploy" / "vllm" / "make_model.py"
LOGS = Path("data/demo-vllm").absolute()
NUMBER = 2
MEMORY_LEAST = 5_000_000_000
CACHE = re.compile(r'^vllm:cache_config_info\{(?=.*\bblock_size="(\d+)")(?=.*\bnum_gpu_blocks="(\d+)")', re.MULTILINE)

MODEL = "cortex-demo"
# Two million weights, and a tokenizer that has learned the words of what it will read: about three bytes a token.
SIZE = ("--hidden", "256", "--layers", "3", "--words", "2048")
TEXT = [*sorted((HERE / "prompts").glob("*.md")), HERE / "questions.yaml", HERE / "database.sql"]
# What makes vLLM's CPU build fit for two servers on two cores. On a GPU none of it is needed.
ENVIRONMENT = {**ON_A_CPU, "VLLM_SERVER_DEV_MODE": "1"}  # for /reset_prefix_cache
ARGS = (*CPU_ARGS, "--max-model-len", "4096", "--enable-auto-tool-choice", "--tool-call-parser", "hermes")


class NoServersError(Exception):
    """There are no servers to play on; the message says in one line why, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Servers:
    """Two servers that are up. KV memory is that of one of them."""

    urls: Sequence[str]
    model: str
    block_size: int
    kv_blocks: int

    async def forget(self) -> None:
        """Empty their prefix caches. Raises NoServersError where they do not let us."""
        async with httpx.AsyncClient(trust_env=False) as http:
            for url in self.urls:
                if (await http.post(f"{url}/reset_prefix_cache")).status_code != 200:
                    raise NoServersError(
                        f"{url} does not empty its prefix cache: start it with VLLM_SERVER_DEV_MODE=1"
                    )


async def attached(urls: Sequence[str]) -> Servers:
    """Servers that run already. Raises NoServersError where one does not answer, or they are not alike."""
    told = [await _described(url.rstrip("/").removesuffix("/v1")) for url in urls]
    first = told[0]
    if any(
        (one.model, one.kv_blocks, one.block_size) != (first.model, first.kv_blocks, first.block_size) for one in told
    ):
        raise NoServersError("the servers must be alike: one model, and as much KV memory each")
    return Servers(
        urls=[one.urls[0] for one in told], model=first.model, block_size=first.block_size, kv_blocks=first.kv_blocks
    )


async def _described(url: str) -> Servers:
    async with httpx.AsyncClient(trust_env=False) as http:
        try:
            models = (await http.get(f"{url}/v1/models")).raise_for_status().json()
            found = CACHE.search((await http.get(f"{url}/metrics")).text)
            model = models["data"][0]["id"]
        except (httpx.HTTPError, ValueError, LookupError) as error:
            raise NoServersError(f"no vLLM server answers at {url} ({type(error).__name__})") from None
    if found is None:
        raise NoServersError(f"{url} does not tell its KV memory as vLLM does")
    return Servers(urls=[url], model=model, block_size=int(found[1]), kv_blocks=int(found[2]))


@asynccontextmanager
async def started(folder: Path, kv_blocks: int) -> AsyncIterator[Servers]:
    """Start the servers with the vLLM of an environment, and end them. Raises NoServersError."""
    check(folder, Path("/proc/meminfo"))
    async with AsyncExitStack() as stack:
        model = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cortex-model-")))
        await _make_model(folder, model)
        options = LaunchOptions(
            command=vllm_command(
                command=[str(folder / "bin" / "vllm"), "serve"],
                model=str(model),
                served=MODEL,
                args=[*ARGS, "--num-gpu-blocks-override", str(kv_blocks)],
                priority=True,
            ),
            env=ENVIRONMENT,
            logs=LOGS,
        )
        session = await stack.enter_async_context(connections(2.0))
        cluster = LaunchedServers(options, connect=lambda url: HttpEngine(url, session))
        stack.push_async_callback(cluster.aclose)
        try:
            engines = await asyncio.gather(*(cluster.start(f"server/{number}") for number in range(NUMBER)))
        except BackendError as error:
            raise NoServersError(f"vLLM did not start: {error}; what it said is in {LOGS}") from None
        yield await attached([engine.url for engine in engines if isinstance(engine, HttpEngine)])


def check(folder: Path, meminfo: Path) -> None:
    """Whether servers can be started here. Raises NoServersError."""
    if not (folder / "bin" / "vllm").exists():
        raise NoServersError(f"there is no vLLM in {folder}: run `make vllm`, or set CORTEX_VLLM to where it is")
    found = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text() if meminfo.exists() else "", re.MULTILINE)
    if found and int(found[1]) * 1024 < MEMORY_LEAST:
        free = int(found[1]) * 1024 / 1e9
        raise NoServersError(
            f"two vLLM servers need {MEMORY_LEAST / 1e9:.0f} GB of memory, and {free:.1f} GB are free"
        )


async def _make_model(folder: Path, model: Path) -> None:
    words = (str(folder / "bin" / "python"), str(MAKE_MODEL), str(model), *SIZE, "--text", *map(str, TEXT))
    process = await asyncio.create_subprocess_exec(*words, stdout=PIPE, stderr=PIPE)
    _, said = await process.communicate()
    if process.returncode != 0:
        last = said.decode(errors="replace").strip().rpartition("\n")[2]
        raise NoServersError(f"the model cannot be made: {last}")
