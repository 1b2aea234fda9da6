"""What is looked at from time to time: the gate on runs and the budgets of engines, from how engines fare."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping

from policies.budget import Budget, Congestion
from policies.fleet import Fleet
from policies.gate import Gate, Load
from policies.pool import PoolSpec
from policies.queue import Waiting

WAITS = 64
"""So many of a pool's last waits for a first token count."""
HITS_MEMORY = 100
"""The hit rate goes by about so many of the last calls."""


class Reviews:
    """When which review falls due, and what it goes by. Owned by the dispatcher."""

    def __init__(self, specs: Mapping[str, PoolSpec], budgets: Mapping[str, Budget], gate: Gate) -> None:
        self._gate = gate
        self._llm = [name for name, spec in specs.items() if spec.kind == "llm"]
        self._budgets = {name: budget for name, budget in budgets.items() if budget.period is not None}
        self._work = dict.fromkeys(self._budgets, math.inf)
        self._due = dict.fromkeys(self._budgets, 0.0)
        self._waits: dict[str, deque[float]] = {name: deque(maxlen=WAITS) for name in self._budgets}
        self._prompt = self._cached = 0.0
        self._unknown = 1.0
        self.needed = bool(self._budgets) or not gate.always_open

    def began(self, pool: str, wait: float) -> None:
        """A call has had its first token, so many seconds after it was sent to an engine of the pool."""
        waits = self._waits.get(pool)
        if waits is not None:
            waits.append(wait)

    def found(self, prompt: int, cached: int | None) -> None:
        """An engine has found so many of a prompt's tokens cached; None where it does not say."""
        self._unknown = 0.0
        if cached is None:
            return
        fade = 1.0 - 1.0 / HITS_MEMORY
        self._prompt = fade * self._prompt + prompt
        self._cached = fade * self._cached + min(cached, prompt)

    def next_at(self, now: float) -> float:
        """When the next review is due, infinitely late where none is; at once where it was put off while nothing
        happened.
        """
        dues = [*self._due.values()]
        if self._gate.next_review is not None:
            dues.append(self._gate.next_review)
        return max(now, min(dues)) if dues else math.inf

    def held(self, fleet: Fleet, now: float) -> list[Waiting]:
        """Carry out what is due; returns the calls that the gate lets through."""
        for pool, budget in self._budgets.items():
            if self._due[pool] <= now:
                self._resize(pool, budget, fleet, now)
        due = self._gate.next_review
        return self._gate.reviewed(self._load(fleet, now), now) if due is not None and due <= now else []

    def joined(self, fleet: Fleet, engine: str) -> None:
        """Give an engine that has come up the budget of its pool."""
        state = fleet.get(engine)
        if state is None or state.pool not in self._work:
            return
        work = self._work[state.pool]
        if math.isinf(work):  # before the first review
            work = self._budgets[state.pool].resized(work, Congestion(waits=(), waiting=0.0))
        state.budget = min(state.limits.work, work)

    def _resize(self, pool: str, budget: Budget, fleet: Fleet, now: float) -> None:
        engines = [engine for engine in fleet.of(pool) if engine.usable(now)]
        waiting = sum(engine.reported_waiting for engine in engines) / max(1, len(engines))
        waits = self._waits[pool]
        self._work[pool] = budget.resized(self._work[pool], Congestion(waits=tuple(waits), waiting=waiting))
        waits.clear()
        self._due[pool] = now + (budget.period or math.inf)
        for engine in fleet.of(pool):
            self.joined(fleet, engine.name)

    def _load(self, fleet: Fleet, now: float) -> Load:
        fullest, tokens = 0.0, 0.0
        for pool in self._llm:
            engines = [engine for engine in fleet.of(pool) if engine.usable(now)]
            if engines:
                fullest = max(fullest, sum(engine.kv_use for engine in engines) / len(engines))
            tokens += sum(engine.limits.kv_tokens or math.inf for engine in engines)
        # Where engines do not say what they find, the KV use alone has to tell whether they thrash.
        hit_rate = self._cached / self._prompt if self._prompt else self._unknown
        return Load(kv_use=fullest, hit_rate=hit_rate, kv_tokens=tokens or math.inf)
