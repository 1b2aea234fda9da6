"""The model in real time: steps that take as long as they say, and a line to each client that waits for tokens.

One task drives all sequences. A step wakes only the lines that have what they wait for, and nobody else waits on a
timer, so the cost of a step is that of its clients.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from backends.emulated.model import Engine, Sequence, Step

CATCH_UP = 0.05  # seconds by which the engine may run late and make up for it: a busy machine is no slow model
TICK = 0.001  # uvloop's timers have this grain; a shorter pause is made up by the next one


class Line:
    """What one client knows of its sequence, which ends for the reason `finish`.

    Times are in seconds of the driver's clock, None until they happen. One that is `aborted` by the engine has its
    answer so far.
    """

    def __init__(self, sequence: Sequence, finish: str, arrived: float) -> None:
        self.sequence = sequence
        self.finish = finish
        self.arrived = arrived
        self.admitted: float | None = None
        self.first: float | None = None
        self.cached = 0
        self.produced = 0
        self.closed = False
        self.aborted = False
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []

    async def reach(self, tokens: int) -> bool:
        """Wait until so many tokens are produced; False when the line was closed before."""
        if self.produced < tokens and not self.closed:
            waiter = (tokens, asyncio.get_running_loop().create_future())
            self._waiters.append(waiter)
            try:
                await waiter[1]
            finally:
                self._waiters.remove(waiter)
        return self.produced >= tokens

    def push(self) -> None:
        """One token more."""
        self.produced += 1
        for tokens, waiter in self._waiters:
            if self.produced >= tokens and not waiter.done():
                waiter.set_result(None)

    def close(self) -> None:
        """Nothing more will come."""
        self.closed = True
        for _, waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)


class Driver:
    """Owns the engine and its lines. `finished` is told of each sequence that came to its end, with the time.

    At a level of sleep it takes what is submitted and does nothing with it.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        time_scale: float,
        finished: Callable[[Line, float], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.engine = engine
        self._time_scale = time_scale
        self._finished = finished
        self._clock = clock
        self._due = 0.0
        self._lines: dict[str, Line] = {}
        self._work = asyncio.Event()
        self.asleep: int | None = None

    def submit(self, sequence: Sequence, finish: str) -> Line:
        self.engine.add(sequence)
        line = self._lines[sequence.id] = Line(sequence, finish, self._clock())
        self._work.set()
        return line

    def leave(self, line: Line) -> None:
        """The client has what it wants or is gone: what is left of the sequence is aborted. Idempotent."""
        if self._lines.pop(line.sequence.id, None) is not None:
            self.engine.abort(line.sequence.id)
            line.close()

    def sleep(self, level: int) -> None:
        """Abort everything and stop. From level 1 on the cache is lost."""
        self.asleep = level
        now = self._clock()
        for line in list(self._lines.values()):
            line.aborted, line.finish = True, "abort"
            self.leave(line)
            self._finished(line, now)
        if level:
            self.engine.blocks.forget()

    def wake(self) -> None:
        self.asleep = None
        self._work.set()

    async def run(self) -> None:
        """Step as long as there is work, wait while there is none; ends by cancellation only."""
        while True:
            while self.engine.idle or self.asleep is not None:
                self._work.clear()
                await self._work.wait()
                self._due = self._clock()
            step = self.engine.begin()
            self._admit(step)
            await self._pause(step.duration / self._time_scale)
            self.engine.end()
            self._deliver(step)

    async def _pause(self, duration: float) -> None:
        now = self._clock()
        self._due = max(self._due, now - CATCH_UP) + duration
        delay = self._due - now
        await asyncio.sleep(delay if delay >= TICK else 0)

    def _admit(self, step: Step) -> None:
        now = self._clock()
        for sequence_id, cached in step.admitted:
            line = self._lines[sequence_id]
            line.admitted, line.cached = now, cached

    def _deliver(self, step: Step) -> None:
        now = self._clock()
        ended = set(step.finished)
        for sequence_id in step.tokens:
            line = self._lines.get(sequence_id)
            if line is None:
                continue
            if line.first is None:
                line.first = now
            line.push()
            if sequence_id in ended:
                del self._lines[sequence_id]
                self._finished(line, now)
