"""Which waiting call starts where, on a floor small enough to work out by hand."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from random import Random

from policies.calls import Estimate
from policies.catalog import Named, PolicySet, make_all
from policies.events import EngineUp, Launch
from policies.fleet import Fleet
from policies.gate import Gate, Open
from policies.lines import Lines
from policies.pool import EngineState, PoolSpec, Slot
from policies.protocols import Key
from policies.queue import Waiting
from policies.routing.placement import Floor, work
from policies.routing.prefix import PrefixIndex
from tests.policies.making import a_call, a_pool, a_waiting

GATED = PolicySet(borrowing=Named(name="gated", params=(("pressed", 0.25), ("most", 0.75))))


@dataclass
class Hall:
    """A floor with its engines and its queues; calls start as the dispatcher would start them."""

    specs: dict[str, PoolSpec]
    policies: PolicySet = field(default_factory=PolicySet)
    orders: count[int] = field(default_factory=lambda: count(1))

    def __post_init__(self) -> None:
        self.fleet = Fleet(self.specs)
        self.lines = Lines(self.specs, Gate(Open()), lambda entry, now: entry.key)
        self.prefixes = PrefixIndex(10_000)
        self.floor = Floor(
            fleet=self.fleet,
            lines=self.lines,
            prefixes=self.prefixes,
            policies=dict.fromkeys(self.specs, make_all(self.policies)),
            rng=Random(0),
        )
        for name, spec in self.specs.items():
            for action in self.fleet.scaled(name, spec.start, 0.0):
                assert isinstance(action, Launch)
                self.fleet.up(EngineUp(engine=action.engine, limits=spec.limits), 0.0)
                self.prefixes.add_engine(action.engine, None)

    def engine(self, name: str) -> EngineState:
        state = self.fleet.get(name)
        assert state is not None
        return state

    def wait(
        self,
        name: str,
        *,
        pool: str = "p",
        urgent: float = 5.0,
        tokens: int = 100,
        output: int = 0,
        stage: str = "",
        tried: tuple[str, ...] = (),
        prefix: tuple[int, ...] = (),
    ) -> Waiting:
        """Let a call queue; the lower `urgent`, the sooner it is served."""
        entry = a_waiting(
            a_call(name, pool=pool, prompt_tokens=tokens, stage=stage, prefix=prefix), next(self.orders)
        )
        entry.key = Key(start=(urgent,), bucket=0)
        entry.estimate = Estimate(output_tokens=(output, output), service=1.0, remaining=0.0)
        entry.tried |= set(tried)
        self.lines.push([entry], 0.0)
        return entry

    def serve(self) -> tuple[list[tuple[str, str]], list[str]]:
        """Start what can start; which call on which engine, and which calls were passed."""
        passed: list[Waiting] = []
        started = []
        for entry, choice in self.floor.starts(tuple(self.specs), 0.0, passed):
            self.lines.take(entry)
            self.occupy(choice.name, *work(entry, choice.matched), borrowed=choice.pool != entry.call.pool)
            started.append((entry.call.id, choice.name))
        return started, [entry.call.id for entry in passed]

    def occupy(self, name: str, prefill: float, decode: float = 0.0, *, borrowed: bool = False) -> int:
        attempt = next(self.orders)
        slot = Slot(str(attempt), attempt, prefill, decode, 0.0, 0, borrowed=borrowed)
        self.engine(name).take(slot, attempt)
        return attempt


def one_pool(*, start: int = 1, sequences: int = 4, work: float = 1000) -> Hall:
    return Hall({"p": a_pool(sequences=sequences, work=work, start=start, maximum=4)})


def two_pools(policies: PolicySet = GATED) -> Hall:
    """A pool whose own engine is full, and one that may lend it another."""
    hall = Hall(
        {
            "guest": a_pool("guest", sequences=1, work=1000, lenders=("guest", "owner")),
            "owner": a_pool("owner", sequences=9, work=1000),
        },
        policies,
    )
    hall.occupy("guest/0", 10.0)
    return hall


def test_where_nobody_waits_or_no_engine_has_room_nothing_starts() -> None:
    hall = one_pool(sequences=1)
    assert hall.serve() == ([], [])
    hall.occupy("p/0", 10.0)
    hall.wait("c")
    assert hall.serve() == ([], [])
    assert hall.lines.waiting("p") == 1


def test_the_most_urgent_of_all_stages_and_pools_goes_first() -> None:
    hall = Hall(
        {"p": a_pool(lenders=("q",), minimum=0, start=0), "q": a_pool("q", sequences=9, work=1e9)}, PolicySet()
    )
    for name, pool, stage, urgent in (
        ("third", "q", "a", 3.0),
        ("fourth", "q", "a", 4.0),
        ("second", "q", "b", 2.0),
        ("first", "p", "a", 1.0),
        ("also third", "p", "b", 3.0),
    ):
        hall.wait(name, pool=pool, stage=stage, urgent=urgent)
    started, _ = hall.serve()
    assert [call for call, _ in started] == ["first", "second", "third", "also third", "fourth"]


def test_a_call_that_finds_no_room_keeps_all_engines_that_it_could_use() -> None:
    hall = one_pool(start=2)
    for engine in ("p/0", "p/1"):
        hall.occupy(engine, 300.0)
    hall.wait("large", urgent=1.0, tokens=800)
    hall.wait("small", urgent=2.0, tokens=10, stage="another")
    hall.wait("urgent", urgent=0.0, tokens=100)
    assert hall.serve()[0] == [("urgent", "p/0")]
    assert hall.lines.waiting("p") == 2


def test_a_call_whose_answer_alone_does_not_fit_keeps_the_engine_too() -> None:
    hall = one_pool()
    hall.occupy("p/0", 100.0)
    hall.wait("long", urgent=1.0, tokens=0, output=300)
    hall.wait("small", urgent=2.0, tokens=10, stage="another")
    assert hall.serve() == ([], [])


def test_a_call_fits_where_its_prompt_is_held_already() -> None:
    hall = one_pool(start=2)
    prefix = tuple(range(12))
    hall.prefixes.sent(prefix, "p/1")
    for engine in ("p/0", "p/1"):
        hall.occupy(engine, 500.0)
    hall.wait("known", tokens=800, prefix=prefix)
    assert hall.serve()[0] == [("known", "p/1")]
    assert hall.engine("p/1").work == 500.0 + 800.0 - 12 * 64


def test_a_call_that_has_failed_elsewhere_is_passed_and_keeps_what_it_has_not_tried() -> None:
    hall = one_pool(start=2, sequences=2)
    hall.occupy("p/1", 900.0)
    hall.wait("failed", urgent=1.0, tokens=200, tried=("p/0",))
    hall.wait("next", urgent=2.0)
    hall.wait("last", urgent=3.0, tokens=50)
    assert hall.serve() == ([("next", "p/0"), ("last", "p/0")], ["failed"])
    assert hall.lines.waiting("p") == 0, "who asks puts it back"


def test_a_call_that_every_engine_has_failed_keeps_none() -> None:
    hall = one_pool()
    hall.wait("failed", urgent=1.0, tried=("p/0",))
    hall.wait("next", urgent=2.0)
    assert hall.serve() == ([("next", "p/0")], ["failed"])


def test_a_guest_that_was_not_lent_the_engine_is_asked_again_when_its_owner_waits_no_longer() -> None:
    hall = two_pools()
    hall.wait("guest", pool="guest", urgent=1.0, tokens=400)  # more than a quarter, less than three
    hall.wait("own", pool="owner", urgent=2.0, tokens=100)
    assert hall.serve()[0] == [("own", "owner/0"), ("guest", "owner/0")]


def test_a_guest_is_not_asked_again_when_nothing_has_started_since() -> None:
    hall = two_pools()
    hall.occupy("owner/0", 500.0)
    hall.wait("guest", pool="guest", urgent=1.0, tokens=400)
    hall.wait("own", pool="owner", urgent=2.0, tokens=600)
    assert hall.serve() == ([], [])
    assert (hall.lines.waiting("guest"), hall.lines.waiting("owner")) == (1, 1)


def test_a_guest_keeps_a_lent_engine_that_has_no_room_for_it_and_none_that_was_not_lent() -> None:
    hall = two_pools(
        PolicySet(borrowing=Named(name="gated", params=(("load", 1.0), ("most", 1.0), ("pressed", 1.0))))
    )
    hall.occupy("owner/0", 500.0)
    hall.wait("guest", pool="guest", urgent=1.0, tokens=600)  # lent, by its share, but there is no room
    hall.wait("own", pool="owner", urgent=2.0, tokens=100)
    assert hall.serve() == ([], [])
    hall = two_pools()
    hall.wait("guest", pool="guest", urgent=1.0, tokens=800)  # more than the share
    hall.wait("own", pool="owner", urgent=2.0, tokens=100)
    assert hall.serve()[0] == [("own", "owner/0")]


def test_work_is_what_is_missing_of_the_prompt_and_four_for_each_token_to_be_written() -> None:
    entry = a_waiting(a_call(prompt_tokens=300))
    entry.estimate = Estimate(output_tokens=(25, 99), service=1.0, remaining=0.0)
    assert work(entry, 0) == (300.0, 100.0)
    assert work(entry, 200) == (100.0, 100.0)
    assert work(entry, 999) == (0.0, 100.0)
