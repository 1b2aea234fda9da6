"""The settings of a pool of SQL workers, and how they travel to a worker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import orjson


@dataclass(frozen=True, slots=True, kw_only=True)
class SqlOptions:
    """What a worker opens and how far a statement may go.

    `databases` maps public names to files; the first is the default. `timeout` in seconds. `memory` bounds what
    the engine keeps in its buffers, in bytes for each database; `address_space` bounds the process, which also
    holds what the engine does not count. `max_rows` and `max_bytes` bound a result; a request may ask for less.
    """

    databases: Mapping[str, str]
    timeout: float = 2.0
    memory: int = 512 * 1024 * 1024
    threads: int = 1
    max_rows: int = 1000
    max_bytes: int = 1_000_000
    address_space: int = 2 * 1024 * 1024 * 1024

    def to_json(self) -> bytes:
        return orjson.dumps({**asdict(self), "databases": dict(self.databases)})

    @classmethod
    def from_json(cls, text: bytes) -> SqlOptions:
        return cls(**orjson.loads(text))
