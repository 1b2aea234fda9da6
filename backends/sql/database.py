"""One database file, opened so that a statement can only read it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import duckdb

from backends.sql.cache import generation
from backends.sql.options import SqlOptions


class Database:
    """An open file and its locked settings. A file that was replaced is opened anew."""

    def __init__(self, path: str, options: SqlOptions) -> None:
        self._path = path
        self._options = options
        self._generation = generation(path)
        self._connection = self._connect()

    @property
    def private(self) -> tuple[str, ...]:
        """Words of the server's that no message may show."""
        full = os.path.abspath(self._path)
        file = os.path.basename(full)
        return self._path, full, file, f"{os.path.splitext(file)[0]}.main."

    @contextmanager
    def cursor(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A cursor for one statement: temporary objects, variables and transactions are kept by cursor."""
        # Taken before opening: if the file is replaced in between, the next statement opens it once more.
        now = generation(self._path)
        if now != self._generation:
            self._connection.close()
            self._generation, self._connection = now, self._connect()
        cursor = self._connection.cursor()
        try:
            yield cursor
        finally:
            cursor.close()

    def close(self) -> None:
        self._connection.close()

    def _connect(self) -> duckdb.DuckDBPyConnection:
        connection = duckdb.connect(
            self._path,
            read_only=True,
            config={
                "enable_external_access": "false",
                "autoload_known_extensions": "false",
                "autoinstall_known_extensions": "false",
                "allow_community_extensions": "false",
                "memory_limit": f"{self._options.memory}B",
                "threads": str(self._options.threads),
                "max_temp_directory_size": "0B",
                "temp_directory": "",
                "python_enable_replacements": "false",
            },
        )
        # GLOBAL: cursors do not inherit the settings of the connection that they come from.
        connection.execute("SET GLOBAL TimeZone = 'UTC'")
        connection.execute(f"SET GLOBAL max_execution_time = {int(self._options.timeout * 1000)}")
        connection.execute("SET lock_configuration = true")  # last: nothing can be set after it
        return connection
