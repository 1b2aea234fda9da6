"""A gateway for a test: real server, real socket, engines as the configuration says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from backends.emulated.server import EmulatedServer
from gateway.cli import read_config
from gateway.compose import compose
from gateway.gateway import Gateway
from gateway.keys import hash_of
from gateway.listening import listening

MODEL = "cortex-emulated"
CHAT = "/v1/chat/completions"
PATIENCE = 30.0
"""Seconds that a condition is given on a loaded machine; on an idle one it holds at once."""


@dataclass(frozen=True, slots=True)
class Running:
    """A gateway that listens, and a client for it."""

    gateway: Gateway
    url: str
    http: httpx.AsyncClient


@asynccontextmanager
async def running(
    folder: Path, text: str, environ: Mapping[str, str] | None = None, *, report_every: float = 1.0
) -> AsyncIterator[Running]:
    """Start a gateway from the text of a configuration, on a free port if the text says `port: 0`."""
    path = folder / "config.yaml"
    path.write_text(text)
    gateway = await compose(read_config(path, environ or {}), seed=1, report_every=report_every)
    async with (
        listening(gateway) as url,
        # To read the certificates of the world takes 30 ms, and nothing here has one.
        httpx.AsyncClient(base_url=url, timeout=30, trust_env=False, verify=False) as http,
    ):
        yield Running(gateway, url, http)


def written(pools: Mapping[str, object], **sections: object) -> str:
    """The text of a configuration with these pools, and with other sections as they are given.

    Keys may be given as they are, and stand there as their hashes; without any, everybody is let in.
    """
    door = {"auth": hashed(sections["auth"])} if "auth" in sections else {"insecure": True}
    return json.dumps({"server": {"port": 0}, "pools": pools, **{**sections, **door}})


def hashed(auth: Any) -> Any:
    """The section `auth` with the hash of each key in the key's place."""
    keys = [{**entry, "hash": hash_of(entry["key"])} for entry in auth.get("keys", ())]
    return {**auth, "keys": [{name: value for name, value in one.items() if name != "key"} for one in keys]}


def attached(*urls: str, sequences: int = 32, **more: object) -> dict[str, object]:
    """A pool on servers that listen already."""
    backend = {"name": "vllm", "attach": list(urls)}
    return {"model": MODEL, "backend": backend, "concurrency": {"sequences": sequences}, **more}


def chat(content: str = "hello", **more: Any) -> dict[str, Any]:
    """The body of a chat call."""
    return {"model": MODEL, "messages": [{"role": "user", "content": content}], **more}


def metric(gateway: Gateway, name: str, **labels: str) -> float:
    """What `/metrics` says now; 0 for a series that does not exist."""
    gateway.metrics.refresh()
    return gateway.metrics.registry.get_sample_value(name, labels) or 0.0


def children(word: str, parent: int | None = None) -> set[int]:
    """The living child processes, of this process or another, whose command line holds a word."""
    found = set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and word in (entry / "cmdline").read_text():
                state, above = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                if int(above) == (parent or os.getpid()) and state != "Z":
                    found.add(int(entry.name))
    return found


async def until(holds: Callable[[], bool], what: str = "the condition", *, within: float = PATIENCE) -> float:
    """Wait until a condition holds; returns the seconds that it took. Fails when it does not hold in time."""
    began = time.monotonic()
    while not holds():
        waited = time.monotonic() - began
        assert waited < within, f"{what} did not come about within {within:g} s"
        # Ever less often, up to a point: what asks the whole machine takes time from what it waits for.
        await asyncio.sleep(min(max(0.002, waited / 50), 0.02))
    return time.monotonic() - began


async def settled(gateway: Gateway, *servers: EmulatedServer) -> None:
    """Wait until nothing is held for any call any more; fails and says what is, where something stays."""
    began = time.monotonic()
    while held := _held(gateway, servers):
        assert time.monotonic() - began < PATIENCE, f"still held: {', '.join(held)}"
        await asyncio.sleep(0.005)


def _held(gateway: Gateway, servers: tuple[EmulatedServer, ...]) -> list[str]:
    dispatcher, now = gateway.runtime.dispatcher, gateway.runtime.now()
    held = {
        "calls": dispatcher.calls,
        "requests": gateway.door.inside,
        "queued": sum(dispatcher.pool_view(name, now).waiting for name in gateway.runtime.pools),
        "queued bytes": sum(dispatcher.pool_view(name, now).waiting_bytes for name in gateway.runtime.pools),
        "slots": sum(len(engine.slots) for engine in dispatcher.fleet),
        "work": sum(engine.work for engine in dispatcher.fleet),
        "sequences": sum(server.engine.running + server.engine.waiting for server in servers),
        "tasks": sum(_serves_a_call(task) for task in asyncio.all_tasks()),
    }
    return [f"{count} {name}" for name, count in held.items() if count]


def _serves_a_call(task: asyncio.Task[Any]) -> bool:
    """Whether a task is one that must end with its requests: uvicorn's, the watch on its client, a shared answer."""
    coroutine = getattr(task.get_coro(), "__qualname__", "")
    return task.get_name() == "client watch" or coroutine.endswith(("run_asgi", "Recall._fly", "Completions._fly"))


def error_of(reply: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = reply.json()["error"]
    return error


def events(text: str) -> list[str]:
    return [event.removeprefix("data: ") for event in text.split("\n\n") if event]


def broken_off(reply: httpx.Response, code: str = "stream_interrupted") -> list[str]:
    """Check that a stream ended by one error event and without [DONE]; returns the events before it."""
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/event-stream")
    *before, last = events(reply.text)
    assert "[DONE]" not in before
    assert json.loads(last)["error"]["code"] == code
    assert not any('"error"' in event for event in before)
    return before
