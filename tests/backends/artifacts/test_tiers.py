"""Both tiers as one: computed once, void everywhere at once, and no failure because of Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from backends.artifacts.news import Dropped, Invalidated, Published, Reset
from backends.artifacts.tiers import Got
from policies.artifacts import Artifact
from tests.backends.artifacts.conftest import RedisServer
from tests.backends.artifacts.making import PATIENCE, SCOPE, Site, computed, name, published, site, sites, until

GENEROUS = 5.0
"""Seconds that Redis gets where a test is not about its being slow: the machine may be busy."""


async def value_of(at: Site, key: str = "k") -> bytes | None:
    got = await at.artifacts.get(name(key))
    return None if got is None else got.artifact.value


async def written_behind(at: Site) -> None:
    """Wait until what was computed is in Redis."""
    await until(lambda: not at.artifacts._behind, "artifacts written to Redis")


async def asked_again(at: Site) -> None:
    """Keep asking, as traffic would, until Redis is asked again."""
    async with asyncio.timeout(PATIENCE):
        while at.shared.asleep:
            await value_of(at, "never")
            await asyncio.sleep(0.01)


# --- one gateway ----------------------------------------------------------------------------------------------


async def test_what_was_kept_is_found_and_nobody_is_told() -> None:
    async with site() as at:
        assert await value_of(at) is None
        await at.artifacts.keep(computed())
        got = await at.artifacts.get(name())
        assert got is not None
        assert (got.artifact.value, got.source) == (b"1", "memory")
        assert at.counted.lookups == {("memory", "miss"): 1, ("memory", "hit"): 1}
        assert at.news == []
        assert await at.artifacts.listed("t", SCOPE) == ([], True)


async def test_an_invalidation_of_another_tenant_or_tag_changes_nothing() -> None:
    async with site() as at:
        await at.artifacts.publish(published(tags=["orders"]))
        await at.artifacts.invalidate("u", ["orders"])
        await at.artifacts.invalidate("t", ["customers"])
        assert await value_of(at) == b"1"
        await at.artifacts.invalidate("t", ["orders"])
        assert await value_of(at) is None


async def test_memory_stays_within_its_bytes_and_says_what_had_to_go() -> None:
    async with site(max_bytes=20_000) as at:
        for number in range(50):
            await at.artifacts.publish(published(str(number), b"x" * 1000))
        shelf = at.artifacts.memory.shelf
        assert shelf.bytes <= 20_000
        assert at.counted.evicted == 50 - len(shelf) > 0


# --- two gateways ---------------------------------------------------------------------------------------------


async def test_what_one_gateway_computed_the_other_finds(redis_server: RedisServer) -> None:
    async with sites(redis_server.url, timeout=GENEROUS) as (one, other):
        await one.artifacts.keep(computed())
        await written_behind(one)
        for source in ("redis", "memory"):
            got = await other.artifacts.get(name())
            assert got is not None
            assert (got.artifact.value, got.source) == (b"1", source)
        assert other.counted.lookups["redis", "hit"] == 1
        assert other.news == []


Change = Callable[[Site], Awaitable[object]]


@pytest.mark.parametrize(
    ("change", "left"),
    [
        (lambda at: at.artifacts.invalidate("t", ["orders"]), None),
        (lambda at: at.artifacts.drop(name()), None),
        (lambda at: at.artifacts.publish(published(value=b"new")), b"new"),
    ],
    ids=["invalidate", "drop", "publish"],
)
async def test_a_change_at_one_gateway_reaches_the_memory_of_the_other(
    redis_server: RedisServer, change: Change, left: bytes | None
) -> None:
    async with sites(redis_server.url, timeout=GENEROUS) as (one, other):
        assert await one.artifacts.publish(published(value=b"old", tags=["orders"])) == (True, True)
        await until(lambda: any(isinstance(news, Published) for news in other.news), "news of the first value")
        assert await value_of(other) == b"old"
        again = await other.artifacts.get(name())
        assert again is not None
        assert again.source == "memory"
        told = len(other.news)
        await change(one)
        await until(lambda: len(other.news) > told, "news of the change")
        assert await value_of(other) == left
        assert await value_of(one) == left
        heads, whole = await other.artifacts.listed("t", SCOPE)
        assert ([head.name.key for head in heads], whole) == (["k"] if left else [], True)


async def test_the_news_tell_who_published_what_with_small_values_and_without_large_ones(
    redis_server: RedisServer,
) -> None:
    async with sites(redis_server.url, timeout=GENEROUS) as (one, other):
        small, large = published("small", b"\xff\0"), published("large", b"x" * 100_000)
        await one.artifacts.publish(small)
        await one.artifacts.publish(large)
        await one.artifacts.drop(name("small"))
        await one.artifacts.invalidate("t", ["a", "b"])
        expected = [
            Published(small.head, b"\xff\0"),
            Published(large.head, None),
            Dropped(name("small")),
            Invalidated("t", ("a", "b")),
        ]
        assert one.news == expected
        await until(lambda: len(other.news) == 4, "the news")
        assert other.news == expected


async def test_a_message_that_cannot_be_read_counts_as_any_change(redis_server: RedisServer) -> None:
    async with site(redis_server.url, timeout=GENEROUS) as at:
        await until(lambda: at.shared.listening, "listening")
        await at.artifacts.publish(published())
        at.news.clear()
        await at.shared._tier.publish(b"\xff?")
        await until(lambda: at.news == [Reset()], "the reset")
        assert len(at.artifacts.memory.shelf) == 0
        assert await value_of(at) == b"1"  # from Redis, where it has not changed


async def test_news_that_somebody_fails_to_take_in_are_followed_by_others(redis_server: RedisServer) -> None:
    async with sites(redis_server.url, timeout=GENEROUS) as (one, other):
        failed: list[object] = []

        def fail_once(news: object) -> None:
            if not failed:
                failed.append(news)
                raise RuntimeError("no")

        other.artifacts.watch(fail_once)
        await one.artifacts.invalidate("t", ["a"])
        await until(lambda: Reset() in other.news, "hearing again")
        await one.artifacts.invalidate("t", ["b"])
        await until(lambda: Invalidated("t", ("b",)) in other.news, "the news")


# --- Redis slow, gone and back --------------------------------------------------------------------------------


async def test_what_was_missed_while_disconnected_is_not_served(redis_server: RedisServer) -> None:
    async with sites(redis_server.url, timeout=GENEROUS) as (one, other):
        await one.artifacts.publish(published(value=b"old", tags=["orders"]))
        await one.artifacts.publish(published("kept", b"kept"))
        await until(lambda: len(other.news) == 2, "the news")
        assert await value_of(other) == b"old"
        other.news.clear()
        # Its connection breaks, and while it is away the other changes what it holds.
        await other.shared._tier.client.client_kill_filter(_type="pubsub")
        await one.artifacts.invalidate("t", ["orders"])
        await until(lambda: Reset() in other.news, "hearing again")
        assert await value_of(other) is None
        assert await value_of(other, "kept") == b"kept"


async def test_a_change_while_redis_is_gone_reaches_the_others_when_it_is_back(redis_server: RedisServer) -> None:
    async with sites(redis_server.url) as (one, other):
        redis_server.kill()
        await until(lambda: not one.shared.listening and not other.shared.listening, "both notice")
        assert await one.artifacts.publish(published("new", b"new")) == (True, False)
        assert await value_of(one, "new") == b"new"
        assert await one.artifacts.drop(name("nothing")) == (False, False)
        assert not await one.artifacts.invalidate("t", ["orders"])
        heads, whole = await one.artifacts.listed("t", SCOPE)
        assert ([head.name.key for head in heads], whole) == (["new"], False)
        redis_server.start()
        await until(lambda: not one.shared.untold and one.shared.listening, "Redis is told")
        assert await value_of(one, "new") == b"new"
        await until(lambda: other.shared.listening and not other.shared.asleep, "the other is back")
        assert await value_of(other, "new") == b"new"
        assert await other.shared._tier._marks("t", ["orders"]) != ("",)


async def test_what_redis_still_has_is_not_believed_before_it_was_told_of_a_change(redis_server: RedisServer) -> None:
    async with site(redis_server.url) as at:
        await until(lambda: at.shared.listening, "listening")
        await at.artifacts.publish(published("dropped", b"old"))
        await at.artifacts.publish(published("void", b"old", tags=["orders"]))
        await at.artifacts.publish(published("changed", b"old"))
        redis_server.freeze()
        await at.artifacts.drop(name("dropped"))
        await at.artifacts.invalidate("t", ["orders"])
        await at.artifacts.publish(published("changed", b"new"))
        redis_server.thaw()
        values = [await value_of(at, key) for key in ("dropped", "void", "changed")]
        assert values == [None, None, b"new"]
        await until(lambda: not at.shared.untold, "Redis is told")
        values = [await value_of(at, key) for key in ("dropped", "void", "changed")]
        assert values == [None, None, b"new"]


async def test_a_newer_value_from_another_gateway_wins_over_one_that_waited(redis_server: RedisServer) -> None:
    async with sites(redis_server.url, timeout=GENEROUS) as (one, other):
        waited = published(value=b"waited")
        one.shared.untold.names[name()] = waited.head.made
        await one.artifacts.memory.put(waited)
        await other.artifacts.publish(published(value=b"newer"))
        await until(lambda: not one.shared.untold, "Redis is told")
        assert await value_of(one) == b"newer"
        assert await value_of(other) == b"newer"


async def test_too_much_to_remember_makes_everything_void(redis_server: RedisServer) -> None:
    async with sites(redis_server.url) as (one, other):
        await one.artifacts.publish(published())
        redis_server.freeze()
        await one.artifacts.invalidate("t", [str(number) for number in range(20_000)])
        assert one.shared.untold.everything
        await one.artifacts.memory.drop_all()
        redis_server.thaw()
        assert await value_of(one) is None
        other.news.clear()
        await until(lambda: not one.shared.untold, "Redis is told")
        await until(lambda: Reset() in other.news, "the other knows")
        assert await value_of(other) is None


async def test_a_frozen_redis_costs_its_timeout_a_few_times_and_then_nothing(redis_server: RedisServer) -> None:
    async with site(redis_server.url) as at:
        await until(lambda: at.shared.listening, "listening")
        await at.artifacts.publish(published("known"))
        redis_server.freeze()
        took = []
        for number in range(8):
            began = time.monotonic()
            assert await value_of(at, str(number)) is None
            took.append(time.monotonic() - began)
        assert await value_of(at, "known") == b"1"
        slow = [seconds for seconds in took if seconds > 0.09]
        assert 3 <= len(slow) <= 5, took  # until the breaker opens; it may let a trial through after that
        assert sorted(took)[0] < 0.05, took
        assert at.counted.failures["timeout"] >= 3
        assert at.counted.failures["skipped"] >= 1
        redis_server.thaw()
        await asked_again(at)


async def test_not_even_what_fills_the_socket_of_a_frozen_redis_takes_longer(redis_server: RedisServer) -> None:
    async with site(redis_server.url) as at:
        await until(lambda: at.shared.listening, "listening")
        await at.artifacts.publish(published("first"))  # so that there is a connection
        redis_server.freeze()
        began = time.monotonic()
        assert await at.artifacts.publish(published("large", b"x" * 9_000_000)) == (True, False)
        assert time.monotonic() - began < 1.0  # and not the seconds that the connection takes to let go
        redis_server.kill()


async def test_more_who_ask_at_once_than_there_are_connections_all_get_their_answer(
    redis_server: RedisServer,
) -> None:
    async with sites(redis_server.url, timeout=GENEROUS) as (one, other):
        for number in range(300):
            await one.artifacts.publish(published(str(number)))
        await until(lambda: len(other.news) == 300, "the news")
        got = await asyncio.gather(*[other.artifacts.get(name(str(number))) for number in range(300)])
        assert {one and one.source for one in got} == {"redis"}
        assert not other.counted.failures


async def test_a_redis_that_was_never_there_fails_nobody() -> None:
    async with site("redis://127.0.0.1:1/0") as at:
        await at.artifacts.keep(computed())
        assert await value_of(at) == b"1"
        assert await at.artifacts.publish(published("p")) == (True, False)
        assert await value_of(at, "p") == b"1"
        assert await value_of(at, "q") is None
        assert at.counted.failures["connection"] >= 1


async def test_killing_and_starting_redis_under_load_loses_no_request(redis_server: RedisServer) -> None:
    async with sites(redis_server.url) as (one, other):
        served, running = 0, True

        async def client(at: Site, number: int) -> None:
            nonlocal served
            turn = 0
            while running:
                turn += 1
                key = f"{number % 4}-{turn % 50}"
                value = key.encode()
                if await value_of(at, key) != value:
                    await at.artifacts.keep(computed(key, value))
                assert await value_of(at, key) == value
                own: Artifact = published(f"own-{number}", value)
                await at.artifacts.publish(own)
                back: Got | None = await at.artifacts.get(own.head.name)
                assert back is not None
                if turn % 7 == 0:
                    await at.artifacts.invalidate("t", [key])
                served += 1
                await asyncio.sleep(0.001)

        clients = [asyncio.create_task(client(at, index)) for index, at in enumerate([one, other] * 4)]

        async def more() -> None:
            enough = served + 200
            await until(lambda: served > enough or any(one.done() for one in clients), "requests served")

        for _ in range(2):
            await more()
            redis_server.kill()
            await more()
            redis_server.start()
            await until(lambda: one.shared.listening and other.shared.listening, "both are back")
        await more()
        running = False
        await asyncio.gather(*clients)
        assert one.counted.failures["connection"] + other.counted.failures["connection"] > 0
        await until(lambda: not one.shared.untold and not other.shared.untold, "Redis is told of everything")
