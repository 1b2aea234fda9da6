"""The engines of all pools: how many there are and shall be, which of them may be given a call.

Rules: a pool grows by reviving draining engines before launching new ones; it shrinks by draining the least
loaded; a draining engine goes when it is empty, and one that was told to go is not revived; draining engines
count towards the pool's maximum; an engine that keeps failing before its first byte is left out for a while, where
others can serve its calls; an engine that ended unasked is replaced, with growing pauses while launches fail.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from policies.calls import Call
from policies.events import Action, Drained, EngineGone, EngineUp, Failed, Launch, Reported, Retire, Scaled, Woken
from policies.pace import Pace
from policies.pool import EngineState, PoolSpec, lending

FleetEvent = Scaled | Drained | EngineUp | EngineGone | Woken
RELAUNCH_FIRST, RELAUNCH_LONGEST = 0.5, 30.0
"""Seconds before a failed launch is tried again, doubling from the first to the longest."""


@dataclass(slots=True)
class _Roster:
    spec: PoolSpec
    pace: Pace = field(default_factory=Pace)
    engines: dict[str, EngineState] = field(default_factory=dict)
    target: int = 0
    named: int = 0
    launch_failures: int = 0
    launch_after: float = 0.0

    def staying(self) -> list[EngineState]:
        return [engine for engine in self.engines.values() if engine.status in ("starting", "ready")]


class Fleet:
    """Every engine by name and by pool. Owned by the dispatcher; changes come back as actions to carry out."""

    def __init__(self, specs: Mapping[str, PoolSpec]) -> None:
        self._rosters = {name: _Roster(spec) for name, spec in specs.items()}
        self._engines: dict[str, EngineState] = {}
        self._lenders = {name: spec.lenders or (name,) for name, spec in specs.items()}
        self._serving: dict[str, list[EngineState]] = {}
        self._together: dict[tuple[str, ...], list[EngineState]] = {}
        self.borrowers = lending(specs)
        self.ejections: Counter[str] = Counter()
        """How often engines of a pool have been left out."""

    def __iter__(self) -> Iterator[EngineState]:
        return iter(self._engines.values())

    def get(self, engine: str) -> EngineState | None:
        return self._engines.get(engine)

    def of(self, pool: str) -> list[EngineState]:
        """A pool's own engines, whatever their state."""
        return list(self._rosters[pool].engines.values())

    def serving(self, pool: str) -> Sequence[EngineState]:
        """The engines that may take a pool's calls, those of other pools among them."""
        known = self._serving.get(pool)
        if known is None:
            known = [engine for lender in self._lenders[pool] for engine in self._rosters[lender].engines.values()]
            self._serving[pool] = known
        return known

    def pace(self, pool: str) -> Pace:
        """How fast its engines are, as far as calls have shown it."""
        return self._rosters[pool].pace

    def target(self, pool: str) -> int:
        return self._rosters[pool].target

    def stranded(self, pool: str) -> bool:
        """Whether a pool's calls have no engine to wait for, not even one that is starting."""
        return not any(
            engine.status in ("starting", "ready") or (engine.for_good and self._rosters[engine.pool].target > 0)
            for engine in self.serving(pool)
        )

    def roomy(self, pools: tuple[str, ...], now: float) -> list[EngineState]:
        """The engines of these pools that may take a call."""
        engines = self._together.get(pools)
        if engines is None:
            engines = [engine for pool in pools for engine in self._rosters[pool].engines.values()]
            self._together[pools] = engines
        # Under load nearly all are full: what tells that comes first.
        seated = [engine for engine in engines if len(engine.slots) < engine.limits.sequences]
        return [engine for engine in seated if engine.has_room(0) and engine.usable(now)]

    def untried(self, call: Call, tried: Collection[str], now: float) -> bool:
        """Whether a call has an engine besides these, now or as soon as it is up."""
        return any(
            engine.name not in tried and (engine.usable(now) or engine.status == "starting")
            for engine in self.serving(call.pool)
            if call.only in ("", engine.name)
        )

    def handle(self, event: FleetEvent, now: float) -> list[Action]:
        """Take in what happened to engines, or was ordered."""
        match event:
            case Scaled():
                return self.scaled(event.pool, event.engines, now)
            case Drained():
                return self.drained(event.engine, now)
            case EngineUp():
                return self.up(event, now)
            case EngineGone():
                return self.gone(event.engine, now)
            case Woken():
                return self.woken(now)

    def scaled(self, pool: str, engines: int, now: float) -> list[Action]:
        """Set how many engines a pool shall have, within its bounds."""
        roster = self._rosters[pool]
        roster.target = roster.spec.clamp(engines)
        roster.launch_failures, roster.launch_after = 0, 0.0
        return self.reconcile(pool, now)

    def drained(self, engine: str, now: float) -> list[Action]:
        """Take one engine out of service for good once it is empty; the pool's target goes down with it, but not
        below its minimum: then another takes the engine's place, as soon as the pool's maximum lets it."""
        state = self._engines.get(engine)
        if state is None or state.status == "gone" or state.for_good:
            return []
        if state.status != "draining":
            roster = self._rosters[state.pool]
            roster.target = max(roster.spec.minimum, roster.target - 1)
        state.status, state.for_good = "draining", True
        return self._retired(state) + self.reconcile(state.pool, now)

    def up(self, event: EngineUp, now: float) -> list[Action]:
        """An engine is ready, so others can be had at once too. One that was drained while it started is not known
        any more."""
        state = self._engines.get(event.engine)
        if state is None:
            return []
        state.limits, state.budget = event.limits, event.limits.work
        if state.status == "starting":
            state.status = "ready"
        self._rosters[state.pool].launch_after = 0.0
        return self.reconcile(state.pool, now)

    def gone(self, engine: str, now: float) -> list[Action]:
        """An engine has ended, and is replaced if the pool wants as many as before: at once where it has had calls,
        else after a pause. It is forgotten when the last of its calls has been heard of: each of them ends by an
        event of its own."""
        state = self._engines.get(engine)
        if state is None:
            return []
        roster = self._rosters[state.pool]
        if state.last_start:
            roster.launch_failures = 0
        elif state.status in ("starting", "ready") and now >= roster.launch_after:
            pause = min(RELAUNCH_LONGEST, RELAUNCH_FIRST * 2**roster.launch_failures)
            roster.launch_failures += 1
            roster.launch_after = now + pause
        state.status = "gone"
        return self._retired(state) + self.reconcile(state.pool, now)

    def reported(self, event: Reported, now: float) -> None:
        state = self._engines.get(event.engine)
        if state is None:
            return
        if event.alive:
            state.kv_use, state.asleep = event.kv_use, event.asleep
            state.reported_running = event.running
            state.reported_waiting = event.waiting
        else:
            self._count(state, now)

    def failed(self, state: EngineState, now: float, event: Failed) -> None:
        """An attempt has failed there. One that was only too much for it is no failure."""
        if event.trouble != "overloaded":
            self._count(state, now, refused=event.trouble == "refused")
        elif event.rest is not None:
            state.rest(event.rest, now)

    def _count(self, state: EngineState, now: float, *, refused: bool = False) -> None:
        """Count a failure before the first byte, and leave the engine out where others can do its work: at the first
        where it `refused` the connection. It may have just ended, and has the most room of all until that is known.
        """
        usable = state.usable(now)
        if (state.failed(now) or (refused and usable)) and all(
            any(other is not state and other.usable(now) for other in self.serving(pool))
            for pool in self.borrowers[state.pool]
        ):
            state.eject(now)
            self.ejections[state.pool] += 1

    def reconcile(self, pool: str, now: float) -> list[Action]:
        """Launch, revive or drain until the pool has as many engines as it shall have."""
        roster = self._rosters[pool]
        actions: list[Action] = []
        missing = roster.target - len(roster.staying())
        for state in roster.engines.values():
            if missing > 0 and state.status == "draining" and not state.for_good:
                state.status = "ready"
                missing -= 1
        if now >= roster.launch_after:
            alive = sum(state.status != "gone" for state in roster.engines.values())
            actions += [self._launch(roster) for _ in range(min(missing, roster.spec.maximum - alive))]
        if missing < 0:
            by_load = sorted(roster.staying(), key=lambda state: (state.status == "ready", state.work))
            for state in by_load[:-missing]:
                state.status = "draining"
                actions += self._retired(state)
        return actions

    def settle(self, state: EngineState, now: float) -> list[Action]:
        """End an engine on its way out that has nothing left to do; its place may be wanted for another."""
        if state.status == "ready":
            return []
        retired = self._retired(state)
        return retired + self.reconcile(state.pool, now) if retired else []

    def _retired(self, state: EngineState) -> list[Action]:
        if state.status not in ("draining", "gone") or state.slots:
            return []
        del self._engines[state.name]
        del self._rosters[state.pool].engines[state.name]
        self._serving.clear()
        self._together.clear()
        return [Retire(pool=state.pool, engine=state.name)]

    def woken(self, now: float) -> list[Action]:
        """Try again what was put off."""
        actions: list[Action] = []
        for pool, roster in self._rosters.items():
            if roster.launch_after and now >= roster.launch_after:
                roster.launch_after = 0.0
                actions += self.reconcile(pool, now)
        return actions

    def next_turn(self, now: float) -> float | None:
        """When an engine may be tried again, or a launch: the moment to be woken at."""
        turns = [state.ejected_until for state in self if state.ejected_until > now]
        turns += [roster.launch_after for roster in self._rosters.values() if roster.launch_after > now]
        return min(turns, default=None)

    def _launch(self, roster: _Roster) -> Launch:
        name = f"{roster.spec.name}/{roster.named}"
        roster.named += 1
        state = EngineState(name=name, pool=roster.spec.name, limits=roster.spec.limits, pace=roster.pace)
        self._engines[name] = roster.engines[name] = state
        self._serving.clear()
        self._together.clear()
        return Launch(pool=roster.spec.name, engine=name)


def groups(borrowers: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """For each pool, the pools that are joined to it by shared engines, directly or through others."""
    joined_to: dict[str, tuple[str, ...]] = {}
    for pool in borrowers:
        joined, todo = {pool}, [pool]
        while todo:
            here = todo.pop()
            near = {*borrowers[here], *(other for other, takers in borrowers.items() if here in takers)}
            todo += near - joined
            joined |= near
        joined_to[pool] = tuple(name for name in borrowers if name in joined)
    return joined_to
