"""The schema of a database as a prompt has it: the same text for the same tables, of those alone that are wanted."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any
from urllib.parse import parse_qsl

import orjson

from gateway.intake import Asked
from gateway.openai.errors import ApiError, ill_formed, not_found
from gateway.tools import Desk
from gateway.verdicts import Answer

TABLES_MOST = 1000
_NAMES = re.compile(r'(?:"(?:[^"]|"")*"|[^",])+')
_QUOTED = re.compile(r'"((?:[^"]|"")*)"')


async def schema(
    desk: Desk, asked: Asked, *, database: str | None = None, tables: Sequence[str] | None = None
) -> Answer:
    """What `Desk.describe` says, of these tables alone where any are named.

    The tables come in the order of the database, each once, however they were asked for: whoever asks for the same
    tables has the same prompt. The whole description is what is kept, and every choice of tables is cut from it.
    Raises ApiError (404 for a table or database that is not there).
    """
    answer = await desk.describe(asked, database=database)
    if tables is None or answer.status != 200:
        return answer
    document = answer.document()
    chosen = _chosen(document["tables"], tables)
    text = "".join(table["text"] for table in chosen)
    return replace(answer, body=orjson.dumps({**document, "tables": chosen, "text": text}))


def tables_of(query: bytes) -> list[str] | None:
    """The tables that a query string names (`tables=a,"b, c"`, also repeated); None where it says nothing of any.

    Raises ApiError 400.
    """
    pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    said = [value for key, value in pairs if key == "tables"]
    if not said:
        return None
    names = [name.strip() for value in said for name in _NAMES.findall(value)]
    if not all(names) or not 0 < len(names) <= TABLES_MOST:
        raise ill_formed("tables", f"must be 1 to {TABLES_MOST} names of tables, with commas between them")
    return names


def _chosen(described: Sequence[Mapping[str, Any]], wanted: Iterable[str]) -> list[Mapping[str, Any]]:
    """The tables of these names. A name is one as the description spells it, or without quotes, in any case."""
    exact = {table["name"] for table in described}
    plain = {_plain(name): name for name in sorted(exact, reverse=True)}
    found = set()
    for name in wanted:
        known = name if name in exact else plain.get(_plain(name))
        if known is None:
            raise _unknown(name, plain)
        found.add(known)
    return [table for table in described if table["name"] in found]


def _unknown(name: str, plain: Mapping[str, str]) -> ApiError:
    """What the name can have been meant for; all the tables where nothing is near."""
    wanted = _plain(name)
    near = get_close_matches(wanted, plain, n=5, cutoff=0.5) or [
        other for other in plain if other.rpartition(".")[2] == wanted.rpartition(".")[2]
    ]
    return not_found("table", name, [plain[other] for other in near] or list(plain.values()))


def _plain(name: str) -> str:
    return _QUOTED.sub(lambda quoted: quoted[1].replace('""', '"'), name).casefold().removeprefix("main.")
