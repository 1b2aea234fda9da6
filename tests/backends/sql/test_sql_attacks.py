"""Hostile statements through the whole executor, each with the layer that stops it: the guard, or a real worker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from backends.sql.engine import SqlEngine
from backends.sql.options import SqlOptions
from backends.sql.parser import Parser
from policies.sql import SqlRefused
from tests.backends.sql.hostile import (
    PUBLIC,
    SECRET,
    TIMEOUT,
    Hostile,
    parameters,
    prepare,
    state,
    statements,
    stopped_by,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reach")
    prepare(folder)
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(scratch: Path) -> AsyncIterator[SqlEngine]:
    options = SqlOptions(
        databases={"scratch": str(scratch)}, timeout=TIMEOUT, memory=256 * 2**20, address_space=2**30
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CORTEX_TEST", SECRET)
        engine = SqlEngine(options)
        await engine.start()
        yield engine
        await engine.aclose()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def parser() -> AsyncIterator[Parser]:
    parser = Parser()
    yield parser
    await parser.aclose()


@pytest.mark.parametrize("hostile", parameters(statements()))
async def test_a_hostile_statement_ends_at_its_layer_and_leaves_nothing(
    hostile: Hostile, engine: SqlEngine, parser: Parser, folder: Path, scratch: Path
) -> None:
    before = state(folder, scratch.parent)
    try:
        statement = await parser.read(hostile.text(folder))
    except SqlRefused:
        layer = "guard"
    else:
        layer = await stopped_by(engine, statement.canonical, unlimited=statement.unlimited)
    # Whether it has run out of memory by then, or comes to where it hears an interrupt, is a matter of the machine.
    in_time = {"memory", "timeout", "process"} if hostile.layers & {"memory", "timeout", "process"} else set()
    assert layer in hostile.layers | in_time
    assert state(folder, scratch.parent) == before


async def test_there_are_as_many_hostile_statements_as_were_agreed() -> None:
    found = statements()
    assert len({each.name for each in found}) == len(found)
    assert len(found) == (144 + 80 if PUBLIC.exists() else 80)
