"""The account of what ran ahead: each statement is used once, or was for nothing."""

from __future__ import annotations

import asyncio
from collections import Counter

from gateway.advances import UNUSED_MOST, USED_WITHIN, Advance, Advances, Fate


class Tally:
    """Counts, as metrics do."""

    def __init__(self) -> None:
        self.fates: Counter[Fate] = Counter()
        self.saved: list[float] = []

    def sql_ahead(self, fate: Fate) -> None:
        self.fates[fate] += 1

    def sql_saved(self, seconds: float) -> None:
        self.saved.append(seconds)


class Bench:
    """Advances, with a clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.tally = Tally()
        self.all = Advances(counts=self.tally, clock=lambda: self.now)

    async def run(self, key: str, *, seconds: float = 1.0, kept: bool = True) -> None:
        """Run a statement ahead, from its beginning to its end."""
        await asyncio.create_task(self._run(key, seconds, kept))

    async def _run(self, key: str, seconds: float, kept: bool) -> None:
        advance = Advance(pool="warehouse")
        self.all.begin(advance)
        self.all.looked_for("warehouse", key, found=False)
        assert self.all.running("warehouse") == 1
        self.now += seconds
        self.all.end(advance, kept=kept)


async def test_the_first_call_that_finds_the_result_has_saved_its_time() -> None:
    bench = Bench()
    await bench.run("k", seconds=0.5)
    bench.now += 7
    for _ in range(2):
        bench.all.looked_for("warehouse", "k", found=True)
    assert bench.tally.fates == {"started": 1, "hit": 1}
    assert bench.tally.saved == [0.5]
    assert bench.all.running("warehouse") == 0


async def test_the_same_key_in_another_pool_is_another_result() -> None:
    bench = Bench()
    await bench.run("k")
    bench.all.looked_for("other", "k", found=True)
    assert bench.tally.fates == {"started": 1}


async def test_what_is_found_already_is_not_begun() -> None:
    bench = Bench()

    async def known() -> None:
        advance = Advance(pool="warehouse")
        bench.all.begin(advance)
        bench.all.looked_for("warehouse", "k", found=True)
        bench.all.end(advance, kept=True)

    await asyncio.create_task(known())
    assert bench.tally.fates == {}


async def test_a_result_that_is_gone_when_it_is_asked_for_was_for_nothing() -> None:
    bench = Bench()
    await bench.run("k")
    bench.all.looked_for("warehouse", "k", found=False)
    await bench.run("never kept", kept=False)
    assert bench.tally.fates == {"started": 2, "wasted": 2}
    assert bench.tally.saved == []


async def test_what_is_not_used_in_time_was_for_nothing() -> None:
    bench = Bench()
    await bench.run("k")
    bench.now += USED_WITHIN - 2
    await bench.run("l")
    bench.now += 1.5
    bench.all.sweep()
    assert bench.tally.fates == {"started": 2, "wasted": 1}
    bench.all.looked_for("warehouse", "k", found=True)
    bench.all.looked_for("warehouse", "l", found=True)
    assert bench.tally.fates == {"started": 2, "wasted": 1, "hit": 1}


async def test_so_many_are_remembered_and_no_more() -> None:
    bench = Bench()
    for number in range(UNUSED_MOST + 5):
        await bench.run(f"{number}", seconds=0.0)
    assert bench.tally.fates["wasted"] == 5
