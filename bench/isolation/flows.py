"""What the agents ask: prompts of two stages about databases, of which several runs share the beginnings.

A prompt is the stage's preamble, the schema of a database, and what is particular to the call, as NL2SQL agents have
them. Recorded schemas are taken where there are some, with generated ones beside them. All is drawn in advance, so
that every contender meets the same.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from bench.isolation.cells import FIX, GENERATE, STAGES, Cell
from simulator.workload import chance

DATA = Path(__file__).parents[3] / "shared" / "data" / "nl2sql"
"""Recorded schemas and questions, beside the repository."""
PREAMBLE, SCHEMA, PARTICULAR = 800, 1200, 90
"""Tokens of a prompt's three parts; those of the last differ from call to call, about this mean."""
OUTPUT = 24
TOKEN_BYTES = 4
"""Of a token, about; texts are cut by what the engine's tokenizer says."""
ROLES = {
    GENERATE: "You write SQL for the database below. Answer with one statement and nothing else.",
    FIX: "You repair SQL that failed on the database below. Say in a word what was wrong, then give one statement.",
}
NOUNS = (
    *("account", "address", "booking", "campaign", "carrier", "category", "claim", "contract", "course", "delivery"),
    *("department", "device", "employee", "event", "expense", "flight", "invoice", "lesson", "machine", "member"),
    *("message", "order", "parcel", "patient", "payment", "product", "project", "region", "review", "route"),
    *("shipment", "station", "student", "supplier", "ticket", "vehicle", "venue", "visit", "warehouse", "worker"),
)
COLUMNS = (
    *(("name", "text"), ("status", "text"), ("created_on", "date"), ("amount", "numeric"), ("priority", "bigint")),
    *(("city", "text"), ("closed_on", "date"), ("rating", "numeric"), ("quantity", "bigint"), ("notes", "text")),
)
QUESTIONS = ("How many {} are there for each {}?", "Which {} had no {} last year?", "What is the mean {} by {}?")

Count = Callable[[str], Awaitable[int]]
"""How many tokens a text has, by the engine that will read it."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One call: its stage, and the texts of its system's and its user's message."""

    stage: str
    system: str
    user: str


Tokens = Callable[[Ask], Awaitable[Sequence[int]]]
"""The tokens of a call's prompt, by the engine that will read it."""
Shared = list[list[list[int]]]
_NOBODY: list[tuple[Sequence[int], tuple[int, int]]] = [((), (0, 0))]


@dataclass(frozen=True, slots=True)
class Flow:
    """One run: a generation and its repairs, about one database."""

    id: str
    schema: int
    calls: tuple[Ask, ...]


@dataclass(frozen=True, slots=True)
class Texts:
    """What prompts begin with, cut to their lengths, and the questions that are asked."""

    preambles: dict[str, str]
    schemas: tuple[str, ...]
    questions: tuple[str, ...]


async def texts(schemas: int, count: Count, data: Path = DATA) -> Texts:
    """The texts for so many databases; `data` may be missing."""
    raw = [_recorded(path) for path in sorted((data / "databases").glob("*.json"))][:schemas]
    raw += ["" for _ in range(schemas - len(raw))]
    return Texts(
        preambles={stage: await _cut(preamble(stage), PREAMBLE, count) for stage in STAGES},
        schemas=tuple([await _cut(_filled(text, index), SCHEMA, count) for index, text in enumerate(raw)]),
        questions=_questions(data),
    )


async def shared(flows: Sequence[Flow], tokens: Tokens) -> Shared:
    """What each prompt has in common with others, in tokens from its beginning: with one of its stage about another
    database, and with one of its stage about the same. A cache holds whole blocks, so single tokens count."""
    groups: dict[tuple[str, int], list[tuple[Sequence[int], tuple[int, int]]]] = {}
    for number, flow in enumerate(flows):
        for turn, ask in enumerate(flow.calls):
            groups.setdefault((ask.stage, flow.schema), []).append((await tokens(ask), (number, turn)))
    found: Shared = [[[0, 0] for _ in flow.calls] for flow in flows]
    for (stage, schema), group in groups.items():
        others = [those[0][0] for (near, about), those in groups.items() if near == stage and about != schema]
        ordered = sorted(group)  # what has most in common stands side by side
        for (before, _), (prompt, place), (after, _) in zip(
            _NOBODY + ordered, ordered, ordered[1:] + _NOBODY, strict=False
        ):
            whole = max(_common(prompt, before), _common(prompt, after))
            preamble = max((_common(prompt, other) for other in others), default=PREAMBLE)
            found[place[0]][place[1]] = [min(preamble, whole), whole]
    return found


def corpus() -> list[str]:
    """Texts of the same kind, for a tokenizer to be made from."""
    recorded = [_recorded(path) for path in sorted((DATA / "databases").glob("*.json"))]
    rng = chance("corpus")
    remarks = [_remark(rng, stage) for _ in range(100) for stage in STAGES]
    generated = [_filled("", index) for index in range(8)]
    return [*map(preamble, STAGES), *recorded, *generated, *_questions(DATA), *remarks]


def flows(cell: Cell, repetition: int, told: Texts) -> list[Flow]:
    """The runs of a cell, the same for every contender."""
    rng = chance("isolation", cell.schemas, cell.repairs, repetition)
    about = schemas_of(cell, repetition)
    return [_flow(rng, f"{repetition}-{number}", schema, cell.repairs, told) for number, schema in enumerate(about)]


def schemas_of(cell: Cell, repetition: int) -> list[int]:
    """The database of each run, in no order; each is asked about as often as any other."""
    about = [number % cell.schemas for number in range(cell.runs)]
    chance("schemas", cell.schemas, cell.repairs, repetition).shuffle(about)
    return about


def preamble(stage: str) -> str:
    """The instructions of a stage: its role, and examples without end."""
    rng = chance("preamble", stage)
    lines = [ROLES[stage]]
    while sum(map(len, lines)) < 2 * TOKEN_BYTES * PREAMBLE:
        one, other = rng.sample(NOUNS, 2)
        column, kind = rng.choice(COLUMNS)
        lines.append(
            f"Example: {rng.choice(QUESTIONS).format(one, other)} Join {one} with {other} by {other}_id, count "
            f"{one}.{column} for each, and remember that {column} is {kind}."
        )
    return "\n".join(lines)


def _flow(rng: Random, name: str, schema: int, repairs: int, told: Texts) -> Flow:
    asks = [_ask(rng, name, GENERATE, schema, told)]
    asks += [_ask(rng, f"{name}-{turn}", FIX, schema, told) for turn in range(repairs)]
    return Flow(name, schema, tuple(asks))


def _ask(rng: Random, name: str, stage: str, schema: int, told: Texts) -> Ask:
    """What is particular comes first in its message, so that no two share it."""
    words = [f"[{name} {rng.randrange(10**6)}]", rng.choice(told.questions)]
    length = TOKEN_BYTES * PARTICULAR * rng.uniform(0.8, 1.2)
    while sum(map(len, words)) < length:
        words.append(_remark(rng, stage))
    return Ask(stage, told.preambles[stage] + "\n" + told.schemas[schema], " ".join(words))


def _remark(rng: Random, stage: str) -> str:
    one, other = rng.sample(NOUNS, 2)
    said = (
        "Mind that {0} belongs to {1}."
        if stage == GENERATE
        else "Reading {0} failed: {1} has no column of that name."
    )
    return said.format(one, other)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two prompts begin with alike."""
    return next(
        (at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), min(len(one), len(other))
    )


def _recorded(path: Path) -> str:
    """A schema with the notes on its columns."""
    tables = json.loads(path.read_text())["table_metadata"]
    return "\n".join(
        _table(name, [(one["column_name"], one["data_type"], one["column_description"]) for one in columns])
        for name, columns in tables.items()
    )


def _filled(text: str, index: int) -> str:
    """A schema that is long enough: tables are generated for what is missing."""
    rng = chance("schema", index)
    tables = [text] if text else [f"-- database {index}"]
    while sum(map(len, tables)) < 2 * TOKEN_BYTES * SCHEMA:
        name, others = f"{rng.choice(NOUNS)}_{rng.choice(NOUNS)}", rng.sample(NOUNS, 3)
        columns = [(f"{name}_id", "bigint", f"the {name} itself")]
        columns += [(f"{other}_id", "bigint", f"the {other} that it belongs to") for other in others]
        columns += [(column, kind, f"{column} of the {name}") for column, kind in rng.sample(COLUMNS, 4)]
        tables.append(_table(name, columns))
    return "\n".join(tables)


def _table(name: str, columns: Sequence[tuple[str, str, str]]) -> str:
    lines = [f"  {column} {kind}, -- {note}" for column, kind, note in columns]
    return "\n".join([f"CREATE TABLE {name} (", *lines, ");"])


def _questions(data: Path) -> tuple[str, ...]:
    path = data / "questions_gen_postgres.csv"
    if path.is_file():
        with path.open(newline="") as file:
            return tuple(row["question"] for row in csv.DictReader(file))
    rng = chance("questions")
    return tuple(rng.choice(QUESTIONS).format(*rng.sample(NOUNS, 2)) for _ in range(50))


async def _cut(text: str, tokens: int, count: Count) -> str:
    """The beginning of a text that has so many tokens, to within a few."""
    low, high = 0, len(text)
    while high - low > TOKEN_BYTES:
        middle = (low + high) // 2
        low, high = (middle, high) if await count(text[:middle]) <= tokens else (low, middle)
    return text[:low]
