"""A feed follows a publisher that speaks as vLLM does, over real sockets: gaps, restarts, and what is no message."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import msgspec
import pytest

from backends import kvevents
from backends.capabilities import KvSource
from backends.kvevents import Subscriptions, Unreadable, reachable, read_batch
from backends.kvindex import BlockIndex, Removed, Stored, chain, packed
from tests.backends.publisher import CLEARED, Publisher, publishing, removed, source, stored, until

TOKENS = list(range(16))
HASHES = chain(packed(TOKENS), 4)
FIRST = stored([b"a", b"b"], TOKENS[:8])
MORE = stored([b"c"], TOKENS[8:12], b"b")
LAST = stored([b"d"], TOKENS[12:], b"c")


def held(index: BlockIndex) -> int:
    return index.depth(HASHES, len(HASHES))


@asynccontextmanager
async def following(at: KvSource, most: int = 100) -> AsyncIterator[BlockIndex]:
    """An index that is kept as the publisher says."""
    index, ears = BlockIndex(size=4, most=most), Subscriptions()
    task = asyncio.create_task(ears.follow(at, "http://127.0.0.1:8000", index))
    try:
        yield index
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        ears.close()


async def heard(publisher: Publisher, index: BlockIndex) -> None:
    """Wait until the subscription has come about, by an event that changes nothing."""
    before = index.whole
    async with asyncio.timeout(10):
        while not index.whole or before:
            await publisher.publish(CLEARED)
            await asyncio.sleep(0.01)
            before = False


async def test_what_was_said_before_is_asked_for_and_what_is_said_now_is_heard(tmp_path: Path) -> None:
    async with publishing(source(tmp_path)) as publisher:
        await publisher.publish(FIRST)
        await publisher.publish(MORE)
        async with following(source(tmp_path)) as index:
            await until(lambda: held(index) == 3)
            assert index.whole
            await publisher.publish(LAST)
            await publisher.publish(removed(b"d"))
            await publisher.publish(LAST)
            await until(lambda: held(index) == 4)
            assert len(index) == 4


async def test_an_engine_that_has_said_nothing_is_known_to_hold_nothing(tmp_path: Path) -> None:
    async with publishing(source(tmp_path)), following(source(tmp_path)) as index:
        await until(lambda: index.whole)
        assert held(index) == 0


async def test_a_gap_is_filled_by_what_is_replayed(tmp_path: Path) -> None:
    async with publishing(source(tmp_path)) as publisher, following(source(tmp_path)) as index:
        await heard(publisher, index)
        await publisher.publish(FIRST)
        await until(lambda: held(index) == 2)
        asked = len(publisher.asked)
        await publisher.publish(MORE, lost=True)
        await publisher.publish(LAST)
        await until(lambda: held(index) == 4)
        assert index.whole
        assert all(number > 0 for number in publisher.asked[asked:])


async def test_a_gap_that_cannot_be_filled_drops_the_index(tmp_path: Path) -> None:
    at = source(tmp_path)
    async with publishing(at, kept=1) as publisher, following(at, most=3) as index:
        await heard(publisher, index)
        await publisher.publish(FIRST)
        await until(lambda: held(index) == 2)
        await publisher.publish(MORE, lost=True)
        await publisher.publish(removed(b"a"), lost=True)
        await publisher.publish(stored([b"x"], [7, 7, 7, 7]))
        await until(lambda: len(index) == 1)
        assert not index.whole
        await publisher.publish(FIRST)
        await until(lambda: index.whole)
        assert held(index) == 2


async def test_without_replay_the_index_is_known_from_the_first_clearing_on(tmp_path: Path) -> None:
    at = source(tmp_path, replay=False)
    async with publishing(at) as publisher, following(at) as index:
        await publisher.publish(FIRST)
        await heard(publisher, index)
        await publisher.publish(FIRST)
        await until(lambda: held(index) == 2)
        await publisher.publish(MORE, lost=True)
        await publisher.publish(LAST)
        await until(lambda: not index.whole)


async def test_another_process_at_the_same_place_is_another_cache(tmp_path: Path) -> None:
    at = source(tmp_path)
    async with following(at) as index:
        async with publishing(at) as publisher:
            await publisher.publish(FIRST)
            await publisher.publish(MORE)
            await until(lambda: held(index) == 3)
        async with publishing(at, clock=2e9) as publisher:
            other = stored([b"x"], [7, 7, 7, 7])
            async with asyncio.timeout(20):
                while held(index):
                    await publisher.publish(other)
                    await asyncio.sleep(0.02)
            assert index.whole
            await publisher.publish(FIRST)
            await until(lambda: held(index) == 2)


async def test_a_process_that_has_said_more_than_the_one_before_it_is_told_apart(tmp_path: Path) -> None:
    at = source(tmp_path)
    async with following(at) as index:
        async with publishing(at) as publisher:
            await publisher.publish(FIRST)
            await until(lambda: held(index) == 2)
        async with publishing(at, clock=2e9) as publisher:
            for _ in range(5):
                await publisher.publish(stored([b"x"], [7, 7, 7, 7]), lost=True)
            async with asyncio.timeout(20):
                while held(index) or len(index) != 1:
                    await publisher.publish(CLEARED, stored([b"x"], [7, 7, 7, 7]))
                    await asyncio.sleep(0.02)


async def test_nothing_that_arrives_ends_the_listening(tmp_path: Path) -> None:
    at = source(tmp_path)
    rng = Random(3)
    async with publishing(at) as publisher, following(at) as index:
        await heard(publisher, index)
        for frames in ([b"kv"], [b"kv", b"short", b"x"], [b"kv", bytes(8), b"\xc1"], [b"kv"] * 9):
            await publisher.raw(*frames)
        for _ in range(50):
            await publisher.raw(b"kv", rng.randbytes(8), rng.randbytes(rng.randrange(200)))
        await publisher.send(msgspec.msgpack.encode([1.0, [{"type": "BlockStored", "block_hashes": "all"}]]))
        await publisher.publish(CLEARED)
        await publisher.publish(FIRST)
        await until(lambda: held(index) == 2)


async def test_an_address_that_is_none_is_tried_again_and_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kvevents, "RETRY", 0.001)
    async with following(KvSource(endpoint="nonsense://here")) as index:
        await until(lambda: caplog.text.count("KV events cannot be heard") > 1)
        assert not index.whole


async def test_a_server_that_does_not_replay_is_not_waited_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kvevents, "REPLAY_MOST", 0.05)
    silent = KvSource(endpoint=f"ipc://{tmp_path}/kv", replay=f"ipc://{tmp_path}/nobody", topic="kv")
    async with publishing(source(tmp_path, replay=False)) as publisher, following(silent) as index:
        await heard(publisher, index)
        await publisher.publish(FIRST)
        await until(lambda: held(index) == 2)


def test_a_server_that_listens_everywhere_is_reached_at_its_own_host() -> None:
    told = KvSource(endpoint="tcp://*:5557", replay="tcp://0.0.0.0:5558", topic="t")
    assert reachable(told, "gpu-a") == KvSource(endpoint="tcp://gpu-a:5557", replay="tcp://gpu-a:5558", topic="t")
    assert reachable(told, "::1").endpoint == "tcp://[::1]:5557"
    named = KvSource(endpoint="tcp://10.0.0.5:5557", replay="ipc:///tmp/replay")
    assert reachable(named, "gpu-a") == named


def test_events_without_names_of_fields_are_read_by_their_order() -> None:
    events = [["BlockStored", [1, 2], 0, [5, 6, 7, 8], 2, None, "GPU"], ["BlockRemoved", [3]], ["AllBlocksCleared"]]
    batch = read_batch(msgspec.msgpack.encode([1.5, events]))
    assert batch.changes[0] == Stored(names=[1, 2], parent=0, tokens=packed([5, 6, 7, 8]), size=2)
    assert batch.changes[1] == Removed([3])
    assert batch.at == 1.5


def test_what_lies_further_off_and_what_is_unknown_is_passed_over() -> None:
    events = [
        stored([b"a"], [1, 2], medium="CPU"),
        stored([b"a"], [1, 2], group_idx=1),
        removed(b"a", medium="STORAGE"),
        {"type": "BlockMoved"},
    ]
    assert read_batch(msgspec.msgpack.encode([1.0, events, 0])).changes == []


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x93",
        msgspec.msgpack.encode(7),
        msgspec.msgpack.encode(["soon", []]),
        msgspec.msgpack.encode([1.0, 7]),
        msgspec.msgpack.encode([1.0, [None]]),
        msgspec.msgpack.encode([1.0, [{"type": "BlockRemoved"}]]),
        msgspec.msgpack.encode([1.0, [{"type": "BlockRemoved", "block_hashes": ["a"]}]]),
        msgspec.msgpack.encode([1.0, [stored([b"a"], [-1, 2])]]),
        msgspec.msgpack.encode([1.0, [stored([b"a"], [2**40, 2])]]),
        msgspec.msgpack.encode([1.0, [stored([b"a"], [1, 2], parent_block_hash=[b"b"])]]),
        b"\x93\xcb" + bytes(8) + b"\x91" * 5000,
    ],
)
def test_what_is_no_batch_is_refused(message: bytes) -> None:
    with pytest.raises(Unreadable):
        read_batch(message)


def nested(depth: int) -> bytes:
    """A batch whose one block has a key of so many lists within each other."""
    event = stored([b"x"], TOKENS[:4], None, extra_keys="@@")
    lists = b"\x91" * (depth + 2) + b"\x01"
    return msgspec.msgpack.encode([1e10, [event], 0]).replace(msgspec.msgpack.encode("@@"), lists)


async def test_keys_that_are_nested_too_deeply_do_not_end_the_listening(tmp_path: Path) -> None:
    at = source(tmp_path)
    async with publishing(at) as publisher, following(at, most=10_000) as index:
        await heard(publisher, index)
        for depth in range(900, 1000, 3):
            await publisher.send(nested(depth))
        async with asyncio.timeout(10):
            while held(index) != 2:
                await publisher.publish(FIRST)
                await asyncio.sleep(0.05)


async def test_more_batches_than_fit_into_a_queue_are_asked_for_until_all_have_come(tmp_path: Path) -> None:
    at = source(tmp_path)
    async with publishing(at, kept=5000) as publisher:
        await publisher.publish(FIRST)
        for number in range(3000):
            await publisher.publish(
                stored([b"%d" % number], [number] * 4, b"b" if number == 0 else b"%d" % (number - 1))
            )
        async with following(at, most=10_000) as index:
            await until(lambda: len(index) == 3002, seconds=20)
            assert index.whole
