"""A stage's queue: starved before live before lost, first come first among equals, bounded under churn."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.calls import Estimate
from policies.protocols import Key
from policies.queue import LINES, LIVE, LOST, STARVED, StageQueue, StageQueues, Waiting
from tests.policies.making import a_call

ESTIMATE = Estimate(output_tokens=(0, 0), service=1.0, remaining=0.0)


def waiting(
    order: int, start: float = 0.0, *, lost_at: float | None = None, starve_at: float | None = None, stage: str = ""
) -> Waiting:
    return Waiting(
        call=a_call(str(order), stage=stage, body_bytes=10),
        estimate=ESTIMATE,
        key=Key(start=(start,), bucket=0, lost_at=lost_at, starve_at=starve_at),
        order=order,
        deadline=None,
        visit=1,
        since=0.0,
    )


def kept(entry: Waiting, now: float) -> Key:
    """A key that stays what it is."""
    return entry.key


def served(queue: StageQueue, now: float) -> list[int]:
    """Everything in the queue, in the order in which it would be served at this moment."""
    orders = []
    while (head := queue.head(now)) is not None:
        queue.remove(head)
        orders.append(head.order)
    assert not queue
    return orders


def a_queue(*entries: Waiting, now: float = 0.0) -> StageQueue:
    queue = StageQueue(kept)
    for entry in entries:
        queue.push(entry, now)
    return queue


def test_the_lowest_key_is_first_and_ties_go_to_the_first_come() -> None:
    assert served(a_queue(waiting(1, 5.0), waiting(2, 3.0), waiting(4, 3.0), waiting(3, 3.0)), 0.0) == [2, 3, 4, 1]


def test_an_empty_queue_has_no_head() -> None:
    assert StageQueue(kept).head(0.0) is None


def test_starved_come_before_live_and_live_before_lost() -> None:
    def queue() -> StageQueue:
        return a_queue(waiting(1, 1.0, lost_at=5.0), waiting(2, 2.0), waiting(3, 3.0, starve_at=7.0))

    assert served(queue(), 4.9) == [1, 2, 3]
    assert served(queue(), 5.0) == [2, 3, 1]
    assert served(queue(), 7.0) == [3, 2, 1]


def test_the_starved_are_served_in_the_order_in_which_they_became_so() -> None:
    queue = a_queue(waiting(1, 1.0, starve_at=9.0), waiting(2, 2.0, starve_at=8.0))
    assert served(queue, 10.0) == [2, 1]


def test_a_lost_call_may_still_starve() -> None:
    queue = a_queue(waiting(1, 1.0, lost_at=2.0, starve_at=6.0), waiting(2, 2.0))
    head = queue.head(3.0)
    assert head is not None
    assert head.order == 2
    assert served(queue, 6.0) == [1, 2]


def test_a_call_that_starves_and_is_lost_at_once_is_starved() -> None:
    queue = a_queue(waiting(1, 9.0, lost_at=2.0, starve_at=2.0), waiting(2, 1.0))
    assert served(queue, 2.0) == [1, 2]


@pytest.mark.parametrize(
    ("lost_at", "starve_at", "rank"), [(None, None, LIVE), (1.0, None, LOST), (1.0, 9.0, LOST), (1.0, 2.0, STARVED)]
)
def test_a_call_that_comes_back_late_takes_the_rank_it_has_by_then(
    lost_at: float | None, starve_at: float | None, rank: int
) -> None:
    entry = waiting(1, lost_at=lost_at, starve_at=starve_at)
    queue = a_queue(entry, now=3.0)
    assert queue.head(3.0) is entry
    assert entry.rank == rank


def test_a_removed_call_is_gone_wherever_it_stood() -> None:
    first, second, third = waiting(1, 1.0), waiting(2, 2.0, starve_at=5.0), waiting(3, 3.0, lost_at=4.0)
    queue = a_queue(first, second, third)
    for entry in (first, second):
        queue.remove(entry)
    assert len(queue) == 1
    assert served(queue, 6.0) == [3]


def test_a_call_with_a_new_key_moves_and_is_served_once() -> None:
    entry = waiting(1, 9.0, lost_at=1.0)
    queue = a_queue(entry, waiting(2, 5.0))
    queue.rekey(entry, Key(start=(1.0,), bucket=0), 0.0)
    assert served(queue, 3.0) == [1, 2]


def test_a_call_may_leave_and_come_back() -> None:
    entry = waiting(1, 1.0, starve_at=4.0)
    queue = a_queue(entry, waiting(2, 0.5))
    queue.remove(entry)
    queue.push(entry, 1.0)
    assert served(queue, 5.0) == [1, 2]


def test_memory_stays_bounded_while_calls_come_and_go() -> None:
    queue = a_queue(waiting(0, -1.0))
    for number in range(1, 5000):
        entry = waiting(number, lost_at=1e6, starve_at=1e6)
        queue.push(entry, 0.0)
        queue.remove(entry)
        assert queue.places <= 4 * 2 + 64 + 2


def test_memory_stays_bounded_while_a_key_changes() -> None:
    entry = waiting(1)
    queue = a_queue(entry)
    for number in range(5000):
        queue.rekey(entry, Key(start=(-float(number),), bucket=0, lost_at=1e6, starve_at=1e6), 0.0)
        assert queue.places <= 4 + 64 + 2
    assert served(queue, 0.0) == [1]


moments = st.one_of(st.none(), st.integers(0, 20).map(float))


@settings(max_examples=80)
@given(st.lists(st.tuples(st.integers(0, 5).map(float), moments, moments), max_size=30), st.integers(0, 2**16))
def test_the_order_is_that_of_a_sort(keys: list[tuple[float, float | None, float | None]], seed: int) -> None:
    rng = Random(seed)
    entries = [waiting(n, start, lost_at=lost, starve_at=starve) for n, (start, lost, starve) in enumerate(keys)]
    queue = a_queue(*entries)
    queue.head(now := float(rng.randrange(10)))
    for entry in rng.sample(entries, len(entries) // 3):
        queue.remove(entry)
    now += rng.randrange(12)

    def place(entry: Waiting) -> tuple[int, float, int]:
        starve, lost = entry.key.starve_at, entry.key.lost_at
        if starve is not None and now >= starve:
            return STARVED, starve, entry.order
        return (LOST if lost is not None and now >= lost else LIVE), entry.key.start[0], entry.order

    left = [entry for entry in entries if entry.queued]
    assert served(queue, now) == [entry.order for entry in sorted(left, key=place)]


def test_a_pool_keeps_count_of_what_waits_by_stage() -> None:
    queues = StageQueues(kept)
    entries = [waiting(n, stage=stage) for n, stage in enumerate(("fix", "fix", "generate"))]
    for entry in entries:
        queues.push(entry, 0.0)
    assert (len(queues), queues.body_bytes, queues.by_stage()) == (3, 30, {"fix": 2, "generate": 1})
    queues.remove(entries[2])
    assert (len(queues), queues.body_bytes, queues.by_stage()) == (2, 20, {"fix": 2})
    queues.rekey(entries[1], Key(start=(-1.0,), bucket=0), 0.0)
    [line] = queues.lines()
    assert served(line, 0.0) == [1, 0]


def test_stages_beyond_the_bound_share_a_queue_until_one_is_free() -> None:
    queues = StageQueues(kept)
    entries = [waiting(n, stage=f"stage {n}") for n in range(LINES + 5)]
    for entry in entries:
        queues.push(entry, 0.0)
    assert queues.by_stage()[""] == 5
    for entry in entries:
        queues.remove(entry)
    assert queues.by_stage() == {}
    queues.push(entries[-1], 0.0)
    assert queues.by_stage() == {f"stage {LINES + 4}": 1}


def test_a_key_is_renewed_when_its_time_has_come_and_only_then() -> None:
    asked: list[float] = []

    def ageing(entry: Waiting, now: float) -> Key:
        asked.append(now)
        return Key(start=(5.0 - now,), bucket=0, until=now + 1.0)

    queue = StageQueue(ageing)
    steady, ages = waiting(1, 2.0), waiting(2, 5.0)
    ages.key = Key(start=(5.0,), bucket=0, until=1.0)
    queue.push(steady, 0.0)
    queue.push(ages, 0.0)
    assert queue.head(0.9) is steady
    assert asked == []
    assert queue.head(4.0) is ages
    assert asked == [4.0]


def test_a_clock_that_stands_still_does_not_spin_a_key_that_ages() -> None:
    queue = StageQueue(lambda entry, now: Key(start=(now,), bucket=0, until=now))
    entry = waiting(1)
    entry.key = Key(start=(0.0,), bucket=0, until=0.0)
    queue.push(entry, 0.0)
    assert queue.head(0.0) is entry
    assert entry.key.until is not None
    assert entry.key.until > 0.0


# --- the head that is kept, against a model that keeps nothing ---


def renewed(entry: Waiting, now: float) -> Key:
    """A key that ages, and asks to be made anew; its bounds stay."""
    return Key(
        start=((entry.order * 7 + now) % 5,),
        bucket=0,
        lost_at=entry.key.lost_at,
        starve_at=entry.key.starve_at,
        until=now + 1.5,
    )


class Model:
    """A queue that looks through all its calls whenever it is asked."""

    def __init__(self) -> None:
        self.keys: dict[int, Key] = {}
        self.starved: set[int] = set()

    def put(self, order: int, key: Key, now: float) -> None:
        self.keys[order] = key
        self.starved.discard(order)
        if key.starve_at is not None and key.starve_at <= now:
            self.starved.add(order)

    def remove(self, order: int) -> None:
        del self.keys[order]
        self.starved.discard(order)

    def head(self, entries: list[Waiting], now: float) -> int | None:
        for order, key in self.keys.items():
            if order not in self.starved and key.until is not None and key.until <= now:
                self.keys[order] = renewed(entries[order], now)
            if key.starve_at is not None and key.starve_at <= now:
                self.starved.add(order)
        return min(self.keys, key=lambda order: self._place(order, now), default=None)

    def _place(self, order: int, now: float) -> tuple[int, float, int]:
        key = self.keys[order]
        if key.starve_at is not None and key.starve_at <= now:
            return STARVED, key.starve_at, order
        return LOST if key.lost_at is not None and key.lost_at <= now else LIVE, key.start[0], order


steps = st.tuples(
    st.sampled_from(("push", "push", "remove", "rekey", "head", "advance")),
    st.integers(0, 11),
    st.integers(0, 5).map(float),
    moments,
    moments,
    moments,
)


@pytest.mark.untraced
@settings(max_examples=150)
@given(st.lists(steps, max_size=60))
def test_the_head_is_the_one_that_a_search_of_all_calls_finds(
    steps: list[tuple[str, int, float, float | None, float | None, float | None]],
) -> None:
    queue, model, now = StageQueue(renewed), Model(), 0.0
    entries = [waiting(order) for order in range(12)]
    for what, order, start, lost, starve, until in steps:
        entry = entries[order]
        key = Key(start=(start,), bucket=0, lost_at=lost, starve_at=starve, until=until)
        if what == "push" and not entry.queued:
            entry.key = key
            queue.push(entry, now)
            model.put(order, key, now)
        elif what == "remove" and entry.queued:
            queue.remove(entry)
            model.remove(order)
        elif what == "rekey" and entry.queued:
            queue.rekey(entry, key, now)
            model.put(order, key, now)
        elif what == "advance":
            now += start / 2
        if what in ("head", "remove", "rekey"):
            head = queue.head(now)
            assert (None if head is None else head.order) == model.head(entries, now)
        assert len(queue) == len(model.keys)
    while (head := queue.head(now)) is not None:
        assert head.order == model.head(entries, now)
        queue.remove(head)
        model.remove(head.order)
        now += 0.5
    assert not model.keys
