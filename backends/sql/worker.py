"""The worker process: opens the databases, locks them down, and runs what the guard let through."""

from __future__ import annotations

import os
import resource
from typing import Any

import duckdb
import orjson

from backends.sql import answers
from backends.sql.database import Database
from backends.sql.describe import describe
from backends.sql.failures import code_of, message_of
from backends.sql.options import SqlOptions
from backends.sql.process import Service, StartFailed, serve
from backends.sql.run import NotAQuery, Query, TooLarge, run_query
from backends.sql.stopper import Stopper


class Worker:
    """Runs one statement at a time, each on a fresh cursor and within its time.

    What leaves the engine in doubt (DuckDB's fatal and internal errors) is not caught: the process ends of it.
    """

    def __init__(self, options: SqlOptions) -> None:
        """Open the databases. Raises duckdb.Error and OSError."""
        self._options = options
        self._databases = {name: Database(path, options) for name, path in options.databases.items()}
        self._private = [word for database in self._databases.values() for word in database.private]
        self._stopper = Stopper()

    def handle(self, request: bytes) -> bytes:
        task: dict[str, Any] = orjson.loads(request)
        try:
            database = self._databases[task["database"]]
            with database.cursor() as cursor, self._stopper.limit(cursor, task["timeout"]):
                return self._run(cursor, task)
        except NotAQuery:
            return answers.failure("only one query at a time may run", "refused")
        except TooLarge:
            message = f"a row of the result is larger than {task['max_bytes']} bytes: select fewer or shorter columns"
            return answers.failure(message, "too_large")
        except (duckdb.FatalException, duckdb.InternalException):
            raise
        except (duckdb.Error, MemoryError, OSError) as error:
            return answers.failure(message_of(error, self._private), code_of(error))

    def interrupt(self) -> None:
        self._stopper.stop()

    def close(self) -> None:
        for database in self._databases.values():
            database.close()

    @staticmethod
    def _run(cursor: duckdb.DuckDBPyConnection, task: dict[str, Any]) -> bytes:
        if task["op"] == "describe":
            return answers.result(describe(cursor, task["database"]))
        body, rows = run_query(
            cursor,
            Query(
                sql=task["sql"],
                limit=task["limit"],
                max_bytes=task["max_bytes"],
                unlimited=task["unlimited"],
            ),
        )
        return answers.result(body, empty=rows == 0)


def confine(address_space: int) -> None:
    """Bound this process: its memory, no core dumps, not a byte into any file."""
    resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def start(configuration: bytes) -> Service:
    """Confine the process, then open the databases. Raises StartFailed, naming a database but no file."""
    options = SqlOptions.from_json(configuration)
    for name, path in options.databases.items():
        if not os.path.isfile(path):
            raise StartFailed(f"the database {name!r} has no file")
    confine(options.address_space)
    try:
        return Worker(options)
    except (duckdb.Error, OSError) as error:
        private = [word for path in options.databases.values() for word in (path, os.path.basename(path))]
        raise StartFailed(f"a database cannot be opened: {message_of(error, private)}") from None


if __name__ == "__main__":
    serve(start)
