"""What a worker does with a statement: runs it for an answer or for a stream of rows, and tells how far it is."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import duckdb

from backends.sql import answers
from backends.sql.progress import reported
from backends.sql.run import Query, run_query
from backends.sql.serving import Part
from backends.sql.stopper import Stopper
from backends.sql.stream import stream_query


def query(
    cursor: duckdb.DuckDBPyConnection, task: Mapping[str, Any], stopper: Stopper, part: Part, *, volatile: bool
) -> bytes:
    """The answer to a task as `backends.sql.tasks.Task` has it; what goes ahead of it goes to `part`.

    `volatile` is said of the result. The time in which a stream waits for its reader does not count as the
    statement's. Raises as `run_query` does.
    """
    wanted = Query(
        sql=task["sql"],
        limit=task["limit"],
        max_bytes=task["max_bytes"],
        unlimited=task["unlimited"],
        params=task.get("params", {}),
    )

    def hand_over(lines: bytes) -> None:
        with stopper.paused():
            part(answers.rows(lines))

    if task["op"] == "stream":
        last, rows = stream_query(cursor, wanted, hand_over, row_bytes=task["row_bytes"])
        return answers.result(last, empty=rows == 0, volatile=volatile)

    def say(percent: float) -> None:
        part(answers.progress(percent))

    with reported(cursor, say) if task.get("progress") else nullcontext():
        body, rows = run_query(cursor, wanted)
    return answers.result(body, empty=rows == 0, volatile=volatile)
