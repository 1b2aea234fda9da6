"""The worker process: opens the databases, locks them down, and runs what the guard let through."""

from __future__ import annotations

import contextlib
import os
import resource
from typing import Any, Final

import duckdb
import orjson

from backends.sql import answers, sandbox
from backends.sql.database import Database, OutOfReach
from backends.sql.describe import describe
from backends.sql.failures import code_of, message_of
from backends.sql.opened import Files
from backends.sql.operations import query
from backends.sql.options import SqlOptions
from backends.sql.run import NotAQuery, TooLarge
from backends.sql.sandbox import Confinement
from backends.sql.serving import Part, Service, StartFailed, serve
from backends.sql.stopper import Stopper

_FILES: Final = 512
"""Files open at once. A query over a folder of Parquet files opens each of them."""


class Worker:
    """Runs one statement at a time, each on a fresh cursor and within its time.

    What leaves the engine in doubt (DuckDB's fatal and internal errors) is not caught: the process ends of it. So it
    does of a database that only a new process can open.
    """

    def __init__(self, options: SqlOptions, confinement: Confinement | None = None) -> None:
        """Open the databases that can be opened now; each of the others is tried again when it is asked for."""
        self._options = options
        self._confinement = confinement or Confinement()
        files = Files(options)
        self._databases = {name: Database(path, files) for name, path in options.databases.items()}
        self._stopper = Stopper()
        self.amiss: Final = self._open()

    def handle(self, request: bytes, part: Part = lambda _part: None) -> bytes:
        task: dict[str, Any] = orjson.loads(request)
        if task["op"] == "confinement":
            state = {"confinement": str(self._confinement), "amiss": self.amiss}
            return answers.result(orjson.dumps(state))
        try:
            database = self._databases[task["database"]]
            with database.cursor(threads=task.get("threads", 1)) as cursor, self._limit(cursor, task["timeout"]):
                return self._run(database, cursor, task, part)
        except NotAQuery as error:
            return answers.failure(str(error), "refused")
        except TooLarge as error:
            return answers.failure(str(error), "too_large")
        except (duckdb.FatalException, duckdb.InternalException):
            raise
        except (duckdb.Error, MemoryError, OSError) as error:
            words = message_of(error, self._private(), database.cursor, task.get("tables", ()))
            return answers.failure(words, code_of(error))

    def begin(self) -> None:
        self._stopper.begin()

    def interrupt(self) -> None:
        self._stopper.stop()

    def close(self) -> None:
        for database in self._databases.values():
            database.close()

    def _open(self) -> dict[str, str]:
        """Open what is there; gives what is wrong with the others, by name."""
        amiss: dict[str, str] = {}
        for name, database in self._databases.items():
            try:
                database.open()
            except OutOfReach:
                amiss[name] = "may not be read"
            except (duckdb.Error, OSError) as error:
                amiss[name] = message_of(error, self._private())
        return amiss

    def _private(self) -> list[str]:
        return [word for database in self._databases.values() for word in database.private]

    def _limit(self, cursor: duckdb.DuckDBPyConnection, seconds: float) -> contextlib.AbstractContextManager[None]:
        return self._stopper.limit(cursor, seconds) if "timeout" in self._options.layers else contextlib.nullcontext()

    def _run(self, database: Database, cursor: duckdb.DuckDBPyConnection, task: dict[str, Any], part: Part) -> bytes:
        if task["op"] == "describe":
            return answers.result(describe(cursor, task["database"], samples=self._options.samples))
        return query(cursor, task, self._stopper, part, volatile=database.is_volatile(task.get("tables", ())))


def confine(options: SqlOptions) -> Confinement:
    """Bound this process, and give up what it has no need of. Its limits first: the sandbox lets none be set."""
    if "limits" in options.layers:
        _limit_resources(options.address_space)
    return sandbox.confine(_folders(options)) if "sandbox" in options.layers else Confinement()


def _limit_resources(address_space: int) -> None:
    """Bound its memory; no core dumps, not a byte into any file, a few hundred files open at once.

    Processes are not counted: such a limit counts those of the user's elsewhere too, and threads among them. The
    sandbox denies new ones.
    """
    resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    files = min(_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))


def _folders(options: SqlOptions) -> list[str]:
    """What the databases take up. A file is read through its folder: the kernel knows it by its inode, and the file
    that is put in its place has another one. What is not there and is called as a folder would be gets nothing: the
    folder around it is not its own. Once it is there, another worker is started for it."""
    paths = [os.path.realpath(path) for path in options.databases.values()]
    there = [path for path in paths if os.path.exists(path) or os.path.splitext(path)[1]]
    return [path if os.path.isdir(path) else os.path.dirname(path) for path in there]


def start(configuration: bytes) -> Service:
    """Confine the process, then open the databases. Raises StartFailed where there is none that can be opened."""
    options = SqlOptions.from_json(configuration)
    worker = Worker(options, confine(options))
    if options.databases and len(worker.amiss) == len(options.databases):
        said = "; ".join(f"database {name!r}: {words}" for name, words in worker.amiss.items())
        raise StartFailed(f"no database can be opened: {said}")
    return worker


if __name__ == "__main__":
    serve(start)
