"""SQL tool calls that the gateway runs itself: held back, run in the SQL pool, and the conversation continued.

The client sees one message: what the turns said, in order, under one id, with their usage added up. The outcome
of a tool selects the stage, and so the pool, of the next turn. A turn passes whole and unexecuted where one of its
calls is not the gateway's to run, and where no outcome could be continued; where the outcome that came is one whose
stage has reached its bound, the turn passes whole though its statements, which change nothing, have been run.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from gateway import headers as names
from gateway import toolruns
from gateway.ahead import Ahead, Watch, sql_stage
from gateway.answers import Tokens, as_event, message_of, refusal_of
from gateway.asgi import Out
from gateway.completions import Completions
from gateway.directory import Target
from gateway.intake import Asked, Inbound, Intake
from gateway.keepalive import check_begun
from gateway.openai import sse
from gateway.openai.errors import interrupted
from gateway.openai.payload import parse
from gateway.openai.prompt import text_of
from gateway.openai.splice import edit
from gateway.runtime import Runtime
from gateway.settings import Config
from gateway.toolcalls import run_call
from gateway.tools import Desk
from gateway.verdicts import Answer
from policies.calls import Fate, Outcome
from policies.workflow import Workflow

TURNS_MOST = 16
"""Turns of one request, whatever the loop bounds of its stages say."""
CALLS_MOST = 16
"""Tool calls of one turn that are run: they run side by side, and one client must not fill the queue by one turn."""
_ENDS: tuple[Fate, ...] = ("ok", "error", "empty", "timeout")

Json = dict[str, Any]


@dataclass(slots=True)
class Turn:
    """One answer of a model: its message, and what has not gone out yet (a whole body, or held events)."""

    message: Json
    status: int
    headers: list[tuple[str, str]]
    body: bytes = b""
    whole: sse.Assembler = field(default_factory=sse.Assembler)
    held: list[Json] = field(default_factory=list)


@dataclass(slots=True)
class Talk:
    """One request's turns so far: the conversation, where it stands, what was said and used."""

    inbound: Inbound
    visits: Counter[str] = field(default_factory=Counter)
    turns: int = 0
    id: object = None
    said: list[str] = field(default_factory=list)
    tokens: Tokens = field(default_factory=Tokens)
    ran: list[Json] = field(default_factory=list)
    """The tool calls that were run, as the client is told of them."""
    passed: str = ""
    """Why calls of our own tools reach the client after all, where they do."""


class Intercept:
    """Answers chat calls whose SQL tools are the gateway's to run."""

    def __init__(
        self,
        *,
        config: Config,
        runtime: Runtime,
        completions: Completions,
        intake: Intake,
        desk: Desk,
        ahead: Ahead,
        graphs: Mapping[str, Workflow],
    ) -> None:
        self._config = config
        self._runtime = runtime
        self._completions = completions
        self._intake = intake
        self._desk = desk
        self._ahead = ahead
        self._graphs = graphs

    def applies(self, inbound: Inbound) -> bool:
        """Whether this call offers a tool that is to be intercepted."""
        return inbound.payload.endpoint == "chat" and inbound.payload.n == 1 and bool(self._ours(inbound))

    async def __call__(self, inbound: Inbound, out: Out) -> bytes:
        # The run ends with the last turn, and nobody knows before which one that is.
        talk = Talk(replace(inbound, asked=_going_on(inbound.asked), call=replace(inbound.call, final=False)))
        talk.visits[inbound.call.stage] = 1
        last = await self._go(talk, out)
        if inbound.call.final:
            here = talk.inbound.call
            end = self._intake.end_of_run(inbound.asked, here.pool, stage=here.stage)
            if self._runtime.dispatcher.runs.under_way(end):  # else its last call was the end of it
                self._runtime.recalled(end, Outcome(fate="ok", source="cache"))
        return last

    async def _go(self, talk: Talk, out: Out) -> bytes:
        """Turn after turn; returns the last piece of the reply."""
        while True:
            bound = self._bound(talk)
            with self._ahead.watch(talk.inbound, frozenset() if bound else self._ours(talk.inbound)) as watch:
                turn = await self._turn(talk, out, watch)
                calls = turn.message.get("tool_calls") or []
                if not self._are_ours(talk, calls, bound):
                    return await self._end(talk, turn, out)
                answers = await self._run(talk, calls, out)
            stage = self._after(talk, next((answer.fate for answer in answers if answer.fate != "ok"), "ok"))
            talk.passed = self._full(talk, stage)
            if talk.passed:
                return await self._end(talk, turn, out)
            self._continue(talk, stage, turn.message, answers)

    def _are_ours(self, talk: Talk, calls: list[object], bound: str) -> bool:
        """Whether these calls are the gateway's to run, and some outcome of theirs can be continued."""
        ours, called = self._ours(talk.inbound), [_name(call) for call in calls]
        if ours.isdisjoint(called):
            return False
        if not ours.issuperset(called):
            talk.passed = "the turn has other calls too, which are not the gateway's to run"
        elif len(calls) > CALLS_MOST:
            talk.passed = f"the turn has more than {CALLS_MOST} calls"
        else:
            talk.passed = bound
        return not talk.passed

    def _bound(self, talk: Talk) -> str:
        """Why the conversation cannot go on after tools of the gateway's, whatever comes of them; empty where it can,
        for all that is known."""
        if talk.turns >= TURNS_MOST:
            return f"a request has {TURNS_MOST} turns at most"
        tool = sql_stage(self._graphs, talk.inbound)
        if tool is not None and (full := self._full(talk, tool.name)):
            return full
        ends = [self._full(talk, self._after(talk, fate)) for fate in _ENDS]
        return ends[0] if all(ends) else ""

    async def _run(self, talk: Talk, calls: list[Json], out: Out) -> list[Answer]:
        """Run the calls side by side; their answers in order. Where one gets none (ApiError), the others end too."""
        asked, tool = talk.inbound.asked, sql_stage(self._graphs, talk.inbound)
        stage, database = "execute", None
        if tool is not None:
            stage, database = tool.name, self._config.workflows[asked.identity.workflow].stages[tool.name].database
            talk.visits[stage] += 1

        async def run(function: Json) -> tuple[Answer, Json]:
            began, wanted = self._runtime.now(), (function["name"], function["arguments"])
            answer = await run_call(self._desk, asked, *wanted, stage=stage, database=database)
            return answer, toolruns.told(function, answer, self._runtime.now() - began)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(run(call["function"])) for call in calls]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None  # as a single call would have failed
        news = [task.result()[1] for task in tasks]
        talk.ran += news
        if out.started:
            await out.write(b"".join(map(toolruns.comment, news)))
        return [task.result()[0] for task in tasks]

    def _ours(self, inbound: Inbound) -> frozenset[str]:
        """The offered tools that the gateway runs for this call; none where there is no database to run them in."""
        if not self._desk.databases:
            return frozenset()
        identity = inbound.asked.identity
        workflow = self._config.workflows.get(identity.workflow)
        modes = workflow.tools if workflow is not None else {}
        return frozenset(
            name
            for name in inbound.payload.tools
            if name in ("execute_sql", "describe_tables")
            and (identity.tools or modes.get(name, "pass")) == "intercept"
        )

    def _after(self, talk: Talk, fate: Fate) -> str:
        """Where the conversation goes on when its tools end like this."""
        here = talk.inbound.call.stage
        graph = self._graphs.get(talk.inbound.asked.identity.workflow)
        if graph is None:
            return here
        tool = sql_stage(self._graphs, talk.inbound)
        after = graph.following(tool.name, fate) if tool is not None else None
        return after if after is not None and graph.stages[after].kind == "llm" else here

    def _full(self, talk: Talk, stage: str) -> str:
        """Why a stage cannot be entered again; empty where it can."""
        graph = self._graphs.get(talk.inbound.asked.identity.workflow)
        if graph is None or stage not in graph.stages:
            return ""  # only TURNS_MOST is known to bound it
        most = graph.stages[stage].visits
        return f"the stage {stage!r} is entered {most} times at most (visits)" if talk.visits[stage] >= most else ""

    def _continue(self, talk: Talk, stage: str, message: Json, answers: list[Answer]) -> None:
        """Make the next turn's call: the conversation with the tool calls and their answers appended."""
        inbound = talk.inbound
        talk.visits[stage] += 1
        if not inbound.payload.stream:
            talk.said.append(text_of(message.get("content")))
        results = [
            {"role": "tool", "tool_call_id": call["id"], "content": answer.body.decode()}
            for call, answer in zip(message["tool_calls"], answers, strict=True)
        ]
        messages = [*inbound.payload.messages, message, *results]
        payload = parse(edit(inbound.payload.body, {"messages": messages}), endpoint="chat")
        known = self._config.workflows.get(inbound.asked.identity.workflow)
        spec = known.stages.get(stage) if known is not None else None
        target = inbound.target
        if spec is not None and spec.pool is not None:
            target = Target(spec.pool, self._config.pools[spec.pool].model or target.model)
        call = self._intake.llm_call(inbound.asked, payload, target.pool, stage=stage)
        talk.inbound = replace(inbound, payload=payload, target=target, call=call)

    async def _turn(self, talk: Talk, out: Out, watch: Watch) -> Turn:
        """One call to a model. What it says goes out as it comes, what it calls is held."""
        inbound = talk.inbound
        body = self._intake.upstream_body(inbound)
        talk.turns += 1
        async with self._completions.ask(inbound.asked, inbound.call, inbound.payload, body) as found:
            turn = Turn({}, found.status, found.reply_headers(inbound.asked), found.body)
            if found.events is not None:
                if not out.started:
                    await out.begin(turn.status, [*turn.headers, ("cache-control", "no-cache")])
                async for batch in found.events:
                    for event in batch:
                        await self._take(talk, turn, event, out, watch)
                turn.message = turn.whole.message()
            talk.tokens.add(found.tokens)
        if found.events is None and turn.status == 200:
            check_begun(out, found)
            turn.message = message_of(turn.body)
        elif turn.status != 200 and out.started:
            raise interrupted(f"the engine refused to go on: {refusal_of(turn.body)}")
        return turn

    async def _take(self, talk: Talk, turn: Turn, event: bytes, out: Out, watch: Watch) -> None:
        """Take in one event of a turn: its text goes out at once, under the id of the first turn."""
        turn.whole.add(event)
        chunk = sse.chunk_of(event) or {}
        match chunk.get("choices"):
            case [dict() as choice, *_]:
                talk.id = chunk["id"] = talk.id or chunk.get("id")
            case _:
                return
        delta = choice["delta"] = choice["delta"] if isinstance(choice.get("delta"), dict) else {}
        watch.take(delta.get("tool_calls"))
        if talk.turns > 1:
            delta.pop("role", None)
        if delta.get("tool_calls") or choice.get("finish_reason"):
            if said := delta.pop("content", None):
                text = {**choice, "delta": {"content": said}, "finish_reason": None}
                await out.write(as_event({**chunk, "choices": [text]}))
            turn.held.append(chunk)
        elif delta:
            await out.write(as_event(chunk))

    async def _end(self, talk: Talk, turn: Turn, out: Out) -> bytes:
        """Let the last turn out, whatever it holds; returns the last piece of the reply."""
        first = talk.inbound.payload
        if not out.started:
            body = turn.body
            if turn.status == 200 and talk.turns > 1:
                body = _merged(talk, turn)
            if turn.status == 200 and (talk.ran or talk.passed):
                body = edit(body, {"cortex": toolruns.summary(talk.ran, talk.passed)})
            ran = names.written("reply", {"tools_run": str(len(talk.ran) or "")})
            await out.begin(turn.status, [*turn.headers, *ran, ("content-length", str(len(body)))])
            return body
        last = toolruns.comment({"passed": talk.passed}) if talk.passed else b""
        last += b"".join(map(as_event, turn.held))
        if first.include_usage and turn.held:
            last += as_event({**turn.held[-1], "choices": [], "usage": talk.tokens.usage()})
        return last + sse.DONE


def _merged(talk: Talk, turn: Turn) -> bytes:
    """The last turn's reply with what earlier turns said before it, their id and all their usage."""
    document: Json = orjson.loads(turn.body)
    talk.id = talk.id or document.get("id")
    said = [*talk.said, text_of(turn.message.get("content"))]
    message = {**turn.message, "content": "".join(said) or None}
    document["choices"][0]["message"] = message
    return orjson.dumps({**document, "id": talk.id, "usage": talk.tokens.usage()})


def _going_on(asked: Asked) -> Asked:
    return replace(asked, identity=replace(asked.identity, final=False))


def _name(call: object) -> str:
    """The function that a tool call names; empty where the call is not formed so that it could be run."""
    match call:
        case {"id": str(ident), "function": {"name": str(name), "arguments": str()}} if ident:
            return name
        case _:
            return ""
