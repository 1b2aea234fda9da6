"""Who calls: API keys to those who hold them, and the admin's token. Secrets are kept as digests only."""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial

import xxhash

from gateway.identity import Identity, Place
from gateway.keyrules import complaint, door, strangers
from gateway.keys import digest
from gateway.keyspecs import ApiKey, DeadlineRange, PriorityRange
from gateway.keystore import LOOK_EVERY, KeyFile
from gateway.openai.errors import ApiError, forbidden, shown, unauthorized
from gateway.quotas import Quota
from gateway.settings import Config
from gateway.yamlfile import ConfigError, spelled

ANY_PRIORITY = PriorityRange()
ANY_DEADLINE = DeadlineRange()
CREDENTIALS = frozenset((b"authorization", b"x-api-key", b"api-key"))
"""Headers that a key may stand in: OpenAI's clients send the first, Anthropic's the second, Azure's the third."""
_log = logging.getLogger("cortex.keys")
_FOUND_BY = 16
"""Bytes of a digest that a key is looked up by; then all of them are compared."""

Pairs = Iterable[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who an API key belongs to, and what it allows. Without keys everybody is the one tenant of no name.

    `salt` keeps the tenant's prompts apart in the engines' prefix caches, `seed` in our own index of them. `expires`
    is in seconds of the wall clock. `pools` and `models` are patterns; None allows all of them.
    """

    tenant: str = ""
    default: Place | None = None
    pools: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None
    priority: PriorityRange = ANY_PRIORITY
    deadline: DeadlineRange = ANY_DEADLINE
    salt: str = ""
    seed: int = 0
    key: str = ""
    expires: float = math.inf
    quota: Quota | None = None

    def clamp(self, identity: Identity) -> Identity:
        """What a call says of itself, with the priority and the deadline that the key allows, nearest to its own."""
        priority = max(self.priority.min, min(self.priority.max, identity.priority))
        budget = identity.deadline
        if budget is not None:
            budget = max(self.deadline.min or 0.0, min(self.deadline.max or math.inf, budget))
        if (priority, budget) == (identity.priority, identity.deadline):
            return identity
        return replace(identity, priority=priority, deadline=budget)

    def may(self, pools: Iterable[str], names: Iterable[str]) -> bool:
        """Whether all these pools may serve its calls, and a model that goes by any of these names."""
        return all(map(self.may_use, pools)) and self._may_ask(names)

    def check(self, pools: Iterable[str], names: Sequence[str]) -> None:
        """As `may`. Raises ApiError 403 for what may not."""
        for pool in pools:
            self.check_pool(pool)
        if not self._may_ask(names):
            message = f"this API key may not use the model '{shown(names[0])}'"
            raise forbidden(message, code="model_not_allowed", param="model")

    def check_pool(self, pool: str) -> None:
        """Raises ApiError 403 for a pool that may not serve its calls."""
        if not self.may_use(pool):
            raise forbidden(f"this API key may not use the pool '{pool}'", code="pool_not_allowed")

    def may_use(self, pool: str) -> bool:
        """Whether a pool may serve its calls."""
        return self.pools is None or any(fnmatchcase(pool, pattern) for pattern in self.pools)

    def _may_ask(self, names: Iterable[str]) -> bool:
        return self.models is None or any(fnmatchcase(name, one) for name in names for one in self.models)


class Access:
    """Looks keys up by digest, so that neither a log nor a comparison's duration tells one.

    Keys of a file are read again when it changes, at most once in `LOOK_EVERY` seconds. What is open then goes on.
    """

    def __init__(
        self, config: Config, *, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time
    ) -> None:
        """Raises ConfigError for a configuration that lets nobody in, or anybody by accident."""
        for place, message in door(config):
            raise ConfigError(message, file="configuration", place=place)
        self.open = config.insecure
        self._config = config
        self.now = clock
        self._wall = wall
        self._admin = digest(config.admin.token.encode("utf-8", "surrogateescape")) if config.admin.token else b""
        self._file = KeyFile(config.auth.file, partial(complaint, config)) if config.auth.file else None
        self._keys: dict[bytes, tuple[bytes, Caller]] = {}
        self._specs: dict[str, tuple[ApiKey, Caller]] = {}
        self._anybody = Caller()
        self.tenants: frozenset[str] = frozenset(("",))
        self._next_look = clock() + LOOK_EVERY if self._file is not None else math.inf
        if not self.open:
            self._take(self._file.first() if self._file is not None else ())

    @property
    def has_admin(self) -> bool:
        """Whether there is an admin API at all."""
        return bool(self._admin)

    @property
    def count(self) -> int:
        """Keys that are known, those that have expired among them."""
        return len(self._keys)

    @property
    def broken(self) -> bool:
        """Whether the file of keys holds what is not in force, because something is wrong with it."""
        return self._file is not None and bool(self._file.broken)

    def caller(self, headers: Pairs) -> Caller:
        """Whose call this is. Raises ApiError 401."""
        if self.open:
            return self._anybody
        caller = self._holder(_secret(headers))
        if caller is None:
            raise unauthorized()
        if caller.expires <= self._wall():
            raise unauthorized("this API key has expired", code="expired_api_key")
        return caller

    def require_admin(self, headers: Pairs) -> None:
        """Let only the admin's token pass. Raises ApiError 401, or 403 for a client's key."""
        if not self.is_admin(headers):
            secret = _secret(headers)
            if self._holder(secret) is not None:
                raise forbidden("an API key opens nothing here")
            raise unauthorized("this is not the admin token" if secret else "the admin token is needed")

    def is_admin(self, headers: Pairs) -> bool:
        return self.has_admin and hmac.compare_digest(digest(_secret(headers)), self._admin)

    def may_watch(self, headers: Pairs) -> ApiError | None:
        """Whether the metrics may be read: by anybody where no key is needed, else by any key or the admin."""
        try:
            if not self.is_admin(headers):
                self.caller(headers)
        except ApiError as error:
            return error
        return None

    def look(self) -> None:
        """Read the keys of the file again, where it has changed."""
        self._next_look = self.now() + LOOK_EVERY
        if self._file is not None and (found := self._file.again()) is not None:
            self._take(found)

    def _holder(self, secret: bytes) -> Caller | None:
        if self.now() >= self._next_look:
            self.look()
        asked = digest(secret)
        known, caller = self._keys.get(asked[:_FOUND_BY], (b"", None))
        return caller if hmac.compare_digest(known, asked) else None

    def _take(self, stored: Sequence[ApiKey]) -> None:
        """Let these keys in, besides those of the configuration. One that is as it was keeps what is left of it."""
        specs = self._specs
        self._specs = {key.public: (key, self._caller(key, specs.get(key.public))) for key in stored}
        self._specs |= {key.public: (key, self._caller(key, specs.get(key.public))) for key in self._config.auth.keys}
        self._keys = {(own := key.digest)[:_FOUND_BY]: (own, caller) for key, caller in self._specs.values()}
        self.tenants = frozenset(caller.tenant for _, caller in self._specs.values())

    def _caller(self, key: ApiKey, before: tuple[ApiKey, Caller] | None) -> Caller:
        if before is not None and before[0] is key:
            return before[1]
        for where, message in strangers(self._config, key):
            _log.warning("key %s: %s: %s", key.public, spelled(where), message)
        limits = key.limits
        quota = before[1].quota if before is not None and before[0].limits == limits else None
        return Caller(
            tenant=key.tenant,
            default=Place(key.workflow) if key.workflow else None,
            pools=key.pools,
            models=key.models,
            priority=key.priority,
            deadline=key.deadline,
            salt=hmac.new(self._config.auth.salt.encode(), key.tenant.encode(), hashlib.sha256).hexdigest()[:32],
            seed=xxhash.xxh3_64_intdigest(key.tenant.encode()),
            key=key.public,
            expires=key.expires.timestamp() if key.expires else math.inf,
            quota=quota or (Quota(limits, self.now()) if limits.bounds else None),
        )


def _secret(headers: Pairs) -> bytes:
    """The key that a request bears; empty where it has none. Raises ApiError 401 where it bears two."""
    found = b""
    for name, value in headers:
        if name not in CREDENTIALS:
            continue
        if name == b"authorization":
            scheme, _, value = value.partition(b" ")  # noqa: PLW2901 - what is left of it
            if scheme.lower() != b"bearer":
                continue  # a password that was meant for a proxy
        secret = value.strip()
        if found and secret and secret != found:
            message = "two different API keys (Authorization, x-api-key, api-key): send one"
            raise unauthorized(message, code="conflicting_api_keys")
        found = found or secret
    return found
