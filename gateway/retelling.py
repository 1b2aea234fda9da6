"""`cortex replay`: a journal checked, told, and held against other policies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from gateway.incident import Incident
from gateway.journal import JournalError, blueprint_of, recorded, replay
from gateway.whatif import Chosen, Counterpart, Parting, otherwise
from policies.blueprint import Blueprint
from policies.calls import Call
from policies.catalog import Named
from policies.events import Abort, Action, Arrived, Event, Joined, Launch, Refused, Retire, Start
from policies.routing.residency import Retold

Say = Callable[[str], None]
SHOWN = 6
"""Decisions of one step that are told one by one."""


def retell(path: Path, chosen: Chosen, say: Say) -> int:
    """Say what a journal holds, a line at a time, and what `chosen` policies would have changed.

    Returns 0, or 1 where the decisions do not come out as they are recorded. Raises JournalError for a file that is
    no journal.
    """
    try:
        plan = blueprint_of(path)
        same = _check(path, plan, say)
        incident = Incident(plan)
        for step in recorded(path):
            incident.take(step)
    except OSError as error:
        raise JournalError(f"{path}: cannot be read: {error.strerror}") from None
    say("")
    for line in incident.lines():
        say(line)
    if chosen and same:
        say("")
        _compare(path, plan, chosen, incident.first, say)
    return 0 if same else 1


def _check(path: Path, plan: Blueprint, say: Say) -> bool:
    say(f"{path}: of a gateway with the pools {', '.join(plan.pools)}")
    if _cut_off(path):
        say("its last line is cut off, and left out")
    held = Retold()
    divergence = replay(path, plan.dispatcher(held), held)
    if divergence is None:
        say("replayed: every decision comes out as it is recorded")
        return True
    say(f"replayed: line {divergence.line} comes out otherwise, so this scheduler is not the one that was recorded")
    say(f"  recorded: {divergence.recorded}")
    say(f"  replayed: {divergence.replayed}")
    return False


def _cut_off(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read() != b"\n"


def _compare(path: Path, plan: Blueprint, chosen: Chosen, first: float, say: Say) -> None:
    held = Retold()
    counterpart = Counterpart(otherwise(plan, chosen).dispatcher(held), held)
    calls: dict[str, Call] = {}
    event: Event | None = None
    for step in recorded(path):
        event = step.event
        if isinstance(event, Arrived | Joined):
            calls[event.call.id] = event.call
        if counterpart.take(step):
            break
    found = counterpart.comparison
    say(f"with {', '.join(f'{slot}={_policies(named)}' for slot, named in chosen.items())}:")
    say(f"  the same starts, refusals and engines for {found.steps} steps, {found.starts} starts among them")
    say(f"  {found.reordered} of these starts would have stood elsewhere among the calls in their engine")
    if found.parting is None:
        say("  no other decision, to the end of the journal")
    else:
        _part(found.parting, event, first, calls, say)


def _part(parting: Parting, event: Event | None, first: float, calls: Mapping[str, Call], say: Say) -> None:
    what = "before it, of their own accord" if parting.woken else f"on {type(event).__name__}"
    say(f"  the first other decision at line {parting.line}, {parting.at - first:.3f} s, {what}:")
    for title, actions in (("recorded", parting.recorded), ("instead", parting.instead)):
        for action in actions[:SHOWN]:
            say(f"    {title:>8}: {_told(action, calls)}")
        if len(actions) > SHOWN:
            say(f"    {title:>8}: and {len(actions) - SHOWN} more")
        if not actions:
            say(f"    {title:>8}: nothing")
    say("  what would have followed is not on record: `cortex simulate` runs policies to the end")


def _told(action: Action, calls: Mapping[str, Call]) -> str:
    match action:
        case Start():
            slack = "" if action.slack is None else f", slack {action.slack:.3f} s"
            where = f"on {action.engine}, after {action.queued:.3f} s in the queue{slack}"
            return f"start {_named(action.call, calls)} {where}"
        case Refused():
            return f"refuse {_named(action.call, calls)}: {action.reason}"
        case Abort():
            return f"stop attempt {action.attempt} of {_named(action.call, calls)}"
        case Launch() | Retire():
            return f"{type(action).__name__.lower()} {action.engine}"
        case _:
            return type(action).__name__.lower()


def _policies(named: Named | tuple[Named, ...]) -> str:
    return named.name if isinstance(named, Named) else "+".join(one.name for one in named)


def _named(name: str, calls: Mapping[str, Call]) -> str:
    call = calls.get(name)
    if call is None:
        return name
    return f"{name} ({call.stage or call.pool} of {call.workflow or 'run'} {call.run})"
