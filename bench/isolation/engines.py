"""The engines of the benchmark: two real vLLM servers, or two emulated ones to try the benchmark itself out."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from backends.capabilities import KvSource
from backends.emulated.options import EmulatedOptions
from backends.emulated.server import serve
from backends.gpus import Gpus, devices_of_this_machine
from backends.launcher import CPU_ARGS, OFFLINE, ON_A_CPU, LaunchedServers, LaunchOptions, vllm_command
from backends.vllm import HttpEngine
from bench.isolation.cells import BLOCK, SEQUENCES
from bench.isolation.flows import corpus

ROOT = Path(__file__).parents[2]
MODEL = "nl2sql"
LONGEST = 2560
"""Tokens of a prompt and its answer: 80 blocks, so that the smallest memory holds one call and a bit."""
BUDGET = 2048
"""Tokens that an engine computes in one step."""
DEVELOPMENT = {"VLLM_SERVER_DEV_MODE": "1"}  # for /reset_prefix_cache
SMALL = ("--hidden", "384", "--layers", "4")
"""A model of some million parameters: a prompt takes a core about half a second."""


WORDS = 1536
"""With so many, a token of the benchmark's texts is about four bytes long, as with models in use."""


class NoEngines(Exception):
    """What is needed to start them is not there; the message says what."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two engines that are up, and where they tell of their caches, if they do."""

    urls: Sequence[str]
    sources: Sequence[KvSource] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Servers:
    """How real servers are started: with the vLLM in this environment, on a GPU or on the CPU."""

    environment: Path
    gpu: bool

    def prepare(self, folder: Path) -> Path:
        """Make the model that they serve; returns its folder. Raises NoEngines."""
        python, text, model = self.environment / "bin" / "python", folder / "corpus.txt", folder / "model"
        if not python.exists():
            raise NoEngines(f"{self.environment} has no vLLM: run `make vllm`, or set CORTEX_VLLM")
        text.write_text("\n".join(corpus()))
        shape = ["--like-7b"] if self.gpu else SMALL
        making = [*shape, "--words", str(WORDS), "--text", str(text)]
        subprocess.run([python, ROOT / "deploy/vllm/make_model.py", model, *making], check=True)  # noqa: S603 - ours
        return model

    @asynccontextmanager
    async def running(self, model: Path, blocks: int, session: aiohttp.ClientSession) -> AsyncIterator[Pair]:
        """Two servers with so many KV blocks each, until the block is left.

        Raises BackendError when they do not start; the log has their last words.
        """
        gpus = Gpus(devices_of_this_machine(os.environ)) if self.gpu else Gpus(())
        sources = [_source(model.parent, number) for number in range(2)]
        clusters = [
            LaunchedServers(
                self.options(model, blocks, source), connect=lambda url: HttpEngine(url, session), gpus=gpus
            )
            for source in sources
        ]
        try:
            engines = await asyncio.gather(*(cluster.start("engine/0") for cluster in clusters))
            yield Pair([engine.url for engine in engines if isinstance(engine, HttpEngine)], sources)
        finally:
            await asyncio.gather(*(cluster.aclose() for cluster in clusters))

    def options(self, model: Path, blocks: int, source: KvSource) -> LaunchOptions:
        """Two servers share a GPU; the CPU's have a core each."""
        events = {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": source.endpoint}
        events |= {"replay_endpoint": source.replay, "topic": source.topic}
        share = 0.5 if self.gpu else 0.0
        on_a_gpu = ("--load-format", "dummy", "--dtype", "bfloat16", "--block-size", str(BLOCK))
        args = [*(on_a_gpu if self.gpu else CPU_ARGS), "--max-model-len", str(LONGEST)]
        args += ["--num-gpu-blocks-override", str(blocks), "--max-num-seqs", str(SEQUENCES)]
        args += ["--max-num-batched-tokens", str(BUDGET)]
        command = vllm_command(
            command=[str(self.environment / "bin" / "vllm"), "serve"],
            model=str(model),
            served=MODEL,
            args=[*args, "--kv-events-config", json.dumps(events)],
            priority=True,
            gpus=share,
        )
        environment = {**(OFFLINE if self.gpu else ON_A_CPU), **DEVELOPMENT}
        return LaunchOptions(command=command, env=environment, gpus=share, ready=600.0)


@asynccontextmanager
async def emulated(options: EmulatedOptions, blocks: int) -> AsyncIterator[Pair]:
    """Two emulated engines with so many KV blocks each, until the block is left."""
    settings = EmulatedOptions(
        num_gpu_blocks=blocks,
        block_size=BLOCK,
        max_num_seqs=SEQUENCES,
        max_model_len=LONGEST,
        max_num_batched_tokens=BUDGET,
        profile=options.profile,
        time_scale=options.time_scale,
    )
    async with serve(settings, model=MODEL) as one, serve(settings, model=MODEL) as other:
        yield Pair([one.url, other.url])


def _source(folder: Path, number: int) -> KvSource:
    """Where a server tells what its cache holds: a file, which it listens at by itself."""
    endpoint = f"ipc://{folder}/kv-{number}"
    return KvSource(endpoint=endpoint, replay=f"{endpoint}-again", topic="kv")
