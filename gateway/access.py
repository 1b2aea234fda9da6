"""Who calls: API keys to tenants, and the admin's token. Keys are kept as digests only."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass

import xxhash

from gateway.identity import Place
from gateway.openai.errors import ApiError, forbidden, unauthorized
from gateway.settings import Admin, Auth, PriorityRange

ANY_PRIORITY = PriorityRange()


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who an API key belongs to, and what it allows. Without keys everybody is the one tenant of no name.

    `salt` keeps the tenant's prompts apart in the engines' prefix caches, `seed` in our own index of them.
    """

    tenant: str = ""
    default: Place | None = None
    priority: PriorityRange = ANY_PRIORITY
    salt: str = ""
    seed: int = 0

    def clamp(self, priority: int) -> int:
        """The priority that the key allows, nearest to what was asked for."""
        return max(self.priority.min, min(self.priority.max, priority))


class Access:
    """Looks keys up by digest, so that neither a log nor a comparison's duration tells one."""

    def __init__(self, auth: Auth, admin: Admin) -> None:
        self._callers = {
            _digest(key.key): Caller(
                tenant=key.tenant,
                default=Place(key.workflow) if key.workflow else None,
                priority=key.priority,
                salt=hmac.new(auth.salt.encode(), key.tenant.encode(), hashlib.sha256).hexdigest()[:32],
                seed=xxhash.xxh3_64_intdigest(key.tenant.encode()),
            )
            for key in auth.keys
        }
        self._anybody = Caller()
        self._admin = _digest(admin.token) if admin.token else b""

    @property
    def open(self) -> bool:
        """Whether no key is needed."""
        return not self._callers

    @property
    def tenants(self) -> frozenset[str]:
        """Everybody whom calls can belong to."""
        return frozenset(caller.tenant for caller in self._callers.values() or (self._anybody,))

    @property
    def has_admin(self) -> bool:
        """Whether there is an admin API at all."""
        return bool(self._admin)

    def caller(self, headers: Iterable[tuple[bytes, bytes]]) -> Caller:
        """Whose call this is. Raises ApiError 401."""
        if not self._callers:
            return self._anybody
        caller = self._callers.get(_digest_of(headers))
        if caller is None:
            raise unauthorized()
        return caller

    def require_admin(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Let only the admin's token pass. Raises ApiError 401, or 403 for a client's key."""
        if not self.is_admin(headers):
            known = _digest_of(headers) in self._callers
            raise forbidden("an API key opens nothing here") if known else unauthorized("the admin token is needed")

    def is_admin(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        return self.has_admin and hmac.compare_digest(_digest_of(headers), self._admin)

    def may_watch(self, headers: Iterable[tuple[bytes, bytes]]) -> ApiError | None:
        """Whether the metrics may be read: by anybody where no key is needed, else by any key or the admin."""
        if self.open or self.is_admin(headers) or _digest_of(headers) in self._callers:
            return None
        return unauthorized()


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


def _digest_of(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    for name, value in headers:
        if name == b"authorization":
            scheme, _, key = value.partition(b" ")
            if scheme.lower() == b"bearer":
                return hashlib.sha256(key.strip()).digest()
    return b""
