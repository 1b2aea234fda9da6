"""Keeps results of statements, and statements by their text, within bounds; and says when a result is still that.

What to keep is decided by what it saves. A result is worth the seconds it took, for each byte that it takes and each
time that it was wanted, on top of a floor that rises to whatever was let go last, so that what was once wanted often
does not stay for ever (GreedyDual-Size-Frequency: L. Cherkasova, HP Labs report HPL-98-69R1, 1998). A newcomer for
which something worth more would have to go is not kept at all: it is cheaper to run again.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import os
from collections import OrderedDict
from dataclasses import dataclass
from stat import S_ISDIR
from typing import TYPE_CHECKING, Final

from backends.sql.parquet import parquet_version

if TYPE_CHECKING:  # the workers use this module and have no need of the parser
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

    def digest(self) -> bytes:
        """32 bytes that stand for the key: a cache holds no SQL text."""
        parts = (self.tenant, self.database, self.generation, self.canonical, self.limit, self.max_bytes)
        return hashlib.sha256(repr((parts, self.encoding)).encode(errors="surrogatepass")).digest()


@dataclass(slots=True, eq=False)
class _Entry:
    """`worth` as the module says; `order` settles ties: the older one goes first."""

    digest: bytes
    result: bytes
    seconds: float
    order: int
    worth: float
    uses: int = 1

    @property
    def bytes(self) -> int:
        return len(self.result) + _ENTRY_COST


class ResultCache:
    """The results that save the most, at most `max_bytes` in all, overhead included."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self.evictions = 0
        self.declined = 0
        """Results that were not kept because others were worth more."""
        self._entries: dict[bytes, _Entry] = {}
        # By a worth that each entry had once: it only grows, so the least here is never above the least there is.
        self._heap: list[tuple[float, int, _Entry]] = []
        self._orders = itertools.count()
        self._floor = 0.0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: ResultKey) -> bytes | None:
        """The result, or None. Counts a hit or a miss."""
        entry = self._entries.get(key.digest())
        if entry is None:
            self.misses += 1
            return None
        self.hits += 1
        entry.uses += 1
        entry.worth = self._worth(entry)
        return entry.result

    def put(self, key: ResultKey, result: bytes, *, seconds: float) -> None:
        """Keep a result that took so many seconds, in the place of those worth less; never one above the bound."""
        digest = key.digest()
        self._forget(digest)
        entry = _Entry(digest, result, seconds, next(self._orders), 0.0)
        if entry.bytes > self.max_bytes:
            return
        entry.worth = self._worth(entry)
        if not self._make_room(entry):
            self.declined += 1
            self._floor = entry.worth
            return
        self._entries[digest] = entry
        self._push(entry)
        self.bytes += entry.bytes

    def _worth(self, entry: _Entry) -> float:
        return self._floor + entry.uses * entry.seconds / entry.bytes

    def _make_room(self, newcomer: _Entry) -> bool:
        """Let go of entries until the newcomer fits, or of none where one of them is worth more than it is."""
        going: list[_Entry] = []
        room = self.max_bytes - self.bytes
        while room < newcomer.bytes:
            least = self._pop()
            going.append(least)
            room += least.bytes
            if least.worth > newcomer.worth:
                for entry in going:
                    self._push(entry)
                return False
        for entry in going:
            self._floor = entry.worth
            self._drop(entry)
        self.evictions += len(going)
        return True

    def _pop(self) -> _Entry:
        """Take the entry of the least worth out of the heap."""
        while True:
            worth, _, entry = heapq.heappop(self._heap)
            if worth == entry.worth:
                return entry
            self._push(entry)  # it was wanted since

    def _push(self, entry: _Entry) -> None:
        heapq.heappush(self._heap, (entry.worth, entry.order, entry))

    def _drop(self, entry: _Entry) -> None:
        del self._entries[entry.digest]
        self.bytes -= entry.bytes

    def _forget(self, digest: bytes) -> None:
        """Drop what is kept already under a key, which is rare: who computes has found nothing."""
        entry = self._entries.get(digest)
        if entry is not None:
            self._drop(entry)
            self._heap = [one for one in self._heap if one[2] is not entry]
            heapq.heapify(self._heap)


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
