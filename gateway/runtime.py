"""Carries out what the dispatcher decides: waiting calls are told, engines started and stopped, wake-ups kept."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial

from backends.base import BackendError, Cluster, Engine
from gateway.abilities import Abilities, limited
from gateway.away import Away, current
from gateway.journal import Journal
from gateway.starts import Starts
from gateway.warming import Warming
from policies.calls import Call, Outcome
from policies.dispatcher import Dispatcher
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
    Joined,
    Launch,
    Left,
    Reason,
    Recalled,
    Refused,
    Retire,
    Scaled,
    Start,
    Wake,
    Woken,
)
from policies.pool import PoolSpec
from policies.routing.residency import Noted

_log = logging.getLogger("cortex.engines")

_LOOK_EVERY = 0.5
"""Seconds until whoever waits for the first engines looks whether the gateway was told to stop."""

Watcher = Callable[[Event, list[Action]], None]


class Clock:
    """Unix time that never jumps: the wall clock is read once, then the monotonic one is added."""

    def __init__(self) -> None:
        self._zero = time.time() - time.monotonic()

    def __call__(self) -> float:
        return self._zero + time.monotonic()


class RefusedCall(Exception):
    """The dispatcher lets a call go unserved. `trouble` is the last attempt's, where there was one."""

    def __init__(self, refusal: Refused) -> None:
        super().__init__(refusal.reason)
        self.reason: Reason = refusal.reason
        self.retry_after = refusal.retry_after


@dataclass(slots=True, eq=False)
class Ticket:
    """One call's line to the dispatcher: it learns here which engine to use, and reports how that went."""

    call: Call
    runtime: Runtime
    over: bool = False
    _inbox: deque[Start | Refused] = field(default_factory=deque)
    _waiter: asyncio.Future[None] | None = None
    _away: Away | None = field(default_factory=current)

    def began(self) -> None:
        """The call is about to be queued."""
        if self._away is not None:
            self._away.goes()

    def ended(self) -> None:
        """Nothing more is to be reported. Idempotent."""
        if not self.over and self._away is not None:
            self._away.comes()
        self.over = True

    def deliver(self, action: Start | Refused) -> None:
        """Called by the runtime. The waiter may be cancelled in this very loop step: the message stays for `Left`."""
        self._inbox.append(action)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def start(self) -> Start:
        """Wait until an engine is chosen. Raises RefusedCall."""
        while not self._inbox:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        action = self._inbox.popleft()
        if isinstance(action, Refused):
            self.ended()
            raise RefusedCall(action)
        return action

    def first_token(self, attempt: int) -> None:
        self.runtime.handle(FirstToken(call=self.call.id, attempt=attempt))

    def finished(self, attempt: int | None, outcome: Outcome) -> None:
        self.ended()
        self.runtime.handle(Finished(call=self.call.id, attempt=attempt, outcome=outcome))

    def failed(self, attempt: int, trouble: Reason, *, final: bool, rest: float | None = None) -> None:
        """An attempt came to nothing; `start` then says what is next, unless it was final."""
        if final:
            self.ended()
        self.runtime.handle(Failed(call=self.call.id, attempt=attempt, trouble=trouble, final=final, rest=rest))


class _Open:
    """A call from its arrival to its end. A class: generators cost a short call more than their block does."""

    def __init__(self, runtime: Runtime, ticket: Ticket, arrival: Arrived | Joined) -> None:
        self._runtime = runtime
        self._ticket = ticket
        self._arrival = arrival

    async def __aenter__(self) -> Ticket:
        ticket = self._ticket
        ticket.began()
        if isinstance(self._arrival, Arrived):
            self._runtime.tickets[ticket.call.id] = ticket
        try:
            self._runtime.handle(self._arrival)
        except BaseException:
            await self.__aexit__()
            raise
        return ticket

    async def __aexit__(self, *_: object) -> None:
        self._runtime.tickets.pop(self._ticket.call.id, None)
        if not self._ticket.over:
            self._ticket.ended()
            self._runtime.handle(Left(call=self._ticket.call.id))


class Runtime:
    """Owns the dispatcher, the engines and the tickets. Everything in it happens on one event loop."""

    def __init__(
        self,
        *,
        dispatcher: Dispatcher,
        pools: Mapping[str, PoolSpec],
        clusters: Mapping[str, Cluster],
        clock: Callable[[], float],
        abilities: Abilities,
        warming: Warming,
        journal: Journal | None = None,
        noted: Noted | None = None,
        watchers: tuple[Watcher, ...] = (),
    ) -> None:
        self.dispatcher = dispatcher
        self.pools = pools
        self.engines: dict[str, Engine] = {}
        self.heard: dict[str, float] = {}
        """When each engine last began to answer a call."""
        self.now = clock
        self.abilities = abilities
        self.warming = warming
        self.starts = Starts()
        self._clusters = clusters
        self._journal = journal
        self._noted = noted
        self._watchers = watchers
        self.tickets: dict[str, Ticket] = {}
        self._jobs: dict[str, asyncio.Task[None]] = {}
        self._all_jobs: set[asyncio.Task[None]] = set()
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._alarm: asyncio.TimerHandle | None = None
        self._flush: asyncio.TimerHandle | None = None
        self._closed = False

    # --- life -------------------------------------------------------------------------------------------------

    async def start(self, told_to_stop: Callable[[], bool] = lambda: False) -> None:
        """Ask for every pool's first engines and wait until each has come up or failed once."""
        self._keep_flushing()
        for name, spec in self.pools.items():
            self.handle(Scaled(pool=name, engines=spec.start))
        first = set(self._jobs.values())  # those that take the place of one that has failed are not waited for
        while first and not self._closed and not told_to_stop():
            _, first = await asyncio.wait(first, timeout=_LOOK_EVERY)

    async def aclose(self) -> None:
        """Stop every engine. Calls in flight should have ended before; what is left of them is cut off."""
        self._closed = True
        for handle in (self._alarm, self._flush):
            if handle is not None:
                handle.cancel()
        jobs = list(self._all_jobs)
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
        ends = await asyncio.gather(*(one.aclose() for one in self._clusters.values()), return_exceptions=True)
        for error in filter(None, ends):
            _log.error("engines did not end", exc_info=error)
        if self._journal is not None:
            self._journal.close()

    def ready(self) -> list[str]:
        """The pools that have no engine to work with; empty when the gateway is ready."""
        now = self.now()
        return [
            pool
            for pool in self.pools
            if not any(engine.usable(now) for engine in self.dispatcher.fleet.serving(pool))
        ]

    @property
    def journal_dropped(self) -> int:
        """Steps that the journal could not write."""
        return self._journal.dropped if self._journal is not None else 0

    # --- events in, actions out -------------------------------------------------------------------------------

    def handle(self, event: Event) -> None:
        """Feed one event to the dispatcher and carry out what it answers."""
        now = self.now()
        actions = self.dispatcher.handle(event, now)
        if self._journal is not None:
            held = self._noted.taken() if self._noted is not None else ()
            self._journal.record(event, actions, now, held)
        for watch in self._watchers:
            watch(event, actions)
        for action in actions:
            self._perform(action)

    def _perform(self, action: Action) -> None:
        match action:
            case Start() | Refused():
                ticket = self.tickets.get(action.call)
                if ticket is not None:
                    ticket.deliver(action)
            case Launch():
                self._run(action.engine, partial(self._launch, action.pool, action.engine))
            case Retire():
                if (launch := self._jobs.get(action.engine)) is not None:
                    launch.cancel()  # it would take minutes to become an engine that nobody wants
                self._run(action.engine, partial(self._retire, action.pool, action.engine))
            case Wake():
                self._set_alarm(action.at)
            case Abort():
                pass  # whoever left is closing the attempt's connection itself, on its way out of `Engine.open`

    def ticket(self, call: Call) -> AbstractAsyncContextManager[Ticket]:
        """Put a call in its queue. On the way out everything that it held is given back, however it ended."""
        return _Open(self, Ticket(call, self), Arrived(call=call))

    def follow(self, call: Call, leader: str) -> AbstractAsyncContextManager[Ticket]:
        """As `ticket`, for a call that waits for another one's answer."""
        return _Open(self, Ticket(call, self), Joined(call=call, leader=leader))

    def recalled(self, call: Call, outcome: Outcome) -> None:
        """Let the run's position advance by a call whose answer was known already."""
        self.handle(Recalled(call=call, outcome=outcome))

    # --- engines ----------------------------------------------------------------------------------------------

    def _run(self, engine: str, job: Callable[[], Coroutine[None, None, None]]) -> None:
        """Start a job on an engine once the one before it on the same engine has ended."""
        if self._closed:
            return
        before = self._jobs.get(engine)
        task = asyncio.create_task(_after(before, job), name=f"engine {engine}")
        self._jobs[engine] = task
        self._all_jobs.add(task)
        task.add_done_callback(lambda done: self._job_done(engine, done))

    def _job_done(self, engine: str, task: asyncio.Task[None]) -> None:
        self._all_jobs.discard(task)
        if self._jobs.get(engine) is task:
            del self._jobs[engine]
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("engine job failed engine=%s", engine, exc_info=error)

    async def _launch(self, pool: str, name: str) -> None:
        began = self.now()
        try:
            engine = await self._clusters[pool].start(name)
            watch = self._watches[name] = asyncio.create_task(self._until_ended(pool, name), name=f"end of {name}")
            watch.add_done_callback(self._all_jobs.discard)
            self._all_jobs.add(watch)
            limits = limited(self.pools[pool].limits, await self.abilities.ask(pool, name, engine))
            held = await self.warming.warm(pool, name, engine)
        except Exception as error:  # noqa: BLE001 - whatever it was: the scheduler must not wait for this engine
            trace = None if isinstance(error, BackendError) else error
            _log.warning("engine did not start pool=%s engine=%s reason=%s", pool, name, error, exc_info=trace)
            self.starts.failed(pool, error, self.now())
            self.handle(EngineGone(engine=name))
            return
        self.starts.succeeded(pool)
        self.engines[name] = engine
        _log.info("engine up pool=%s engine=%s seconds=%.2f", pool, name, self.now() - began)
        self.handle(EngineUp(engine=name, limits=limits, held=held))

    async def ask_again(self, name: str) -> None:
        """An engine has come back, perhaps as another one."""
        engine, state = self.engines.get(name), self.dispatcher.fleet.get(name)
        if engine is None or state is None:
            return
        can = await self.abilities.ask(state.pool, name, engine)
        limits = limited(self.pools[state.pool].limits, can)
        if limits != state.limits and self.engines.get(name) is engine:
            self.handle(EngineUp(engine=name, limits=limits))

    async def _until_ended(self, pool: str, name: str) -> None:
        """Say at once that an engine has ended by itself, instead of waiting for its reports to stay away."""
        await self._clusters[pool].ended(name)
        _log.warning("engine ended unasked pool=%s engine=%s", pool, name)
        self.handle(EngineGone(engine=name))

    async def _retire(self, pool: str, name: str) -> None:
        engine = self.engines.pop(name, None)
        self.heard.pop(name, None)
        self.abilities.forget(name)
        if (watch := self._watches.pop(name, None)) is not None:
            watch.cancel()
        try:
            if engine is not None:
                await engine.aclose()
        finally:
            await self._clusters[pool].stop(name)
        _log.info("engine stopped pool=%s engine=%s", pool, name)

    def _set_alarm(self, at: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        if self._closed:
            return
        self._alarm = asyncio.get_running_loop().call_later(max(0.0, at - self.now()), self.handle, Woken())

    def _keep_flushing(self) -> None:
        if self._journal is not None:
            self._journal.flush()
            self._flush = asyncio.get_running_loop().call_later(1.0, self._keep_flushing)


async def _after(before: asyncio.Task[None] | None, job: Callable[[], Coroutine[None, None, None]]) -> None:
    if before is not None:
        await asyncio.wait([before])
    await job()
