"""Reading statements in a helper process."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import time

import pytest

from backends.base import BackendError
from backends.sql.parser import WAITING_MOST, Parser
from backends.sql.reading import Reading
from policies.dialects import Known
from policies.sql import SqlRefused, read_statement
from tests.gateway.support import children


async def test_a_statement_read_elsewhere_is_the_same_statement(parser: Parser) -> None:
    await parser.start()
    for text in ("select a, now() from T join s.u using (id)", "select 1 limit 5"):
        assert await parser.read(text) == read_statement(text)
    mysql = await parser.read("select `a`", dialect="mysql")
    assert mysql.canonical == 'SELECT "a"'
    asking = "select a from t where b = ? and c = ?"
    assert await parser.read(asking, parameters=True) == read_statement(asking, parameters=True)


async def test_a_text_is_read_by_the_schema_that_came_with_it_or_with_an_earlier_one(parser: Parser) -> None:
    text = 'SELECT "a", "b", "c"'
    for database, version, columns, canonical in [
        ("one", 1, "a", "SELECT \"a\", 'b', 'c'"),
        ("two", 2, "b", "SELECT 'a', \"b\", 'c'"),
        ("one", 1, "a", "SELECT \"a\", 'b', 'c'"),
        ("one", 3, "bc", 'SELECT \'a\', "b", "c"'),
        ("two", 2, "b", "SELECT 'a', \"b\", 'c'"),
    ]:
        known = Known(database=database, version=version, schema={"t": dict.fromkeys(columns, "VARCHAR")})
        assert (await parser.read(text, "sqlite", known=known)).canonical == canonical
    assert (await parser.read(text, "sqlite")).canonical == text


async def test_refusals_come_back_with_their_code(parser: Parser) -> None:
    for text, code in [
        ("drop table t", "refused"),
        ("select * from (", "syntax"),
        ("select '\ud800'", "syntax"),
        ("x" * 20_001, "too_long"),
        ("select " + "(" * 9000 + "1" + ")" * 9000, "too_complex"),
        ("select " + "not " * 4000 + "true", "too_complex"),
        ("select 1 where " + "case when 1 then " * 900 + "1" + " end" * 900, "too_complex"),
    ]:
        with pytest.raises(SqlRefused) as refused:
            await parser.read(text)
        assert refused.value.code == code
    assert (await parser.read("select 1")).canonical == "SELECT 1"


async def test_a_text_that_takes_too_long_is_refused_and_the_next_is_read(parser: Parser) -> None:
    await parser.start()
    impatient = Parser(timeout=0.001)
    await impatient.start()
    with pytest.raises(SqlRefused) as refused:
        await impatient.read("select " + " or ".join(f"a = {i}" for i in range(1500)))
    assert refused.value.code == "too_complex"
    await impatient.aclose()
    assert (await parser.read("select 1")).canonical == "SELECT 1"


async def test_readers_that_have_left_hold_up_nobody(parser: Parser) -> None:
    await parser.start()
    hostile = "select a" + "[1]" * 6000  # would take minutes
    leaving = [asyncio.create_task(parser.read(hostile)) for _ in range(200)]
    await asyncio.sleep(0)
    for task in leaving:
        task.cancel()
    ends = await asyncio.gather(*leaving, return_exceptions=True)
    assert {type(end) for end in ends} <= {asyncio.CancelledError, BackendError}
    started = time.monotonic()
    assert (await parser.read("select 1")).canonical == "SELECT 1"
    assert time.monotonic() - started < 30  # the one in hand and another process, not 200 times half a second


async def test_when_too_many_wait_the_next_is_told_to_come_again(parser: Parser) -> None:
    await parser.start()
    texts = [f"SELECT {number}" for number in range(WAITING_MOST + 3)]
    ends = await asyncio.gather(*(parser.read(text) for text in texts), return_exceptions=True)
    refusals = [end for end in ends if isinstance(end, BackendError)]
    assert [(error.trouble, error.retryable, error.retry_after) for error in refusals] == [
        ("overloaded", True, 1.0)
    ] * 2
    assert (await parser.read("select 1")).canonical == "SELECT 1"


async def test_a_tenants_hostile_texts_cost_another_tenant_at_most_one_of_them(parser: Parser) -> None:
    await parser.start()
    hostile = [f"select a{number}" + "[1]" * 6000 for number in range(40)]  # each would take minutes
    attack = [asyncio.create_task(parser.read(text, tenant="mallory")) for text in hostile]
    await asyncio.sleep(0)
    started = time.monotonic()
    assert (await parser.read("select 1", tenant="alice")).canonical == "SELECT 1"
    assert time.monotonic() - started < 15  # not 40 times half a second, and as many new processes
    for task in attack:
        task.cancel()
    await asyncio.gather(*attack, return_exceptions=True)


async def test_a_text_that_has_ended_a_process_ends_no_other(parser: Parser) -> None:
    hostile = "select a" + "[1]" * 6000
    pids = []
    for _ in range(2):
        with pytest.raises(SqlRefused, match="too complex"):
            await parser.read(hostile)
        await parser.start()
        pids.append(parser.pid)
    assert pids[0] == pids[1]


async def test_readers_at_the_same_time_each_get_their_own_statement(parser: Parser) -> None:
    texts = [f"SELECT {number}" for number in range(30)]
    statements = await asyncio.gather(*(parser.read(text) for text in texts))
    assert [statement.canonical for statement in statements] == texts


async def test_a_reader_that_leaves_does_not_leave_its_answer_to_the_next(parser: Parser) -> None:
    await parser.start()
    for number in range(20):
        leaving = asyncio.create_task(parser.read(f"select 'left {number}'"))
        await asyncio.sleep(0)
        leaving.cancel()
        assert (await parser.read(f"SELECT {number}")).canonical == f"SELECT {number}"


async def test_a_process_that_died_is_replaced(parser: Parser) -> None:
    await parser.start()
    assert parser.pid is not None
    os.kill(parser.pid, signal.SIGKILL)
    with contextlib.suppress(SqlRefused):  # where the death was not yet seen
        await parser.read("select 1")
    assert (await parser.read("select 1")).canonical == "SELECT 1"


async def test_closing_ends_the_process_and_what_waits_for_it() -> None:
    parser = Parser()
    await parser.start()
    helper = parser.pid
    assert helper is not None
    os.kill(helper, signal.SIGSTOP)  # so that it does not answer first
    reading = asyncio.create_task(parser.read("select 1"))
    await asyncio.sleep(0)
    await parser.aclose()
    await parser.aclose()
    with pytest.raises(BackendError, match="closed"):
        await reading
    assert parser.pid is None
    with pytest.raises(BackendError, match="closed"):
        await parser.read("select 1")
    assert parser.pid is None


def test_the_helper_answers_with_statements_and_refusals() -> None:
    reading = Reading(60.0)
    assert b'"canonical":"SELECT 1"' in reading.handle(b'["select 1", "duckdb", false]')
    assert b'"code":"refused"' in reading.handle(b'["drop table t", "duckdb", false]')
    reading.interrupt()


async def test_where_no_process_can_be_started_the_turn_is_given_on(
    parser: Parser, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_more() -> tuple[int, int]:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr("backends.sql.process.os.pipe", no_more)
        with pytest.raises(BackendError, match="cannot be started"):
            await parser.read("select 1")
    assert (await parser.read("select 1")).canonical == "SELECT 1"


async def test_closing_while_the_process_comes_up_leaves_none() -> None:
    parser = Parser()
    before = children("backends.sql.reading")
    reading = asyncio.create_task(parser.read("select 1"))
    async with asyncio.timeout(20):
        while children("backends.sql.reading") == before:  # noqa: ASYNC110 (another process sets no event here)
            await asyncio.sleep(0)
    await parser.aclose()
    with pytest.raises(BackendError, match="closed"):
        await reading
    assert parser.pid is None
