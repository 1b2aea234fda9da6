"""A gateway as users start it, for programs that know nothing of it, and what it says of the runs that they made."""

from __future__ import annotations

import asyncio
import re
import secrets
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.gateway.test_lifecycle import command

ROOT = Path(__file__).parents[2]
PATIENCE = 110.0
"""Seconds that a program gets."""

ENVIRONMENTS = ROOT / ".clients"
KEYS = "auth: {keys: [{key: '${CORTEX_API_KEY}', tenant: clients}]}"

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Live:
    """A gateway that listens at `url` to who has the `key`."""

    url: str
    key: str
    admin: httpx.AsyncClient

    async def runs(self) -> list[Json]:
        """Every run that the gateway has seen, with its calls (`trace`) in order, the first run first."""
        listed = (await self.admin.get("/admin/runs")).raise_for_status().json()["runs"]
        return [await self.run(one["id"]) for one in sorted(listed, key=lambda one: -one["age_s"])]

    async def run(self, name: str) -> Json:
        """The one run of this name."""
        (found,) = (await self.admin.get(f"/admin/runs/{name}")).raise_for_status().json()["runs"]
        run: Json = found
        return run


def guarded(folder: Path, configuration: Path) -> Path:
    """A copy of a configuration that says `insecure: true`, and asks for a key instead."""
    text = configuration.read_text()
    assert "insecure: true" in text
    copy = folder / "gateway.yaml"
    copy.write_text(text.replace("insecure: true", KEYS))
    (folder / "script.json").symlink_to(configuration.with_name("script.json"))
    return copy


@asynccontextmanager
async def live(folder: Path, configuration: Path) -> AsyncIterator[Live]:
    """Start `cortex serve` with a configuration, but for keys."""
    copy = guarded(folder, configuration)
    key, token = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
    environ = {"CORTEX_PORT": "0", "CORTEX_API_KEY": key, "CORTEX_ADMIN_TOKEN": token}
    async with command("serve", str(copy), **environ) as cortex:
        await cortex.read("point your OpenAI client at")
        found = re.search(r"base_url=(http://\S+)/v1", cortex.said[-1])
        assert found
        headers = {"Authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(base_url=found[1], headers=headers, timeout=30, trust_env=False) as admin:
            yield Live(found[1], key, admin)


async def printed(*words: str, folder: Path, environ: Mapping[str, str]) -> str:
    """What a program prints, to either output, that ends well within the time that it has."""
    process = await asyncio.create_subprocess_exec(
        *words, cwd=folder, env=environ, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT
    )
    try:
        async with asyncio.timeout(PATIENCE):
            text = (await process.communicate())[0].decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, text
    return text
