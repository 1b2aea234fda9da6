"""SQL workers as engines of a pool: one process, one statement at a time, killed when it does not obey."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal, Self

from backends.base import BackendError, EngineReport, Reply, Request
from backends.capabilities import Capabilities
from backends.sql import answers
from backends.sql.breaker import Breaker
from backends.sql.options import SqlOptions
from backends.sql.process import Child
from backends.sql.sandbox import confinement_of
from backends.sql.tasks import BadTask, Task, read_task

_log = logging.getLogger("cortex.sql")

GRACE: Final = 0.25
"""Seconds after its timeout in which a statement may still end by itself; then its process is killed."""

WorkerEnd = Literal["killed", "crashed", "retired"]
"""How a process ended: it did not obey its limits, it died by itself, or its engine was closed."""

_START: Final = 20.0
_JSON: Final = "application/json"
_PIECES: Final = "application/x-sql-pieces"


@dataclass(slots=True, eq=False)
class _Talk:
    """One operation at a worker. `over`: nothing more will be heard of it."""

    child: Child
    task: Task
    began: float
    over: bool = False

    @property
    def patience(self) -> float:
        """Seconds to wait for the next frame. Rows come when their reader takes them: no end is set to them here."""
        spent = 0.0 if self.task.op == "stream" else time.monotonic() - self.began
        return self.task.timeout + GRACE - spent


class _Opened:
    """One operation as a block. A class: generators cost a short statement more than all that they do here."""

    def __init__(self, engine: SqlEngine, request: Request) -> None:
        self._engine = engine
        self._request = request
        self._talk: _Talk | None = None

    async def __aenter__(self) -> Reply:
        reply, self._talk = await self._engine.begin(self._request)
        return reply

    async def __aexit__(self, *_: object) -> None:
        if self._talk is not None:
            self._engine.end(self._talk)


class SqlEngine:
    """One worker process, restarted when it was killed or died.

    Replies: 200 a result; 400 an error of the statement; 504 a statement that took too long. The header
    `x-sql-outcome` says which, and of a result whether it has rows: `ok`, `empty`, `error` or `timeout`; with
    ` volatile` behind it where the same data may give another result. A worker that dies of a statement is a
    BackendError `crashed`, not retryable: the next worker would die of it too.

    What comes in pieces, rows or progress, is a reply 200 of type `application/x-sql-pieces`: each chunk is one
    piece, a word or two, a line feed and a body. The last one is the answer, and begins as `x-sql-outcome` has it;
    those before it are `rows`, lines of NDJSON of which the first one has the columns, or `progress`, a number of
    percent.
    """

    def __init__(
        self,
        options: SqlOptions,
        *,
        breaker: Breaker | None = None,
        ended: Callable[[WorkerEnd], None] = lambda _: None,
    ) -> None:
        """`ended` is told of each process that is no more."""
        self._options = options
        self._ended = ended
        self._breaker = breaker or Breaker()
        self._child: Child | None = None
        self._repair: asyncio.Task[None] | None = None
        self._busy = False
        self._closed = False
        self._runs = 0
        self._kills = 0
        self._crashes = 0

    @property
    def pid(self) -> int | None:
        """The worker's process, None while there is none."""
        return self._child.pid if self._child is not None and self._child.alive else None

    async def start(self) -> None:
        """Bring the worker up. Raises BackendError."""
        child = await self._spawn()
        if self._closed:
            await child.kill()
            raise _closed()
        self._child = child

    async def confinement(self) -> tuple[str, Mapping[str, str]]:
        """What the kernel takes from the worker, and which databases it could not open: asked before its first
        statement. Raises BackendError."""
        if self._child is None:
            raise _closed()
        return await confinement_of(self._child)

    def open(self, request: Request) -> AbstractAsyncContextManager[Reply]:
        """Run the operation to its end. Leaving before stops the statement, by a kill where it does not obey.

        A worker that is down is waited for, `head_timeout` at most: a queue that were refused instead would be
        offered call by call and be empty before the worker is back. Raises BackendError: `overloaded` while
        another statement runs, `refused` when no worker came up.
        """
        return _Opened(self, request)

    async def begin(self, request: Request) -> tuple[Reply, _Talk | None]:
        """The reply as soon as there is something to it, and the operation that `end` ends."""
        try:
            task = read_task(request, self._options)
        except BadTask as error:
            return _reply(answers.failure(str(error), "invalid_request")), None
        if self._busy:
            raise BackendError("the SQL worker is busy", trouble="overloaded", retryable=True)
        self._busy = True
        talk = None
        try:
            talk = _Talk(await self._ready(request.head_timeout), task, time.monotonic())
            first = await self._asked(talk)
        except BaseException:
            self.end(talk)
            raise
        return _reply(first) if talk.over else self._in_pieces(talk, first), talk

    def end(self, talk: _Talk | None) -> None:
        """The worker is free, or will be when what it has in hand is stopped."""
        if talk is not None and not talk.over:
            self._begin(self._settle(talk.child))
        self._busy = False

    async def report(self) -> EngineReport:
        """Raises BackendError when there is no worker and none is coming at once."""
        if self._closed:
            raise _closed()
        if self._child is None and (left := self._breaker.left(time.monotonic())):
            raise _down(left)
        counters = {"runs": self._runs, "kills": self._kills, "crashes": self._crashes}
        return EngineReport(running=int(self._busy), counters=counters)

    async def capabilities(self) -> Capabilities:
        """Nothing: what is asked of engines is about language models."""
        return Capabilities()

    async def aclose(self) -> None:
        self._closed = True
        if self._repair is not None:
            self._repair.cancel()
            await asyncio.gather(self._repair, return_exceptions=True)
        child, self._child = self._child, None
        if child is not None:
            self._ended("retired")
            await child.kill()

    async def _asked(self, talk: _Talk) -> bytes:
        """The first that is heard of an operation."""
        self._runs += 1
        talk.child.send(talk.task.to_json())
        return await self._heard(talk)

    def _in_pieces(self, talk: _Talk, first: bytes) -> Reply:
        async def pieces() -> AsyncIterator[bytes]:
            yield first
            while not talk.over:
                yield await self._heard(talk)

        return Reply(status=200, headers=(("content-type", _PIECES),), chunks=pieces())

    async def _heard(self, talk: _Talk) -> bytes:
        """The next frame, or an answer in its place where the worker was killed."""
        try:
            frame, talk.over = await talk.child.receive(talk.patience)
        except BackendError as error:
            return self._broke(talk, error)
        if talk.over:
            self._breaker.worked()
        return frame

    def _broke(self, talk: _Talk, error: BackendError) -> bytes:
        """Replace a worker that does not answer. Raises BackendError where it ended by itself."""
        talk.over = True
        self._begin(self._replace(talk.child))
        if error.trouble == "timeout":
            self._kills += 1
            self._ended("killed")
            return answers.failure("the statement took too long and was stopped", "timeout")
        self._crashes += 1
        self._ended("crashed")
        self._breaker.failed(time.monotonic())
        raise BackendError(
            "the SQL worker ended while it ran this statement", trouble="crashed", retryable=False
        ) from None

    async def _ready(self, timeout: float) -> Child:
        """A worker with nothing in hand. Waits for one that is being brought up. Raises BackendError `refused`."""
        try:
            async with asyncio.timeout(timeout):
                while not self._closed:
                    if self._repair is not None and not self._repair.done():
                        await asyncio.wait([self._repair])  # it goes on when who waits for it leaves
                    elif self._child is not None and self._child.alive:
                        return self._child
                    else:  # it died with nothing in hand
                        self._ended("crashed")
                        self._begin(self._replace(self._child))
        except TimeoutError:
            raise _down(self._breaker.left(time.monotonic())) from None
        raise _closed()

    def _begin(self, repair: Coroutine[None, None, None]) -> None:
        if self._closed:
            repair.close()
        else:
            self._repair = asyncio.create_task(repair)

    async def _settle(self, child: Child) -> None:
        """Make a worker whose client has left fit for the next statement."""
        child.interrupt()
        try:
            await child.answer(GRACE)
        except BackendError:
            self._kills += 1
            self._ended("killed")
            await self._replace(child)

    async def _replace(self, child: Child | None) -> None:
        """Bring up another worker, however often that takes, with the pauses that the breaker asks for."""
        self._child = None
        if child is not None:
            await child.kill()
        said = False
        while self._child is None:
            await asyncio.sleep(self._breaker.left(time.monotonic()))
            try:
                self._child = await self._spawn()
            except BackendError as error:
                self._breaker.failed(time.monotonic())
                if not said:
                    said = True
                    _log.warning("sql worker does not come back: %s", error)
                    _log_failed_start(self._options)

    async def _spawn(self) -> Child:
        return await Child.spawn("backends.sql.worker", self._options.to_json(), timeout=_START)


class SqlCluster:
    """The SQL workers of one pool: each name is a process of its own over the same databases."""

    def __init__(self, options: SqlOptions, *, ended: Callable[[str, WorkerEnd], None] = lambda *_: None) -> None:
        """`ended` is told of each process that is no more, by the name of its engine."""
        self._options = options
        self._ended = ended
        self._engines: dict[str, SqlEngine] = {}
        self._said = False

    async def start(self, name: str) -> SqlEngine:
        """Raises BackendError, also when the name is taken; the message names no file."""
        if name in self._engines:
            raise BackendError(f"the engine {name} is there already", trouble="refused", retryable=False)
        engine = self._engines[name] = SqlEngine(self._options, ended=partial(self._ended, name))
        try:
            await engine.start()
            if not self._said:
                self._said = True
                confinement, amiss = await engine.confinement()
                _log.info("sql worker: %s", confinement)
                for database, words in amiss.items():
                    _log.warning("database %s: %s", self._options.whereabouts(database), words)
        except BaseException as error:
            if isinstance(error, BackendError):
                _log_failed_start(self._options)
            if self._engines.pop(name, None) is not None:
                await engine.aclose()
            raise
        return engine

    async def ended(self, name: str) -> None:
        await asyncio.Event().wait()  # a worker that ends is brought up again by its engine

    async def stop(self, name: str) -> None:
        engine = self._engines.pop(name, None)
        if engine is not None:
            await engine.aclose()

    async def aclose(self) -> None:
        await asyncio.gather(*(self.stop(name) for name in list(self._engines)))


def _log_failed_start(options: SqlOptions) -> None:
    """The error itself names no file: clients may come to see it."""
    _log.warning(
        "sql worker did not start with the databases %s", ", ".join(map(options.whereabouts, options.databases))
    )


def _closed() -> BackendError:
    return BackendError("the SQL worker is closed", trouble="refused", retryable=True)


def _down(pause: float) -> BackendError:
    return BackendError(
        "the SQL worker keeps failing", trouble="refused", retryable=True, retry_after=max(1.0, pause)
    )


def _reply(answer: bytes) -> Reply:
    words, body = answers.split(answer)
    headers = (("content-type", _JSON), ("x-sql-outcome", words))
    return Reply(status=answers.STATUS[words.partition(" ")[0]], headers=headers, chunks=_Once(body))


class _Once:
    """A body as the only chunk."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        body, self._body = self._body, None
        if body is None:
            raise StopAsyncIteration
        return body
