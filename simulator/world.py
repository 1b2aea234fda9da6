"""The engines of a simulation: models of LLM servers and of SQL workers, that end what they were given in time."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Literal, Protocol

from backends.emulated.model import Engine, EngineConfig, Sequence, Step
from policies.pool import EngineLimits, PoolSpec
from simulator.agenda import Agenda
from simulator.prompts import chained
from simulator.workload import CallPlan

LEAP = 1 << 20
"""Steps that may be taken in one: as many as the model finds alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """The engines of one pool: `config` those of an LLM pool, None of SQL workers; ready `startup` seconds after they
    were asked for."""

    config: EngineConfig | None = None
    startup: float = 0.0

    def limits(self, pool: PoolSpec) -> EngineLimits:
        """What an engine says of itself when it is up."""
        known = None if self.config is None else self.config.capacity
        limits = pool.limits
        return EngineLimits(sequences=limits.sequences, work=limits.work, kv_tokens=limits.kv_tokens or known)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What goes wrong with an engine: it `dies` at a time, or is `late`, ready at that time only."""

    engine: str
    at: float
    kind: Literal["dies", "late"] = "dies"


@dataclass(slots=True, kw_only=True)
class Counters:
    """What engines have done: tokens as in `backends.emulated.model.Engine`, `busy` in seconds, `peak` a share."""

    prompt_tokens: int = 0
    generation_tokens: int = 0
    prefill_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0
    peak_kv_use: float = 0.0
    busy: float = 0.0

    def add(self, other: Counters) -> None:
        self.prompt_tokens += other.prompt_tokens
        self.generation_tokens += other.generation_tokens
        self.prefill_tokens += other.prefill_tokens
        self.prefix_queries += other.prefix_queries
        self.prefix_hits += other.prefix_hits
        self.preemptions += other.preemptions
        self.peak_kv_use = max(self.peak_kv_use, other.peak_kv_use)
        self.busy += other.busy

    def since(self, before: Counters) -> Counters:
        """What has been done since an earlier moment; the peak is that of all time."""
        return Counters(
            prompt_tokens=self.prompt_tokens - before.prompt_tokens,
            generation_tokens=self.generation_tokens - before.generation_tokens,
            prefill_tokens=self.prefill_tokens - before.prefill_tokens,
            prefix_queries=self.prefix_queries - before.prefix_queries,
            prefix_hits=self.prefix_hits - before.prefix_hits,
            preemptions=self.preemptions - before.preemptions,
            peak_kv_use=self.peak_kv_use,
            busy=self.busy - before.busy,
        )


class Listener(Protocol):
    """Who is told how attempts fare."""

    def first_token(self, attempt: int) -> None: ...

    def ended(self, attempt: int, cached: int) -> None: ...


class Worker(Protocol):
    """One engine of either kind. Attempts are known by the numbers that the dispatcher gave them."""

    @property
    def running(self) -> int: ...

    @property
    def waiting(self) -> int: ...

    @property
    def kv_use(self) -> float: ...

    def start(self, attempt: int, call: CallPlan, seed: int, priority: int) -> None:
        """Take an attempt on. Raises ValueError for one that it could never end."""

    def abort(self, attempt: int) -> None: ...

    def die(self) -> Many[int]:
        """End at once; returns the attempts that are left without an answer."""

    def counters(self) -> Counters: ...


class ModelWorker:
    """An LLM server: the step model in virtual time.

    Steps that are alike are taken in one leap, which is cut short when something happens to the engine.
    """

    def __init__(self, config: EngineConfig, agenda: Agenda, listener: Listener) -> None:
        self._engine = Engine(config)
        self._agenda = agenda
        self._listener = listener
        self._cached: dict[int, int] = {}
        self._step: Step | None = None
        self._began = 0.0
        self._turn = 0
        self._due = False
        self._busy = 0.0

    @property
    def running(self) -> int:
        return self._engine.running

    @property
    def waiting(self) -> int:
        return self._engine.waiting

    @property
    def kv_use(self) -> float:
        return self._engine.kv_use

    def start(self, attempt: int, call: CallPlan, seed: int, priority: int) -> None:
        text = (*call.segments, (call.answer, call.output))
        hashes = chained(text, self._engine.config.block_size, seed)
        self._cut()
        self._engine.add(
            Sequence(id=str(attempt), prompt=call.prompt, output=call.output, hashes=hashes, priority=priority)
        )
        self._cached[attempt] = 0
        self._plan()

    def abort(self, attempt: int) -> None:
        if self._cached.pop(attempt, None) is not None:
            self._cut()
            self._engine.abort(str(attempt))

    def die(self) -> Many[int]:
        left = tuple(self._cached)
        for attempt in left:
            self._engine.abort(str(attempt))
        self._cached.clear()
        self._turn += 1
        return left

    def counters(self) -> Counters:
        engine = self._engine
        return Counters(
            prompt_tokens=engine.prompt_tokens,
            generation_tokens=engine.generation_tokens,
            prefill_tokens=engine.prefill_tokens_computed,
            prefix_queries=engine.prefix_queries,
            prefix_hits=engine.prefix_hits,
            preemptions=engine.preemptions,
            peak_kv_use=engine.blocks.peak / engine.blocks.total,
            busy=self._busy,
        )

    def _plan(self) -> None:
        """Begin a step after all else that happens at this moment: what arrives together is taken in together."""
        if self._step is None and not self._due:
            self._due = True
            self._agenda.at(self._agenda.now, self._begin)

    def _begin(self) -> None:
        self._due = False
        if self._engine.idle:
            return
        self._step = step = self._engine.begin(LEAP)
        self._began = self._agenda.now
        for sequence, cached in step.admitted:
            self._cached[int(sequence)] = cached
        self._until(step.duration)

    def _until(self, duration: float) -> None:
        self._turn += 1
        self._agenda.at(self._began + duration, self._end, self._turn, duration)

    def _cut(self) -> None:
        step = self._step
        if step is not None and step.steps > 1:
            duration = self._engine.cut(self._agenda.now - self._began)
            if duration < step.duration:
                # Nothing but a leap's last step ends a sequence.
                self._step = Step(duration=duration)
                self._until(duration)

    def _end(self, turn: int, duration: float) -> None:
        if turn != self._turn or self._step is None:
            return
        step, self._step = self._step, None
        self._engine.end()
        self._busy += duration
        for sequence in step.first:
            if int(sequence) in self._cached:
                self._listener.first_token(int(sequence))
        for sequence in step.finished:
            cached = self._cached.pop(int(sequence), None)
            if cached is not None:
                self._listener.ended(int(sequence), cached)
        self._plan()


class StatementWorker:
    """A SQL worker: each statement takes the seconds that are planned for it, however many run side by side."""

    waiting = 0
    kv_use = 0.0

    def __init__(self, agenda: Agenda, listener: Listener) -> None:
        self._agenda = agenda
        self._listener = listener
        self._since: dict[int, float] = {}
        self._busy = 0.0

    @property
    def running(self) -> int:
        return len(self._since)

    def start(self, attempt: int, call: CallPlan, seed: int, priority: int) -> None:
        self._since[attempt] = self._agenda.now
        self._agenda.at(self._agenda.now + call.seconds, self._end, attempt)

    def abort(self, attempt: int) -> None:
        self._leave(attempt)

    def die(self) -> Many[int]:
        left = tuple(self._since)
        for attempt in left:
            self._leave(attempt)
        return left

    def counters(self) -> Counters:
        return Counters(busy=self._busy)

    def _leave(self, attempt: int) -> bool:
        since = self._since.pop(attempt, None)
        if since is None:
            return False
        self._busy += self._agenda.now - since
        return True

    def _end(self, attempt: int) -> None:
        if self._leave(attempt):
            self._listener.ended(attempt, 0)
