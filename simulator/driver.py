"""Carries out the dispatcher's actions in virtual time: the simulator's counterpart of the gateway's runtime.

It decides nothing: which call goes where and when is the dispatcher's word alone. Agents read whole answers, so
an attempt that its engine takes with it when it dies may be repeated elsewhere, however far it had come.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from policies.calls import Call, Outcome
from policies.events import (
    Abort,
    Action,
    Arrived,
    EngineGone,
    EngineUp,
    Event,
    Failed,
    Finished,
    FirstToken,
    Launch,
    Left,
    Reason,
    Refused,
    Reported,
    Retire,
    Scaled,
    Start,
    Wake,
    Woken,
)
from simulator.agenda import Agenda
from simulator.clients import ZERO, Clients
from simulator.result import Result
from simulator.scenario import Scenario
from simulator.workload import CallPlan
from simulator.world import Counters, ModelWorker, StatementWorker, Worker

Recorder = Callable[[Event, list[Action], float], None]


def simulate(scenario: Scenario, recorder: Recorder | None = None) -> Result:
    """Run a scenario to its end; the same scenario gives the same result, bit for bit.

    `recorder` is given every event with the dispatcher's answer and its clock: enough for a journal.
    """
    return _Simulation(scenario, recorder).run()


@dataclass(slots=True, eq=False)
class _Asked:
    """A call that a client waits for, and its attempt in an engine, if it has one. Times on the agenda's clock."""

    call: Call
    plan: CallPlan
    seed: int
    engine: str = ""
    queued: float = 0.0
    since: float = 0.0
    first: float | None = None


class _Simulation:
    def __init__(self, scenario: Scenario, recorder: Recorder | None) -> None:
        self._scenario = scenario
        self._recorder = recorder
        self._pools = scenario.blueprint.pools
        self._dispatcher = replace(scenario.blueprint, seed=scenario.seed).dispatcher()
        if scenario.profile is not None:
            self._dispatcher.profiles.load(scenario.profile)
        # The first engines are asked for early enough that all are up at zero.
        self._agenda = Agenda(-max([spec.startup for spec in scenario.engines.values()], default=0.0))
        self._asked: dict[str, _Asked] = {}
        self._attempts: dict[int, _Asked] = {}
        self._pool_of: dict[str, str] = {}
        self._workers: dict[str, Worker] = {}
        self._dead: set[str] = set()
        self._counters = {pool: Counters() for pool in self._pools}
        self._warmed_up = {pool: Counters() for pool in self._pools}
        self._kv_use: dict[str, list[tuple[float, float]]] = {
            pool: [] for pool, spec in self._pools.items() if spec.kind == "llm"
        }
        self._late = {fault.engine: fault.at for fault in scenario.faults if fault.kind == "late"}
        self._wake_at: float | None = None
        self._events = 0
        self._clients = Clients(scenario, self._agenda, self._ask, self._leave)

    def run(self) -> Result:
        for pool, spec in self._pools.items():
            self._tell(Scaled(pool=pool, engines=spec.start))
        for fault in self._scenario.faults:
            if fault.kind == "dies":
                self._agenda.at(fault.at, self._die, fault.engine)
        self._agenda.at(0.0, self._report)
        self._agenda.at(self._clients.measured_from, self._warm_up)
        self._agenda.run(self._clients.latest + self._scenario.overtime)
        for engine in list(self._workers):
            self._dismiss(engine)
        return Result(
            runs=self._clients.records(),
            stages=self._clients.stages,
            engines={pool: done.since(self._warmed_up[pool]) for pool, done in self._counters.items()},
            kv_use=self._kv_use,
            refusals=self._clients.refusals,
            span=self._agenda.now - self._clients.measured_from if self._scenario.workload.runs else 0.0,
            events=self._events,
            profile=self._dispatcher.profiles.dump(),
        )

    def _warm_up(self) -> None:
        """Remember what the engines have done before the runs that are measured."""
        for pool, done in self._counters.items():
            self._warmed_up[pool].add(done)
        for engine, worker in self._workers.items():
            self._warmed_up[self._pool_of[engine]].add(worker.counters())

    # --- the clients' side --------------------------------------------------------------------------------

    def _ask(self, call: Call, plan: CallPlan, seed: int) -> None:
        self._asked[call.id] = _Asked(call, plan, seed)
        self._tell(Arrived(call=call))

    def _leave(self, call: str) -> None:
        if self._asked.pop(call, None) is not None:
            self._tell(Left(call=call))

    # --- the dispatcher's side ----------------------------------------------------------------------------

    def _tell(self, event: Event) -> None:
        now = ZERO + self._agenda.now
        self._events += 1
        actions = self._dispatcher.handle(event, now)
        if self._recorder is not None:
            self._recorder(event, actions, now)
        for action in actions:
            self._perform(action)

    def _perform(self, action: Action) -> None:
        match action:
            case Start():
                self._start(action)
            case Refused():
                if self._asked.pop(action.call, None) is not None:
                    self._clients.refused(action.call, action.reason, action.retry_after)
            case Abort():
                self._abort(action.attempt)
            case Launch():
                self._launch(action)
            case Retire():
                self._dismiss(action.engine)
            case Wake():
                self._wake_at = action.at
                self._agenda.at(action.at - ZERO, self._woken, action.at)

    def _woken(self, at: float) -> None:
        if at == self._wake_at:
            self._wake_at = None
            self._tell(Woken())

    # --- the engines' side --------------------------------------------------------------------------------

    def first_token(self, attempt: int) -> None:
        asked = self._attempts[attempt]
        asked.first = self._agenda.now - asked.since
        if self._scenario.tokens_heard:
            self._tell(FirstToken(call=asked.call.id, attempt=attempt))

    def ended(self, attempt: int, cached: int) -> None:
        asked = self._attempts.pop(attempt)
        del self._asked[asked.call.id]
        plan, llm = asked.plan, asked.plan.kind == "llm"
        outcome = Outcome(
            fate=plan.fate,
            queued=asked.queued,
            first_token=asked.first,
            total=self._agenda.now - asked.since,
            output_tokens=plan.output if llm else 0,
            prompt_tokens=asked.call.prompt_tokens,
            cached_tokens=cached if llm else None,
        )
        self._tell(Finished(call=asked.call.id, attempt=attempt, outcome=outcome))
        self._clients.answered(asked.call.id, plan, asked.queued, outcome.total)

    def _start(self, start: Start) -> None:
        asked = self._asked[start.call]
        asked.engine = start.engine
        asked.queued, asked.since, asked.first = start.queued, self._agenda.now, None
        self._attempts[start.attempt] = asked
        worker = self._workers.get(start.engine)
        trouble: Reason = "broken"
        if worker is not None and start.engine not in self._dead:
            try:
                worker.start(start.attempt, asked.plan, asked.seed, start.bucket)
            except ValueError:
                trouble = "refused"
            else:
                return
        self._agenda.at(self._agenda.now, self._failed, start.attempt, trouble)

    def _failed(self, attempt: int, trouble: Reason) -> None:
        asked = self._attempts.pop(attempt, None)
        if asked is not None:
            self._tell(Failed(call=asked.call.id, attempt=attempt, trouble=trouble, final=trouble == "refused"))

    def _abort(self, attempt: int) -> None:
        asked = self._attempts.pop(attempt, None)
        worker = None if asked is None else self._workers.get(asked.engine)
        if worker is not None:
            worker.abort(attempt)

    def _launch(self, launch: Launch) -> None:
        self._pool_of[launch.engine] = launch.pool
        due = self._agenda.now + self._scenario.engines[launch.pool].startup
        self._agenda.at(max(due, self._late.get(launch.engine, due)), self._up, launch.engine)

    def _up(self, engine: str) -> None:
        pool = self._pool_of.get(engine)
        if pool is None:  # it was not wanted any more
            return
        spec = self._scenario.engines[pool]
        self._workers[engine] = (
            StatementWorker(self._agenda, self)
            if spec.config is None
            else ModelWorker(spec.config, self._agenda, self)
        )
        self._tell(EngineUp(engine=engine, limits=spec.limits(self._pools[pool])))

    def _die(self, engine: str) -> None:
        worker = self._workers.get(engine)
        if worker is None or engine in self._dead:
            return
        self._dead.add(engine)
        for attempt in worker.die():
            self._failed(attempt, "broken")
        self._tell(EngineGone(engine=engine))

    def _dismiss(self, engine: str) -> None:
        pool = self._pool_of.pop(engine)
        worker = self._workers.pop(engine, None)
        if worker is not None:
            self._counters[pool].add(worker.counters())

    def _report(self) -> None:
        for engine, worker in list(self._workers.items()):
            if engine not in self._dead and engine in self._workers:
                self._tell(
                    Reported(
                        engine=engine,
                        alive=True,
                        running=worker.running,
                        waiting=worker.waiting,
                        kv_use=worker.kv_use,
                    )
                )
        for pool, samples in self._kv_use.items():
            uses = [worker.kv_use for name, worker in self._workers.items() if self._pool_of[name] == pool]
            samples.append((self._agenda.now, sum(uses) / max(1, len(uses))))
        self._agenda.at(self._agenda.now + self._scenario.report_every, self._report)
