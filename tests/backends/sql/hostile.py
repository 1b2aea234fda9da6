"""Hostile statements, what they reach for, and what they must not get whichever layers stand in their way."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pytest

from backends.base import BackendError
from backends.sql.engine import SqlEngine
from tests.backends.sql.conftest import request

PUBLIC = Path(__file__).parents[4] / "shared" / "data" / "sql_attacks.json"
OURS = Path(__file__).parents[2] / "data" / "sql_spellings.json"
SECRET = "tenant-secret-4711"
TIMEOUT = 0.2
LATE = 0.5
"""Seconds after its deadline in which a statement must be answered."""
BACK = 2.0
"""Seconds in which the worker must be there again."""

# What gets past the guard among the public statements, and what stops it: several where it depends on the machine.
PAST_THE_GUARD = {
    "python replacement scan df": {"engine"},
    "python local list var": {"engine"},
    "list range 1e10": {"engine"},
    "regexp repeat{1000}{..}": {"engine"},
    "repeat string mem": {"memory"},
    "list range 1e9 scalar": {"memory"},
    "repeat 2GB": {"memory"},
    "repeat 400MB": {"memory", "harmless"},
    "printf width": {"memory"},
    "format width": {"memory"},
    "list_sort/transform lambda": {"memory"},
    "grouping cube 20": {"memory", "timeout"},
    "hash_group 100M": {"memory", "timeout"},
    "regex DoS (RE2)": {"harmless"},
    "recursive CTE w/ LIMIT": {"harmless"},
    "range 1e12 stream rows": {"harmless"},
    "factorial/pow": {"harmless"},
    "regexp nested quant x 100k": {"harmless", "timeout"},
    "json deep 100k": {"harmless", "timeout"},
    "sort 50M": {"harmless", "timeout"},
    "cross join count": {"timeout"},
    "cross join sum string": {"timeout"},
    "recursive CTE infinite": {"timeout"},
    "recursive CTE doubling": {"timeout", "memory"},
    "range 1e12 count": {"timeout"},
    "list agg 50M": {"timeout", "memory"},
    "string_agg 100M": {"timeout", "memory"},
    "distinct 100M": {"timeout", "memory"},
    "window 50M": {"timeout", "memory"},
    "unnest explosion": {"timeout"},
    "join-order 25 tables cross": {"timeout", "memory"},
    "jaccard/jaro": {"timeout"},
    "json_structure big": {"timeout", "memory"},
    "map_from huge": {"timeout", "memory"},
    "lpad 1e9": {"process", "memory"},
    "levenshtein 200k^2 scalar": {"process"},
    "levenshtein x rows": {"process"},
    "CTE doubling 2^25": {"process"},
    "AND chain 900": {"process", "harmless"},
    "bit string": {"process", "memory"},
    "array_cross big": {"process", "memory"},
}


@dataclass(frozen=True, slots=True)
class Hostile:
    """A statement, with words in braces for places that it reaches for. `layers`: each of them may stop it."""

    name: str
    sql: str
    reaches: bool
    layers: frozenset[str]

    def text(self, folder: Path) -> str:
        places = {
            "{SECRET_CSV}": "secret/s.csv",
            "{SECRET_PARQUET}": "secret/s.parquet",
            "{OTHER_DB}": "other.duckdb",
            "{EXTENSION}": "x.duckdb_extension",
            "{DIR}": "",
        }
        text = self.sql
        for name, place in places.items():
            text = text.replace(name, str(folder / place))
        return text


def statements() -> list[Hostile]:
    """Those of the public list, where it is at hand, and ours."""
    return [*_public(), *_ours()]


def parameters(found: list[Hostile]) -> list[Any]:
    """One test each; one that says what is missing, where the public list is."""
    why = f"no hostile statements at {PUBLIC}"
    missing = [] if PUBLIC.exists() else [pytest.param(None, id="public list", marks=pytest.mark.skip(reason=why))]
    return [*missing, *(pytest.param(each, id=each.name) for each in found)]


def _public() -> list[Hostile]:
    if not PUBLIC.exists():
        return []
    return [
        Hostile(
            each["name"],
            each["sql"] if each["sql"] is not None else str(eval(each["python"])),
            each["kind"] == "reach",
            frozenset(PAST_THE_GUARD.get(each["name"], {"guard"})),
        )
        for each in json.loads(PUBLIC.read_text())["attacks"]
    ]


def _ours() -> list[Hostile]:
    return [
        Hostile(
            each["name"], each["sql"], each["layer"] in {"guard", "engine", "harmless"}, frozenset({each["layer"]})
        )
        for each in json.loads(OURS.read_text())["spellings"]
    ]


def prepare(folder: Path) -> None:
    """Make what the statements reach for: files, another tenant's database, an extension."""
    (folder / "allowed").mkdir()
    (folder / "secret").mkdir()
    (folder / "allowed" / "ok.csv").write_text(f"a\n{SECRET}\n")
    (folder / "secret" / "s.csv").write_text(f"s\n{SECRET}\n")
    (folder / "x.duckdb_extension").write_text(SECRET)
    with duckdb.connect(str(folder / "other.duckdb")) as connection:
        connection.execute(f"create table tenant_secret as select '{SECRET}' as s")
        connection.execute(f"copy tenant_secret to '{folder}/secret/s.parquet'")


def state(*folders: Path) -> dict[str, tuple[int, int]]:
    """What changes when any file in the folders does."""
    files = [path for folder in folders for path in folder.rglob("*")]
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in files}


async def stopped_by(engine: SqlEngine, sql: str, *, unlimited: bool = False) -> str:
    """Run a statement and say which layer stopped it: engine, memory, timeout, process, or harmless.

    Asserts what holds of every one: no secret, an answer in time, and a worker that answers the next one rightly.
    A machine that is busy can be late by itself, once; a statement that outlives its deadline does so every time.
    """
    for _ in range(3):
        layer, late, away = await _run(engine, sql, unlimited)
        if late < LATE and away < BACK:
            return layer
    raise AssertionError(f"answered {late:.2f} s after its deadline, the worker {away:.2f} s later")


async def _run(engine: SqlEngine, sql: str, unlimited: bool) -> tuple[str, float, float]:
    """The layer, how long after its deadline the answer came, and how long the next one took."""
    worker = engine.pid
    began = time.monotonic()
    try:
        status, body = await _ask(engine, sql=sql, unlimited=unlimited, timeout=TIMEOUT)
    except BackendError as error:
        if error.trouble != "crashed":
            raise
        status, body = 502, {}
    ended = time.monotonic()
    said = json.dumps(body)
    assert SECRET not in said
    assert "root:" not in said
    _, after = await _ask(engine, sql="SELECT COUNT(*), LOWER('A') FROM t", timeout=None)
    away = time.monotonic() - ended
    if after.get("rows") != [[100_000, "a"]]:
        assert after["error"]["code"] == "timeout"  # of a busy machine: it has as little time as any
        away = BACK
    if engine.pid != worker:
        layer = "process"
    elif status == 200:
        layer = "harmless"
    else:
        code = str(body["error"]["code"])
        layer = code if code in {"timeout", "memory"} else "engine"
    return layer, ended - began - TIMEOUT, away


async def _ask(engine: SqlEngine, **body: object) -> tuple[int, Any]:
    async with engine.open(request("/sql/query", orjson.dumps(body))) as reply:
        return reply.status, orjson.loads(b"".join([chunk async for chunk in reply.chunks]))
