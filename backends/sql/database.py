"""One database, a DuckDB file or a folder of Parquet files, opened so that a statement can only read it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

import duckdb

from backends.sql.cache import Generation, generation
from backends.sql.options import SqlOptions
from backends.sql.parquet import parquet_tables
from backends.sql.progress import PROGRESS_SETTINGS
from backends.sql.volatile import Volatile, volatile

_LOCKED_UP: Final = {
    "autoload_known_extensions": "false",
    "autoinstall_known_extensions": "false",
    "allow_community_extensions": "false",
    "max_temp_directory_size": "0B",
    "temp_directory": "",
    "python_enable_replacements": "false",
}


class OutOfReach(Exception):
    """The path leads to where this process may not read; one that is started now may."""


class Database:
    """An open database and its locked settings. One that was replaced is opened anew."""

    def __init__(self, path: str, options: SqlOptions) -> None:
        """Raises duckdb.Error and OSError."""
        self._path = path
        self._options = options
        self._is_folder = os.path.isdir(path)
        self._generation: Generation | None = generation(path)
        self._connection = self._connect()
        self._volatile = self._volatile_now()
        self._threads = 1

    @property
    def private(self) -> tuple[str, ...]:
        """Words of the server's that no message may show."""
        full = os.path.abspath(self._path)
        file = os.path.basename(full)
        catalog = "memory" if self._is_folder else os.path.splitext(file)[0]
        return self._path, full, file, f"{catalog}.main."

    @contextmanager
    def cursor(self, *, threads: int = 1) -> Iterator[duckdb.DuckDBPyConnection]:
        """A cursor for one statement: temporary objects, variables and transactions are kept by cursor.

        More `threads` than one only where `max_threads` allows them: the configuration is locked otherwise.

        Raises OutOfReach, duckdb.Error and OSError.
        """
        self._reopen_if_replaced()
        self._use(threads)
        cursor = self._connection.cursor()
        try:
            if self._is_folder:  # in memory, a database cannot be opened as read-only
                cursor.execute("BEGIN TRANSACTION READ ONLY")
            yield cursor
        finally:
            cursor.close()

    def is_volatile(self, tables: Iterable[str]) -> bool:
        """Whether what is read from these tables, in the cursor of now, changes though the data stay."""
        return self._volatile.concerns(tables)

    def close(self) -> None:
        self._connection.close()

    def _reopen_if_replaced(self) -> None:
        """Open the database anew until it is the one that the path leads to: it may be replaced meanwhile."""
        while (now := self._version()) != self._generation:
            self._connection.close()  # first: of one path, an open instance is handed out again
            self._generation = None
            try:
                self._connection = self._connect()
                self._volatile = self._volatile_now()
            except duckdb.Error:
                if self._version() != now:
                    continue
                if _is_out_of_reach(self._path):
                    raise OutOfReach from None
                raise
            self._generation, self._threads = now, 1

    def _volatile_now(self) -> Volatile:
        """Of a folder nothing is: its views are made here, of files that its generation counts."""
        return Volatile() if self._is_folder else volatile(self._connection)

    def _version(self) -> Generation:
        try:
            return generation(self._path)
        except PermissionError:
            raise OutOfReach from None

    def _use(self, threads: int) -> None:
        if threads != self._threads:
            self._connection.execute(f"SET threads = {threads}")
            self._threads = threads

    def _connect(self) -> duckdb.DuckDBPyConnection:
        options = self._options
        config: dict[str, str | bool | int | float | list[str]] = {
            "threads": "1",
            "async_threads": "0",
        }
        if "engine" in options.layers:
            config |= _LOCKED_UP | {"memory_limit": f"{options.memory}B"}
        connection = (
            duckdb.connect(":memory:", config=config)
            if self._is_folder
            else duckdb.connect(self._path, read_only=True, config=config)
        )
        # GLOBAL: cursors do not inherit the settings of the connection that they come from.
        connection.execute("SET GLOBAL TimeZone = 'UTC'")
        tables = parquet_tables(self._path) if self._is_folder else {}
        if "timeout" in options.layers:
            # The engine counts the time in which a stream waits for its reader; the stopper does not.
            longest = max(options.timeout, options.stream_timeout)
            connection.execute(f"SET GLOBAL max_execution_time = {int(longest * 1000)}")
        if "engine" in options.layers:
            files = [file for table in tables.values() for file in table]
            connection.execute(f"SET allowed_paths = [{', '.join(_text(file) for file in files)}]")
            connection.execute("SET enable_external_access = false")
        for table, paths in tables.items():
            _mount(connection, table, paths)
        if "engine" in options.layers:
            _lock(connection, threads=options.max_threads > 1)
        return connection


def _mount(connection: duckdb.DuckDBPyConnection, table: str, files: list[str]) -> None:
    """Make a view of the files; none where they cannot be read, as while one is being written."""
    paths = ", ".join(_text(file) for file in files)
    name = table.replace('"', '""')
    with suppress(duckdb.Error):
        connection.execute(f'CREATE VIEW "{name}" AS SELECT * FROM read_parquet([{paths}])')  # noqa: S608


def _lock(connection: duckdb.DuckDBPyConnection, *, threads: bool) -> None:
    """Let nothing be set any more but what a cursor needs to tell how far it is, and the number of threads where
    statements may ask for some."""
    allowed = [*PROGRESS_SETTINGS, "threads"] if threads else PROGRESS_SETTINGS
    connection.execute(f"SET allowed_configs = {list(allowed)}")
    connection.execute("SET lock_configuration = true")


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _is_out_of_reach(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY))
    except PermissionError:
        return True
    except OSError:
        return False
    return False
