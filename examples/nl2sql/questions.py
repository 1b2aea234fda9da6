"""The questions of the example, with their gold SQL and the mistakes on the way to it, read from `questions.yaml`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

import yaml

Kind = Literal["syntax", "binder", "function", "empty", "rows"]

_FILE = Path(__file__).with_name("questions.yaml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """A wrong statement, and how it shows.

    `quote` is text that tells this failure: a part of DuckDB's message (`binder`) or the verifier's complaint
    (`rows`). It is empty for the other kinds, which the statement itself tells: the message of a syntax error is
    the parser's own, and more than one parser may stand before DuckDB.
    """

    kind: Kind
    sql: str
    quote: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question, the statement that answers it, and the attempts before that one."""

    text: str
    gold: str
    mistakes: tuple[Mistake, ...] = ()
    unrepairable: str | None = None


def load(path: Path = _FILE) -> tuple[Question, ...]:
    """All questions, in the order of the file."""
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    return tuple(_question(entry) for entry in entries)


def _question(entry: Mapping[str, object]) -> Question:
    mistakes = cast("list[Mapping[str, str]]", entry.get("mistakes", []))
    reason = entry.get("unrepairable")
    return Question(
        text=str(entry["question"]),
        gold=str(entry["gold"]).strip(),
        mistakes=tuple(_mistake(mistake) for mistake in mistakes),
        unrepairable=None if reason is None else str(reason),
    )


def _mistake(entry: Mapping[str, str]) -> Mistake:
    kind = entry["kind"]
    if kind not in get_args(Kind):
        raise ValueError(f"{kind!r} is no kind of mistake")
    quote = {"binder": "error", "rows": "complaint"}.get(kind)
    return Mistake(kind=cast("Kind", kind), sql=entry["sql"].strip(), quote="" if quote is None else entry[quote])
