"""Calls are placed by what engines say that they hold, and a journal's answers give the same decisions again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from policies.blueprint import Blueprint
from policies.calls import Call
from policies.dispatcher import Dispatcher, Limits
from policies.events import Arrived, Drained, EngineUp, Scaled, Start
from policies.routing.residency import Noted, Residency, Retold
from tests.policies.making import FCFS, a_call, a_pool

PREFIX = (1, 2, 3)


@dataclass
class Told:
    """Engines that say what is written here."""

    tokens: dict[str, int] = field(default_factory=dict)
    sent_to: list[tuple[str, str]] = field(default_factory=list)

    def held(self, call: Call, engines: Sequence[str]) -> Mapping[str, int]:
        return {name: self.tokens[name] for name in engines if name in self.tokens}

    def sent(self, call: Call, engine: str) -> None:
        self.sent_to.append((call.id, engine))


def plan() -> Blueprint:
    return Blueprint(
        pools={"p": a_pool("p", sequences=8, maximum=2, start=2)},
        workflows={},
        policies={"p": FCFS},
        limits=Limits(),
    )


def two_engines(residency: Residency | None) -> Dispatcher:
    dispatcher = plan().dispatcher(residency)
    dispatcher.handle(Scaled(pool="p", engines=2), 0.0)
    for name in ("p/0", "p/1"):
        dispatcher.handle(EngineUp(engine=name, limits=plan().pools["p"].limits), 0.0)
    return dispatcher


def start_of(dispatcher: Dispatcher, name: str, now: float) -> Start:
    call = a_call(name, prompt_tokens=300, prefix=PREFIX)
    [start] = [action for action in dispatcher.handle(Arrived(call=call), now) if isinstance(action, Start)]
    return start


def test_a_call_goes_where_its_prompt_is_by_the_engines_own_word() -> None:
    told = Told({"p/0": 0, "p/1": 192})
    start = start_of(two_engines(told), "one", 1.0)
    assert (start.engine, start.expected_cached) == ("p/1", 192)
    assert told.sent_to == [("one", "p/1")]


def test_an_engine_that_says_nothing_is_judged_by_what_it_was_sent() -> None:
    told = Told()
    dispatcher = two_engines(told)
    first = start_of(dispatcher, "one", 1.0)
    assert first.expected_cached == 0
    dispatcher.handle(Drained(engine="p/1" if first.engine == "p/0" else "p/0"), 2.0)
    assert start_of(dispatcher, "two", 3.0).expected_cached == 192
    told.tokens[first.engine] = 64
    assert start_of(dispatcher, "three", 4.0).expected_cached == 64


def test_noted_answers_are_given_again_to_the_same_calls_in_their_order() -> None:
    told = Told({"p/0": 32})
    noted, retold = Noted(told), Retold()
    one, two = a_call("one"), a_call("two")
    noted.held(one, ["p/0"])
    told.tokens["p/0"] = 64
    noted.held(one, ["p/0", "p/1"])
    told.tokens.clear()
    assert noted.held(two, ["p/1"]) == {}
    noted.sent(one, "p/0")
    assert told.sent_to == [("one", "p/0")]
    retold.tell(noted.taken())
    assert noted.taken() == []
    assert retold.held(two, ["p/0"]) == {}
    assert [retold.held(one, ["p/0"]) for _ in range(3)] == [{"p/0": 32}, {"p/0": 64}, {}]
    retold.sent(one, "p/0")
    retold.tell([])
    assert retold.held(one, ["p/0"]) == {}


def test_a_dispatcher_that_is_told_the_answers_again_decides_as_before() -> None:
    told = Told({"p/0": 0, "p/1": 128})
    noted, retold = Noted(told), Retold()
    live, again = two_engines(noted), two_engines(retold)
    for number in range(6):
        told.tokens = {"p/0": 32 * (number % 3), "p/1": 32 * (number % 2)}
        start = start_of(live, f"c{number}", float(number))
        retold.tell(noted.taken())
        assert start_of(again, f"c{number}", float(number)) == start
