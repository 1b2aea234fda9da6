"""What only the tier in Redis has to do with: a server that forgets, refuses, or holds what it should not."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from backends.artifacts.redis_tier import NAMESPACE, RedisTier, _at, _mark_at
from backends.artifacts.tier import TierError
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
    assert len(keys) == 4  # the artifact, its place in the list, two marks
    assert all([await tier.client.ttl(key) > 0 for key in keys])


async def test_what_is_damaged_is_not_served_and_goes(tier: RedisTier) -> None:
    await tier.put(published())
    at = f"{NAMESPACE}:{_at(name())}"
    await tier.client.setrange(at, 2, b"\xff\xff\xff")
    assert await tier.get(name()) is None
    assert not await tier.client.exists(at)
    await tier.client.hset(at, "field", "value")
    with pytest.raises(TierError, match="WRONGTYPE") as caught:
        await tier.get(name())
    assert caught.value.reason == "broken"


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
