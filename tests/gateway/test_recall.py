"""What is known, or being found out, is not computed again; and nobody suffers for another's refusal."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from backends.emulated.server import serve
from gateway.openai.errors import ApiError, broken, refused
from gateway.recall import Recall, Recalled
from policies.calls import Call, Outcome
from policies.events import Event, Reported
from tests.gateway.shop import FAST
from tests.gateway.support import Running, attached, running, settled, until, written


class Memory:
    """Keeps all."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}

    def get(self, key: str) -> str | None:
        return self.kept.get(key)

    def put(self, key: str, value: str) -> None:
        self.kept[key] = value


class Bench:
    """Recalls over a real dispatcher, and a computation that the test ends."""

    def __init__(self, up: Running) -> None:
        self.runtime = up.gateway.runtime
        self.memory = Memory()
        self.recall: Recall[str, str] = Recall(
            runtime=self.runtime,
            kept=self.memory,
            outcome=lambda value, source: Outcome(fate="ok", source=source),
            keep=lambda value: value != "secret",
        )
        self.computed: list[str] = []
        self.result: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def compute(self, call: Call) -> str:
        self.computed.append(call.id)
        return await asyncio.shield(self.result)

    async def answer_at_once(self, call: Call) -> str:
        self.computed.append(call.id)
        return "own"

    def ask(self, name: str, compute: Callable[[Call], Awaitable[str]] | None = None) -> asyncio.Task[Recalled[str]]:
        call = Call(id=name, pool="default", run=name, arrived=self.runtime.now())
        return asyncio.create_task(self.recall.get("key", call, compute or self.compute))

    async def flying(self, followers: int) -> None:
        await until(lambda: len(self.computed) == 1 and self.runtime.dispatcher.calls == followers, "the flight")


@asynccontextmanager
async def bench(folder: Path) -> AsyncIterator[Bench]:
    async with serve(FAST) as server, running(folder, written({"default": attached(server.url)})) as up:
        yield Bench(up)
        await settled(up.gateway)


async def test_the_first_computes_others_join_and_later_ones_recall(tmp_path: Path) -> None:
    async with bench(tmp_path) as at:
        asked = [at.ask(f"c{number}") for number in range(4)]
        await at.flying(3)
        at.result.set_result("rows")
        got = await asyncio.gather(*asked)
        assert [one.cache for one in got] == ["miss", "joined", "joined", "joined"]
        assert {one.value for one in got} == {"rows"}
        assert (await at.ask("late")).cache == "hit"
        assert at.computed == ["c0"]


async def test_what_may_not_be_kept_is_computed_again(tmp_path: Path) -> None:
    async with bench(tmp_path) as at:
        at.result.set_result("secret")
        assert [(await at.ask(name)).cache for name in ("a", "b")] == ["miss", "miss"]
        assert at.memory.kept == {}


async def test_the_flight_goes_on_for_a_follower_when_its_leader_leaves(tmp_path: Path) -> None:
    async with bench(tmp_path) as at:
        leader, follower = at.ask("leader"), at.ask("follower")
        await at.flying(1)
        leader.cancel()
        await asyncio.gather(leader, return_exceptions=True)
        at.result.set_result("rows")
        assert (await follower) == Recalled(value="rows", cache="joined")
        assert at.memory.kept == {"key": "rows"}


async def test_a_flight_that_nobody_waits_for_ends_and_nobody_joins_it_any_more(tmp_path: Path) -> None:
    async with bench(tmp_path) as at:
        asked = [at.ask("leader"), at.ask("follower")]
        await at.flying(1)
        for one in asked:
            one.cancel()
        again = at.ask("again", at.answer_at_once)
        assert all(
            isinstance(one, asyncio.CancelledError) for one in await asyncio.gather(*asked, return_exceptions=True)
        )
        assert (await again) == Recalled(value="own", cache="miss")
        assert at.computed == ["leader", "again"]


async def test_a_leader_that_goes_before_its_flight_began_takes_nobody_down(tmp_path: Path) -> None:
    async with bench(tmp_path) as at:
        leader = at.ask("leader")
        await asyncio.sleep(0)
        leader.cancel()
        assert (await at.ask("next", at.answer_at_once)).value == "own"
        assert leader.cancelled()


@pytest.mark.parametrize(
    ("error", "shared"), [(refused("full", retry_after=1.0), False), (broken("the worker died of it"), True)]
)
async def test_a_refusal_is_the_leaders_own_and_a_failure_is_everybodys(
    tmp_path: Path, error: ApiError, shared: bool
) -> None:
    async with bench(tmp_path) as at:
        leader = at.ask("leader")
        followers = [at.ask(name, at.answer_at_once) for name in ("f1", "f2")]
        await at.flying(2)
        at.result.set_exception(error)
        with pytest.raises(ApiError, match=error.message):
            await leader
        for follower in followers:
            if shared:
                with pytest.raises(ApiError, match=error.message):
                    await follower
            else:
                assert (await follower).value == "own"
        assert at.computed == (["leader"] if shared else ["leader", "f1", "f2"])


async def test_many_who_are_refused_together_cost_no_more_than_one_by_one(tmp_path: Path) -> None:
    async with bench(tmp_path) as at:
        events = Counter[str]()
        handle = at.runtime.handle

        def counted(event: Event) -> None:
            if not isinstance(event, Reported):  # of an engine, whenever it is asked
                events[type(event).__name__] += 1
            handle(event)

        at.runtime.handle = counted  # type: ignore[method-assign]
        asked = [at.ask(f"c{number}") for number in range(20)]
        await at.flying(19)
        at.result.set_exception(refused("full", retry_after=1.0))
        assert {type(one) for one in await asyncio.gather(*asked, return_exceptions=True)} == {ApiError}
        assert events == {"Joined": 19, "Left": 19}
        assert at.computed == [f"c{number}" for number in range(20)]
