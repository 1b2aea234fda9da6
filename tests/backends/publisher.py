"""Publishes KV events as vLLM 0.32 does, frame by frame: a PUB socket, and a ROUTER that replays the last batches."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from backends.capabilities import KvSource

END = (-1).to_bytes(8, "big", signed=True)


def stored(
    names: Sequence[bytes], tokens: Sequence[int], parent: bytes | None = None, **more: object
) -> dict[str, object]:
    """A BlockStored: defaults are left out, as the server does."""
    size = len(tokens) // len(names)
    fields = {"block_hashes": list(names), "parent_block_hash": parent, "token_ids": list(tokens), "block_size": size}
    return {"type": "BlockStored", **fields, "lora_id": None, "medium": "GPU", "lora_name": None, **more}


def removed(*names: bytes, **more: object) -> dict[str, object]:
    return {"type": "BlockRemoved", "block_hashes": list(names), "medium": "GPU", "group_idx": 0, **more}


CLEARED = {"type": "AllBlocksCleared"}


class Publisher:
    """One process's events. `lost` batches are numbered and kept, but not sent to those who listen."""

    def __init__(
        self, publishing: zmq.asyncio.Socket, replaying: zmq.asyncio.Socket, kept: int, clock: float
    ) -> None:
        self._publishing = publishing
        self._replaying = replaying
        self._kept: deque[tuple[int, bytes]] = deque(maxlen=kept)
        self._numbers = count()
        self._clock = clock
        self.asked: list[int] = []

    async def publish(self, *events: object, lost: bool = False) -> None:
        self._clock += 1.0
        await self.send(msgspec.msgpack.encode([self._clock, list(events), 0]), lost=lost)

    async def send(self, payload: bytes, *, lost: bool = False) -> None:
        number = next(self._numbers)
        self._kept.append((number, payload))
        if not lost:
            await self._publishing.send_multipart([b"kv", number.to_bytes(8, "big"), payload])

    async def raw(self, *frames: bytes) -> None:
        await self._publishing.send_multipart(list(frames))

    async def replay(self) -> None:
        while True:
            client, _, start = await self._replaying.recv_multipart()
            self.asked.append(int.from_bytes(start, "big"))
            for number, payload in list(self._kept):
                if number >= self.asked[-1]:
                    frames = [client, b"", b"kv", number.to_bytes(8, "big"), payload]
                    await self._replaying.send_multipart(frames)
            await self._replaying.send_multipart([client, b"", b"", END, b""])


def source(folder: Path, *, replay: bool = True) -> KvSource:
    return KvSource(endpoint=f"ipc://{folder}/kv", replay=f"ipc://{folder}/replay" if replay else "", topic="kv")


@asynccontextmanager
async def publishing(at: KvSource, *, kept: int = 1000, clock: float = 1e9) -> AsyncIterator[Publisher]:
    """A process that publishes until the block is left."""
    context = zmq.asyncio.Context()
    public, router = context.socket(zmq.PUB), context.socket(zmq.ROUTER)
    public.bind(at.endpoint)
    if at.replay:
        router.bind(at.replay)
    publisher = Publisher(public, router, kept, clock)
    answering = asyncio.create_task(publisher.replay())
    try:
        yield publisher
    finally:
        answering.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await answering
        context.destroy(linger=0)


async def until(condition: Any, seconds: float = 10.0) -> None:
    """Wait for what other tasks bring about."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what changes has nobody to tell
            await asyncio.sleep(0.005)
