"""Random lives of a dispatcher under every layout, order, gate and budget, and what holds under all of them.

Beside the checks of any life: shares and budgets are kept when a call starts, what engines hold is never negative and
comes out even, and no call that has waited too long is passed on an engine that it could have had.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from policies.blueprint import Blueprint
from policies.calls import Call
from policies.catalog import Named, PolicySet
from policies.dispatcher import Dispatcher, Limits
from policies.events import Action, Event, Start, Wake
from policies.pool import EngineState, PoolSpec
from tests.policies.making import nl2sql
from tests.policies.sequences import POLICIES, POOLS, Life, Op

PATIENCE = 6.0
"""Seconds after which a call counts as starved, in the pools whose order has such a bound."""
ROUNDING = 1e-6
LAYOUTS = ("isolated", "shared", "adaptive")
ORDERS = {
    "least_slack": Named(name="least_slack", params=(("patience", PATIENCE), ("ratio", 1e9))),
    "hexagent": Named(name="hexagent"),
    "plas": Named(name="plas"),
}
GATES = {
    "open": Named(name="open"),
    "aimd": Named(name="aimd", params=(("start", 2), ("least", 1))),
    "pause_restore": Named(name="pause_restore", params=(("share", 0.5),)),
}
BUDGETS = {
    "fixed": Named(name="fixed"),
    "adaptive": Named(name="adaptive", params=(("start", 3000), ("least", 1000), ("most", 5000))),
}
BIG_PATIENCE = 4.0
MOST = 0.75


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a life is lived under, by name."""

    layout: str = "adaptive"
    order: str = "least_slack"
    gate: str = "open"
    budget: str = "adaptive"

    @property
    def pools(self) -> dict[str, PoolSpec]:
        if self.layout != "isolated":
            return POOLS
        return {name: replace(spec, lenders=(name,)) for name, spec in POOLS.items()}

    def dispatcher(self) -> Dispatcher:
        chosen = PolicySet(
            priority=ORDERS[self.order],
            budget=BUDGETS[self.budget],
            borrowing=Named(name="gated" if self.layout == "adaptive" else "always"),
        )
        return Blueprint(
            pools=self.pools,
            workflows={"nl2sql": nl2sql()},
            policies=POLICIES | {"gen": chosen, "fix": chosen},
            limits=Limits(runs=40, run_idle=60.0),
            gate=GATES[self.gate],
            seed=0,
        ).dispatcher()

    def patience(self, pool: str) -> float | None:
        if pool == "big":
            return BIG_PATIENCE
        return PATIENCE if pool in ("gen", "fix") and self.order == "least_slack" else None


@dataclass
class Orchestrated(Life):
    """A life under a setting; what is parked stands in no queue."""

    setting: Setting = field(default_factory=Setting)

    def __post_init__(self) -> None:
        self.dispatcher = self.setting.dispatcher()

    def feed(self, event: Event) -> None:
        if self.setting.gate == "open" and self.setting.budget == "fixed":
            super().feed(event)  # no reviews: an early wake-up must change nothing
        else:
            self._step(event)

    def _note_action(self, action: Action, *, mid_run: bool) -> None:
        if isinstance(action, Wake):
            self.wake = action.at
            return
        if isinstance(action, Start):
            self._note_turn(action)
        super()._note_action(action, mid_run=mid_run)
        if isinstance(action, Start):
            self._note_room(self.calls[action.call], self._engine(action.engine))

    def _engine(self, name: str) -> EngineState:
        state = self.dispatcher.fleet.get(name)
        assert state is not None
        return state

    def _note_room(self, call: Call, state: EngineState) -> None:
        budget = state.budget
        assert len(state.slots) == 1 or state.work <= budget
        if state.pool == call.pool:
            return
        assert self.setting.layout != "isolated"
        # A pool without a usable engine of its own lives on loans, however large.
        homeless = not any(engine.usable(self.now) for engine in self.dispatcher.fleet.of(call.pool))
        assert self.setting.layout == "shared" or homeless or state.on_loan <= MOST * budget

    def _note_turn(self, start: Start) -> None:
        """No call that has starved, and has not failed anywhere, may be passed where it could be served."""
        engine, started = self._engine(start.engine), self.calls[start.call]
        for name in self.waiting - self._parked():
            call = self.calls[name]
            lenders = self.setting.pools[call.pool].lenders or (call.pool,)
            guest = self.setting.layout == "adaptive" and engine.pool != call.pool
            if name == start.call or name in self.tried or guest or engine.pool not in lenders:
                continue
            assert not self._starved(call) or (self._starved(started) and started.arrived <= call.arrived)

    def _starved(self, call: Call) -> bool:
        patience = self.setting.patience(call.pool)
        return patience is not None and self.now >= call.arrived + patience

    def _parked(self) -> set[str]:
        gate = self.dispatcher.gate
        return {entry.call.id for pool in POOLS for entry in gate.parked_calls(pool)}

    def _check_engines(self) -> None:
        super()._check_engines()
        for state in self.dispatcher.fleet:
            held = (state.work, state.prefill, state.on_loan, state.fresh, state.urgency)
            assert min(held) >= -ROUNDING
            assert state.slots or held == (0.0,) * 5
            assert state.budget > 0.0
            assert 0.0 <= state.pressure(self.now) < 1.0
            slots = state.slots.values()
            assert state.prefill == sum(slot.prefill for slot in slots)
            assert state.on_loan == sum(slot.work for slot in slots if slot.borrowed)
            assert abs(state.urgency - sum(slot.urgency for slot in slots)) < ROUNDING
            assert abs(state.fresh - sum(slot.fresh for slot in slots)) < ROUNDING

    def _check_pool(self, pool: str, spec: PoolSpec) -> None:
        waiting = [self.calls[call] for call in self.waiting if self.calls[call].pool == pool]
        view, parked = self.dispatcher.pool_view(pool, self.now), self.dispatcher.gate.parked(pool)
        assert view.waiting == len(waiting)
        assert view.waiting_bytes == sum(call.body_bytes for call in waiting)
        assert sum(self.dispatcher.waiting_by_stage(pool).values()) == len(waiting) - parked
        assert not (parked and spec.kind == "sql")
        assert not (waiting and self.dispatcher.fleet.stranded(pool))


def lived_under(setting: Setting, ops: Iterable[Op]) -> Orchestrated:
    """The life that these numbers are under a setting, to its end."""
    life = Orchestrated(setting=setting)
    life.begin()
    for op in ops:
        life.do(op)
    life.end()
    assert all(life.dispatcher.gate.parked(pool) == 0 for pool in POOLS)
    return life
