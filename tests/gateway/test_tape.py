"""An answer is read by many while it comes: none waits for another, and memory stays bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway.openai.errors import ApiError, broken
from gateway.tape import Tape


def tape(most: int = 1000) -> Tape[str]:
    return Tape(most)


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
    reading = one.read()
    assert await anext(reading) == [b"a", b"b", b"c"]
    waiting = asyncio.ensure_future(anext(reading))
    await steps()
    assert not waiting.done()
    await one.add([b"d"])
    assert await waiting == [b"d"]
    one.end()
    assert await all_of(reading) == []
    assert await all_of(one.read()) == [[b"a", b"b", b"c", b"d"]]
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
        reading = one.read()
        assert await anext(reading) == [b"a"]
        with pytest.raises(ApiError, match="off"):
            await anext(reading)


async def test_beyond_its_bytes_the_writer_waits_for_the_fastest_reader_and_the_slowest_is_cut_off() -> None:
    one = tape(most=4)
    fast, slow = one.read(), one.read()
    await one.add([b"aa"])
    assert [await anext(fast), await anext(slow)] == [[b"aa"], [b"aa"]]
    assert one.fits([b"bb"])
    await one.add([b"bb"])
    assert not one.fits([b"c"])
    adding = asyncio.ensure_future(one.add([b"cc", b"dd"]))
    await steps()
    assert not adding.done(), "nobody has come back for more, so nobody may have read the first"
    assert await anext(fast) == [b"bb", b"cc", b"dd"]
    await steps()
    assert not adding.done(), "8 bytes are there, and only the first two have been read"
    last = asyncio.ensure_future(anext(fast))
    await adding
    assert (one.whole, one.fits([b""]), one.events) == (False, False, [b"cc", b"dd"])
    with pytest.raises(ApiError, match="too slowly"):
        await anext(slow)
    await one.add([b"e"])
    assert await last == [b"e"]


async def test_the_writer_goes_on_for_those_who_stay_when_the_fastest_reader_leaves() -> None:
    one = tape(most=2)
    fast, slow = one.read(), one.read()
    await one.add([b"aa"])
    assert [await anext(fast), await anext(slow)] == [[b"aa"], [b"aa"]]
    await fast.aclose()
    adding = asyncio.ensure_future(one.add([b"bb"]))
    await steps()
    assert not adding.done()
    assert await anext(slow) == [b"bb"]
    await adding
    one.end()
    assert await all_of(slow) == []
