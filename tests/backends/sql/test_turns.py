"""Turns of many tenants at one thing."""

from __future__ import annotations

import asyncio

import pytest

from backends.base import BackendError
from backends.sql.turns import Turns


async def lined_up(turns: Turns, names: str, order: list[str]) -> list[asyncio.Task[None]]:
    """One waits for each letter, which is its tenant; `order` tells who had a turn."""

    async def one(tenant: str) -> None:
        await turns.take(tenant)
        order.append(tenant)
        turns.give()

    tasks = [asyncio.create_task(one(tenant)) for tenant in names]
    await asyncio.sleep(0)
    return tasks


async def test_each_tenant_has_one_turn_in_a_round() -> None:
    turns, order = Turns(100), list[str]()
    await turns.take("z")
    tasks = await lined_up(turns, "aaaabbc", order)
    turns.give()
    await asyncio.gather(*tasks)
    assert "".join(order) == "abcabaa"


async def test_whoever_leaves_is_out_of_the_line_also_in_the_step_of_its_turn() -> None:
    turns, order = Turns(100), list[str]()
    await turns.take("z")
    tasks = await lined_up(turns, "aabc", order)
    tasks[2].cancel()
    turns.give()
    tasks[0].cancel()  # it has been granted the turn and does not know yet
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(end, asyncio.CancelledError) for end in ends] == [True, False, True, False]
    assert sorted(order) == ["a", "c"]
    await turns.take("z")  # nobody holds it


async def test_where_too_many_wait_only_tenants_below_their_share_may_still() -> None:
    turns, order = Turns(10), list[str]()
    await turns.take("z")
    tasks = await lined_up(turns, "a" * 10, order)
    with pytest.raises(BackendError, match="too many") as refused:
        await turns.take("a")
    assert refused.value.trouble == "overloaded"
    more = await lined_up(turns, "bbbbbbbbbbbbbb", order)
    assert sum(task.done() for task in more) > 0
    turns.give()
    ends = await asyncio.gather(*tasks, *more, return_exceptions=True)
    assert all(end is None or isinstance(end, BackendError) for end in ends)
    assert order.count("a") == 10
    assert 5 <= order.count("b") <= 11
    assert order[:10] == ["a", "b"] * 5
