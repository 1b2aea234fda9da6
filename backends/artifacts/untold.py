"""What happened at this gateway and Redis does not know yet: bounded for each tenant, and made up for later."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Final

from policies.artifacts import Head, Name

UNTOLD_MOST: Final = 10_000
"""Changes that are remembered one by one, for each tenant."""


@dataclass(slots=True)
class Owed:
    """What Redis is to be told of one tenant.

    `names` have a new value or none any more, since that time of day; `tags` and `everything` are void, and stand
    with the number of the change that said so last: who tells Redis of one forgets it only if there was none since.
    """

    names: dict[Name, float] = field(default_factory=dict)
    tags: dict[str, int] = field(default_factory=dict)
    everything: int = 0

    def __len__(self) -> int:
        return len(self.names) + len(self.tags) + bool(self.everything)


class Untold:
    """What Redis is to be told of all tenants.

    Beyond the bound nothing that was promised is forgotten: a new value is not taken (`has_room`), and deletions and
    invalidations make void all that the tenant has in Redis, but for its values that are remembered by name.
    """

    def __init__(self, most: int = UNTOLD_MOST) -> None:
        self._most = most
        self._changes = 0
        self._owed: dict[str, Owed] = {}

    def __len__(self) -> int:
        return sum(map(len, self._owed.values()))

    def __iter__(self) -> Iterator[tuple[str, Owed]]:
        """What is owed to each tenant, as it stands now: it may change while this is read."""
        return iter(list(self._owed.items()))

    def names(self) -> set[Name]:
        """The artifacts whose newest value may be known here alone."""
        return {name for owed in self._owed.values() for name in owed.names}

    def has_room(self, name: Name) -> bool:
        """Whether a new value of this name would be remembered."""
        owed = self._of(name.tenant)
        return name in owed.names or len(owed) < self._most

    def outdates(self, head: Head) -> bool:
        """Whether an artifact in Redis with this head may be void by what happened here."""
        owed = self._owed.get(head.name.tenant)
        if owed is None:
            return False
        changed = head.name in owed.names and owed.names[head.name] > head.made
        return changed or owed.everything > 0 or any(tag in owed.tags for tag in head.tags)

    def value(self, name: Name, made: float) -> None:
        """A name has a new value here."""
        self._of(name.tenant).names[name] = made

    def drop(self, name: Name, now: float) -> None:
        """A name has no value any more."""
        owed = self._of(name.tenant)
        if name in owed.names or len(owed) < self._most:
            owed.names[name] = now
        else:
            self._void(owed)

    def void(self, tenant: str, tags: Collection[str]) -> None:
        """All that depends on these is void."""
        owed = self._of(tenant)
        if len(owed) + len(tags) > self._most:
            self._void(owed)
            return
        self._changes += 1
        owed.tags |= dict.fromkeys(tags, self._changes)

    def renew(self, name: Name, when: float) -> None:
        """Redis was told of a change of a name just now: if an older one is owed, or is being told this very moment,
        nobody knows which of them came last, so it is owed again."""
        names = self._of(name.tenant).names
        if name in names:
            names[name] = when

    def _void(self, owed: Owed) -> None:
        self._changes += 1
        owed.everything = self._changes
        owed.tags.clear()

    def _of(self, tenant: str) -> Owed:
        return self._owed.setdefault(tenant, Owed())
