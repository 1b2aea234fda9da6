"""The worker's parts in this process, where they can be looked at: answers, stopping, confinement, restarts."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pytest

from backends.base import BackendError
from backends.sql import answers
from backends.sql import worker as worker_module
from backends.sql.breaker import Breaker
from backends.sql.failures import code_of, message_of
from backends.sql.options import SqlOptions
from backends.sql.process import Child
from backends.sql.serving import StartFailed
from backends.sql.stopper import Stopper
from backends.sql.worker import Worker


def _handle(worker: Worker, **task: object) -> tuple[str, Any]:
    whole = {"op": "query", "database": "scratch", "timeout": 1.0, "limit": 10, "max_bytes": 1000, "unlimited": False}
    outcome, body = answers.split(worker.handle(orjson.dumps(whole | task)))
    return outcome, orjson.loads(body)


def test_a_worker_answers_with_an_outcome_and_json(options: SqlOptions) -> None:
    worker = Worker(options)
    outcome, body = _handle(worker, sql="SELECT 1 AS x")
    assert (outcome, body["rows"]) == ("ok", [[1]])
    outcome, body = _handle(worker, op="describe")
    assert (outcome, body["tables"][0]["name"]) == ("ok", "big")
    outcome, body = _handle(worker, sql="SELECT 1 AS x WHERE FALSE")
    assert (outcome, body["rows"]) == ("empty", [])
    for sql, code in [("SELECT", "syntax"), ("SELECT x", "binder"), ("DROP TABLE t", "refused")]:
        outcome, body = _handle(worker, sql=sql)
        assert (outcome, body["error"]["code"]) == ("error", "refused" if sql.startswith("DROP") else code)
    outcome, body = _handle(worker, sql="SELECT COUNT(*) FROM big a, big b, big c", timeout=0.05)
    assert (outcome, body["error"]["code"]) == ("timeout", "timeout")
    worker.close()


def test_an_interrupt_stops_the_statement_in_hand_and_not_the_next(options: SqlOptions) -> None:
    worker = Worker(replace(options, timeout=20.0))
    heard: list[tuple[str, Any]] = []
    sql = "SELECT COUNT(*) FROM big a, big b, big c"
    worker.begin()
    worker.interrupt()  # before it has got far
    began = time.monotonic()
    assert _handle(worker, sql=sql)[0] == "timeout"
    assert time.monotonic() - began < 10.0
    worker.interrupt()
    worker.begin()
    running = threading.Thread(target=lambda: heard.append(_handle(worker, sql=sql)))
    running.start()
    while running.is_alive():
        worker.interrupt()
        running.join(0.01)
    assert heard[0][0] == "timeout"
    assert _handle(worker, sql="SELECT 1")[0] == "ok"
    worker.close()


def test_nothing_of_a_statement_stays_for_the_next_one(options: SqlOptions) -> None:
    """The second layer by itself: each of these passes the engine's read-only mode, and none its SELECT check."""
    worker = Worker(options)
    for sql in (
        "CREATE TEMP VIEW t AS SELECT 1",
        "CREATE TEMP MACRO lower(x) AS 'no'",
        "BEGIN",
        "SET VARIABLE x = 1",
    ):
        assert _handle(worker, sql=sql)[0] == "error"
    assert _handle(worker, sql="SELECT COUNT(*), LOWER('A') FROM t")[1]["rows"] == [[100_000, "a"]]
    worker.close()


def test_the_settings_are_as_documented_on_every_cursor(options: SqlOptions) -> None:
    worker = Worker(options)
    names = {
        "enable_external_access": "false",
        "lock_configuration": "true",
        "access_mode": "read_only",
        "max_execution_time": "1000",
        "threads": "1",
        "memory_limit": "512.0 MiB",
        "TimeZone": "UTC",
        "autoload_known_extensions": "false",
        "autoinstall_known_extensions": "false",
        "allow_community_extensions": "false",
        "temp_directory": "",
        "python_enable_replacements": "false",
    }
    for name, value in names.items():
        (row,) = _handle(worker, sql=f"SELECT CURRENT_SETTING('{name}')::VARCHAR")[1]["rows"]
        assert row[0] == value, name
    worker.close()


def test_a_database_that_is_gone_is_an_error_of_the_statement_without_its_path(tmp_path: Path) -> None:
    path = tmp_path / "gone.duckdb"
    duckdb.connect(str(path)).close()
    worker = Worker(SqlOptions(databases={"scratch": str(path)}))
    path.unlink()
    outcome, body = _handle(worker, sql="SELECT 1")
    assert (outcome, body["error"]["code"]) == ("error", "execution")
    assert "gone" not in body["error"]["message"]
    worker.close()


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (duckdb.ParserException("Parser Error: at x\n\nLINE 1: secret"), "syntax", "Parser Error: at x"),
        (duckdb.CatalogException('No t!\nDid you mean "pg_index"?'), "binder", "No t!"),
        (duckdb.CatalogException('No t!\nDid you mean "tt"?'), "binder", 'No t! Did you mean "tt"?'),
        (duckdb.IOException("open /srv/data/a.duckdb: no"), "execution", "open … no"),
        (duckdb.IOException("open data/a.duckdb"), "execution", "open …"),
        (duckdb.Error("on 2024/01/02 and 1/2"), "execution", "on 2024/01/02 and 1/2"),
        (duckdb.Error("x" * 900), "execution", "x" * 500),
        (MemoryError("at 0x55"), "memory", "the statement needs more memory than a statement may have"),
        (duckdb.InterruptException("x"), "timeout", "the statement took too long and was stopped"),
    ],
)
def test_messages_keep_what_helps_and_drop_what_is_the_servers(error: Exception, code: str, message: str) -> None:
    assert code_of(error) == code
    assert message_of(error, ["data/a.duckdb", "a.duckdb"]) == message


def test_a_confined_process_writes_no_file_and_takes_no_more_memory(tmp_path: Path) -> None:
    script = f"""
import os
from backends.sql.options import SqlOptions
from backends.sql.worker import confine
confine(SqlOptions(databases={{}}, address_space=1 << 30, layers=frozenset({{"limits"}})))
try:
    with open({str(tmp_path / "x")!r}, "w") as file:
        file.write("x")
except OSError as error:
    print(error.errno, flush=True)
try:
    bytearray(2 << 30)
except MemoryError:
    print("memory", flush=True)
os._exit(0)  # whatever else would be written at the end of a process could not be
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.stdout.split() == ["27", "memory"]
    assert (tmp_path / "x").stat().st_size == 0


def test_starting_confines_the_process_before_a_database_is_opened(
    options: SqlOptions, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bounds: list[SqlOptions] = []
    monkeypatch.setattr(worker_module, "confine", bounds.append)
    worker = worker_module.start(options.to_json())
    assert isinstance(worker, Worker)
    assert bounds == [options]
    worker.close()
    bad = tmp_path / "bad.duckdb"
    for path in (bad, tmp_path / "none.duckdb"):
        bad.write_bytes(b"x" * 10_000)
        with pytest.raises(StartFailed) as failed:
            worker_module.start(SqlOptions(databases={"sales": str(path)}).to_json())
        assert "bad.duckdb" not in str(failed.value)
        assert str(tmp_path) not in str(failed.value)


def test_options_travel_unchanged() -> None:
    options = SqlOptions(databases={"b": "1", "a": "2"}, timeout=0.5, memory=1, max_rows=2)
    assert SqlOptions.from_json(options.to_json()) == options
    assert list(SqlOptions.from_json(options.to_json()).databases) == ["b", "a"]


class _Counting:
    def __init__(self, enough: int) -> None:
        self.left = enough
        self.done = threading.Event()

    def interrupt(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.done.set()


def test_a_stopper_interrupts_again_until_the_statement_ends() -> None:
    stopper = Stopper(every=0.001)
    statement = _Counting(3)
    with stopper.limit(statement, 0.0):
        assert statement.done.wait(10)
    untouched = _Counting(1)
    with stopper.limit(untouched, 60.0):
        pass
    again = _Counting(1)
    with stopper.limit(again, 60.0):
        stopper.stop()
        assert again.done.wait(10)
    assert untouched.left == 1


def test_a_breaker_pauses_after_failures_in_a_row_and_longer_each_time() -> None:
    breaker = Breaker(limit=3, window=10.0, first=1.0, longest=3.0)
    for now in (0.0, 6.0, 12.0):  # three, but not within the window
        breaker.failed(now)
    assert breaker.left(12.0) == 0.0
    breaker.failed(13.0)
    assert breaker.left(13.0) == 1.0
    assert breaker.left(13.75) == 0.25
    assert breaker.left(15.0) == 0.0
    for start, pause in [(20.0, 2.0), (40.0, 3.0), (60.0, 3.0)]:
        for _ in range(3):
            breaker.failed(start)
        assert breaker.left(start) == pause
    breaker.worked()
    for _ in range(3):
        breaker.failed(80.0)
    assert breaker.left(80.0) == 1.0


async def test_a_child_that_cannot_be_started_or_ends_at_once_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError) as error:
        await Child.spawn("this", b"x", timeout=20)
    assert error.value.trouble == "broken"
    monkeypatch.setattr(sys, "executable", os.devnull)
    with pytest.raises(BackendError) as error:
        await Child.spawn("this", b"x", timeout=20)
    assert error.value.trouble == "refused"


async def test_a_child_that_does_not_keep_to_the_frames_is_broken() -> None:
    child = await Child.spawn("backends.sql.reading", b"0.5", timeout=20)
    child._line.pipe_data_received(1, b"\xff\xff\xff\xff")
    with pytest.raises(BackendError) as error:
        await child.ask(b'["select 1", "duckdb"]', 5)
    assert error.value.trouble == "broken"
    await child.kill()
    await child.kill()
    child.interrupt()
    assert not child.alive


async def test_a_child_that_is_killed_is_gone_even_where_whoever_kills_it_is_cancelled() -> None:
    child = await Child.spawn("backends.sql.reading", b"0.5", timeout=20)
    killing = asyncio.create_task(child.kill())
    await asyncio.sleep(0)
    killing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await killing
    assert child.ended_by == signal.SIGKILL
