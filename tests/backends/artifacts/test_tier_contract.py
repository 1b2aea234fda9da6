"""What every tier of artifacts does, process memory and Redis alike."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from dataclasses import replace

import pytest
import pytest_asyncio

from backends.artifacts.memory import MemoryTier
from backends.artifacts.redis_tier import RedisTier
from backends.artifacts.tier import ScopeFull, Tier
from policies.artifacts import Artifact, Head, Name, Shelf

SCOPE = ("tenant", "schemas")


class Clock:
    """A clock that stands until it is moved. It begins today, as Redis counts lifetimes itself."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest_asyncio.fixture(params=["memory", "redis"])
async def tier(request: pytest.FixtureRequest, clock: Clock) -> AsyncIterator[Tier]:
    tier: Tier
    if request.param == "memory":
        tier = MemoryTier(Shelf(10_000_000), clock=clock, scope_most=3)
    else:
        server = request.getfixturevalue("redis_server")
        tier = RedisTier(server.url, clock=clock, scope_most=3, connect_timeout=5.0)
    yield tier
    await tier.close()
    await tier.close()  # a second time does no harm


def made(
    clock: Clock,
    key: str = "k",
    value: bytes = b"1",
    *,
    tenant: str = "t",
    scope: tuple[str, ...] = SCOPE,
    tags: Collection[str] = (),
    listed: bool = False,
    cost: float = 5.0,
) -> Artifact:
    name = Name(tenant, scope, key)
    head = Head(
        name=name,
        size=len(value),
        type="text/plain",
        producer="generate",
        cost=cost,
        made=clock(),
        expires=clock() + 60,
        tags=tuple(tags),
        listed=listed,
    )
    return Artifact(head, value)


@pytest.mark.parametrize("value", [b"", b"\0\xff\r\n", b'{"a": 1}', b"x" * 2_000_000], ids=len)
async def test_what_was_kept_comes_back_as_it_was(tier: Tier, clock: Clock, value: bytes) -> None:
    artifact = made(clock, value=value, tags=["table:orders", "ü"])
    assert await tier.get(artifact.head.name) is None
    assert await tier.put(artifact)
    assert await tier.get(artifact.head.name) == artifact


async def test_tenants_scopes_and_keys_are_kept_apart(tier: Tier, clock: Clock) -> None:
    names = [
        Name(tenant, scope, key)
        for tenant in ("", "a", "a:b")
        for scope in ((), ("a",), ("a", "b"), ("a:b",), ("a\0b",))
        for key in ("k", "b:k", "\n", "*", "é")
    ]
    for index, name in enumerate(names):
        artifact = made(clock, name.key, str(index).encode(), tenant=name.tenant, scope=name.scope)
        await tier.put(artifact)
    for index, name in enumerate(names):
        found = await tier.get(name)
        assert found is not None
        assert (found.head.name, found.value) == (name, str(index).encode())


async def test_the_latest_value_of_a_name_is_the_one(tier: Tier, clock: Clock) -> None:
    await tier.put(made(clock, value=b"old", tags=["gone"]))
    newer = made(clock, value=b"new")
    await tier.put(newer)
    await tier.drop_by_tag("t", ["gone"])
    assert await tier.get(newer.head.name) == newer


async def test_nothing_is_served_after_its_time(tier: Tier, clock: Clock) -> None:
    artifact = made(clock, listed=True)
    await tier.put(artifact)
    clock.now += 59.9
    assert await tier.get(artifact.head.name) == artifact
    clock.now += 0.1
    assert await tier.get(artifact.head.name) is None
    assert await tier.listed("t", SCOPE) == []
    await tier.put(artifact)
    assert await tier.get(artifact.head.name) is None


async def test_what_is_dropped_is_gone_and_nothing_else(tier: Tier, clock: Clock) -> None:
    one, other = made(clock, "one", listed=True), made(clock, "other", listed=True)
    await tier.put(one)
    await tier.put(other)
    assert await tier.drop(one.head.name)
    assert not await tier.drop(one.head.name)
    assert await tier.get(one.head.name) is None
    assert await tier.get(other.head.name) == other
    assert await tier.listed("t", SCOPE) == [other.head]


async def test_a_tag_makes_void_what_depends_on_it_in_its_tenant_alone(tier: Tier, clock: Clock) -> None:
    artifacts = [
        made(clock, "both", tags=["orders", "customers"], listed=True),
        made(clock, "orders", tags=["orders"], listed=True),
        made(clock, "customers", tags=["customers"], listed=True),
        made(clock, "none", listed=True, scope=("other",)),
        made(clock, "foreign", tags=["orders"], tenant="u"),
    ]
    for artifact in artifacts:
        await tier.put(artifact)
    await tier.drop_by_tag("t", ["orders", "never used"])
    await tier.drop_by_tag("t", [])
    found = [artifact.head.name.key for artifact in artifacts if await tier.get(artifact.head.name)]
    assert found == ["customers", "none", "foreign"]
    assert [head.name.key for head in await tier.listed("t", SCOPE)] == ["customers"]


async def test_what_was_begun_before_a_change_is_not_kept_after_it(tier: Tier, clock: Clock) -> None:
    artifact = made(clock, tags=["orders", "customers"])
    mark = await tier.mark("t", artifact.head.tags)
    await tier.drop_by_tag("t", ["customers"])
    await tier.put(artifact, mark)
    assert await tier.get(artifact.head.name) is None
    mark = await tier.mark("t", artifact.head.tags)
    await tier.drop_by_tag("t", ["something else"])
    await tier.drop_by_tag("u", ["customers"])
    await tier.put(artifact, mark)
    assert await tier.get(artifact.head.name) == artifact


async def test_dropping_all_of_a_tenant_leaves_nothing_but_the_others(tier: Tier, clock: Clock) -> None:
    other = made(clock, tenant="u", listed=True)
    await tier.put(other)
    artifacts = [made(clock, str(number), listed=number < 3) for number in range(20)]
    for artifact in artifacts:
        await tier.put(artifact)
    await tier.drop_all("t")
    assert [await tier.get(artifact.head.name) for artifact in artifacts] == [None] * 20
    assert await tier.listed("t", SCOPE) == []
    assert await tier.get(other.head.name) == other
    assert await tier.listed("u", SCOPE) == [other.head]
    await tier.put(artifacts[0])
    assert await tier.get(artifacts[0].head.name) == artifacts[0]


async def test_what_is_cheaper_to_compute_than_to_keep_is_not_kept(tier: Tier, clock: Clock) -> None:
    cheap = made(clock, value=b"x" * 10_000, cost=1e-5)
    assert not await tier.put(cheap)
    assert await tier.get(cheap.head.name) is None


async def test_a_scope_lists_what_is_to_be_listed_and_only_so_much(tier: Tier, clock: Clock) -> None:
    listed = [made(clock, key, key.encode() * 7, tags=["x"], listed=True) for key in "abc"]
    for artifact in [*listed, made(clock, "unlisted"), made(clock, "z", scope=("other",), listed=True)]:
        await tier.put(artifact)
    found = await tier.listed("t", SCOPE)
    assert sorted(found, key=lambda head: head.name.key) == [artifact.head for artifact in listed]
    with pytest.raises(ScopeFull):
        await tier.put(made(clock, "d", listed=True))
    await tier.put(listed[0])  # one that is there already takes no new place
    await tier.drop_by_tag("t", ["x"])
    await tier.put(made(clock, "d", listed=True))
    assert [head.name.key for head in await tier.listed("t", SCOPE)] == ["d"]


async def test_a_lifetime_of_nothing_is_no_error(tier: Tier, clock: Clock) -> None:
    artifact = made(clock)
    brief = Artifact(replace(artifact.head, expires=clock() - 1), artifact.value)
    await tier.put(brief)
    assert await tier.get(brief.head.name) is None
