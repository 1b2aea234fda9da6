"""Any OpenAI-compatible server over HTTP: bytes passed on untouched, both ways."""

from __future__ import annotations

import asyncio
import io
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from backends.asking import Server, capabilities_of, content
from backends.base import BackendError, EngineReport, Reply, Request
from backends.capabilities import Capabilities
from backends.vllm_metrics import read_metrics

KEEP_ALIVE = 4.0
"""Seconds that an idle connection is kept: less than the 5 after which a vLLM server closes its end, so that no
request meets a connection that is just being closed."""
PLAIN_MOST = 1024 * 1024
"""Bytes of a body that are written at once; aiohttp sends a longer one in pieces, with the loop free in between."""
_PROBE = aiohttp.ClientTimeout(total=2.0)


def connections(connect_timeout: float) -> aiohttp.ClientSession:
    """The connections of one gateway to all its HTTP engines. To be closed by whoever made it."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE, ttl_dns_cache=60),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout),
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
    )


class HttpEngine:
    """One OpenAI-compatible server at `url`. The session is shared and stays open when the engine is closed."""

    def __init__(self, url: str, session: aiohttp.ClientSession, *, api_key: str = "") -> None:
        self.url = url.rstrip("/")
        self._session = session
        self._key = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    @asynccontextmanager
    async def open(self, request: Request) -> AsyncIterator[Reply]:
        """Send one attempt; leaving before the body's end closes the connection, which aborts the generation."""
        response = await self._head(request)
        patience = _Patience(response.content, request.idle_timeout)
        try:
            if response.status == 500:
                await self._survived()
            yield Reply(
                status=response.status,
                headers=tuple(response.headers.items()),
                chunks=_chunks(response.content, patience),
            )
        finally:
            patience.end()
            response.close()  # gives a connection whose reply was read to its end back to be used again

    async def _head(self, request: Request) -> aiohttp.ClientResponse:
        body = request.body if len(request.body) <= PLAIN_MOST else io.BytesIO(request.body)
        try:
            async with asyncio.timeout(request.head_timeout):
                return await self._session.request(
                    request.method,
                    self.url + request.path,
                    data=body or None,
                    headers=[*request.headers, *self._key.items()],
                    allow_redirects=False,
                )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise BackendError("the engine refused the connection", trouble="refused", retryable=True) from error
        except TimeoutError as error:
            # The connection is closed by now, so the engine has given the call up: it may be tried elsewhere.
            raise BackendError("the engine did not answer in time", trouble="timeout", retryable=True) from error
        except (aiohttp.ClientError, OSError) as error:
            raise BackendError("the engine broke the connection", trouble="broken", retryable=True) from error

    async def _survived(self) -> None:
        """A vLLM server whose engine process has died says 500 to every request until it has ended itself: that is
        no answer to any of them. Raises BackendError then."""
        try:
            await self.check()
        except BackendError as error:
            raise BackendError("the engine has died", trouble="broken", retryable=True) from error

    async def report(self) -> EngineReport:
        """Read the engine's metrics. A server that has none but answers /health counts as alive."""
        try:
            async with self._session.get(f"{self.url}/metrics", headers=self._key, timeout=_PROBE) as response:
                if response.status == 200:
                    return read_metrics(await content(response))
            await self.check()
        except (aiohttp.ClientError, OSError) as error:
            raise BackendError("the engine did not report", trouble="broken", retryable=True) from error
        return EngineReport(counters={})

    async def capabilities(self) -> Capabilities:
        """Ask the server's own pages, and look at its answer to a request of one token."""
        return await capabilities_of(Server(self.url, self._session, self._key))

    async def check(self) -> None:
        """Ask whether the server is up and ready to work. Raises BackendError when it is not."""
        try:
            async with self._session.get(f"{self.url}/health", headers=self._key, timeout=_PROBE) as response:
                if response.status == 200:
                    return
        except (aiohttp.ClientError, OSError) as error:
            raise BackendError("the engine is not reachable", trouble="refused", retryable=True) from error
        raise BackendError("the engine is not ready", trouble="overloaded", retryable=True)

    async def aclose(self) -> None:
        """Nothing is held: the session belongs to the cluster's maker."""


class _Patience:
    """Ends the wait for the next piece of a body once it has lasted for `idle` seconds.

    One timer serves all pieces and is looked at only when it fires: to set one for each costs as much as a tenth
    of all that a stream takes.
    """

    def __init__(self, content: aiohttp.StreamReader, idle: float) -> None:
        self._content = content
        self._idle = idle
        self._loop = asyncio.get_running_loop()
        self._since = math.inf
        self._timer = self._loop.call_later(idle, self._look)

    def begin(self) -> None:
        """The wait for a piece begins."""
        self._since = self._loop.time()

    def pause(self) -> None:
        """Nobody waits for this engine: whoever reads is busy with what came."""
        self._since = math.inf

    def end(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        left = min(self._idle, self._since + self._idle - self._loop.time())
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        else:
            self._content.set_exception(TimeoutError())


async def _chunks(content: aiohttp.StreamReader, patience: _Patience) -> AsyncIterator[bytes]:
    try:
        while True:
            patience.begin()
            chunk = await content.readany()
            patience.pause()
            if not chunk:
                return
            yield chunk
    except TimeoutError as error:
        raise BackendError("the engine stopped answering", trouble="timeout", retryable=True) from error
    except (aiohttp.ClientError, OSError) as error:
        raise BackendError("the engine broke the connection", trouble="broken", retryable=True) from error
