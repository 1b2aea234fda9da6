"""One database by its path: the version that lies there now, opened anew whenever it was replaced."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import duckdb

from backends.sql.cache import Generation, generation
from backends.sql.opened import Files, Opened


class OutOfReach(Exception):
    """The path leads to where this process may not read; one that is started now may."""


class Database:
    """A path, and what lies there once it has been asked for: it need not be there yet."""

    def __init__(self, path: str, files: Files) -> None:
        self._path = path
        self._files = files
        self._opened: Opened | None = None

    @property
    def private(self) -> tuple[str, ...]:
        """Words of the server's that no message may show. A name that may be a table's as well is none of them."""
        full = os.path.abspath(self._path)
        file = os.path.basename(full)
        stem, suffix = os.path.splitext(file)
        catalog = "memory" if os.path.isdir(full) else stem
        words = (full, os.path.realpath(full), self._path, file, f"{catalog}.main.")
        return tuple(word for word in words if suffix or word != file)

    def open(self) -> Opened:
        """What lies there now. Raises OutOfReach, duckdb.Error and OSError."""
        while self._opened is None or self._version() != self._opened.version:
            now = self._version()
            try:
                self._opened = self._files.opened(self._path, now)
            except duckdb.Error:
                self._opened = None
                if self._version() != now:
                    continue  # it was replaced meanwhile
                if _is_out_of_reach(self._path):
                    raise OutOfReach from None
                raise
        return self._opened

    @contextmanager
    def cursor(self, *, threads: int = 1) -> Iterator[duckdb.DuckDBPyConnection]:
        """A cursor for one statement: temporary objects, variables and transactions are kept by cursor.

        More `threads` than one only where `max_threads` allows them: the configuration is locked otherwise.

        Raises OutOfReach, duckdb.Error and OSError.
        """
        with self.open().cursor(threads=threads) as cursor:
            yield cursor

    def is_volatile(self, tables: Iterable[str]) -> bool:
        """Whether what is read from these tables, in the cursor of now, changes though the data stay."""
        return self._opened is not None and self._opened.is_volatile(tables)

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()

    def _version(self) -> Generation:
        try:
            return generation(self._path)
        except PermissionError:
            raise OutOfReach from None


def _is_out_of_reach(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY))
    except PermissionError:
        return True
    except OSError:
        return False
    return False
