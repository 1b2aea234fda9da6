"""One version of a database, a DuckDB file or a folder of Parquet files, opened so that it can only be read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Final
from weakref import WeakValueDictionary

import duckdb

from backends.sql.cache import Generation
from backends.sql.options import SqlOptions
from backends.sql.parquet import parquet_tables
from backends.sql.places import search_path
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


class Opened:
    """An engine over one version of the data, its settings locked."""

    def __init__(self, path: str, version: Generation, options: SqlOptions) -> None:
        """Raises duckdb.Error and OSError."""
        self.version: Final = version
        self._options = options
        self._is_folder = os.path.isdir(path)
        self._connection = self._connect(path)
        try:
            self._path = search_path(self._connection)
            self._lock()
            # Of a folder nothing is volatile: its views are made here, of files that its generation counts.
            self._volatile = Volatile() if self._is_folder else volatile(self._connection)
        except BaseException:
            self.close()
            raise
        self._threads = 1

    @contextmanager
    def cursor(self, *, threads: int) -> Iterator[duckdb.DuckDBPyConnection]:
        """A cursor on which the names of tables of all schemas are known. Raises duckdb.Error."""
        if threads != self._threads:
            self._connection.execute(f"SET threads = {threads}")
            self._threads = threads
        cursor = self._connection.cursor()
        try:
            if self._path:  # the one setting that is a cursor's own; no lock holds it
                cursor.execute(f"SET search_path = {_text(self._path)}")
            if self._is_folder:  # in memory, a database cannot be opened as read-only
                cursor.execute("BEGIN TRANSACTION READ ONLY")
            yield cursor
        finally:
            cursor.close()

    def is_volatile(self, tables: Iterable[str]) -> bool:
        """Whether what is read from these tables changes though the data stay."""
        return self._volatile.concerns(tables)

    def close(self) -> None:
        self._connection.close()

    def _connect(self, path: str) -> duckdb.DuckDBPyConnection:
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
            else duckdb.connect(path, read_only=True, config=config)
        )
        # GLOBAL: cursors do not inherit the settings of the connection that they come from.
        connection.execute("SET GLOBAL TimeZone = 'UTC'")
        tables = parquet_tables(path) if self._is_folder else {}
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
        return connection

    def _lock(self) -> None:
        """Let nothing be set any more but what a cursor needs to tell how far it is, and the number of threads where
        statements may ask for some."""
        if "engine" not in self._options.layers:
            return
        allowed = [*PROGRESS_SETTINGS, "threads"] if self._options.max_threads > 1 else [*PROGRESS_SETTINGS]
        self._connection.execute(f"SET allowed_configs = {allowed}")
        self._connection.execute("SET lock_configuration = true")


class Files:
    """What this process has open, each file once: the engine hands out the same instance for the same file, whose
    settings are locked. What nobody holds any more is closed."""

    def __init__(self, options: SqlOptions) -> None:
        self._options = options
        self._open: WeakValueDictionary[str, Opened] = WeakValueDictionary()

    def opened(self, path: str, version: Generation) -> Opened:
        """The file or folder that a path leads to, in this version. Raises duckdb.Error and OSError."""
        real = os.path.realpath(path)
        found = self._open.get(real)
        if found is not None and found.version == version:
            return found
        if found is not None:
            found.close()  # first: of one file, an open instance is handed out again
        opened = self._open[real] = Opened(real, version, self._options)
        return opened


def _mount(connection: duckdb.DuckDBPyConnection, table: str, files: list[str]) -> None:
    """Make a view of the files; none where they cannot be read, as while one is being written."""
    paths = ", ".join(_text(file) for file in files)
    name = table.replace('"', '""')
    with suppress(duckdb.Error):
        connection.execute(f'CREATE VIEW "{name}" AS SELECT * FROM read_parquet([{paths}])')  # noqa: S608


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
