"""Says how far a statement has come, where the engine can tell."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import duckdb

EVERY: Final = 0.25
"""Seconds between two looks."""

_STEP: Final = 1.0


@contextmanager
def reported(
    cursor: duckdb.DuckDBPyConnection, say: Callable[[float], None], *, every: float = EVERY
) -> Iterator[None]:
    """Say the percentage that is done of what runs in the block, as it grows. Nothing is said once the block is left.

    The engine estimates by the rows that it has read of tables, so it may stand still and may jump. It says nothing
    where its configuration is locked and `allowed_configs` does not leave out what `PROGRESS_SETTINGS` names.
    """
    if not _enabled(cursor):
        yield
        return
    over = threading.Event()
    watch = threading.Thread(target=_watch, args=(cursor, say, over, every), daemon=True)
    watch.start()
    try:
        yield
    finally:
        over.set()
        watch.join()


PROGRESS_SETTINGS: Final = ("enable_progress_bar", "enable_progress_bar_print")
"""What must stay settable: these hold for one cursor alone and cannot be set for all."""


def _enabled(cursor: duckdb.DuckDBPyConnection) -> bool:
    try:
        cursor.execute("SET enable_progress_bar_print = false")
        cursor.execute("SET enable_progress_bar = true")
    except duckdb.Error:
        return False
    return True


def _watch(
    cursor: duckdb.DuckDBPyConnection, say: Callable[[float], None], over: threading.Event, every: float
) -> None:
    said = 0.0
    while not over.wait(every):
        done = cursor.query_progress()  # -1 while it does not know
        if done >= said + _STEP:
            say(round(done, 1))
            said = done
