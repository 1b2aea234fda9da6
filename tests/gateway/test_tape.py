"""An answer is read by many while it comes: each at its own pace, and memory stays bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from gateway.openai.errors import ApiError, broken
from gateway.tape import AT_ONCE, Tape


def tape(most: int = 1000, patience: float = 60.0) -> Tape[str]:
    return Tape(most, patience)


async def all_of(reading: AsyncIterator[list[bytes]]) -> list[list[bytes]]:
    return [batch async for batch in reading]


async def steps(count: int = 5) -> None:
    """Let everything that can go on do so."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_reader_gets_what_has_come_at_once_and_the_rest_as_it_comes() -> None:
    one = tape()
    one.begin("head")
    await one.add([b"a", b"b"])
    await one.add([b"c"])
    async with one.reading() as reading:
        assert await anext(reading) == [b"a", b"b", b"c"]
        waiting = asyncio.ensure_future(anext(reading))
        await steps()
        assert not waiting.done()
        await one.add([b"d"])
        assert await waiting == [b"d"]
        one.end()
        assert await all_of(reading) == []
    async with one.reading() as reading:
        assert await all_of(reading) == [[b"a", b"b", b"c", b"d"]]
    assert (await one.head(), one.whole, one.events) == ("head", True, [b"a", b"b", b"c", b"d"])


async def test_whoever_waits_for_the_head_gets_it_or_what_came_instead() -> None:
    one, other = tape(), tape()
    waiting = [asyncio.ensure_future(some.head()) for some in (one, other)]
    await steps()
    one.begin("head")
    other.end(broken("no"))
    assert await waiting[0] == "head"
    with pytest.raises(ApiError, match="no"):
        await waiting[1]


async def test_an_answer_that_breaks_off_does_so_for_each_reader_after_what_came_of_it() -> None:
    one = tape()
    await one.add([b"a"])
    one.end(broken("off"))
    one.end()
    for _ in range(2):
        async with one.reading() as reading:
            assert await anext(reading) == [b"a"]
            with pytest.raises(ApiError, match="off"):
                await anext(reading)


async def test_a_long_answer_is_read_in_pieces_of_one_event_at_least() -> None:
    one = tape(most=10 * AT_ONCE)
    half, large = b"h" * (AT_ONCE // 2), b"l" * (2 * AT_ONCE)
    await one.add([half, half, half, large, large, half])
    one.end()
    async with one.reading() as reading:
        assert await all_of(reading) == [[half, half], [half], [large], [large], [half]]


async def test_beyond_its_bytes_the_writer_waits_for_the_slowest_reader() -> None:
    one = tape(most=4)
    async with one.reading() as fast, one.reading() as slow:
        await one.add([b"aa"])
        assert [await anext(fast), await anext(slow)] == [[b"aa"], [b"aa"]]
        adding = asyncio.ensure_future(one.add([b"bb", b"cc"]))
        await steps()
        assert await anext(fast) == [b"bb", b"cc"]
        last = asyncio.ensure_future(anext(fast))
        await steps()
        assert not adding.done(), "one of them has not come back for more, so it may not have read the first"
        assert one.whole
        assert await anext(slow) == [b"bb", b"cc"]
        await adding
        assert (one.whole, one.events) == (False, [b"bb", b"cc"])
        await one.add([])
        adding = asyncio.ensure_future(one.add([b"d"]))
        assert await last == [b"d"]
        assert await anext(slow) == [b"d"]
        await adding


async def test_a_reader_that_stands_still_is_cut_off_when_others_have_waited_long_enough() -> None:
    one = tape(most=2, patience=0.01)
    async with one.reading() as still, one.reading() as slow, one.reading() as fast:
        await one.add([b"aa"])
        assert [await anext(reading) for reading in (still, slow, fast)] == [[b"aa"]] * 3
        adding = asyncio.ensure_future(one.add([b"bb"]))
        for reading in (fast, slow):
            assert await anext(reading) == [b"bb"]
        await adding
        assert one.events == [b"bb"]
        with pytest.raises(ApiError, match="too slowly"):
            await anext(still)
        one.end()
        assert [await all_of(reading) for reading in (slow, fast)] == [[], []]


async def test_nobody_is_cut_off_while_nobody_waits_for_him() -> None:
    one = tape(most=2, patience=0.001)
    async with one.reading() as only:
        await one.add([b"aa"])
        assert await anext(only) == [b"aa"]
        adding = asyncio.ensure_future(one.add([b"bb"]))
        done, _ = await asyncio.wait([adding], timeout=0.05)
        assert not done
        assert await anext(only) == [b"bb"]
        await adding


@pytest.mark.parametrize("leaves", ["fast", "slow"])
async def test_the_writer_goes_on_for_those_who_stay(leaves: str) -> None:
    one = tape(most=2)
    async with AsyncExitStack() as leaving, one.reading() as staying:
        other = await leaving.enter_async_context(one.reading())
        await one.add([b"aa"])
        for reading in (other, staying):
            assert await anext(reading) == [b"aa"]
        adding = asyncio.ensure_future(one.add([b"bb"]))
        await steps()
        assert await anext(other if leaves == "fast" else staying) == [b"bb"]
        await steps()
        assert not adding.done()
        await leaving.aclose()
        if leaves == "fast":
            assert await anext(staying) == [b"bb"]
        await adding
        one.end()
        assert await all_of(staying) == []


async def test_the_writer_waits_for_a_reader_when_there_is_none() -> None:
    one = tape(most=2, patience=0.001)
    adding = asyncio.ensure_future(one.add([b"aaa"]))
    done, _ = await asyncio.wait([adding], timeout=0.02)
    assert not done
    async with one.reading() as reading:
        assert await anext(reading) == [b"aaa"]
        last = asyncio.ensure_future(anext(reading, None))
        await adding
        one.end()
        assert await last is None
