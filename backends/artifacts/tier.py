"""What a tier of artifacts is: the one contract of process memory and Redis."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from policies.artifacts import Artifact, Head, Name

Mark = tuple[str, ...]
"""How things stood with some tags at one time; opaque to all but the tier that gave it."""


class TierError(Exception):
    """A tier did not answer (`reason`: timeout, connection), or not in a way that can be used (broken)."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class ScopeFull(Exception):
    """As many artifacts stand in the list of a scope as may."""


class Tier(Protocol):
    """A place where artifacts are kept. Every method may raise TierError."""

    async def get(self, name: Name) -> Artifact | None:
        """The artifact of this name: unexpired, and nothing that it depends on has changed since it was made."""
        ...

    async def mark(self, tenant: str, tags: Collection[str]) -> Mark:
        """How things stand now: to be asked before an artifact with these tags is computed, and handed to `put`."""
        ...

    async def put(self, artifact: Artifact, mark: Mark | None = None) -> bool:
        """Keep an artifact, if it is worth it: whether it was. It is void at once if one of its tags changed after
        the mark; without a mark it counts as made now. Raises ScopeFull."""
        ...

    async def drop(self, name: Name) -> bool:
        """Forget one artifact; whether it was there."""
        ...

    async def drop_by_tag(self, tenant: str, tags: Collection[str]) -> None:
        """Make void every artifact of a tenant that depends on any of these."""
        ...

    async def drop_all(self, tenant: str) -> None:
        """Make void every artifact of a tenant."""
        ...

    async def listed(self, tenant: str, scope: tuple[str, ...]) -> list[Head]:
        """What stands in the list of a scope, in no order."""
        ...

    async def close(self) -> None:
        """Give back what the tier holds. Idempotent."""
        ...
