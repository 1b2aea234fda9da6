"""vLLM's sleep mode: the process stays, with its weights in main memory, and the GPU's memory is free meanwhile.

The server must have been started with `--enable-sleep-mode` and VLLM_SERVER_DEV_MODE=1. One that sleeps says that it
is healthy and lets calls hang, so whoever puts it to sleep has to know of it.
"""

from __future__ import annotations

import aiohttp

from backends.base import BackendError

LEVEL = 1
"""What to give up: the KV cache, while the weights are kept; with 2 they would have to be loaded again."""
_LONGEST = aiohttp.ClientTimeout(total=120.0)


class SleepMode:
    """Puts servers to sleep and wakes them, by their address. The session stays open."""

    def __init__(self, session: aiohttp.ClientSession, *, api_key: str = "") -> None:
        self._session = session
        self._key = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    async def sleep(self, url: str) -> None:
        """Put the server to sleep. It must have no calls. Raises BackendError where it does not sleep then."""
        await self._do(url, f"/sleep?level={LEVEL}")
        if not await self._sleeps(url):
            raise _trouble("the server does not sleep")

    async def wake(self, url: str) -> None:
        """Wake the server. Raises BackendError where it sleeps on."""
        await self._do(url, "/wake_up")
        if await self._sleeps(url):
            raise _trouble("the server sleeps on")

    async def _do(self, url: str, path: str) -> None:
        try:
            async with self._session.post(url + path, headers=self._key, timeout=_LONGEST) as reply:
                status = reply.status
        except (aiohttp.ClientError, OSError) as error:
            raise _trouble("the server is not reachable") from error
        if status != 200:
            raise _trouble(f"the server answers {status}")

    async def _sleeps(self, url: str) -> bool:
        try:
            async with self._session.get(f"{url}/is_sleeping", headers=self._key, timeout=_LONGEST) as reply:
                match await reply.json(content_type=None):
                    case {"is_sleeping": bool(sleeps)}:
                        return sleeps
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _trouble("the server does not say whether it sleeps") from error
        raise _trouble("the server does not say whether it sleeps")


def _trouble(message: str) -> BackendError:
    return BackendError(message, trouble="broken", retryable=False)
