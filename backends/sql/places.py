"""Where the tables of a database lie, and which of them are known by their name alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

import duckdb

_SCHEMAS: Final = """
    SELECT schema_name FROM duckdb_schemas()
    WHERE NOT internal AND database_name = current_database() ORDER BY schema_name
"""

Place = tuple[str, str]
"""A schema and a table in it, as they are spelt in the database."""


def search_path(connection: duckdb.DuckDBPyConnection) -> str:
    """`main` and all other schemas, by name, as the engine's setting of that name has them; empty without others.

    A file that was made from a dump of another system may have all its tables in a schema that nobody's SQL names.
    Raises duckdb.Error.
    """
    others = [schema for (schema,) in connection.execute(_SCHEMAS).fetchall()]
    return ",".join(quoted(schema) for schema in ("main", *others)) if others else ""


def known_by_name(places: Iterable[Place]) -> frozenset[Place]:
    """The tables that need no schema before their name: those in `main`, and those whose name no other schema has."""
    places = set(places)
    named = Counter(table.lower() for _, table in places)
    return frozenset(place for place in places if place[0] == "main" or named[place[1].lower()] == 1)


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
