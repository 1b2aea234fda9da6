"""An artifact as bytes: the length of its head, the head as JSON, the value as it is."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import orjson

from backends.artifacts.tier import Mark
from policies.artifacts import Artifact, Head, Name

VERSION = 1
_LENGTH = 4


def digest(*parts: str | tuple[str, ...]) -> str:
    """A name of fixed length for a list of texts of any kind and length; no two lists share one."""
    return hashlib.sha256(repr(parts).encode(errors="surrogatepass")).hexdigest()[:40]


def packed(artifact: Artifact, mark: Mark) -> bytes:
    """The bytes of an artifact, and of how its tags stood before it was computed."""
    head = orjson.dumps({**head_document(artifact.head), "version": VERSION, "mark": mark})
    return len(head).to_bytes(_LENGTH, "big") + head + artifact.value


def unpacked(data: bytes) -> tuple[Artifact, Mark]:
    """What `packed` made bytes of. Raises ValueError for bytes that it did not make, or that are cut short."""
    end = _LENGTH + int.from_bytes(data[:_LENGTH], "big")
    document = orjson.loads(data[_LENGTH:end])
    if not isinstance(document, dict) or document.get("version") != VERSION:
        raise ValueError("written by another version")
    artifact = Artifact(head_of(document), data[end:])
    mark = document.get("mark")
    if len(artifact.value) != artifact.head.size or not isinstance(mark, list):
        raise ValueError("cut short")
    return artifact, tuple(map(str, mark))


def head_document(head: Head) -> dict[str, object]:
    """A head as a JSON object."""
    return {
        "tenant": head.name.tenant,
        "scope": head.name.scope,
        "key": head.name.key,
        "size": head.size,
        "type": head.type,
        "producer": head.producer,
        "cost": head.cost,
        "made": head.made,
        "expires": head.expires,
        "tags": head.tags,
        "listed": head.listed,
    }


def head_of(document: dict[str, Any]) -> Head:
    """The head that a JSON object stands for. Raises ValueError."""
    try:
        head = Head(
            name=name_of(document),
            size=int(document["size"]),
            type=str(document["type"]),
            producer=str(document["producer"]),
            cost=float(document["cost"]),
            made=float(document["made"]),
            expires=float(document["expires"]),
            tags=tuple(map(str, document["tags"])),
            listed=bool(document["listed"]),
        )
    except (KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"no head of an artifact: {error!r}") from None
    if not all(map(math.isfinite, (head.cost, head.made, head.expires))):
        raise ValueError("no head of an artifact: a number that is none")
    return head


def name_of(document: dict[str, Any]) -> Name:
    """The name in a JSON object. Raises ValueError."""
    try:
        return Name(str(document["tenant"]), tuple(map(str, document["scope"])), str(document["key"]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"no name of an artifact: {error!r}") from None
