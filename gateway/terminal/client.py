"""Asks a gateway's admin API, and says in a person's words what is wrong where it does not answer."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, urlsplit

import aiohttp
import msgspec

from gateway.terminal.facts import PoolFacts
from gateway.terminal.options import URL

WRONG, REFUSED, AWAY, LOCKED = 2, 1, 3, 4
"""Exit statuses: the command line is wrong; the gateway declines; there is none; the token does not open it."""
TIMEOUT = 5.0
"""Seconds for one answer. A gateway that takes longer is as good as gone."""
TOKEN = "CORTEX_ADMIN_TOKEN"  # noqa: S105 - the name of a variable

T = TypeVar("T")


class Trouble(Exception):
    """Why a command cannot do what it was asked; `status` is what it exits with."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class _Error(msgspec.Struct):
    message: str
    code: str | None = None


class _ErrorBody(msgspec.Struct):
    error: _Error


class AdminClient:
    """A gateway at `url`, for whoever has `token`."""

    def __init__(self, url: str, http: aiohttp.ClientSession) -> None:
        self.url = url
        self._http = http

    async def get(self, path: str, shape: type[T]) -> T:
        """The answer to a GET. Raises Trouble."""
        return self._decoded(await self.read(path), path, shape)

    async def read(self, path: str) -> bytes:
        """The body of the answer to a GET. Raises Trouble."""
        return await self._asked("GET", path)

    async def scale(self, pool: str, engines: int) -> PoolFacts:
        """Say how many engines a pool shall have; returns the pool. Raises Trouble."""
        path = f"/admin/pools/{quote(pool)}/scale"
        return self._decoded(await self._asked("POST", path, {"engines": engines}), path, PoolFacts)

    async def drain(self, engine: str) -> PoolFacts:
        """Let an engine, POOL/NUMBER, finish its calls and go; returns its pool. Raises Trouble."""
        path = f"/admin/engines/{quote(engine)}/drain"
        return self._decoded(await self._asked("POST", path), path, PoolFacts)

    async def _asked(self, method: str, path: str, body: Mapping[str, object] | None = None) -> bytes:
        data = json.dumps(body or {}) if method == "POST" else None
        try:
            async with self._http.request(method, self.url + path, data=data, allow_redirects=False) as reply:
                said = await reply.read()
        except TimeoutError:
            raise Trouble(f"the gateway at {self.url} did not answer within {TIMEOUT:g} s", AWAY) from None
        except aiohttp.ClientError as error:
            raise Trouble(f"no gateway answers at {self.url} ({_reason(error)}): {ADVICE}", AWAY) from None
        if reply.status == 200:
            return said
        raise self._declined(reply.status, said)

    def _decoded(self, body: bytes, path: str, shape: type[T]) -> T:
        try:
            return msgspec.json.decode(body, type=shape)
        except msgspec.DecodeError as error:
            raise Trouble(f"{self.url}{path} answers what this command does not know: {error}", REFUSED) from None

    def _declined(self, status: int, said: bytes) -> Trouble:
        try:
            error = msgspec.json.decode(said, type=_ErrorBody).error
        except msgspec.DecodeError:
            return Trouble(f"what answers at {self.url} (with status {status}) is no Cortex gateway: {ADVICE}", AWAY)
        if status in (401, 403):
            return Trouble(f"{self.url}: {error.message}; set {TOKEN} or give --token-file", LOCKED)
        if status == 404 and error.code == "not_found":
            return Trouble(
                f"the gateway at {self.url} has no admin API: set admin.token in its configuration "
                f"(config.yaml takes it from {TOKEN}) and start it again",
                LOCKED,
            )
        return Trouble(error.message, REFUSED)


ADVICE = "start one with `cortex serve`, or say where it is with --url or CORTEX_URL"


@asynccontextmanager
async def connected(url: str, token: str) -> AsyncIterator[AdminClient]:
    """A client whose connection is kept for the block."""
    timeout = aiohttp.ClientTimeout(total=TIMEOUT)
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    async with aiohttp.ClientSession(timeout=timeout, headers=headers) as http:
        yield AdminClient(url, http)


def place(url: str | None, environ: Mapping[str, str]) -> str:
    """Where the gateway is. Raises Trouble."""
    source, given = ("--url", url) if url else ("CORTEX_URL", environ.get("CORTEX_URL", ""))
    if not given:
        return URL
    try:
        parts = urlsplit(given)
        plain = not (parts.username or parts.password or parts.query or parts.fragment)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and plain
    except ValueError:
        good = False
    if not good:
        raise Trouble(f"{source}: must be an address such as {URL}, and not '{given}'", WRONG)
    return given.rstrip("/")


def key(token: str | None, file: Path | None, environ: Mapping[str, str]) -> str:
    """The admin's token. Raises Trouble."""
    source, found = "--token", token
    if file is not None:
        source = str(file)
        try:
            found = file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "is no text"
            raise Trouble(f"--token-file: {file}: {reason}", WRONG) from None
    elif token is None:
        source, found = TOKEN, environ.get(TOKEN, "")
    if not found:
        raise Trouble(f"the admin's token is needed: set {TOKEN}, or give --token-file FILE", LOCKED)
    if not found.isprintable():
        raise Trouble(f"{source}: a token is one line of printable characters", WRONG)
    return found


def _reason(error: aiohttp.ClientError) -> str:
    """In the system's words: those of asyncio hold the address once more."""
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else None
    if cause is None:
        return str(error) or "it broke off"
    known = cause.errno is not None and cause.errno > 0
    return (os.strerror(cause.errno or 0) if known else cause.strerror or str(cause)).lower()
