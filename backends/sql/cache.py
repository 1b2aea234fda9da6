"""Keeps results of statements, and statements by their text, within bounds; and says when a result is still that.

What to keep is decided by what it saves (`policies.greedydual`): seconds that it took, for each byte and each use.
What is worth less than what would have to go for it is not kept at all: it is cheaper to run again.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from dataclasses import dataclass, field
from stat import S_ISDIR
from typing import TYPE_CHECKING, Final

from backends.sql.parquet import parquet_version
from policies.greedydual import GreedyDual

if TYPE_CHECKING:  # the workers use this module and have no need of the parser
    from policies.dialects import Known
    from policies.sql import Statement

ENCODING: Final = 2
"""Counts up when `backends.sql.encode` writes the same rows otherwise: results kept before are then void."""

_ENTRY_COST: Final = 400
"""Bytes that an entry costs beside its value: key, hash table, headers of objects. Measured roughly, upward."""

Generation = tuple[int, ...]


def generation(path: str) -> Generation:
    """What tells one version of a database file from all others: times of modification and of change, size, inode.

    Raises OSError. Data change by a new file put in the old one's place; a file under a reader is locked. An old file
    that is put back is a version of its own: the change time counts renames, so no version ever comes again, and a
    path that has the same one before and after a statement had it all the while. Of a folder of Parquet files, the
    same of each of its files counts.
    """
    stat = os.stat(path)
    if S_ISDIR(stat.st_mode):
        return stat.st_ino, parquet_version(path)
    return stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino


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
    digest: bytes = field(init=False, compare=False, repr=False)
    """32 bytes that stand for the key: a cache holds no SQL text."""

    def __post_init__(self) -> None:
        parts = (self.tenant, self.database, self.generation, self.canonical, self.limit, self.max_bytes)
        text = repr((parts, self.encoding)).encode(errors="surrogatepass")
        object.__setattr__(self, "digest", hashlib.sha256(text).digest())

    def __hash__(self) -> int:
        return hash(self.digest)


class ResultCache:
    """The results that save the most, at most `max_bytes` in all, overhead included."""

    def __init__(self, max_bytes: int) -> None:
        self._kept = GreedyDual[bytes](max_bytes)
        self._results: dict[bytes, bytes] = {}

    def __len__(self) -> int:
        return len(self._results)

    @property
    def used(self) -> int:
        """Bytes that are taken."""
        return self._kept.bytes

    def get(self, key: ResultKey) -> bytes | None:
        """The result, or None."""
        digest = key.digest
        result = self._results.get(digest)
        if result is not None:
            self._kept.use(digest)
        return result

    def put(self, key: ResultKey, result: bytes, *, seconds: float) -> None:
        """Keep a result that took so many seconds, in the place of those worth less; never one above the bound."""
        digest = key.digest
        self._results.pop(digest, None)
        gone = self._kept.put(digest, len(result) + _ENTRY_COST, seconds)
        if gone is None:  # others are worth more, or no room is large enough
            return
        for other in gone:
            del self._results[other]
        self._results[digest] = result


class ExactTexts:
    """Statements by the exact text they were read from, so that a repeated text is not parsed again."""

    def __init__(self, max_entries: int = 4096) -> None:
        self._max_entries = max_entries
        self._statements: OrderedDict[bytes, Statement] = OrderedDict()

    def __len__(self) -> int:
        return len(self._statements)

    def get(self, text: str, dialect: str = "duckdb", known: Known | None = None) -> Statement | None:
        key = _text_key(text, dialect, known)
        statement = self._statements.get(key)
        if statement is not None:
            self._statements.move_to_end(key)
        return statement

    def put(self, text: str, dialect: str, statement: Statement, known: Known | None = None) -> None:
        key = _text_key(text, dialect, known)
        self._statements[key] = statement
        self._statements.move_to_end(key)
        if len(self._statements) > self._max_entries:
            self._statements.popitem(last=False)


def _text_key(text: str, dialect: str, known: Known | None) -> bytes:
    version = 0 if known is None else known.version
    return hashlib.sha256(f"{dialect}\0{version}\0{text}".encode(errors="surrogatepass")).digest()
