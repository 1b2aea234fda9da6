"""What is said of API keys, in the configuration and in the file that `cortex keys` writes."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cached_property
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, InstanceOf, field_validator

from gateway.fields import Count, FilePathOrNone, List, Name, Part, Seconds, Text, Whole
from gateway.keys import digest_in, hash_of
from gateway.quotas import Limits, Rate
from gateway.yamlfile import Place, Substituted

PERIODS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_RATE = re.compile(r"([1-9]\d{0,14})/([smhd])")


def _rate(value: object) -> object:
    found = _RATE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError("must be a rate such as 5/s, 60/m, 1000/h or 1000000/d")
    return Rate(int(found[1]), PERIODS[found[2]])


def _moment(value: object) -> object:
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        moment = None
    if moment is None:
        raise ValueError("must be a date or a time such as 2027-01-31 or 2027-01-31T12:00:00Z")
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _hash(value: str) -> str:
    digest_in(value)
    return value


def _hashed(value: object) -> object:
    """The hash of a key that stands in the environment. One that stands in the file is no secret any more."""
    if not isinstance(value, str):
        return value
    if not (isinstance(value, Substituted) and value.whole):
        raise ValueError(
            "a key itself does not belong in a file: give its hash instead, as `cortex keys hash` prints it, "
            "or an environment variable, as ${NAME}"
        )
    if not value:
        raise ValueError("must not be empty")
    return hash_of(value)


Hash = Annotated[str, AfterValidator(_hash)]
RateOrNone = Annotated[InstanceOf[Rate], BeforeValidator(_rate)] | None
MomentOrNone = Annotated[InstanceOf[datetime], BeforeValidator(_moment)] | None
Patterns = Annotated[List[Text], Field(min_length=1)] | None


class PriorityRange(Part):
    """What a key's callers may ask for; what lies outside is moved to the nearer end."""

    min: Annotated[Whole, Field(ge=-8, le=8)] = -8
    max: Annotated[Whole, Field(ge=-8, le=8)] = 8


class DeadlineRange(Part):
    """What a key's callers may ask for; what lies outside is moved to the nearer end."""

    min: Seconds | None = None
    max: Seconds | None = None


class ApiKey(Part):
    """One key, who its callers are and what they may do. `key` holds a hash too, by the time that it is read."""

    id: Name | None = None
    hash: Hash | None = Field(default=None, repr=False)
    key: Annotated[str, BeforeValidator(_hashed)] | None = Field(default=None, repr=False)
    tenant: Name
    workflow: Text | None = None
    pools: Patterns = None
    models: Patterns = None
    requests: RateOrNone = None
    tokens: RateOrNone = None
    concurrency: Count | None = None
    deadline: DeadlineRange = Field(default_factory=DeadlineRange)
    priority: PriorityRange = Field(default_factory=PriorityRange)
    expires: MomentOrNone = None

    @cached_property
    def digest(self) -> bytes:
        return digest_in(self.hash or self.key or "")

    @cached_property
    def public(self) -> str:
        """What the key is called in lists and logs."""
        return self.id or self.digest.hex()[:10]

    @property
    def limits(self) -> Limits:
        return Limits(requests=self.requests, tokens=self.tokens, concurrency=self.concurrency)

    def faults(self) -> Iterator[tuple[Place, str]]:
        """What does not agree within it."""
        if (self.hash is None) == (self.key is None):
            yield ("hash",), "missing: `cortex keys hash` makes one" if self.hash is None else "there is a key, too"
        low, high = self.deadline.min, self.deadline.max
        if low is not None and high is not None and low > high:
            yield ("deadline",), "min is above max"
        if self.priority.min > self.priority.max:
            yield ("priority",), "min is above max"


class StoredKey(ApiKey):
    """A key in the file that `cortex keys` writes. Nothing there is taken from the environment, so it has a hash."""

    created: MomentOrNone = None


class Auth(Part):
    """Who may call: the keys that are listed, and those of a file, which may change while the gateway runs."""

    file: FilePathOrNone = None
    keys: List[ApiKey] = ()
    salt: str = Field(default="", repr=False, validate_default=True)

    @field_validator("salt")
    @classmethod
    def _draw(cls, salt: str) -> str:
        """An empty salt would let anyone compute a tenant's, so one is drawn instead."""
        return salt or secrets.token_hex(32)
