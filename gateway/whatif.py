"""What other policies would have done with the events of a journal, up to where they would have done otherwise.

From there on the record says nothing any more of what would have happened: an engine would have had other calls to
answer. Where policies agree on who goes where, and differ in what they tell the engines of it, the events hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

from gateway import units
from gateway.journal import Step
from policies.blueprint import Blueprint
from policies.catalog import Named, make, parameters
from policies.dispatcher import Dispatcher
from policies.events import Abort, Action, Event, Failed, Finished, Launch, Refused, Retire, Start, Wake, Woken
from policies.routing.residency import Retold

Chosen = Mapping[str, Named | tuple[Named, ...]]
"""Policies by slot; the slots of several have a tuple."""
LISTS = ("filters", "scorers")
"""Slots that hold several policies: each assignment adds one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parting:
    """The first step at which other policies act otherwise. `line` is the journal's that it was found at, `at` its
    time; `recorded` and `instead` are what was done and what would have been, without what both have in common.

    `woken` says that they would have acted of their own accord before that line.
    """

    line: int
    at: float
    recorded: Sequence[Action]
    instead: Sequence[Action]
    woken: bool = False


@dataclass(slots=True)
class Comparison:
    """How far the events hold: steps and starts until the end or the parting, and how many of the starts would have
    put a call before another one in its engine where the recorded one came after it, or the other way round."""

    steps: int = 0
    starts: int = 0
    reordered: int = 0
    parting: Parting | None = None


def assigned(texts: Iterable[str]) -> Chosen:
    """Policies by slot from `slot=name[:parameter=value,...]`. Raises ValueError."""
    chosen: dict[str, Named | tuple[Named, ...]] = {}
    for text in texts:
        slot, equals, policy = text.partition("=")
        if not equals or not policy:
            raise ValueError(f"--set {text}: write slot=name[:parameter=value,...], such as priority=edf")
        named = _named(slot, policy)
        if slot in LISTS:
            chosen[slot] = (*cast(tuple[Named, ...], chosen.get(slot, ())), named)
        elif slot in chosen:
            raise ValueError(f"--set {text}: the {slot} is set twice")
        else:
            chosen[slot] = named
    return chosen


def _named(slot: str, text: str) -> Named:
    name, _, rest = text.partition(":")
    given = dict(_pair(part) for part in rest.split(",")) if rest else {}
    weight = _number("weight", given.pop("weight", "1"), "") if slot == "scorers" else 1.0
    known = parameters(slot, name)
    params = tuple((key, _number(key, value, known.get(key, ""))) for key, value in given.items())
    named = Named(name=name, params=params, weight=weight)
    make(slot, named)
    return named


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"{text!r}: a parameter is written name=value")
    return key, value


def _number(key: str, text: str, unit: str) -> float:
    try:
        return float(text)
    except ValueError:
        if unit == "s":
            try:
                return units.duration(text)
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from None
        raise ValueError(f"{key}: must be a number, not {text!r}") from None


def otherwise(plan: Blueprint, chosen: Chosen) -> Blueprint:
    """The same gateway with these policies in all of its pools. Raises ValueError for what cannot be."""
    slots = {slot: named for slot, named in chosen.items() if slot != "gate"}
    policies = {name: replace(own, **slots) for name, own in plan.policies.items()}  # type: ignore[arg-type]
    gate = cast(Named, chosen.get("gate", plan.gate))
    return replace(plan, policies=policies, gate=gate)


class Counterpart:
    """A dispatcher that is told what the recorded one heard, and woken when it asks for it."""

    def __init__(self, dispatcher: Dispatcher, held: Retold) -> None:
        """`held` is what the dispatcher was made with to be told what engines held."""
        self._dispatcher = dispatcher
        self._held = held
        self._wake: float | None = None
        self._recorded_wake: float | None = None
        self._inside: dict[int, tuple[Start, Start]] = {}
        self.comparison = Comparison()

    def take(self, step: Step) -> bool:
        """Take the next step; True once it is another than the recorded one."""
        # A wake-up that both ask for is on record, at the moment at which it really came.
        while self._wake is not None and self._wake < step.at and self._wake != self._recorded_wake:
            at, self._wake = self._wake, None
            if self._part(step, at, (), self._handle(Woken(), at), woken=True):
                return True
        if isinstance(step.event, Woken):
            self._wake = self._recorded_wake = None
        self._held.tell(step.held)
        done = self._handle(step.event, step.at)
        self._recorded_wake = _wake(step.actions, self._recorded_wake)
        if self._part(step, step.at, step.actions, done):
            return True
        self.comparison.steps += 1
        for ended in _ended(step):
            self._inside.pop(ended, None)
        for was, is_ in zip(_starts(step.actions), _starts(done), strict=True):
            self.comparison.starts += 1
            self.comparison.reordered += self._stands_otherwise(was, is_)
            self._inside[was.attempt] = was, is_
        return False

    def _stands_otherwise(self, was: Start, is_: Start) -> bool:
        """Whether a call comes in another order among those that are in its engine."""
        return any(
            (was.bucket > other_was.bucket, was.bucket < other_was.bucket)
            != (is_.bucket > other_is.bucket, is_.bucket < other_is.bucket)
            for other_was, other_is in self._inside.values()
            if other_was.engine == was.engine
        )

    def _handle(self, event: Event, now: float) -> list[Action]:
        actions = self._dispatcher.handle(event, now)
        self._wake = _wake(actions, self._wake)
        return actions

    def _part(
        self, step: Step, at: float, recorded: Sequence[Action], done: Sequence[Action], *, woken: bool = False
    ) -> bool:
        was, instead = [_told(one) for one in recorded], [_told(one) for one in done]
        if [one for one in was if one] == [one for one in instead if one]:
            return False
        self.comparison.parting = Parting(
            line=step.line,
            at=at,
            recorded=[one for one in recorded if _told(one) and _told(one) not in instead],
            instead=[one for one in done if _told(one) and _told(one) not in was],
            woken=woken,
        )
        return True


def _told(action: Action) -> tuple[str | int, ...]:
    """What an action does, without the figures that go with it; empty for one that does nothing to anybody."""
    match action:
        case Start(call=call, attempt=attempt, engine=engine):
            return "start", call, attempt, engine
        case Refused(call=call, reason=reason):
            return "refuse", call, reason
        case Abort(call=call, attempt=attempt):
            return "abort", call, attempt
        case Launch(pool=pool, engine=engine):
            return "launch", pool, engine
        case Retire(pool=pool, engine=engine):
            return "retire", pool, engine
        case _:
            return ()


def _ended(step: Step) -> list[int]:
    """The attempts that ended with a step."""
    ended = [action.attempt for action in step.actions if isinstance(action, Abort)]
    if isinstance(step.event, Finished | Failed) and step.event.attempt is not None:
        ended.append(step.event.attempt)
    return ended


def _starts(actions: Iterable[Action]) -> list[Start]:
    return [action for action in actions if isinstance(action, Start)]


def _wake(actions: Iterable[Action], before: float | None) -> float | None:
    """The wake-up that is asked for after these actions; each replaces the one before it."""
    for action in actions:
        if isinstance(action, Wake):
            before = action.at
    return before
