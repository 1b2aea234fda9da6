"""An emulated engine says what its prefix cache holds, and who follows it knows no more and no less."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from random import Random

import aiohttp
import pytest

from backends.emulated.blocks import Blocks, Hashes
from backends.emulated.events import publishing
from backends.emulated.options import EmulatedOptions
from backends.emulated.server import EmulatedServer, serve
from backends.kvevents import Subscriptions
from backends.kvindex import BlockIndex, chain, keyed, packed
from backends.vllm import HttpEngine
from tests.backends.publisher import until

SIZE, BLOCKS = 4, 60
OPTIONS = EmulatedOptions(block_size=SIZE, num_gpu_blocks=BLOCKS, time_scale=1000, kv_events=True, dev_mode=True)


@asynccontextmanager
async def listening(url: str) -> AsyncIterator[BlockIndex]:
    """An index that is kept as the engine says."""
    index, ears = BlockIndex(size=SIZE, most=BLOCKS), Subscriptions()
    async with aiohttp.ClientSession() as session:
        [source] = (await HttpEngine(url, session).capabilities()).kv_events
    task = asyncio.create_task(ears.follow(source, url, index))
    try:
        yield index
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        ears.close()


async def asked(session: aiohttp.ClientSession, server: EmulatedServer, tokens: list[int], **more: object) -> int:
    """How many tokens of a prompt the engine found."""
    body = {"model": server.model, "prompt": tokens, "max_tokens": 1, **more}
    async with session.post(f"{server.url}/v1/completions", json=body) as reply:
        assert reply.status == 200
        cached: int = (await reply.json())["usage"]["prompt_tokens_details"]["cached_tokens"]
    return cached


def depth(index: BlockIndex, tokens: list[int], salt: str = "") -> int:
    """Tokens that the index says are held; the last token of a prompt is always computed."""
    hashes = chain(packed(tokens), SIZE, keyed(0, [salt]) if salt else 0)
    return index.depth(hashes, (len(tokens) - 1) // SIZE) * SIZE


def _count(monkeypatch: pytest.MonkeyPatch, of: object, *names: str) -> list[str]:
    """The names of these methods, once for each call from now on."""
    called: list[str] = []

    def counting(name: str, method: Callable[..., object]) -> Callable[..., object]:
        def counted(*given: object) -> object:
            called.append(name)
            return method(*given)

        return counted

    for name in names:
        monkeypatch.setattr(of, name, counting(name, getattr(of, name)))
    return called


async def test_what_is_said_is_what_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = Random(1)
    stems = [[rng.randrange(2**32) for _ in range(24)] for _ in range(8)]
    async with serve(OPTIONS) as server, listening(server.url) as index, aiohttp.ClientSession() as session:
        told = _count(monkeypatch, server.engine.blocks.watcher, "stored", "removed", "cleared")
        heard = _count(monkeypatch, index, "change")
        for number in range(120):
            tokens = rng.choice(stems)[: rng.randrange(1, 24)] + [number] * rng.randrange(1, 12)
            await until(lambda: index.whole and len(told) == len(heard))
            assert len(index) == server.engine.blocks.resident
            assert depth(index, tokens) == await asked(session, server, tokens)
        assert server.engine.blocks.resident > BLOCKS - 4, "or nothing was evicted"


async def test_a_salt_tells_blocks_apart() -> None:
    tokens = list(range(9))
    async with serve(OPTIONS) as server, listening(server.url) as index, aiohttp.ClientSession() as session:
        await asked(session, server, tokens, cache_salt="one")
        await until(lambda: len(index) == 2)
        assert (depth(index, tokens), depth(index, tokens, "two"), depth(index, tokens, "one")) == (0, 0, 8)


@pytest.mark.parametrize("path", ["/reset_prefix_cache", "/sleep?level=1"])
async def test_an_emptied_cache_is_told(path: str) -> None:
    async with serve(OPTIONS) as server, listening(server.url) as index, aiohttp.ClientSession() as session:
        await asked(session, server, list(range(9)))
        await until(lambda: len(index) == 2)
        async with session.post(server.url + path) as reply:
            assert reply.status == 200
        await until(lambda: len(index) == 0)
        assert index.whole


async def test_who_comes_later_is_told_all_that_was() -> None:
    async with serve(OPTIONS) as server, aiohttp.ClientSession() as session:
        await asked(session, server, list(range(9)))
        async with listening(server.url) as index:
            await until(lambda: len(index) == 2)
            assert index.whole


async def test_an_engine_that_publishes_nothing_says_so() -> None:
    async with serve() as server, aiohttp.ClientSession() as session:
        assert server.engine.blocks.watcher is None
        assert (await HttpEngine(server.url, session).capabilities()).kv_events == ()


async def test_an_address_that_cannot_be_had_is_named() -> None:
    with pytest.raises(OSError, match=r"192\.0\.2\.1"):
        async with serve(OPTIONS, host="192.0.2.1"):
            pass


async def test_both_kinds_of_addresses_are_told() -> None:
    for host, told in (("127.0.0.1", "tcp://127.0.0.1:"), ("::1", "tcp://[::1]:")):
        async with publishing(SIZE, host) as events:
            source = events.sources["0"]
            assert str(source["endpoint"]).startswith(told)
            assert str(source["replay_endpoint"]).startswith(told)
            assert source["endpoint"] != source["replay_endpoint"]


def test_parts_of_a_run_that_are_taken_are_told_from_its_end() -> None:
    told: list[list[int]] = []

    class Told:
        def stored(self, hashes: Hashes, start: int, stop: int) -> None: ...

        def removed(self, hashes: Sequence[int]) -> None:
            told.append(list(hashes))

        def cleared(self) -> None: ...

    blocks = Blocks(4)
    blocks.watcher = Told()
    first = blocks.hold((1, 2, 3), 3, 3)
    assert first is not None
    assert blocks.grow(first, 3)
    blocks.fill(first, 3)
    blocks.give_back(first)
    second = blocks.hold((9, 8, 7), 3, 3)
    assert second is not None
    assert blocks.grow(second, 3)
    assert told == [[2, 3]]
