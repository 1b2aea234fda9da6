"""Turns an engine's complaint about a statement into words that a model can repair the statement by.

`explained` says what is wrong and offers names that exist, by edit distance; `placed` says where in the text that
the model wrote. They are apart because the engine runs another text, the canonical one, and answers for all who
wrote it their own way.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

Names = Mapping[str, Sequence[str]]
"""The columns of every table, as they are spelt in the database."""

OFFERED_MOST: Final = 5
LISTED_MOST: Final = 20
_COMPARED_MOST: Final = 2_000
_LENGTH_MOST: Final = 64
_STEPS_MOST: Final = 4

_COLUMN: Final = (
    re.compile(r'Referenced column "(?P<name>[^"]+)" not found'),
    re.compile(r'(?:Table|Values list) "(?P<table>[^"]+)" does not have a column named "(?P<name>[^"]+)"'),
    re.compile(r'Column "(?P<name>[^"]+)" does not exist on (?:left|right) side of join'),
    # Of an expression that has been given the name of a column that is not there.
    re.compile(r'Column "(?P<name>[^"]+)" referenced that exists in the SELECT clause'),
    re.compile(r'Column "(?P<name>[^"]+)" in (?:EXCLUDE|REPLACE|RENAME) list not found'),
)
_TABLE: Final = re.compile(r'Table with name "?(?P<name>[^"\s]+)"? does not exist')
_ALIAS: Final = re.compile(r'Referenced table "(?P<name>[^"]+)" not found')
_FUNCTION: Final = re.compile(r"(?:\w+ )?Function with name \"?(?P<name>\w+)\"? does not exist")
_ARGUMENTS: Final = re.compile(r"No function matches the given name and argument types '(?P<call>[^']+)'")
_CANDIDATES: Final = re.compile(r"\nCandidate (?:bindings|tables|Entries): *:? *(?P<names>[^\n]+)")
_TAKES: Final = re.compile(r"^\t(\S.*)$", re.MULTILINE)
_QUOTED: Final = re.compile(r'"([^"]+)"')
_NAMED: Final = re.compile(r"\"(?P<name>[^\"]+)\"|'(?P<value>[^']+)'|with name (?P<plain>[\w.]+)")
_EXCERPT: Final = re.compile(r"\nLINE \d+: ")
_SPACES: Final = re.compile(r"[\s_]+")
# Linear in the text: a comment without an end is read to the end of the text once, not from each of its beginnings.
_PIECES: Final = r"--[^\n]*|/\*.*?(?:\*/|\Z)|(?P<found>{})|(?:'[^']*')++|(?:\"[^\"]*\")++"


def explained(message: str, known: Names, functions: Collection[str] = (), tables: Iterable[str] = ()) -> str:
    """The engine's message in one line, its first sentence as it is; the candidates are from what is known.

    `message` as DuckDB gives it, with its class before it and its excerpt after it; `functions` are those that may be
    called, `tables` those that the statement names. What it quotes of the statement stays, so the caller takes out
    what is the server's.
    """
    said = _EXCERPT.split(message, maxsplit=1)[0].strip()
    first = said.partition("\n")[0].rstrip("!. ")
    offered = _offered(said)
    for pattern in _COLUMN:
        if found := pattern.search(said):
            named = [*filter(None, [found.groupdict().get("table")]), *tables]
            return first + _columns_for(found["name"], named, offered, known)
    if found := _TABLE.search(said):
        return first + _tables_for(found["name"], known)
    if found := _ALIAS.search(said):
        return first + _aliases_for(found["name"], offered, known)
    if found := _FUNCTION.search(said):
        return first + _meant(closest(found["name"], functions))
    if found := _ARGUMENTS.search(said):
        return first + _types_for(found["call"], _TAKES.findall(said))
    return " ".join(said.split())


def closest(name: str, names: Iterable[str]) -> list[str]:
    """Up to `OFFERED_MOST` of the names that one may have meant, the nearest first.

    Near is by edit distance without regard to case and underscores: a third of the letters, four at the most. So is
    a name within the other.
    """
    wanted = _folded(name)
    most = min(_STEPS_MOST, max(1, len(wanted) // 3))
    scored: list[tuple[int, str]] = []
    for candidate in sorted(set(names))[:_COMPARED_MOST]:
        folded = _folded(candidate)
        within = min(len(wanted), len(folded)) >= 3 and (wanted in folded or folded in wanted)
        far = distance(wanted, folded, most)
        if far <= most or within:
            scored.append((min(far, most + 1), candidate))
    return [candidate for _, candidate in sorted(scored)[:OFFERED_MOST]]


def distance(one: str, other: str, most: int) -> int:
    """Insertions, deletions, replacements and swaps of neighbours that make one text of the other.

    Texts that are more than `most` apart are `most + 1` apart, so that most pairs cost next to nothing.
    """
    # A step changes the length by one at most, and the set of letters by two.
    if abs(len(one) - len(other)) > most or len(set(one) ^ set(other)) > 2 * most:
        return most + 1
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, sign in enumerate(one, 1):
        last, row, before_last = row, [i], before
        for j, letter in enumerate(other, 1):
            cost = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (sign != letter))
            if i > 1 and j > 1 and sign == other[j - 2] and one[i - 2] == letter:
                cost = min(cost, before_last[j - 2] + 1)
            row.append(cost)
        before = last
        if min(row) > most:
            return most + 1
    return min(row[-1], most + 1)


def placed(message: str, written: str) -> str:
    """The message with the line and column, from 1, of what it names first in the text that the model wrote.

    Unchanged where that text does not hold it as a name or value: the translation made it. Comments do not count.
    """
    if call := _ARGUMENTS.search(message):
        start = _start(call["call"].partition("(")[0], written, text=False)
    elif named := _NAMED.search(message, max(0, message.find("column named"))):
        name = (named["name"] or named["plain"] or "").rpartition(".")[2]
        start = _start(named["value"] or name, written, text=bool(named["value"]))
    else:
        start = None
    if start is None:
        return message
    line = written.count("\n", 0, start) + 1
    column = start - (written.rfind("\n", 0, start) + 1) + 1
    return f"{message} (line {line}, column {column})"


def _start(name: str, written: str, *, text: bool) -> int | None:
    """Where the name, or the `text` in quotes, first stands outside of comments and of other texts and names."""
    if len(name) > _LENGTH_MOST:
        return None
    word = re.escape(name)
    ways = rf"'{word}'|\"{word}\"" if text else rf"\"{word}\"|`{word}`|\[{word}\]|(?<!\w){word}(?!\w)"
    pattern = re.compile(_PIECES.format(ways), re.IGNORECASE | re.DOTALL)
    return next((match.start("found") for match in pattern.finditer(written) if match["found"]), None)


def _folded(name: str) -> str:
    return _SPACES.sub("", name[:_LENGTH_MOST].lower())


def _offered(said: str) -> list[str]:
    found = _CANDIDATES.search(said)
    return _QUOTED.findall(found["names"]) if found else []


def _columns_for(name: str, tables: Iterable[str], offered: Sequence[str], known: Names) -> str:
    """Candidates are the columns in reach, as the engine tells them, and those of the statement's own `tables`; of
    others, those of the very name, and the near ones where nothing else is near."""
    owners: dict[str, list[str]] = {}
    for owner, columns in known.items():
        for column in columns:
            owners.setdefault(column, []).append(owner)
    elsewhere = [owner for column, having in owners.items() if column.lower() == name.lower() for owner in having]
    if elsewhere:
        return f"; {_listed(elsewhere)} {'has' if len(elsewhere) == 1 else 'have'} a column of that name"
    named = {table.lower().rpartition(".")[2] for table in tables}
    own = [owner for owner in known if owner.lower().rpartition(".")[2] in named]
    near = closest(name, [*offered, *(column for owner in own for column in known[owner])])
    near = near or [f"{owners[column][0]}.{column}" for column in closest(name, owners)]
    if near:
        return _meant(near)
    hint = "" if name.isidentifier() and name.islower() else f"; a text is written in single quotes: '{name}'"
    return (f"; candidate columns: {_listed(offered)}" if offered else "") + hint


def _aliases_for(name: str, offered: Sequence[str], known: Names) -> str:
    real = next((table for table in known if table.lower() == name.lower()), None)
    if real is not None:
        return f"; join {real} in FROM, or use the alias that it has there"
    near = closest(name, offered)
    return _meant(near) if near or not offered else f"; candidate tables: {_listed(offered)}"


def _tables_for(name: str, known: Names) -> str:
    near = closest(name.rpartition(".")[2], known)
    return _meant(near) if near or not known else f"; the tables are: {_listed(sorted(known))}"


def _types_for(call: str, takes: Sequence[str]) -> str:
    name = call.partition("(")[0]
    ways = [way.replace('"', "") for way in takes if way.startswith((f"{name}(", f'"{name}"('))]
    if not name.isidentifier() or not ways:
        return ""
    return f"; it takes {', '.join(ways[:OFFERED_MOST])}"


def _meant(near: Sequence[str]) -> str:
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _listed(names: Sequence[str]) -> str:
    more = len(names) - LISTED_MOST
    return ", ".join(names[:LISTED_MOST]) + (f" and {more} more" if more > 0 else "")
