"""KV events over ZeroMQ as vLLM publishes them: numbered batches of what came into the prefix cache and what went.

All that happens in one turn of the event loop is one batch. The last ones are kept, for whoever asks for what was
missed.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from itertools import count
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from backends.emulated.blocks import Hashes
from backends.emulated.tokens import Known

KEPT = 10_000
_END = (-1).to_bytes(8, "big", signed=True)
_MEDIUM = {"medium": "GPU", "group_idx": 0}


class Events:
    """Hears of each change in the memory (`Blocks.watcher`), and publishes it. `sources` says where."""

    def __init__(self, block_size: int, publisher: zmq.asyncio.Socket, replayer: zmq.asyncio.Socket) -> None:
        self._block_size = block_size
        self._publisher = publisher
        self._replayer = replayer
        self._kept: deque[tuple[bytes, bytes]] = deque(maxlen=KEPT)
        self._numbers = count()
        self._batch: list[dict[str, Any]] = []

    @property
    def sources(self) -> dict[str, dict[str, object]]:
        """What `/kv_event_sources` answers."""
        return {
            "0": {
                "enable_kv_cache_events": True,
                "publisher": "zmq",
                "endpoint": _endpoint(self._publisher),
                "replay_endpoint": _endpoint(self._replayer),
                "topic": "",
            }
        }

    def stored(self, hashes: Hashes, start: int, stop: int) -> None:
        """The blocks `start` to `stop` of a sequence hold their tokens from now on."""
        assert isinstance(hashes, Known), "a sequence of the surface"
        keys = [[hashes.salt] if index == 0 and hashes.salt else None for index in range(start, stop)]
        self._add(
            "BlockStored",
            block_hashes=list(hashes[start:stop]),
            parent_block_hash=hashes[start - 1] if start else None,
            token_ids=hashes.tokens(start * self._block_size, stop * self._block_size),
            block_size=self._block_size,
            lora_id=None,
            lora_name=None,
            extra_keys=keys,
            **_MEDIUM,
        )

    def removed(self, hashes: Sequence[int]) -> None:
        """These blocks were taken for something else."""
        self._add("BlockRemoved", block_hashes=list(hashes), **_MEDIUM)

    def cleared(self) -> None:
        """The cache is empty."""
        self._add("AllBlocksCleared")

    async def replay(self) -> None:
        """Answer those who ask for earlier batches, until cancelled."""
        while True:
            client, *_, start = await self._replayer.recv_multipart()
            for number, payload in list(self._kept):
                if number >= start:
                    await self._replayer.send_multipart([client, b"", b"", number, payload])
            await self._replayer.send_multipart([client, b"", b"", _END, b""])

    def _add(self, kind: str, **event: object) -> None:
        if not self._batch:
            asyncio.get_running_loop().call_soon(self._publish)
        self._batch.append({"type": kind, **event})

    def _publish(self) -> None:
        batch, self._batch = self._batch, []
        number = next(self._numbers).to_bytes(8, "big")
        payload = msgspec.msgpack.encode([time.time(), batch, 0])
        self._kept.append((number, payload))
        self._publisher.send_multipart([b"", number, payload])


@contextlib.asynccontextmanager
async def publishing(block_size: int, host: str) -> AsyncIterator[Events]:
    """Events that can be heard at two free ports of `host` until the block is left. Raises OSError."""
    context = zmq.asyncio.Context()
    try:
        events = Events(block_size, *(_bound(context.socket(kind), host) for kind in (zmq.PUB, zmq.ROUTER)))
        answering = asyncio.create_task(events.replay())
        try:
            yield events
        finally:
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)
    finally:
        context.destroy(linger=0)


def _bound(socket: zmq.asyncio.Socket, host: str) -> zmq.asyncio.Socket:
    socket.setsockopt(zmq.IPV6, int(":" in host))
    try:
        socket.bind(f"tcp://{f'[{host}]' if ':' in host else host}:0")
    except zmq.ZMQError as error:
        raise OSError(error.errno, f"KV events cannot be published at {host}: {error.strerror}") from None
    return socket


def _endpoint(socket: zmq.asyncio.Socket) -> str:
    return str(socket.getsockopt_string(zmq.LAST_ENDPOINT))
