"""Hosted models as engines: each is an account at a provider, spoken to through LiteLLM in a process of its own.

LiteLLM takes 1 ms of processor time for each event of a stream, 200 MB and seconds to import; none of it is the
gateway's. Its process (`backends.provider_child`) is a server like others, so that little is left to do here.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, cast

import aiohttp
import orjson

from backends.asking import content
from backends.base import BackendError, Engine, EngineReport, Reply, Request, Trouble
from backends.capabilities import Capabilities
from backends.launcher import LaunchedServers, LaunchOptions
from backends.provider_errors import TROUBLE
from backends.provider_members import HEADERS, SETTINGS
from backends.vllm import HttpEngine

Json = dict[str, Any]

UNFIT: Final = frozenset(("1.82.7", "1.82.8"))
"""Releases of LiteLLM that were not its authors'."""
INSTALL: Final = "install it with  pip install --require-hashes -r requirements-litellm.lock  (docs/providers.md)"
_PROBE: Final = aiohttp.ClientTimeout(total=5.0)
_BOOT: Final = (
    "import runpy, sys, types; package = types.ModuleType('backends'); package.__path__ = [sys.argv.pop(1)]; "
    "sys.modules['backends'] = package; runpy.run_module('backends.provider_child', run_name='__main__')"
)
"""The child's environment has other versions of what the gateway's has too, so that no more than this package may be
found there."""
_ASK_VERSION: Final = "import importlib.metadata as m; print(m.version('litellm'))"


def lack_of(python: str | None) -> str:
    """What keeps an environment, by its Python, from having LiteLLM's processes; nothing where all is well.

    None stands for our own. Starts a short process.
    """
    command = [python or sys.executable, "-P", "-c", _ASK_VERSION]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"this Python cannot be asked for LiteLLM: {error}"
    version = asked.stdout.strip()
    if asked.returncode or not version:
        return f"there is no LiteLLM in this environment: {INSTALL}"
    return f"LiteLLM {version} was not released by its authors: {INSTALL}" if version in UNFIT else ""


class ProviderEngine:
    """One account, by the process that speaks for it. What a client's headers say stays here, but for a few."""

    def __init__(self, url: str, session: aiohttp.ClientSession, *, token: str) -> None:
        self.url = url
        self._session = session
        self._http = HttpEngine(url, session, api_key=token)
        self._key = {"Authorization": f"Bearer {token}"}

    @asynccontextmanager
    async def open(self, request: Request) -> AsyncIterator[Reply]:
        """Send one attempt; leaving before the body's end closes the provider's connection too."""
        kept = tuple((name, value) for name, value in request.headers if name.lower() in (*HEADERS, "content-type"))
        async with self._http.open(replace(request, headers=kept)) as reply:
            trouble = next((value for name, value in reply.headers if name == TROUBLE), None)
            if trouble is not None:
                raise BackendError("the provider did not answer", trouble=cast(Trouble, trouble), retryable=True)
            yield reply

    async def report(self) -> EngineReport:
        """What the process does; of the provider nothing is known."""
        told = await self._page("/report")
        return EngineReport(running=told["running"], counters={"requests": told["requests"]})

    async def capabilities(self) -> Capabilities:
        """What LiteLLM's list says of the model. The provider is not asked, for that may cost something."""
        try:
            told = await self._page("/capabilities")
        except BackendError:
            return Capabilities(priority=False, silent=True)
        return Capabilities(
            version=f"litellm-{told['version']}", priority=False, surfaces=frozenset(told["surfaces"])
        )

    async def check(self) -> None:
        """Ask whether the process listens. Raises BackendError when it does not."""
        await self._http.check()

    async def aclose(self) -> None:
        """Nothing is held: the session belongs to the cluster's maker."""

    async def _page(self, path: str) -> Json:
        try:
            async with self._session.get(self.url + path, headers=self._key, timeout=_PROBE) as response:
                return cast(Json, orjson.loads(await content(response)))
        except (aiohttp.ClientError, OSError, orjson.JSONDecodeError) as error:
            raise BackendError("the engine did not report", trouble="broken", retryable=True) from error


class ProviderCluster:
    """The engines of one pool: each new one is given to the account that has the fewest."""

    def __init__(
        self,
        accounts: Sequence[Mapping[str, object]],
        session: aiohttp.ClientSession,
        *,
        python: str | None = None,
        ready: float = 60.0,
    ) -> None:
        """`accounts` are the arguments of LiteLLM's calls, `python` one that has LiteLLM, if not ours."""
        token = secrets.token_urlsafe(32)
        self._servers = [
            LaunchedServers(
                _options(arguments, token=token, python=python or sys.executable, ready=ready),
                connect=lambda url: ProviderEngine(url, session, token=token),
            )
            for arguments in accounts
        ]
        self._accounts: dict[str, int] = {}

    async def start(self, name: str) -> Engine:
        """Start a process. Raises BackendError when it does not come up, or the name is taken."""
        if name in self._accounts:
            raise BackendError(f"the engine {name} is there already", trouble="refused", retryable=False)
        used = Counter(self._accounts.values())
        account = self._accounts[name] = min(range(len(self._servers)), key=lambda index: used[index])
        try:
            return await self._servers[account].start(name)
        except BaseException:
            del self._accounts[name]
            raise

    async def ended(self, name: str) -> None:
        """Return when the process has ended, or at once for a name that is not there."""
        if name in self._accounts:
            await self._servers[self._accounts[name]].ended(name)

    async def stop(self, name: str) -> None:
        """End the process of this name; unknown names are ignored."""
        if name in self._accounts:
            await self._servers[self._accounts[name]].stop(name)
            self._accounts.pop(name, None)

    async def aclose(self) -> None:
        """End every process. Idempotent."""
        for server in self._servers:
            await server.aclose()
        self._accounts.clear()


def _options(arguments: Mapping[str, object], *, token: str, python: str, ready: float) -> LaunchOptions:
    told = {"token": token, "arguments": {**arguments, "num_retries": 0, "max_retries": 0}}
    return LaunchOptions(
        command=(python, "-P", "-c", _BOOT, str(Path(__file__).parent)),
        env={SETTINGS: json.dumps(told)},
        ready=ready,
        grace=2.0,
    )
