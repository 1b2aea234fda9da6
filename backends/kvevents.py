"""Hears what a vLLM server says of its KV cache, over ZeroMQ, and keeps an index of it.

The server publishes a numbered batch of changes after each step. It answers from a buffer who asks for earlier ones:
so a subscriber begins with all that there is, and closes a gap. Where neither can be had, or where the numbers are
those of another process, the index begins anew. Nothing that arrives ends the task: what cannot be read is a gap.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import re
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import msgspec
import zmq
import zmq.asyncio

from backends.capabilities import KvSource
from backends.kvindex import BlockIndex, Change, Cleared, Name, Removed, Stored, packed

MESSAGE_MOST: Final = 16 * 1024 * 1024
QUEUED_MOST: Final = 10_000
REPLAY_MOST: Final = 5.0
"""Seconds to wait for each batch that was asked for; the server looks for such questions ten times a second."""
LOSSLESS: Final = 500
"""Batches that a server surely has room for."""
RETRY: Final = 1.0
TURN: Final = 16
"""Batches that are read before the event loop gets a turn."""
MEMORY: Final = (None, "GPU")
"""Media that count: what lies further off has to be fetched."""
_END: Final = 2**64 - 1
_OPTIONS: Final = (
    (zmq.RCVHWM, QUEUED_MOST),
    (zmq.MAXMSGSIZE, MESSAGE_MOST),
    (zmq.IPV6, 1),
    (zmq.TCP_KEEPALIVE, 1),
    (zmq.RECONNECT_IVL_MAX, 5000),
)
_ANYWHERE: Final = re.compile(r"^tcp://(\*|0\.0\.0\.0|\[::\]):(\d+)$")
_FIELDS: Final = {
    "BlockStored": (
        *("block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium", "lora_name"),
        *("extra_keys", "group_idx"),
    ),
    "BlockRemoved": ("block_hashes", "medium", "group_idx"),
    "AllBlocksCleared": (),
}
"""The order of an event's fields, for servers that send them without names."""
_log = logging.getLogger("cortex.engines")


class Unreadable(Exception):
    """A message that is none."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What changed in a step, and when that was by the server's clock."""

    at: float
    changes: Sequence[Change]


def reachable(source: KvSource, host: str) -> KvSource:
    """The addresses as seen from here, of a server that listens on all of its own."""
    told = f"[{host}]" if ":" in host else host
    endpoint, replay = (_ANYWHERE.sub(rf"tcp://{told}:\2", text) for text in (source.endpoint, source.replay))
    return KvSource(endpoint=endpoint, replay=replay, topic=source.topic)


def read_batch(payload: bytes) -> Batch:
    """A published batch. Raises Unreadable."""
    try:
        at, events, *_ = msgspec.msgpack.decode(payload)
        if not isinstance(at, float):
            raise Unreadable
        return Batch(at, [change for event in events if (change := _change(event)) is not None])
    except (ValueError, TypeError, OverflowError, RecursionError, msgspec.DecodeError) as error:
        raise Unreadable from error


def _change(event: object) -> Change | None:
    """None for what is of no interest. Raises Unreadable, TypeError, OverflowError."""
    match event:
        case [str(kind), *given]:
            event = dict(zip(_FIELDS.get(kind, ()), given, strict=False))
        case {"type": str(kind)}:
            pass
        case _:
            raise Unreadable
    match kind, event:
        case "AllBlocksCleared", _:
            return Cleared()
        case _, {"block_hashes": list(), **rest} if rest.get("medium") not in MEMORY or rest.get("group_idx"):
            return None
        case "BlockRemoved", {"block_hashes": [*names]}:
            return Removed(_named(names))
        case "BlockStored", {"block_hashes": [*names], "token_ids": [*tokens], "block_size": int(size), **rest}:
            parent, keys = rest.get("parent_block_hash"), rest.get("extra_keys")
            return Stored(
                names=_named(names),
                parent=None if parent is None else _named([parent])[0],
                tokens=packed(tokens),
                size=size,
                keys=[one if isinstance(one, list) else () for one in keys] if isinstance(keys, list) else (),
            )
        case (("BlockStored" | "BlockRemoved"), _):
            raise Unreadable
    return None


def _named(names: Sequence[object]) -> Sequence[Name]:
    if not all(isinstance(name, bytes | int) for name in names):
        raise Unreadable
    return names  # type: ignore[return-value]  # as was just seen


class Subscriptions:
    """What a gateway is subscribed to."""

    def __init__(self) -> None:
        self._context = zmq.asyncio.Context()

    async def follow(self, source: KvSource, url: str, index: BlockIndex) -> None:
        """Keep an index as the engine at `url` says, until cancelled."""
        await Feed(reachable(source, urlsplit(url).hostname or "127.0.0.1"), index, self._context).run()

    def close(self) -> None:
        """To be called when nothing is followed any more."""
        self._context.destroy(linger=0)


class Feed:
    """Keeps an index as one server's batches say. `next` is the number of the one that comes next."""

    def __init__(self, source: KvSource, index: BlockIndex, context: zmq.asyncio.Context) -> None:
        self._source = source
        self._index = index
        self._context = context
        self._next = 0
        self._at = 0.0

    async def run(self) -> None:
        """Listen until cancelled."""
        while True:
            try:
                with self._socket(zmq.SUB, self._source.endpoint) as socket:
                    socket.subscribe(self._source.topic)
                    await self._listen(socket)
            except zmq.ZMQError as error:
                _log.warning("KV events cannot be heard endpoint=%s reason=%s", self._source.endpoint, error)
            except Exception:  # noqa: BLE001 - the root of the task: an index that nobody keeps must not be believed
                _log.exception("KV events cannot be followed endpoint=%s", self._source.endpoint)
            self._begin(0, whole=False)
            await asyncio.sleep(RETRY)

    async def _listen(self, socket: zmq.asyncio.Socket) -> None:
        await self._catch_up()
        heard = 0
        while True:
            frames = await socket.recv_multipart()
            with contextlib.suppress(Unreadable):
                number, payload = _numbered(frames)
                await self._take(number, read_batch(payload))
            heard += 1
            if heard % TURN == 0:  # what has arrived already is read without a wait
                await asyncio.sleep(0)

    async def _take(self, number: int, batch: Batch) -> None:
        if number < self._next and batch.at <= self._at:
            return  # it was in what was asked for
        if number != self._next:
            await self._catch_up()
            if number < self._next and batch.at <= self._at:
                return
            if number != self._next:
                self._begin(number, whole=number == 0)
        self._apply(number, batch)

    def _begin(self, number: int, *, whole: bool) -> None:
        if self._next:
            _log.info("KV events begin anew endpoint=%s whole=%s", self._source.endpoint, whole)
        self._index.begin(whole=whole)
        self._next, self._at = number, 0.0

    def _apply(self, number: int, batch: Batch) -> None:
        try:
            for change in batch.changes:
                self._index.change(change)
        except RecursionError as error:  # a key that could just be read
            raise Unreadable from error
        self._next, self._at = number + 1, batch.at

    async def _catch_up(self) -> None:
        """Ask for what was missed. The last batch that was heard is asked for again: where it is another one now, so
        is the server, and all that it has said is asked for."""
        if not self._source.replay:
            self._begin(0, whole=False)
            return
        with contextlib.suppress(TimeoutError, Unreadable, zmq.ZMQError):
            if self._next and await self._resume():
                return
            await self._from_the_start()
            return
        self._begin(self._next, whole=False)

    async def _resume(self) -> bool:
        """Whether the server still has the last batch that was heard, and so all that came after it."""
        same = False
        async with aclosing(self._replayed(self._next - 1)) as batches:
            async for number, batch in batches:
                if same and number == self._next:
                    self._apply(number, batch)
                elif number != self._next - 1 or batch.at != self._at:
                    return False
                same = True
        return same

    async def _from_the_start(self) -> None:
        first = True
        async with aclosing(self._replayed(0)) as batches:
            async for number, batch in batches:
                if first or number != self._next:
                    self._begin(number, whole=number == 0)
                first = False
                self._apply(number, batch)
        if first:  # it has said nothing yet
            self._begin(0, whole=True)

    async def _replayed(self, start: int) -> AsyncGenerator[tuple[int, Batch], None]:
        """The batches from a number on. Raises TimeoutError where the server does not answer.

        A server drops what does not fit into its socket's queue, of 1,000, and the mark of the end with it: what is
        missing is asked for again, as long as some of it comes; after a long answer, so is its end.
        """
        wanted = start
        while True:
            began, ended = wanted, False
            with self._socket(zmq.DEALER, self._source.replay) as socket:
                await socket.send_multipart([b"", wanted.to_bytes(8, "big")])
                async for number, payload in _answers(socket):
                    ended = number == _END
                    if ended or number > wanted > began:
                        break
                    yield number, read_batch(payload)
                    wanted = number + 1
            if ended and wanted - began < LOSSLESS:
                return
            if wanted == began:
                raise TimeoutError

    @contextlib.contextmanager
    def _socket(self, kind: int, endpoint: str) -> Iterator[zmq.asyncio.Socket]:
        socket = self._context.socket(kind)
        try:
            for option, value in _OPTIONS:
                socket.setsockopt(option, value)
            socket.connect(endpoint)
            yield socket
        finally:
            socket.close(linger=0)


async def _answers(socket: zmq.asyncio.Socket) -> AsyncGenerator[tuple[int, bytes], None]:
    """What comes, until nothing does for a while. Raises Unreadable."""
    for heard in itertools.count(1):
        try:
            async with asyncio.timeout(REPLAY_MOST):
                frames = await socket.recv_multipart()
        except TimeoutError:
            return
        yield _numbered(frames)
        if heard % TURN == 0:
            await asyncio.sleep(0)


def _numbered(frames: Sequence[bytes]) -> tuple[int, bytes]:
    """The number and the payload, which come last. Raises Unreadable."""
    if len(frames) < 2 or len(frames[-2]) != 8:
        raise Unreadable
    return int.from_bytes(frames[-2], "big"), frames[-1]
