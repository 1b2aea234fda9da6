"""Makes the sample warehouse, a DuckDB file, by running `database.sql`."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from pathlib import Path

import duckdb

_SQL = Path(__file__).with_name("database.sql")


def make(path: Path, *, seed: int = 7) -> None:
    """Write the warehouse to `path`, unless it is there already with this seed and the present `database.sql`.

    The file appears whole or not at all: a reader never sees a half-made one, and two makers do not disturb each
    other.
    """
    script = _SQL.read_text(encoding="utf-8")
    edition = hashlib.sha256(f"{seed}\n{script}".encode()).hexdigest()[:16]
    if path.exists() and _edition(path) == edition:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        fresh = Path(folder) / path.name
        with duckdb.connect(str(fresh)) as connection:
            connection.execute(f"SET VARIABLE seed = {seed:d}")
            connection.execute(script)
            # A macro, because it travels in the file and yet is no table that a reader would be told of.
            connection.execute(f"CREATE MACRO edition() AS '{edition}'")
        os.replace(fresh, path)


def _edition(path: Path) -> str | None:
    """What `make` recorded in the file; None when it is not a file of ours, or not a database at all."""
    try:
        with duckdb.connect(str(path), read_only=True) as connection:
            row = connection.execute("SELECT edition()").fetchone()
    except duckdb.Error:
        return None
    return None if row is None else str(row[0])


def main(arguments: list[str]) -> int:
    """`python -m examples.nl2sql.database PATH`."""
    if len(arguments) != 1:
        print("usage: python -m examples.nl2sql.database PATH", file=sys.stderr)
        return 2
    make(Path(arguments[0]))
    print(arguments[0])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
