"""The schema of a database as a prompt has it: the same text for the same tables, of those alone that are wanted."""

from __future__ import annotations

import itertools
import re
import string
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl

import orjson

from gateway.intake import Asked
from gateway.openai.errors import KNOWN_SHOWN, ApiError, ill_formed, shown
from gateway.question import TABLES_MOST, only
from gateway.tools import Desk
from gateway.verdicts import Answer
from policies.repair import closest

_NAMES = re.compile(r'(?:"(?:[^"]|"")*"|[^",])+')
_PARTS = re.compile(r'(?:("(?:[^"]|"")*"|[^".]+)\.)?("(?:[^"]|"")*"|[^".]+)')
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_ALIKE_MOST = 3

Place = tuple[str, str]


async def schema(
    desk: Desk,
    asked: Asked,
    *,
    database: str | None = None,
    tables: Sequence[str] | None = None,
    stage: str | None = None,
) -> Answer:
    """What `Desk.describe` says, of these tables alone where any are named.

    The tables come in the order of the database, each once, however they were asked for: whoever asks for the same
    tables has the same prompt. The whole description is what is kept, and every choice of tables is cut from it.
    Raises ApiError (404 for a table or database that is not there).
    """
    answer = await desk.describe(asked, database=database, stage=stage)
    if tables is None or answer.status != 200:
        return answer
    document = answer.document()
    found = chosen(document["tables"], tables)
    text = "".join(table["text"] for table in found)
    return replace(answer, body=orjson.dumps({**document, "tables": found, "text": text}))


def tables_of(query: bytes) -> list[str] | None:
    """The tables that a query string names (`tables=a,"b, c"`, also repeated); None where it says nothing of any.

    Raises ApiError 400.
    """
    pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    only((key for key, _ in pairs), ("tables",))
    if not pairs:
        return None
    names = [name.strip() for _, value in pairs for name in _NAMES.findall(value)]
    if not all(names) or not 0 < len(names) <= TABLES_MOST:
        raise ill_formed("tables", f"must be 1 to {TABLES_MOST} names of tables, with commas between them")
    return names


def chosen(described: Sequence[Mapping[str, Any]], wanted: Iterable[str]) -> list[Mapping[str, Any]]:
    """The tables of these names. A name is one as the description spells it, or without quotes, in any case."""
    names = [table["name"] for table in described]
    exact = set(names)
    places: dict[Place, str] | None = None
    found = set()
    for name in wanted:
        known = name if name in exact else None
        if known is None:
            places = _places(names) if places is None else places
            known = places.get(_place(name)) or _small(name, exact) or places.get(_alone(name))
        if known is None:
            raise _unknown(name, names)
        found.add(known)
    return [table for table in described if table["name"] in found]


def _places(names: Iterable[str]) -> dict[Place, str]:
    """Those names that are not spelt as the engine compares them. The others are looked up as they are."""
    return {_place(name): name for name in names if '"' in name or "." in name}


def _small(name: str, exact: Set[str]) -> str | None:
    schema, table = _place(name)
    return table if schema == "main" and table in exact and table.isidentifier() else None


def _unknown(name: str, names: Sequence[str]) -> ApiError:
    """What the name can have been meant for; all the tables where nothing is near."""
    wanted = _place(name)[1]
    alike = {_place(other)[1]: other for other in _neighbours(wanted, names)}
    near = [shown(alike[other]) for other in closest(wanted, alike)]
    offered = f"did you mean {' or '.join(near)}?" if near else f"the tables are: {_listed(names)}"
    return ApiError(f"no table named '{shown(name)}'; {offered}", code="not_found", param="tables")


def _neighbours(name: str, names: Sequence[str]) -> Sequence[str]:
    """The few names that are worth a comparison, each of which takes as long as a look at a thousand: what holds the
    name, ends like it, or stands next to it in the order of the database."""
    if len(names) <= 4 * _ALIKE_MOST:
        return names
    at, tail = bisect_left(names, name), name[len(name) // 2 :]
    beside = names[max(0, at - _ALIKE_MOST) : at + _ALIKE_MOST]
    holding = itertools.islice((other for other in names if name in other), _ALIKE_MOST)
    ending = itertools.islice((other for other in names if other.endswith(tail)), _ALIKE_MOST)
    return [*beside, *holding, *ending]


def _listed(names: Sequence[str]) -> str:
    more = len(names) - KNOWN_SHOWN
    return ", ".join(map(shown, names[:KNOWN_SHOWN])) + (f" and {more} more" if more > 0 else "") or "none"


def _place(name: str) -> Place:
    """Schema and table, as the engine compares them: the letters from A to Z are their small ones, no others."""
    parts = _PARTS.fullmatch(name)
    if parts is None:
        return _alone(name)
    return _folded(parts[1] or "main"), _folded(parts[2])


def _alone(name: str) -> Place:
    return "main", _folded(name)


def _folded(part: str) -> str:
    if part.startswith('"') and part.endswith('"') and len(part) > 1:
        part = part[1:-1].replace('""', '"')
    return part.lower() if part.isascii() else part.translate(_LOWER)
