"""A database file is replaced again and again while statements run: each sees one version of the data, whole and not
older than the one that stood when it was asked.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections import Counter
from pathlib import Path

import duckdb
import pytest

from gateway.app import create_app
from tests.backends.sql.asked import gateway_over, query

GENERATIONS = 12
QUERIES = 10_000
CLIENTS = 16
BOTH = "SELECT one.version, other.version FROM one JOIN other USING (id) WHERE id % {} = 0 GROUP BY ALL"


@pytest.mark.slow
async def test_no_answer_mixes_two_versions_of_the_data_and_none_is_of_one_that_is_gone(
    tmp_path: Path,
) -> None:
    path = tmp_path / "data.duckdb"
    versions = _versions(tmp_path, GENERATIONS)
    os.replace(versions[0], path)
    gateway = await gateway_over(tmp_path, {"data": path}, workers=2)
    now, answered, kept = 0, itertools.count(1), Counter[str]()
    numbers = iter(range(QUERIES))
    seen: set[int] = set()
    app = create_app(gateway)

    async def client() -> None:
        nonlocal now
        for number in numbers:
            asked_at = now
            document, cache = await query(app, BOTH.format(number % 41 + 1))
            kept[cache] += 1
            [[one, other]] = document["rows"]
            assert one == other, "two versions in one answer"
            assert asked_at <= one <= now, "an answer of a version that had been replaced"
            seen.add(one)
            if next(answered) % (QUERIES // GENERATIONS) == 0 and now + 1 < GENERATIONS:
                os.replace(versions[now + 1], path)
                now += 1

    async with gateway.running():
        await asyncio.gather(*(client() for _ in range(CLIENTS)))
    assert sum(kept.values()) == QUERIES
    assert seen == set(range(GENERATIONS))
    assert kept["hit"] > QUERIES / 2, "most answers came from the cache"
    assert kept["miss"] >= 41 * GENERATIONS, "and each version had to fill it anew"


async def test_an_old_version_that_is_put_back_is_not_answered_from_what_was_kept_of_the_new(
    tmp_path: Path,
) -> None:
    path, aside = tmp_path / "data.duckdb", tmp_path / "aside"
    versions = _versions(tmp_path, 2)
    os.replace(versions[0], path)
    gateway = await gateway_over(tmp_path, {"data": path}, workers=2)
    async with gateway.running():
        app = create_app(gateway)
        for expected, move in [(0, None), (1, (path, aside, versions[1])), (0, (path, versions[1], aside))]:
            if move is not None:
                os.replace(move[0], move[1])
                os.replace(move[2], path)
            for cache in ("miss", "hit"):
                document, came = await query(app, BOTH.format(1))
                assert (document["rows"], came) == ([[expected, expected]], cache)


async def test_nothing_is_said_of_a_database_whose_file_is_gone_until_it_is_back(
    tmp_path: Path,
) -> None:
    path = tmp_path / "data.duckdb"
    versions = _versions(tmp_path, 2)
    os.replace(versions[0], path)
    gateway = await gateway_over(tmp_path, {"data": path}, workers=2)
    async with gateway.running():
        app = create_app(gateway)
        assert (await query(app, BOTH.format(1)))[1] == "miss"
        path.rename(tmp_path / "aside")
        document, _ = await query(app, BOTH.format(1))
        assert document["error"]["message"] == "the database 'data' is not there now"
        os.replace(versions[1], path)
        document, came = await query(app, BOTH.format(1))
        assert (document["rows"], came) == ([[1, 1]], "miss")


def _versions(folder: Path, count: int) -> list[Path]:
    """Files of one schema; two tables of each say in every row which file it is."""
    paths = [folder / f"{number}.new" for number in range(count)]
    for number, path in enumerate(paths):
        with duckdb.connect(str(path)) as connection:
            for table in ("one", "other"):
                connection.execute(
                    f"CREATE TABLE {table} AS SELECT id, {number} AS version FROM range(2000) AS r(id)"
                )
    return paths
