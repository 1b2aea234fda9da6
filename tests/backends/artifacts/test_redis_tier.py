"""What only the tier in Redis has to do with: a server that forgets, refuses, or holds what it should not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
import pytest_asyncio

from backends.artifacts.redis_tier import NAMESPACE, RedisTier, _at, _list_at, _mark_at
from backends.artifacts.tier import TierError
from backends.artifacts.wire import head_document
from tests.backends.artifacts.conftest import RedisServer
from tests.backends.artifacts.making import SCOPE, name, published


@pytest_asyncio.fixture
async def tier(redis_server: RedisServer) -> AsyncIterator[RedisTier]:
    tier = RedisTier(redis_server.url, clock=time.time, connect_timeout=5.0)
    yield tier
    await tier.close()


async def test_an_artifact_is_void_when_redis_has_forgotten_a_mark_that_it_was_made_with(tier: RedisTier) -> None:
    await tier.put(published(tags=["orders", "customers"]))
    await tier.drop_by_tag("t", ["orders"])
    await tier.client.delete(f"{NAMESPACE}:{_mark_at('t', 'orders')}")
    assert await tier.get(name()) is None
    assert await tier.listed("t", SCOPE) == []


async def test_two_who_ask_for_a_new_mark_get_the_same(tier: RedisTier) -> None:
    assert await tier.mark("t", ["new", "other"]) == await tier.mark("t", ["new", "other"])
    assert await tier.mark("t", ["new"]) != await tier.mark("u", ["new"])


async def test_everything_in_redis_ends_by_itself(tier: RedisTier) -> None:
    await tier.put(published(tags=["orders"]))
    await tier.drop_by_tag("t", ["customers"])
    keys = [key async for key in tier.client.scan_iter()]
    assert len(keys) == 3  # the artifact, its place in the list, a mark; of what is void nothing
    assert all([await tier.client.ttl(key) > 0 for key in keys])


async def test_what_is_damaged_is_not_served_and_goes(tier: RedisTier) -> None:
    await tier.put(published())
    at = f"{NAMESPACE}:{_at(name())}"
    await tier.client.setrange(at, 2, b"\xff\xff\xff")
    assert await tier.get(name()) is None
    assert not await tier.client.exists(at)


@pytest.mark.parametrize("what", ["artifact", "list", "mark"])
async def test_what_is_of_another_kind_goes_and_the_place_is_used_again(tier: RedisTier, what: str) -> None:
    artifact = published(tags=["orders"])
    await tier.put(artifact)
    keys = {key.split(b":")[1]: key async for key in tier.client.scan_iter()}
    key = keys[{"artifact": b"a", "list": b"l", "mark": b"m"}[what]]
    await tier.client.delete(key)
    await tier.client.sadd(key, "a set")
    if what == "list":
        assert await tier.listed("t", SCOPE) == []
        await tier.client.sadd(key, "a set")
    else:
        assert await tier.get(name()) is None
    assert await tier.put(artifact)
    assert await tier.get(name()) == artifact
    assert await tier.listed("t", SCOPE) == [artifact.head]


FOREIGN = (b"not json", b"{}", b"[]", b"5", b"\xff")


async def test_rows_that_nobody_can_read_are_not_listed_and_go(tier: RedisTier) -> None:
    artifact = published()
    await tier.put(artifact)
    at = _list_at("t", SCOPE)
    row = orjson.dumps({**head_document(artifact.head), "mark": []})
    strange: dict[Any, Any] = {
        b"twin": row,
        b"\xff": row,
        **{b"foreign-%d" % number: row for number, row in enumerate(FOREIGN)},
    }
    document: dict[str, Any] = orjson.loads(row)
    changes: list[dict[str, Any]] = [{"mark": 5}, {"expires": "nan"}, {"size": "1e999"}, {"tenant": "u"}]
    for number, change in enumerate(changes):
        strange[b"changed-%d" % number] = orjson.dumps({**document, **change})
    await tier.client.hset(at, mapping=strange)
    assert await tier.listed("t", SCOPE) == [artifact.head]
    assert await tier.client.hkeys(at) == [b"k"]


@pytest.mark.parametrize("mark", [b"\xff", b"", b"x" * 1000])
async def test_any_bytes_are_a_mark_and_no_bytes_are_none(tier: RedisTier, mark: bytes) -> None:
    artifact = published(tags=["orders"])
    await tier.put(artifact)
    await tier.client.set(f"{NAMESPACE}:{_mark_at('t', 'orders')}", mark)
    assert await tier.get(name()) is None
    assert await tier.listed("t", SCOPE) == []
    await tier.put(artifact)
    assert await tier.get(name()) == artifact


async def test_a_mark_lives_as_long_as_what_was_made_with_it_and_hardly_longer(redis_server: RedisServer) -> None:
    tier = RedisTier(redis_server.url, clock=time.time, connect_timeout=5.0, longest=1000.0)
    at = f"{NAMESPACE}:{_mark_at('t', 'orders')}"
    await tier.put(published(tags=["orders"]))
    assert 1000 < await tier.client.ttl(at) <= 1000 + 3600
    await tier.client.expire(at, 10)
    await tier.put(published("other", tags=["orders"]))
    assert await tier.client.ttl(at) > 1000
    assert await tier.get(name())
    await tier.close()


async def test_any_number_of_new_tags_is_one_question(tier: RedisTier) -> None:
    async def reads() -> int:
        return int((await tier.client.info("stats"))["total_reads_processed"])

    before = await reads()
    await tier.mark("t", [str(number) for number in range(32)])
    assert await reads() - before < 6  # not one for each: a message may come in a few pieces, and to ask is one too


async def test_connections_that_the_server_closed_are_opened_again(tier: RedisTier) -> None:
    await tier.put(published())
    await asyncio.gather(*(tier.get(name()) for _ in range(20)))
    await tier.client.client_kill_filter(_type="normal", skipme=False)
    found = await asyncio.gather(*(tier.get(name()) for _ in range(20)))
    assert all(found)


async def test_the_password_in_the_address_is_used_and_a_wrong_one_is_an_error_of_the_tier(
    tier: RedisTier, redis_server: RedisServer
) -> None:
    await tier.client.config_set("requirepass", "open sesame")
    for password, works in [("open%20sesame", True), ("wrong", False)]:
        url = redis_server.url.replace("//", f"//:{password}@")
        other = RedisTier(url, clock=time.time, connect_timeout=5.0)
        if works:
            assert await other.put(published())
            assert await other.get(name())
        else:
            with pytest.raises(TierError):
                await other.put(published())
        await other.close()


async def test_a_server_that_is_not_there_is_an_error_of_the_tier() -> None:
    tier = RedisTier("redis://127.0.0.1:1", clock=time.time)
    with pytest.raises(TierError) as caught:
        await tier.get(name())
    assert caught.value.reason == "connection"
    await tier.close()
