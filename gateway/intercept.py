"""SQL tool calls that the gateway runs itself: held back, run in the SQL pool, and the conversation continued.

The client sees one message: what the turns said, in order, under one id, with their usage added up. The outcome
of a tool selects the stage, and so the pool, of the next turn. A turn that calls a tool of the client's too, or
that comes after the loop bound, passes whole and unexecuted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from backends.base import Request
from gateway import headers as names
from gateway.answers import (
    Tokens,
    as_event,
    cut_short,
    finished,
    message_of,
    refusal_of,
    usage,
    whole_answer,
)
from gateway.asgi import Out
from gateway.attempts import Attempt, begun
from gateway.directory import Target
from gateway.intake import Asked, Inbound, Intake
from gateway.openai import sse
from gateway.openai.errors import interrupted
from gateway.openai.payload import parse
from gateway.openai.splice import edit
from gateway.runtime import Runtime, Ticket
from gateway.settings import Config
from gateway.tools import Answer, Desk
from policies.calls import Fate, Outcome
from policies.events import Start
from policies.workflow import Workflow

TURNS_MOST = 16
"""Turns of one request, whatever the loop bounds of its stages say."""

Json = dict[str, Any]


@dataclass(slots=True)
class Turn:
    """One answer of a model: its message, and what has not gone out yet (a whole body, or held events)."""

    message: Json
    status: int
    headers: list[tuple[str, str]]
    body: bytes = b""
    tokens: Tokens = field(default_factory=Tokens)
    whole: sse.Assembler = field(default_factory=sse.Assembler)
    held: list[Json] = field(default_factory=list)


@dataclass(slots=True)
class Talk:
    """One request's turns so far: the conversation, where it stands, what was said and used."""

    inbound: Inbound
    visits: dict[str, int] = field(default_factory=dict)
    turns: int = 0
    id: object = None
    said: list[str] = field(default_factory=list)
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0

    def add(self, tokens: Tokens) -> None:
        self.prompt_tokens += tokens.prompt
        self.output_tokens += tokens.output
        self.cached_tokens += tokens.cached or 0

    def usage(self) -> Json:
        return usage(self.prompt_tokens, self.output_tokens, self.cached_tokens)


class Intercept:
    """Answers chat calls whose SQL tools are the gateway's to run."""

    def __init__(
        self, *, config: Config, runtime: Runtime, intake: Intake, desk: Desk, graphs: Mapping[str, Workflow]
    ) -> None:
        self._config = config
        self._runtime = runtime
        self._intake = intake
        self._desk = desk
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
            self._runtime.recalled(end, Outcome(fate="ok", source="cache"))
        return last

    async def _go(self, talk: Talk, out: Out) -> bytes:
        """Turn after turn; returns the last piece of the reply."""
        while True:
            turn = await self._turn(talk, out)
            calls = turn.message.get("tool_calls") or []
            ours = self._ours(talk.inbound)
            if not calls or any(_name(call) not in ours for call in calls) or talk.turns >= TURNS_MOST:
                return await self._end(talk, turn, out)
            answers = [await self._run(talk, call) for call in calls]
            stage = self._next_stage(talk, answers)
            if stage is None:
                return await self._end(talk, turn, out)
            self._continue(talk, stage, turn.message, answers)

    async def _run(self, talk: Talk, call: Json) -> Answer:
        workflow, stage = self._graphs.get(talk.inbound.asked.identity.workflow), talk.inbound.call.stage
        tool_stage = workflow.following(stage, "ok") if workflow is not None else None
        known = self._config.workflows[workflow.name].stages.get(tool_stage or "") if workflow is not None else None
        sql_stage = tool_stage if known is not None and known.kind == "sql" and tool_stage else "execute"
        database = known.database if known is not None else None
        function = call["function"]
        return await self._desk.call(
            talk.inbound.asked, function["name"], function["arguments"], stage=sql_stage, database=database
        )

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

    def _next_stage(self, talk: Talk, answers: list[Answer]) -> str | None:
        """Where the conversation goes on; None when the stage's loop bound is reached."""
        here = talk.inbound.call.stage
        graph = self._graphs.get(talk.inbound.asked.identity.workflow)
        fate: Fate = next((answer.fate for answer in answers if answer.fate != "ok"), "ok")
        stage, bound = here, TURNS_MOST
        if graph is not None and here in graph.stages:
            tool = graph.following(here, "ok")
            after = graph.following(tool, fate) if tool is not None else None
            if after is not None and graph.stages[after].kind == "llm":
                stage = after
            bound = graph.stages[stage].visits
        talk.visits[stage] = talk.visits.get(stage, 0) + 1
        return stage if talk.visits[stage] <= bound else None

    def _continue(self, talk: Talk, stage: str, message: Json, answers: list[Answer]) -> None:
        """Make the next turn's call: the conversation with the tool calls and their answers appended."""
        inbound = talk.inbound
        if not inbound.payload.stream:
            talk.said.append(message.get("content") or "")
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

    async def _turn(self, talk: Talk, out: Out) -> Turn:
        """One call to a model. What it says goes out as it comes, what it calls is held."""
        inbound, stream = talk.inbound, talk.inbound.payload.stream
        body = self._intake.upstream_body(inbound)
        talk.turns += 1

        def request(start: Start) -> Request:
            return self._intake.request(inbound.asked, inbound.call, "chat", body, start, stream=stream)

        async with (
            self._runtime.ticket(inbound.call) as ticket,
            begun(self._runtime, ticket, request, stream=stream) as attempt,
        ):
            headers = [*names.reply(attempt.headers), *inbound.asked.reply_headers(attempt.start)]
            if attempt.rest is not None:
                return await self._streamed(talk, ticket, attempt, headers, out)
            tokens = whole_answer(self._runtime, ticket, attempt)
        talk.add(tokens)
        if attempt.status != 200 and out.started:
            raise interrupted(f"the engine refused to go on: {refusal_of(attempt.body)}")
        message = message_of(attempt.body) if attempt.status == 200 else {}
        return Turn(message, attempt.status, headers, attempt.body)

    async def _streamed(
        self, talk: Talk, ticket: Ticket, attempt: Attempt, headers: list[tuple[str, str]], out: Out
    ) -> Turn:
        assert attempt.rest is not None
        turn = Turn({}, attempt.status, headers)
        if not out.started:
            await out.begin(attempt.status, [*headers, ("cache-control", "no-cache")])
        with cut_short(ticket, attempt):
            for event in attempt.held:
                await self._take(talk, turn, event, out)
            async for batch in attempt.rest:
                for event in batch:
                    await self._take(talk, turn, event, out)
            if not turn.tokens.done:
                raise interrupted()
        finished(self._runtime, ticket, attempt, turn.tokens)
        talk.add(turn.tokens)
        turn.message = turn.whole.message()
        return turn

    async def _take(self, talk: Talk, turn: Turn, event: bytes, out: Out) -> None:
        """Take in one event of a turn: its text goes out at once, under the id of the first turn."""
        turn.tokens.count(event)
        turn.whole.add(event)
        chunk = sse.chunk_of(event)
        if chunk is None or not chunk.get("choices"):
            return
        talk.id = chunk["id"] = talk.id or chunk.get("id")
        choice = chunk["choices"][0]
        delta = choice.get("delta") or {}
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
            body = _merged(talk, turn) if turn.status == 200 and talk.turns > 1 else turn.body
            await out.begin(turn.status, [*turn.headers, ("content-length", str(len(body)))])
            return body
        last = b"".join(map(as_event, turn.held))
        if first.include_usage and turn.held:
            last += as_event({**turn.held[-1], "choices": [], "usage": talk.usage()})
        return last + sse.DONE


def _merged(talk: Talk, turn: Turn) -> bytes:
    """The last turn's reply with what earlier turns said before it, their id and all their usage."""
    document: Json = orjson.loads(turn.body)
    talk.id = talk.id or document.get("id")
    said = [*talk.said, turn.message.get("content") or ""]
    message = {**turn.message, "content": "".join(said) or None}
    document["choices"][0]["message"] = message
    return orjson.dumps({**document, "id": talk.id, "usage": talk.usage()})


def _going_on(asked: Asked) -> Asked:
    return replace(asked, identity=replace(asked.identity, final=False))


def _name(call: object) -> str:
    """The function that a tool call names; empty where the call is not formed so that it could be run."""
    match call:
        case {"id": str(), "function": {"name": str(name), "arguments": str()}}:
            return name
        case _:
            return ""
