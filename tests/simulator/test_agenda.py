from __future__ import annotations

from simulator.agenda import Agenda


def test_acts_come_in_the_order_of_their_times_and_then_of_their_noting() -> None:
    agenda, done = Agenda(), list[str]()
    for when, what in ((2.0, "late"), (1.0, "first"), (1.0, "second")):
        agenda.at(when, done.append, what)
    agenda.run()
    assert done == ["first", "second", "late"]
    assert agenda.now == 2.0


def test_what_should_have_happened_already_happens_now_and_after_what_was_noted_before() -> None:
    agenda, done = Agenda(5.0), list[tuple[str, float]]()

    def act(what: str) -> None:
        done.append((what, agenda.now))
        if what == "first":
            agenda.at(1.0, act, "overdue")

    agenda.at(6.0, act, "first")
    agenda.at(6.0, act, "second")
    agenda.run()
    assert done == [("first", 6.0), ("second", 6.0), ("overdue", 6.0)]


def test_nothing_happens_after_the_end_that_was_asked_for_or_after_a_clearing() -> None:
    agenda, done = Agenda(), list[float]()
    for when in (1.0, 2.0, 3.0):
        agenda.at(when, done.append, when)
    agenda.run(until=2.0)
    assert done == [1.0, 2.0]
    agenda.clear()
    agenda.run()
    assert done == [1.0, 2.0]
