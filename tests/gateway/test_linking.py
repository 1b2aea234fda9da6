"""Clients that say nothing of themselves: their calls are linked through a whole gateway, on every surface."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from backends.emulated.options import EmulatedOptions
from backends.emulated.server import serve
from tests.gateway.recorder import Exchange, recording
from tests.gateway.support import CHAT, MODEL, Running, attached, chat, metric, running, settled, until, written

FAST = EmulatedOptions(time_scale=1000.0)
SYSTEM = "You are a careful analyst of flights. Answer with one statement of SQL and nothing else."
FIXER = "You mend statements of SQL that a database has refused. Answer with the statement alone."
GRAPH = [{"from": "start", "to": "generate"}, {"from": "generate", "to": "fix"}]
SQL = "SELECT carrier, COUNT(*) AS flights FROM flights WHERE origin = 'AMS' GROUP BY carrier ORDER BY flights DESC"


@asynccontextmanager
async def gateway(folder: Path, **sections: Any) -> AsyncIterator[Running]:
    async with serve(FAST) as server:
        text = written({"default": attached(server.url)}, **sections)
        async with running(folder, text, report_every=60) as up:
            yield up
            await settled(up.gateway, server)


def asks(system: str, *said: str) -> list[dict[str, Any]]:
    """A conversation: what the user says and what it was answered, in turns."""
    turns = [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(said)]
    return [{"role": "system", "content": system}, *turns]


async def say(up: Running, messages: list[dict[str, Any]], *, path: str = CHAT, **headers: str) -> httpx.Response:
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    reply = await up.http.post(path, json={"model": MODEL, "messages": messages}, headers=headers)
    assert reply.status_code == 200, reply.text
    return reply


def run(reply: httpx.Response) -> str:
    return reply.headers["x-workflow-id"]


def stage(reply: httpx.Response) -> str:
    return reply.headers["x-workflow-stage"]


def answer(reply: httpx.Response) -> str:
    content: str = reply.json()["choices"][0]["message"]["content"]
    return content


async def test_a_conversation_that_goes_on_is_one_run_and_another_is_another(tmp_path: Path) -> None:
    async with gateway(tmp_path) as up:
        first = await say(up, asks(SYSTEM, "How many flights left Amsterdam in May? <<echo:Let me see.>>"))
        other = await say(up, asks(SYSTEM, "Which carrier is late most often? <<echo:One moment.>>"))
        more = "How many flights left Amsterdam in May? <<echo:Let me see.>>", answer(first), "And in June?"
        second = await say(up, asks(SYSTEM, *more))
        assert run(second) == run(first) != run(other)
        assert stage(first) == stage(second) == stage(other) != ""
        assert first.headers["x-workflow-source"] == "inferred"
        assert metric(up.gateway, "cortex_identity_total", source="inferred") == 3


async def test_a_prompt_that_quotes_what_a_run_has_said_is_of_that_run_at_a_stage_of_its_own(tmp_path: Path) -> None:
    async with gateway(tmp_path) as up:
        others = [await say(up, asks(SYSTEM, f"Question {n}: <<echo:SELECT {n} AS it_is_{n}>>")) for n in range(12)]
        made = await say(up, asks(SYSTEM, f"Flights from Amsterdam by carrier? <<echo:{SQL}>>"))
        fixed = await say(up, asks(FIXER, f"The database refused this:\n```sql\n{SQL}\n```\nno such column: carrier"))
        assert answer(made) == SQL
        assert run(fixed) == run(made)
        assert run(fixed) not in map(run, others)
        assert stage(fixed) != stage(made)
        assert len(set(map(run, others))) == 12


RESPONSES = "/v1/responses"


@pytest.mark.parametrize("stream", [False, True])
async def test_other_surfaces_are_understood_alike(tmp_path: Path, stream: bool) -> None:
    async with gateway(tmp_path) as up:
        words = "What is the longest route? <<echo:It is the one to Sydney.>>"
        chain = {"input": [{"role": "user", "content": words}], "instructions": SYSTEM, "stream": stream}
        first = await up.http.post(RESPONSES, json={"model": MODEL, **chain})
        said = {"role": "assistant", "content": [{"type": "output_text", "text": "It is the one to Sydney."}]}
        chain["input"] = [
            {"role": "user", "content": words},
            {"type": "message", **said},
            {"role": "user", "content": "?"},
        ]
        second = await up.http.post(RESPONSES, json={"model": MODEL, **chain})
        assert run(first) == run(second)

        ask: dict[str, Any] = {
            "messages": [{"role": "user", "content": f"Tell me. {words}"}],
            "max_tokens": 50,
            "system": SYSTEM,
        }
        third = await up.http.post("/v1/messages", json={"model": MODEL, "stream": stream, **ask})
        ask["messages"] += [{"role": "assistant", "content": [{"type": "text", "text": "It is the one to Sydney."}]}]
        ask["messages"] += [{"role": "user", "content": [{"type": "text", "text": "Sure?"}]}]
        fourth = await up.http.post("/v1/messages", json={"model": MODEL, "stream": stream, **ask})
        assert run(third) == run(fourth) != run(first)


async def test_tenants_are_never_joined(tmp_path: Path) -> None:
    keys = [{"tenant": name, "key": f"key-of-{name}"} for name in ("alice", "bob")]
    async with gateway(tmp_path, auth={"keys": keys}) as up:
        words = "A question that nobody else would ever ask in these words <<echo:An answer like no other one.>>"
        alices = await say(up, asks(SYSTEM, words), authorization="Bearer key-of-alice")
        bobs = await say(up, asks(SYSTEM, words, answer(alices), "Go on."), authorization="Bearer key-of-bob")
        again = await say(up, asks(SYSTEM, words, answer(alices), "Go on."), authorization="Bearer key-of-alice")
        assert run(alices) == run(again) != run(bobs)


async def test_what_a_client_names_stays_and_what_it_leaves_open_is_inferred(tmp_path: Path) -> None:
    workflow = {"nl2sql": {"stages": {"generate": {}, "fix": {}}, "edges": GRAPH}}
    async with gateway(tmp_path, workflows=workflow) as up:
        at_generate, at_fix = f"/w/nl2sql/s/generate{CHAT}", f"/w/nl2sql/s/fix{CHAT}"
        for number in range(12):
            await say(up, asks(SYSTEM, f"Question {number}: <<echo:SELECT {number} AS it_is>>"), path=at_generate)
        made = await say(up, asks(SYSTEM, f"Flights by carrier? <<echo:{SQL}>>"), path=at_generate)
        fixed = await say(up, asks(FIXER, f"Refused:\n{SQL}\nno such column"), path=at_fix)
        assert run(made) == run(fixed)
        assert (stage(made), stage(fixed), made.headers["x-workflow-source"]) == ("generate", "fix", "path")
        named = await say(up, asks(FIXER, f"Refused:\n{SQL}\nno such column"), x_workflow_id="mine")
        assert run(named) == "mine"
        assert stage(named).startswith("stage-")
        claude = await say(up, asks(FIXER, "Again."), x_claude_code_session_id="11111111-2222-3333-4444-555555555555")
        assert (run(claude), stage(claude)) == ("11111111-2222-3333-4444-555555555555", stage(named))
        assert claude.headers["x-workflow-source"] == "claude-code"


async def test_a_trace_holds_calls_together_and_a_new_one_does_not_part_them(tmp_path: Path) -> None:
    def trace(number: int) -> str:
        return f"00-{number:032x}-00f067aa0ba902b7-01"

    async with gateway(tmp_path) as up:
        words = "Where does the flight go? <<echo:To the far north.>>"
        first = await say(up, asks(SYSTEM, words), traceparent=trace(1))
        unlike = await say(up, asks(FIXER, "Nothing that was said before"), traceparent=trace(1))
        onward = await say(up, asks(SYSTEM, words, answer(first), "How far?"), traceparent=trace(2))
        other = await say(up, asks(SYSTEM, "Something else entirely, of another run"), traceparent=trace(3))
        assert run(first) == run(unlike) == run(onward) != run(other)


async def test_it_can_be_switched_off(tmp_path: Path) -> None:
    async with gateway(tmp_path, inference={"enabled": False}) as up:
        first = await say(up, asks(SYSTEM, "Why? <<echo:Because.>>"))
        second = await say(up, asks(SYSTEM, "Why? <<echo:Because.>>", "Because.", "Why?"))
        assert run(first) != run(second)
        assert first.headers["x-workflow-source"] == "none"


async def test_a_flood_of_the_same_question_is_refused_like_a_flood_of_others(tmp_path: Path) -> None:
    go = asyncio.Event()

    async def late(exchange: Exchange) -> None:
        await go.wait()
        await exchange.whole(b'{"choices": []}')

    async with recording(late) as engine:
        text = written({"default": attached(engine.url, sequences=1)}, limits={"queue_calls": 3})
        async with running(tmp_path, text, report_every=60) as up:
            asking = [asyncio.create_task(up.http.post(CHAT, json=chat("the same"))) for _ in range(20)]
            await until(lambda: sum(task.done() for task in asking) == 16, "what is too much to be refused")
            go.set()
            statuses = [reply.status_code for reply in await asyncio.gather(*asking)]
            assert (statuses.count(429), statuses.count(200)) == (16, 4)
            await settled(up.gateway)


async def test_an_answer_that_was_known_already_is_gone_on_from_too(tmp_path: Path) -> None:
    workflow = {"any": {"stages": {"ask": {"recall": "1h"}}, "edges": [{"from": "start", "to": "ask"}]}}
    async with gateway(tmp_path, workflows=workflow) as up:
        messages = asks(SYSTEM, "How far is it? <<echo:A thousand miles.>>")
        body = {"model": MODEL, "messages": messages, "temperature": 0}
        path = f"/w/any/s/ask{CHAT}"
        first = await up.http.post(path, json=body)
        known = await up.http.post(path, json=body)
        assert (first.headers["x-workflow-cache"], known.headers["x-workflow-cache"]) == ("miss", "hit")
        more = asks(SYSTEM, "How far is it? <<echo:A thousand miles.>>", "A thousand miles.", "And back?")
        onward = [run(await say(up, more, path=path)) for _ in range(2)]
        assert set(onward) <= {run(first), run(known)}


async def test_a_client_that_leaves_leaves_nothing_behind(tmp_path: Path) -> None:
    async with recording() as engine:

        async def silent(exchange: Exchange) -> None:
            await exchange.left()

        engine.answer = silent
        async with running(tmp_path, written({"default": attached(engine.url)}), report_every=60) as up:
            asking = asyncio.create_task(up.http.post(CHAT, json=chat("hello")))
            await until(lambda: len(engine.seen) == 1, "the call")
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            await settled(up.gateway)
            assert len(up.gateway.runtime.dispatcher.runs) == 0


async def test_a_run_ends_when_its_client_says_so_whoever_named_it(tmp_path: Path) -> None:
    async with gateway(tmp_path) as up:
        tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
        body = {"model": MODEL, "messages": asks(SYSTEM, "Where to?"), "tools": tools}
        assert (await up.http.post(CHAT, json=body)).status_code == 200
        assert len(up.gateway.runtime.dispatcher.runs) == 1, "an agent: more will follow"
        body["messages"] = asks(FIXER, "Something else")
        assert (await up.http.post(CHAT, json=body, headers={"X-Workflow-Final": "true"})).status_code == 200
        assert len(up.gateway.runtime.dispatcher.runs) == 1
