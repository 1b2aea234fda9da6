"""The settings of a pool of SQL workers, and how they travel to a worker."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import orjson

Layer = Literal["engine", "timeout", "limits", "sandbox"]

LAYERS: Final[frozenset[Layer]] = frozenset({"engine", "timeout", "limits", "sandbox"})
"""What stands in a worker between a statement and the machine: the engine's settings, its interrupts, the limits of
the process, and what the kernel takes from it. Before them stands `policies.sql`, after them the parent's kill."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SqlOptions:
    """What a worker opens and how far a statement may go.

    `databases` maps public names to DuckDB files and folders of Parquet files; the first is the default. `timeout` in
    seconds. `memory` bounds what the engine keeps in its buffers, in bytes for each database; `address_space` bounds
    the process, which also holds what the engine does not count. `max_rows` and `max_bytes` bound a result,
    `max_stream_rows` and `max_stream_bytes` one that is streamed; a request may ask for less. A stream may take
    `stream_timeout` seconds with the time that its reader takes, where that is more than `timeout`. A statement runs
    on one thread, one that asks for more on at most `max_threads`.
    A description shows up to `samples` values of each text column.
    `layers` is for those who want to see what each layer holds without another; no configuration reaches it.
    """

    databases: Mapping[str, str]
    timeout: float = 2.0
    memory: int = 512 * 1024 * 1024
    max_threads: int = 1
    max_rows: int = 1000
    max_bytes: int = 1_000_000
    max_stream_rows: int = 10_000_000
    max_stream_bytes: int = 1_000_000_000
    stream_timeout: float = 0.0
    samples: int = 0
    address_space: int = 2 * 1024 * 1024 * 1024
    layers: frozenset[Layer] = LAYERS

    def whereabouts(self, name: str) -> str:
        """A database and its path: for a log, and not for a client."""
        path = self.databases[name]
        return f"{name!r} ({path}{'' if os.path.exists(path) else ': no such file'})"

    def to_json(self) -> bytes:
        return orjson.dumps({**asdict(self), "databases": dict(self.databases), "layers": sorted(self.layers)})

    @classmethod
    def from_json(cls, text: bytes) -> SqlOptions:
        fields: dict[str, Any] = orjson.loads(text)
        return cls(**{**fields, "layers": frozenset(fields["layers"])})
