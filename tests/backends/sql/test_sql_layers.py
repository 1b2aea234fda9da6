"""With a layer switched off, or two, the others hold: no file, no change, an answer in time and a worker after it.

The parent's kill is never off: without it nothing stops a statement that the engine does not interrupt.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from backends.sql.engine import SqlEngine
from backends.sql.options import LAYERS, SqlOptions
from policies.sql import read_statement
from tests.backends.sql.hostile import SECRET, TIMEOUT, Hostile, parameters, prepare, state, statements, stopped_by

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

EVERYTHING = statements()
PAST_THE_GUARD = [each for each in EVERYTHING if "guard" not in each.layers]
REACHING = [each for each in EVERYTHING if each.reaches]
LONG = [each for each in PAST_THE_GUARD if "timeout" in each.layers]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reach")
    prepare(folder)
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(scratch: Path, request: pytest.FixtureRequest) -> AsyncIterator[SqlEngine]:
    """A worker without the layer that the test names."""
    options = SqlOptions(
        databases={"scratch": str(scratch)},
        timeout=TIMEOUT,
        memory=256 * 2**20,
        address_space=2**30,
        layers=LAYERS - {request.param},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CORTEX_TEST", SECRET)
        engine = SqlEngine(options)
        await engine.start()
        yield engine
        await engine.aclose()


@pytest.mark.parametrize("engine", ["engine", "limits", "sandbox"], indirect=True, scope="module")
@pytest.mark.parametrize("hostile", parameters(PAST_THE_GUARD))
async def test_what_passes_the_guard_is_held_by_the_layers_that_are_left(
    hostile: Hostile, engine: SqlEngine, folder: Path, scratch: Path
) -> None:
    before = state(folder, scratch.parent)
    statement = read_statement(hostile.text(folder))
    await stopped_by(engine, statement.canonical, unlimited=statement.unlimited)
    assert state(folder, scratch.parent) == before


@pytest.mark.parametrize("engine", ["timeout"], indirect=True, scope="module")
@pytest.mark.parametrize("hostile", parameters(LONG[::2]))
async def test_without_the_timeout_a_long_statement_is_killed_in_time(
    hostile: Hostile, engine: SqlEngine, folder: Path
) -> None:
    statement = read_statement(hostile.text(folder))
    layer = await stopped_by(engine, statement.canonical, unlimited=statement.unlimited)
    assert layer in {"process", "memory", "harmless"}


@pytest.mark.parametrize("engine", ["none"], indirect=True, scope="module")
@pytest.mark.parametrize("hostile", parameters(EVERYTHING))
async def test_without_the_guard_the_worker_holds_alone(
    hostile: Hostile, engine: SqlEngine, folder: Path, scratch: Path
) -> None:
    before = state(folder, scratch.parent)
    await stopped_by(engine, hostile.text(folder))
    assert state(folder, scratch.parent) == before


@pytest.mark.parametrize("engine", ["engine", "sandbox"], indirect=True, scope="module")
@pytest.mark.parametrize("hostile", parameters(REACHING))
async def test_without_the_guard_and_one_layer_more_no_file_is_reached(
    hostile: Hostile, engine: SqlEngine, folder: Path, scratch: Path
) -> None:
    before = state(folder, scratch.parent)
    await stopped_by(engine, hostile.text(folder))
    assert state(folder, scratch.parent) == before
