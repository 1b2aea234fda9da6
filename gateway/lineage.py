"""Which session at the root each sub-agent's session belongs to, where clients name only a session and its parent."""

from __future__ import annotations

from collections import OrderedDict

TENANT_MOST = 4096


class Lineage:
    """The roots of sub-agents' sessions, the most recently heard of in each tenant.

    A sub-agent is heard of after the one that started it, so a parent's root is known when it is asked for, unless it
    was forgotten; then the parent itself counts as the root.
    """

    def __init__(self, most: int = TENANT_MOST) -> None:
        self._most = most
        self._roots: dict[str, OrderedDict[str, str]] = {}

    def root(self, tenant: str, session: str, parent: str = "") -> str:
        """The session that a tenant's session stems from; itself where nobody has named a parent of it."""
        known = self._roots.get(tenant)
        if not parent:
            return known.get(session, session) if known else session
        if known is None:
            known = self._roots[tenant] = OrderedDict()
        root = known.get(parent, parent)
        if root == session:  # two sessions that each call the other one its parent
            return session
        known[session] = root
        known.move_to_end(session)
        if len(known) > self._most:
            known.popitem(last=False)
        return root

    def __len__(self) -> int:
        return sum(map(len, self._roots.values()))
