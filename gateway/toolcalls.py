"""A model's tool call, run by the gateway: its arguments read as those of any other request for SQL, then answered.

What is wrong with the arguments is an answer too, for the model to mend its call by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gateway.intake import Asked
from gateway.openai.errors import ApiError, ill_formed
from gateway.question import read_arguments, read_question, read_tables, read_text
from gateway.schemas import schema
from gateway.tools import DESCRIBE, Desk
from gateway.verdicts import Answer, refusal

_MENDED = (400, 404)
"""The statuses of what the model can mend by other arguments."""


async def run_call(
    desk: Desk, asked: Asked, name: str, arguments: str, *, stage: str, database: str | None = None
) -> Answer:
    """Run a call of one of the SQL tools; `database` is for a call that names none.

    Raises ApiError where a statement can get no answer now.
    """
    try:
        document = read_arguments(arguments)
        wanted = _database(document, database, desk.databases)
        if name == DESCRIBE:
            return await schema(desk, asked, database=wanted, tables=read_tables(document), stage=stage)
        question = replace(read_question(document, arguments), database=wanted)
        return await desk.query(asked, question, stage=stage)
    except ApiError as error:
        if error.status not in _MENDED:
            raise
        return refusal(error.message, "invalid_arguments", param=error.param)


def _database(document: Mapping[str, Any], default: str | None, known: Sequence[str]) -> str | None:
    wanted = read_text(document, "database") or default
    if wanted not in (known if len(known) > 1 else (None, *known)):
        raise ill_formed("database", f"must be one of {', '.join(known)}")
    return wanted
