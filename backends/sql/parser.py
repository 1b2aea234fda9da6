"""Reads statements in a helper process: a hostile text can hold a core for seconds or exhaust the C stack.

The process is `backends.sql.reading`.
"""

from __future__ import annotations

import asyncio
import hashlib
import signal
from collections import OrderedDict
from typing import Final

import orjson

from backends.base import BackendError
from backends.sql.process import Child
from backends.sql.turns import Turns
from policies.dialects import Known
from policies.sql import SqlRefused, Statement, check_text

WAITING_MOST: Final = 512
"""Texts that wait to be read. An honest one takes 1 to 5 ms, so the last of them waits for a second or two."""

_START: Final = 20.0
_BUSY: Final = 10
_HOPELESS: Final = (signal.SIGPROF, signal.SIGSEGV)
"""How a process ends by its text: its time is up, or its stack."""
_REMEMBERED: Final = 1024


class Parser:
    """`policies.sql.read_statement`, one text at a time, off the event loop. Starts its process when first used.

    Honest texts of the greatest length take up to a quarter of a second; `timeout` is for the others. It counts the
    process's own time, so that a busy machine refuses nobody; by the clock a read may take `_BUSY` times as long.
    Tenants have their turns one after the other, and a text that has ended a process ends no other: one tenant's
    hostile texts cost another's at most one of them.
    """

    def __init__(self, *, timeout: float = 0.5) -> None:
        self._timeout = timeout
        self._turns = Turns(WAITING_MOST)
        self._taught: dict[str, int] = {}  # the version of each database's schema that the process has
        self._hopeless: OrderedDict[bytes, None] = OrderedDict()
        self._child: Child | None = None
        self._settling: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def pid(self) -> int | None:
        """The helper process, None while there is none."""
        return self._child.pid if self._child is not None else None

    async def start(self) -> None:
        """Start the process now, so that the first text does not wait for it. Raises BackendError."""
        await self._turns.take("")
        try:
            await self._ready()
        finally:
            self._turns.give()

    async def read(
        self,
        text: str,
        dialect: str = "duckdb",
        parameters: bool = False,
        known: Known | None = None,
        *,
        tenant: str = "",
    ) -> Statement:
        """Raises SqlRefused; BackendError `overloaded` when too many wait, else when there is no helper process.

        A schema goes to the process once for each of its versions.
        """
        check_text(text)
        if self._hopeless and _digest(text, dialect) in self._hopeless:
            raise _too_complex()
        await self._turns.take(tenant)
        answer = orjson.loads(await self._asked(text, dialect, parameters, known))
        if "refused" in answer:
            raise SqlRefused(answer["refused"], answer["code"])
        return Statement(
            canonical=answer["canonical"],
            tables=frozenset(answer["tables"]),
            deterministic=answer["deterministic"],
            unlimited=answer["unlimited"],
            parameters=tuple(answer["parameters"]),
        )

    async def aclose(self) -> None:
        """End the process. Idempotent."""
        self._closed = True
        if self._settling is not None:
            self._settling.cancel()
            await asyncio.gather(self._settling, return_exceptions=True)
        await self._drop()

    async def _asked(self, text: str, dialect: str, parameters: bool, known: Known | None) -> bytes:
        """The answer of the process; at the end of it the turn is over."""
        child, goes_on = None, False
        request: list[object] = [text, dialect, parameters]
        try:
            child = await self._ready()
            if known is not None:
                taught = self._taught.get(known.database) == known.version
                request += [known.database, None if taught else known.schema]
                self._taught[known.database] = known.version
            return await child.ask(orjson.dumps(request), _BUSY * self._timeout)
        except asyncio.CancelledError:
            if child is not None:  # a read is short: its answer is waited for, and must not meet the next question
                goes_on = True
                self._settling = asyncio.create_task(self._settle(child, text, dialect))
            raise
        except BackendError:
            await self._failed(child, text, dialect)
            if child is None:
                raise
            if self._closed:
                raise _closed() from None
            raise _too_complex() from None
        finally:
            if not goes_on:
                self._turns.give()

    async def _settle(self, child: Child, text: str, dialect: str) -> None:
        """Let a read end whose caller has left."""
        try:
            await child.answer(_BUSY * self._timeout)
        except BackendError:
            await self._failed(child, text, dialect)
        finally:
            self._turns.give()

    async def _failed(self, child: Child | None, text: str, dialect: str) -> None:
        """Note a text that has ended its process."""
        await self._drop()
        if child is not None and child.ended_by in _HOPELESS:
            self._hopeless[_digest(text, dialect)] = None
            if len(self._hopeless) > _REMEMBERED:
                self._hopeless.popitem(last=False)

    async def _ready(self) -> Child:
        self._check_open()
        if self._child is not None and not self._child.alive:
            await self._drop()
        if self._child is None:
            child = await Child.spawn("backends.sql.reading", b"%f" % self._timeout, timeout=_START)
            self._child = child
            self._check_open()  # `aclose` may have come and gone meanwhile
        return self._child

    def _check_open(self) -> None:
        if self._closed:
            raise _closed()

    async def _drop(self) -> None:
        child, self._child = self._child, None
        self._taught.clear()
        if child is not None:
            await child.kill()


def _digest(text: str, dialect: str) -> bytes:
    return hashlib.sha256(f"{dialect}\0{text}".encode()).digest()


def _closed() -> BackendError:
    return BackendError("the reader of SQL is closed", trouble="refused", retryable=False)


def _too_complex() -> SqlRefused:
    return SqlRefused("the statement is too complex to be read", "too_complex")
