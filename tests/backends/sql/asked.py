"""`POST /v1/sql` of a gateway over given databases, without a socket: for tests that ask thousands of times."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import orjson
from starlette.types import ASGIApp

from gateway.cli import read_config
from gateway.compose import compose
from gateway.gateway import Gateway
from tests.gateway.support import written


async def gateway_over(
    folder: Path, databases: Mapping[str, Path], *, workers: int = 1, **settings: object
) -> Gateway:
    """A gateway that is still to be started; `settings` are those of its backend."""
    files = {name: str(path) for name, path in databases.items()}
    backend = {"name": "duckdb", "databases": files, "timeout": "20s", **settings}
    config = folder / "config.yaml"
    config.write_text(written({"warehouse": {"backend": backend, "engines": {"min": workers, "max": workers}}}))
    return await compose(read_config(config, {}), seed=1, report_every=60)


async def query(app: ASGIApp, sql: str, **more: object) -> tuple[Any, str]:
    """The answer, and where it came from."""
    body = orjson.dumps({"sql": sql, **more})
    said: list[MutableMapping[str, Any]] = []
    requests: Iterator[MutableMapping[str, Any]] = iter([{"type": "http.request", "body": body}])

    async def receive() -> MutableMapping[str, Any]:
        for message in requests:
            return message
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: MutableMapping[str, Any]) -> None:
        said.append(message)

    path = "/v1/sql"
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
    await app({**scope, "headers": []}, receive, send)
    headers = dict(said[0]["headers"])
    return orjson.loads(said[1]["body"]), headers.get(b"x-workflow-cache", b"").decode()
