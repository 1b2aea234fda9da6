"""What the columns of each database are called, for dialects that are read better when that is known.

A database is described once for each version of its data, by a call of nobody's run, whose description anyone may ask
for and finds kept. A database that cannot be described is read without; where that only took too long it is tried
again, after a while and not at once: else every statement would wait as long.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, replace

from gateway.intake import Asked
from gateway.verdicts import Answer
from policies.dialects import Known

WORKFLOW = "(columns)"
"""The workflow and the stage under which such calls are told of, and learned from, apart from others."""


AGAIN_AFTER = 60.0
"""Seconds for which nobody tries to describe a database again that took too long."""


@dataclass(frozen=True, slots=True)
class _Described:
    """What was found for a version, and until when that holds."""

    key: Hashable
    known: Known | None
    until: float = math.inf


class Columns:
    """The columns of all databases."""

    def __init__(
        self, describe: Callable[[Asked, str], Awaitable[Answer]], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._describe = describe
        self._now = clock
        self._databases: dict[str, _Described] = {}
        self._numbers = itertools.count(1)

    def at_hand(self, database: str, key: Hashable) -> tuple[bool, Known | None]:
        """Whether this version has been described, and what was found."""
        found = self._databases.get(database)
        if found is None or found.key != key or found.until <= self._now():
            return False, None
        return True, found.known

    async def of(self, asked: Asked, database: str, key: Hashable) -> Known | None:
        """The columns of this version. Raises ApiError."""
        there, known = self.at_hand(database, key)
        if there:
            return known
        answer = await self._describe(_nobody(asked, next(self._numbers)), database)
        there, known = self.at_hand(database, key)
        if there:  # another caller waited for the same description
            return known
        if answer.status == 200:
            tables = answer.document()["tables"]
            schema = {table["name"]: {one["name"]: one["type"] for one in table["columns"]} for table in tables}
            known = Known(database=database, version=next(self._numbers), schema=schema)
        lasting = answer.status in (200, 400)
        self._databases[database] = _Described(key, known, math.inf if lasting else self._now() + AGAIN_AFTER)
        return known


def _nobody(asked: Asked, number: int) -> Asked:
    identity = replace(asked.identity, workflow=WORKFLOW, stage=WORKFLOW, step=0, deadline=None, final=True)
    return replace(asked, identity=identity, run=f"columns-{number:x}")
