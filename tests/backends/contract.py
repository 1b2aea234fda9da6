"""What every engine owes its caller, whatever it does: tests for whoever has a fixture `case`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import orjson
import pytest

from backends.base import BackendError, Engine, Request
from policies.calls import Call


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """An engine, a request that it answers soon, one that takes it long, and the end of what stands behind it."""

    engine: Engine
    quick: Request
    long: Request
    end: Callable[[], Awaitable[None]]


def asks(path: str, **members: object) -> Request:
    call = Call(id="c", pool="p", run="r", arrived=0.0)
    headers = (("content-type", "application/json"),)
    body = orjson.dumps(members)
    return Request(call=call, path=path, body=body, headers=headers, head_timeout=20, idle_timeout=20)


async def ask(engine: Engine, request: Request) -> tuple[int, dict[str, str], bytes]:
    async with engine.open(request) as reply:
        body = b"".join([chunk async for chunk in reply.chunks])
    return reply.status, {name.lower(): value for name, value in reply.headers}, body


async def test_an_answer_has_a_status_headers_and_a_body_that_comes_in_pieces(case: Case) -> None:
    for _ in range(3):
        status, headers, body = await ask(case.engine, case.quick)
        assert (status, headers["content-type"]) == (200, "application/json")
        assert isinstance(orjson.loads(body), dict)


async def test_what_is_wrong_with_a_request_is_an_answer_and_no_failure(case: Case) -> None:
    nonsense = asks(case.quick.path, model=5, sql=5)
    status, _, body = await ask(case.engine, nonsense)
    assert status == 400
    assert orjson.loads(body)["error"]["message"]


async def test_an_answer_from_given_texts_is_one_of_them_and_may_be_a_call(case: Case) -> None:
    asked = orjson.loads(case.quick.body)
    if "messages" not in asked:
        pytest.skip("an engine that speaks no language")
    call = '<tool_call>{"name": "look", "arguments": {"at": "%s"}}</tool_call>'
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    plain = asked | {"structured_outputs": {"choice": ["this", "that"]}, "max_tokens": 200}
    calling = plain | {"structured_outputs": {"choice": [call % "this", call % "that"]}, "tools": tools}
    said = []
    for body in (plain, calling):
        status, _, answer = await ask(case.engine, replace(case.quick, body=orjson.dumps(body)))
        assert status == 200
        said.append(orjson.loads(answer)["choices"][0])
    assert [one["finish_reason"] for one in said] == ["stop", "tool_calls"]
    assert said[0]["message"]["content"] in {"this", "that"}
    called = said[1]["message"]["tool_calls"][0]["function"]
    assert called["name"] == "look"
    assert orjson.loads(called["arguments"]) in [{"at": "this"}, {"at": "that"}]


async def test_an_answer_that_nobody_reads_leaves_the_engine_fit_for_the_next(case: Case) -> None:
    async with case.engine.open(case.quick) as reply:
        assert reply.status == 200
    assert (await ask(case.engine, case.quick))[0] == 200


async def test_whoever_leaves_early_stops_the_work(case: Case) -> None:
    asking = asyncio.create_task(ask(case.engine, case.long))
    await reported(case.engine, running=1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await reported(case.engine, running=0)
    assert (await ask(case.engine, case.quick))[0] == 200


async def test_a_report_counts_what_was_done(case: Case) -> None:
    before = (await case.engine.report()).counters
    await ask(case.engine, case.quick)
    report = await case.engine.report()
    assert (report.running, report.waiting) == (0, 0)
    assert 0.0 <= report.kv_use <= 1.0
    assert set(before) <= set(report.counters)
    assert any(report.counters[name] > before.get(name, 0) for name in report.counters)


async def test_an_engine_with_nothing_behind_it_fails_in_a_way_that_may_be_tried_elsewhere(case: Case) -> None:
    await case.end()
    with pytest.raises(BackendError) as caught:
        await ask(case.engine, case.quick)
    assert (caught.value.trouble, caught.value.retryable) == ("refused", True)
    with pytest.raises(BackendError) as unheard:
        await case.engine.report()
    for error in (caught.value, unheard.value):
        assert "127.0.0.1" not in str(error)
        assert "/" not in str(error)


async def test_closing_twice_is_as_good_as_once(case: Case) -> None:
    await case.engine.aclose()
    await case.engine.aclose()


async def reported(engine: Engine, *, running: int) -> None:
    """Wait until the engine says that so many requests run in it."""
    until = time.monotonic() + 10
    while True:
        try:
            if (await engine.report()).running == running:
                return
        except BackendError:
            pass
        assert time.monotonic() < until
        await asyncio.sleep(0.01)
