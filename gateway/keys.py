"""What an API key is: a text that says nothing, and the hash of it, which is all that is ever kept."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass

PREFIX = "ck"
SCHEME = "sha256:"
ID_BYTES = 5
SECRET_BYTES = 24
"""192 random bits: of so many a plain SHA-256 tells nothing, so no slow hash is needed."""


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was just drawn. The id stands in the key too, so that a leaked one can be found and revoked."""

    id: str
    text: str


def draw() -> NewKey:
    """A new key, such as `ck_0a1b2c3d4e_…`."""
    public = secrets.token_hex(ID_BYTES)
    return NewKey(public, f"{PREFIX}_{public}_{secrets.token_urlsafe(SECRET_BYTES)}")


def digest(key: bytes) -> bytes:
    """What a key is compared by."""
    return hashlib.sha256(key).digest()


def hash_of(key: str) -> str:
    """What a file keeps of a key: `sha256:` and 64 hexadecimal digits."""
    return SCHEME + digest(key.encode("utf-8", "surrogateescape")).hex()


def digest_in(text: str) -> bytes:
    """The digest that a kept hash says. Raises ValueError for what is none."""
    found = re.fullmatch(SCHEME + r"([0-9a-f]{64})", text)
    if found is None:
        raise ValueError("must be sha256: and 64 hexadecimal digits (cortex keys hash makes one)")
    return bytes.fromhex(found[1])
