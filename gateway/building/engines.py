"""What the pools' engines are, by their configuration: servers that run elsewhere, that are started, or emulated; SQL
workers; hosted models.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable

import aiohttp

from backends.attached import AttachedServers
from backends.base import Cluster, Engine
from backends.emulated.cluster import EmulatedCluster
from backends.emulated.options import EmulatedOptions
from backends.emulated.profile import ProfileError
from backends.gpus import Gpus, devices_of_this_machine
from backends.launcher import LaunchedServers, LaunchOptions, vllm_command
from backends.provider import ProviderCluster, lack_of
from backends.sleeping import SleepMode
from backends.sql.engine import SqlCluster, WorkerEnd
from backends.sql.options import SqlOptions
from backends.vllm import HttpEngine
from gateway.backendspecs import DuckDb, Emulated, Launch, Litellm, Vllm
from gateway.config import ConfigError
from gateway.settings import Config, Pool


def gpus_of(config: Config) -> Gpus:
    """Those of the machine, and those that the configuration names besides."""
    launched = [pool.backend.launch for pool in config.pools.values() if isinstance(pool.backend, Vllm)]
    named = [device for launch in launched if launch is not None for device in launch.devices]
    return Gpus([*devices_of_this_machine(os.environ), *named])


def _launched(pool: Pool, backend: Vllm, launch: Launch, session: aiohttp.ClientSession, gpus: Gpus) -> Cluster:
    model = pool.model or ""
    command = vllm_command(
        command=launch.command,
        model=launch.model or model,
        served=model,
        args=launch.args,
        priority=backend.priority,
        gpus=launch.gpus,
        sleeps=launch.asleep > 0,
        kv_events=backend.kv_events,
    )
    options = LaunchOptions(
        command=command,
        env={**({"VLLM_SERVER_DEV_MODE": "1"} if launch.asleep else {}), **launch.env},
        gpus=launch.gpus,
        devices=launch.devices,
        ready=launch.ready,
        grace=launch.grace,
        stagger=launch.stagger or 0.0,
        asleep=launch.asleep,
        logs=launch.logs,
    )
    key = backend.api_key or ""
    sleep = SleepMode(session, api_key=key)
    return LaunchedServers(options, connect=lambda url: HttpEngine(url, session, api_key=key), gpus=gpus, sleep=sleep)


def cluster_of(
    pool: Pool,
    session: aiohttp.ClientSession,
    emulated: EmulatedOptions | None,
    gpus: Gpus,
    ended: Callable[[str, WorkerEnd], None],
) -> Cluster:
    """What starts and stops a pool's engines; `ended` is told of each SQL worker that is no more."""
    backend = pool.backend
    if emulated is not None:
        return EmulatedCluster(model=pool.model or "", options=emulated, connect=_connect(session))
    if isinstance(backend, DuckDb):
        return SqlCluster(
            SqlOptions(
                databases={name: str(path) for name, path in backend.databases.items()},
                timeout=backend.timeout,
                memory=backend.memory,
                max_rows=backend.max_rows,
                max_bytes=backend.max_bytes,
                max_stream_rows=backend.max_stream_rows,
                max_stream_bytes=backend.max_stream_bytes,
                stream_timeout=backend.stream_timeout,
                samples=backend.samples,
                max_threads=backend.max_threads,
            ),
            ended=ended,
        )
    if isinstance(backend, Litellm):
        return ProviderCluster(backend.calls(), session, python=backend.python, ready=backend.ready)
    assert isinstance(backend, Vllm)
    if backend.launch is not None:
        return _launched(pool, backend, backend.launch, session, gpus)
    return AttachedServers(backend.attach or (), session, backend.api_key or "")


async def check_providers(config: Config) -> None:
    """Raise ConfigError for a pool whose environment has no LiteLLM that can be used."""
    for name, pool in config.pools.items():
        if isinstance(pool.backend, Litellm) and (lack := await asyncio.to_thread(lack_of, pool.backend.python)):
            raise ConfigError(lack, file=pool.backend.python or sys.executable, place=("pools", name, "backend"))


def _connect(session: aiohttp.ClientSession) -> Callable[[str], Engine]:
    return lambda url: HttpEngine(url, session)


def emulated_options(config: Config) -> dict[str, EmulatedOptions]:
    """How each pool of emulated engines has them. Raises ConfigError for a profile that is none."""
    pools = config.pools.items()
    return {name: _options(name, at) for name, pool in pools if isinstance(at := pool.backend, Emulated)}


def _options(pool: str, backend: Emulated) -> EmulatedOptions:
    settings = backend.model_dump(exclude={"name", "tokenize"})
    files = {key: str(path) for key in ("script", "profile") if (path := settings[key])}
    try:
        return EmulatedOptions(**{**settings, **files, "surfaces": ",".join(backend.surfaces)})
    except ProfileError as error:
        message = str(error).removeprefix(f"{backend.profile}: ")
        raise ConfigError(message, file=str(backend.profile), place=("pools", pool, "backend", "profile")) from None
