"""What the columns of each database are called, for dialects that are read better when that is known.

A database is described once for each version of its data, by a call of nobody's run, whose description anyone may ask
for and finds kept. A database that cannot be described is read without.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import replace

from gateway.intake import Asked
from gateway.verdicts import Answer
from policies.dialects import Known

WORKFLOW = "(columns)"
"""The workflow and the stage under which such calls are told of, and learned from, apart from others."""


class Columns:
    """The columns of all databases, each with the key of the version that they belong to."""

    def __init__(self, describe: Callable[[Asked, str], Awaitable[Answer]]) -> None:
        self._describe = describe
        self._databases: dict[str, tuple[Hashable, Known | None]] = {}
        self._numbers = itertools.count(1)

    def at_hand(self, database: str, key: Hashable) -> tuple[bool, Known | None]:
        """Whether this version has been described, and what was found."""
        described, known = self._databases.get(database, (None, None))
        return described == key, known if described == key else None

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
        self._databases[database] = (key, known)
        return known


def _nobody(asked: Asked, number: int) -> Asked:
    identity = replace(asked.identity, workflow=WORKFLOW, stage=WORKFLOW, step=0, deadline=None, final=True)
    return replace(asked, identity=identity, run=f"columns-{number:x}")
