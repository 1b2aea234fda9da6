"""Pools and engines: how they come and go, and how they stand when somebody looks."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.instruments.series import Instruments
from gateway.settings import Config
from policies.dispatcher import Dispatcher
from policies.events import Action, EngineGone, Event, Launch, Retire
from policies.pool import EngineState

STATES = ("starting", "ready", "draining", "gone")


class EngineMetrics:
    """What is known of engines. The series of an engine end with it."""

    def __init__(self, made: Instruments, config: Config) -> None:
        self._pools = tuple(config.pools)
        self._alive: set[str] = set()
        self._launches = made.counter("cortex_engine_launches_total")
        self._ends = made.counter("cortex_engine_ends_total")
        self._ejections = made.counter("cortex_engine_ejections_total")
        self._engines = made.gauge("cortex_engines")
        self._usable = made.gauge("cortex_usable_engines")
        self._wanted = made.gauge("cortex_wanted_engines")
        self._waiting = made.gauge("cortex_waiting_calls")
        self._running = made.gauge("cortex_running_calls")
        self._work = made.gauge("cortex_committed_work_tokens")
        self._parked = made.gauge("cortex_gate_parked")
        self._window = made.gauge("cortex_gate_window")()
        self._active = made.gauge("cortex_gate_active")()
        self._state = made.gauge("cortex_engine_state")
        self._resident = made.gauge("cortex_engine_resident_blocks")
        self._of_one = {
            name: made.gauge(f"cortex_engine_{name}")
            for name in (
                "running_calls",
                "queued_calls",
                "committed_work_tokens",
                "budget_tokens",
                "on_loan_tokens",
                "kv_use_ratio",
                "pressure_ratio",
                "prefix_tokens",
            )
        }
        self._predicted = made.counter("cortex_prefix_predicted_tokens_total")
        self._cached = made.counter("cortex_prefix_cached_tokens_total")
        self._error = made.histogram("cortex_prefix_error_blocks")
        for pool in config.pools:
            self._launches(pool)
            for reason in ("retired", "failed"):
                self._ends(pool, reason)

    def watch(self, event: Event, actions: list[Action]) -> None:
        """Hear what the dispatcher was told and decided."""
        if isinstance(event, EngineGone):
            self._end(event.engine, "failed")
        for action in actions:
            if isinstance(action, Launch):
                self._alive.add(action.engine)
                self._launches(action.pool).inc()
            elif isinstance(action, Retire):
                self._end(action.engine, "retired")

    def prefix_found(self, index: str, *, predicted: int, actual: int, block: int) -> None:
        """Count how many tokens of a prompt an engine was expected to hold, and did."""
        self._predicted(index).inc(predicted)
        self._cached(index).inc(actual)
        self._error(index).observe(abs(predicted - actual) / block)

    def measure(self, dispatcher: Dispatcher, resident: Mapping[str, int], now: float) -> None:
        """Set the gauges to how things stand; `resident` are the blocks that engines say they hold."""
        for pool in self._pools:
            self._measure_pool(dispatcher, pool, now)
        self._window.set(dispatcher.gate.window)
        self._active.set(dispatcher.gate.active)
        for gauge in (self._state, self._resident, *self._of_one.values()):
            gauge.clear()
        for engine in dispatcher.fleet:
            self._state(engine.name, state_of(engine, now)).set(1)
            for name, value in _told(engine, dispatcher, now).items():
                self._of_one[name](engine.name).set(value)
        for name, blocks in resident.items():
            self._resident(name).set(blocks)

    def _measure_pool(self, dispatcher: Dispatcher, pool: str, now: float) -> None:
        fleet = dispatcher.fleet
        engines = fleet.of(pool)
        for state in STATES:
            self._engines(pool, state).set(sum(engine.status == state for engine in engines))
        self._usable(pool).set(sum(engine.usable(now) for engine in fleet.serving(pool)))
        self._wanted(pool).set(fleet.target(pool))
        self._waiting(pool).set(dispatcher.pool_view(pool, now).waiting)
        self._running(pool).set(sum(len(engine.slots) for engine in engines))
        self._work(pool).set(sum(engine.work for engine in engines))
        self._parked(pool).set(dispatcher.gate.parked(pool))
        self._ejections(pool).follow(fleet.ejections[pool])

    def _end(self, engine: str, reason: str) -> None:
        """Count an end once: one that has failed is retired besides, and may be said to have gone twice."""
        if engine in self._alive:
            self._alive.remove(engine)
            self._ends(engine.rpartition("/")[0], reason).inc()


def state_of(engine: EngineState, now: float) -> str:
    """The state of an engine as it is told: one that is well and yet gets no calls has a word of its own."""
    if engine.status != "ready":
        return engine.status
    return "ejected" if engine.ejected_until > now else "asleep" if engine.asleep else "ready"


def _told(engine: EngineState, dispatcher: Dispatcher, now: float) -> dict[str, float]:
    return {
        "running_calls": len(engine.slots),
        "queued_calls": engine.reported_waiting,
        "committed_work_tokens": engine.work,
        "budget_tokens": engine.budget,
        "on_loan_tokens": engine.on_loan,
        "kv_use_ratio": engine.kv_use,
        "pressure_ratio": engine.pressure(now),
        "prefix_tokens": dispatcher.prefixes.resident(engine.name),
    }
