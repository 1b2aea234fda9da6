"""Keeps results of statements, and statements by their text, within bounds; and says when a result is still that."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:  # the workers use this module and have no need of the parser
    from policies.sql import Statement

ENCODING: Final = 1
"""Counts up when `backends.sql.encode` writes the same rows otherwise: results kept before are then void."""

_ENTRY_COST: Final = 400
"""Bytes that an entry costs beside its value: key, hash table, headers of objects. Measured roughly, upward."""

Generation = tuple[int, int, int]


def generation(path: str) -> Generation:
    """What tells one version of a database file from the next: modification time in ns, size, inode.

    Raises OSError. Data change by a new file put in the old one's place; a file under a reader is locked.
    """
    stat = os.stat(path)
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultKey:
    """All that the bytes of a result depend on. `canonical` as in `policies.sql.Statement`."""

    tenant: str
    database: str
    generation: Generation
    canonical: str
    limit: int
    max_bytes: int
    encoding: int = ENCODING

    def digest(self) -> bytes:
        """32 bytes that stand for the key: a cache holds no SQL text."""
        parts = (self.tenant, self.database, self.generation, self.canonical, self.limit, self.max_bytes)
        return hashlib.sha256(repr((parts, self.encoding)).encode(errors="surrogatepass")).digest()


class ResultCache:
    """The most recently used results, at most `max_bytes` in all, overhead included."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self.evictions = 0
        self._results: OrderedDict[bytes, bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._results)

    def get(self, key: ResultKey) -> bytes | None:
        """The result, or None. Counts a hit or a miss."""
        digest = key.digest()
        result = self._results.get(digest)
        if result is None:
            self.misses += 1
            return None
        self.hits += 1
        self._results.move_to_end(digest)
        return result

    def put(self, key: ResultKey, result: bytes) -> None:
        """Keep a result, at the cost of the least recently used. One that is larger than the bound is not kept."""
        digest = key.digest()
        self._drop(digest)
        cost = len(result) + _ENTRY_COST
        if cost > self.max_bytes:
            return
        while self.bytes + cost > self.max_bytes:
            self._drop(next(iter(self._results)))
            self.evictions += 1
        self._results[digest] = result
        self.bytes += cost

    def _drop(self, digest: bytes) -> None:
        result = self._results.pop(digest, None)
        if result is not None:
            self.bytes -= len(result) + _ENTRY_COST


class ExactTexts:
    """Statements by the exact text they were read from, so that a repeated text is not parsed again."""

    def __init__(self, max_entries: int = 4096) -> None:
        self._max_entries = max_entries
        self._statements: OrderedDict[bytes, Statement] = OrderedDict()

    def __len__(self) -> int:
        return len(self._statements)

    def get(self, text: str, dialect: str = "duckdb") -> Statement | None:
        key = _text_key(text, dialect)
        statement = self._statements.get(key)
        if statement is not None:
            self._statements.move_to_end(key)
        return statement

    def put(self, text: str, dialect: str, statement: Statement) -> None:
        key = _text_key(text, dialect)
        self._statements[key] = statement
        self._statements.move_to_end(key)
        if len(self._statements) > self._max_entries:
            self._statements.popitem(last=False)


def _text_key(text: str, dialect: str) -> bytes:
    return hashlib.sha256(f"{dialect}\0{text}".encode(errors="surrogatepass")).digest()
