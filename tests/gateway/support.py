"""A gateway for a test: real server, real socket, engines as the configuration says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from gateway.cli import read_config
from gateway.compose import compose
from gateway.gateway import Gateway
from gateway.listening import listening


@dataclass(frozen=True, slots=True)
class Running:
    """A gateway that listens, and a client for it."""

    gateway: Gateway
    url: str
    http: httpx.AsyncClient


@asynccontextmanager
async def running(
    folder: Path, text: str, environ: Mapping[str, str] | None = None, *, report_every: float = 0.2
) -> AsyncIterator[Running]:
    """Start a gateway from the text of a configuration, on a free port if the text says `port: 0`."""
    path = folder / "config.yaml"
    path.write_text(text)
    gateway = await compose(read_config(path, environ or {}), seed=1, report_every=report_every)
    async with (
        listening(gateway) as url,
        httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as http,
    ):
        yield Running(gateway, url, http)
