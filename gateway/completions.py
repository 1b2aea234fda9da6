"""A model's answers, from wherever they come: an engine, memory, Redis, or another call that is being answered now.

What is the same whenever it is computed (temperature 0, or a seed) is computed once, where its stage says so. The
answer then belongs to nobody: it is read off the engine as long as one of those who asked reads it, whoever began.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Protocol

import orjson

from backends.artifacts.tiers import Artifacts
from backends.flights import Flight, Flights
from gateway.answers import Tokens
from gateway.computing import Completion, Computed, Read
from gateway.intake import Asked, Intake
from gateway.judging import Judge
from gateway.openai import sse
from gateway.openai.errors import ApiError, interrupted
from gateway.openai.payload import Payload
from gateway.openai.splice import values
from gateway.recall import REFUSALS
from gateway.residency import Residence
from gateway.runtime import Runtime
from gateway.settings import Config
from gateway.tape import Tape
from policies.artifacts import Artifact, Head, Name
from policies.calls import Call

SCOPE: Final = "completions"
"""No topic of agentic state has a scope of this name: no client comes by what is kept here, or puts it there."""
KEPT: Final = frozenset(("chat", "completions"))
"""Surfaces whose prompts and answers are understood well enough to be looked up."""
FORMAT: Final = 1
"""Of what is kept: a gateway of another version that shares a Redis must not take it for its own."""
SILENT: Final = frozenset(
    (
        *("user", "metadata", "store", "safety_identifier", "prompt_cache_key"),  # whose call it is, and its records
        *("cache_salt", "priority", "request_id"),  # how it is computed
    )
)
"""Members of a body that change nothing in the answer."""
BROKEN_OFF: Final = frozenset(("abort", "error"))
"""Reasons to finish that an engine gives for an answer that has not come to its end."""


class Counts(Protocol):
    """What the metrics hear of it."""

    def completion_looked_up(self, pool: str, cache: str) -> None: ...

    def completion_saved(self, pool: str, seconds: float) -> None: ...

    def completion_wasted(self, pool: str, tokens: int) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wish:
    """A call, what is to be sent for it, and what the answer is kept as, for so many seconds."""

    asked: Asked
    call: Call
    payload: Payload
    body: bytes
    name: Name
    lifetime: float


@dataclass(frozen=True, slots=True)
class _Flying:
    """An answer that is being computed: the id of the call that began it, and what has come of it so far."""

    leader: str
    tape: Tape[Completion]


class Completions:
    """Answers the calls to models."""

    def __init__(
        self,
        *,
        config: Config,
        runtime: Runtime,
        intake: Intake,
        artifacts: Artifacts,
        counts: Counts,
        residence: Residence | None = None,
    ) -> None:
        self._lifetimes = {
            (workflow, name): stage.recall
            for workflow, one in config.workflows.items()
            for name, stage in one.stages.items()
            if stage.recall is not None
        }
        self._outcomes = {
            (workflow, name): stage.outcomes
            for workflow, one in config.workflows.items()
            for name, stage in one.stages.items()
            if stage.outcomes
        }
        self._most = config.state.value
        self._patience = config.timeouts.idle
        self._runtime = runtime
        self._intake = intake
        self._artifacts = artifacts
        self._counts = counts
        self._residence = residence
        self._flights = Flights[Name, None, _Flying]()

    def ask(self, asked: Asked, call: Call, payload: Payload, body: bytes) -> AbstractAsyncContextManager[Completion]:
        """The answer to a call, once it has begun; `body` is what an engine is to get. Raises ApiError.

        What of it comes later is read in the block: leaving it says that nobody reads any more.
        """
        found = self._asked(asked, call, payload, body)
        return found if asked.allowance is None else asked.allowance.charged(found, call.prompt_tokens)

    def _asked(
        self, asked: Asked, call: Call, payload: Payload, body: bytes
    ) -> AbstractAsyncContextManager[Completion]:
        """From wherever it may come."""
        lifetime = self._lifetimes.get((call.workflow, call.stage))
        if lifetime is None or payload.endpoint not in KEPT or not deterministic(payload):
            return self._computed(asked, call, payload, body)
        name = Name(call.tenant, (SCOPE, call.pool), _key(payload, body))
        return self._recalled(_Wish(asked=asked, call=call, payload=payload, body=body, name=name, lifetime=lifetime))

    def _computed(
        self, asked: Asked, call: Call, payload: Payload, body: bytes
    ) -> AbstractAsyncContextManager[Completion]:
        """From an engine, for this call."""
        request = partial(self._intake.request, asked, call, payload.endpoint, body, stream=payload.stream)
        read: Read | None = None
        if self._residence is not None and payload.endpoint in KEPT:
            read = partial(self._residence.read, call, payload, self._intake.salt(asked, payload, call.pool))
        return Computed(
            self._runtime,
            call,
            request,
            stream=payload.stream,
            wasted=self._counts.completion_wasted,
            read=read,
            judge=self._judge(call),
            listener=self._intake.listener(asked, call),
        )

    def _judge(self, call: Call) -> Judge | None:
        """Who says what the answer means for the call's run, where its stage says how."""
        outcomes = self._outcomes.get((call.workflow, call.stage))
        return Judge(outcomes) if outcomes is not None else None

    @asynccontextmanager
    async def _recalled(self, wish: _Wish) -> AsyncIterator[Completion]:
        """From wherever it is to be had."""
        async with AsyncExitStack() as stack:
            found = await self._found(wish, stack)
            self._counts.completion_looked_up(wish.call.pool, found.cache)
            yield found

    async def _found(self, wish: _Wish, stack: AsyncExitStack) -> Completion:
        """The answer, which is read while the stack stands."""
        flight = self._flight(wish.name)
        if flight is None:
            if (kept := await self._artifact(wish.name)) is not None:
                return self._kept(wish, kept)
            flight = self._flight(wish.name)  # it may have begun while Redis was asked
        if flight is not None:
            async with AsyncExitStack() as joined:
                found = await self._joined(wish, flight, joined)
                if found is not None:
                    stack.push_async_exit(joined.pop_all())
                    return found
        return await self._begun(wish, stack)

    def _flight(self, name: Name) -> Flight[None, _Flying] | None:
        """The one that can still be read from its first event on."""
        flight = self._flights.get(name)
        return flight if flight is not None and flight.about.tape.whole else None

    async def _artifact(self, name: Name) -> Artifact | None:
        got = await self._artifacts.get(name)
        if got is not None:
            return got.artifact
        return await self._artifacts.memory.get(name)  # it may have been computed while Redis was asked

    def _kept(self, wish: _Wish, artifact: Artifact) -> Completion:
        """What was kept, as it was when it was computed."""
        line, _, text = artifact.value.partition(b"\n")
        head = artifact.head
        found = Completion(status=200, headers=(("content-type", head.type),), cache="hit", seconds=head.cost)
        found.tokens, judge = Tokens(**orjson.loads(line)), self._judge(wish.call)
        if wish.payload.stream:
            events = _events(text)
            found.events = _at_once(events)
            found.verdict = judge.events(events) if judge is not None else None
            self._heard(wish, events, b"")
        else:
            found.body = text
            found.verdict = judge.whole(orjson.loads(text)) if judge is not None else None
            self._heard(wish, (), text)
        self._runtime.recalled(wish.call, found.outcome("cache"))
        self._counts.completion_saved(wish.call.pool, found.seconds)
        return found

    async def _begun(self, wish: _Wish, stack: AsyncExitStack) -> Completion:
        """What this call begins, and others may join."""
        tape = Tape[Completion](self._most, self._patience)
        flight = self._flights.begin(wish.name, _Flying(wish.call.id, tape), self._fly(wish, tape))
        stack.enter_context(self._flights.aboard(wish.name, flight))
        events = await stack.enter_async_context(tape.reading())
        head = await tape.head()
        return replace(head, cache="miss", events=None if head.events is None else events)

    async def _joined(self, wish: _Wish, flight: Flight[None, _Flying], stack: AsyncExitStack) -> Completion | None:
        """What another call has begun, from its first event on. None where that one was refused, by the gateway or by
        its engine: it may have been for a member that this one has not, so this one goes on by its own right."""
        tape = flight.about.tape
        events = await stack.enter_async_context(tape.reading())
        ticket = await stack.enter_async_context(self._runtime.follow(wish.call, flight.about.leader))
        stack.enter_context(self._flights.aboard(wish.name, flight))
        try:
            head = await tape.head()
        except ApiError as error:
            if error.code not in REFUSALS:  # what broke the leader's would break this one too
                raise
            return None
        if head.status != 200:
            return None

        def done() -> None:
            self._heard(wish, tape.events, head.body)
            ticket.finished(None, head.outcome("joined"))
            self._counts.completion_saved(wish.call.pool, head.seconds)

        found = replace(head, start=None, cache="joined")
        if head.events is None:
            done()
        else:
            found.events = await stack.enter_async_context(aclosing(_then(events, done)))
        return found

    def _heard(self, wish: _Wish, events: Iterable[bytes], body: bytes) -> None:
        """Have an answer that was computed for another call listened to for this one, too."""
        listener = self._intake.listener(wish.asked, wish.call)
        if listener is not None:
            listener.at_once(events, body)

    async def _fly(self, wish: _Wish, tape: Tape[Completion]) -> None:
        """Compute an answer for all who read it, and keep it before they know its end."""
        try:
            async with self._computed(wish.asked, wish.call, wish.payload, wish.body) as found:
                tape.begin(found)
                ends = _Ends(wish.payload.choices)
                if found.events is not None:
                    async for batch in found.events:
                        for event in batch:
                            ends.see(sse.chunk_of(event))
                        await tape.add(batch)
                elif found.status == 200:
                    ends.see(orjson.loads(found.body))
                if ends.all and tape.whole:
                    await self._keep(wish, found, b"".join(tape.events) or found.body)
            tape.end()
        except ApiError as error:
            tape.end(error)
        finally:
            tape.end(interrupted())

    async def _keep(self, wish: _Wish, found: Completion, text: bytes) -> None:
        """Keep an answer that is whole, unless it is too large."""
        if len(text) > self._most:
            return
        value = orjson.dumps(found.tokens) + b"\n" + text
        now = self._artifacts.now()
        head = Head(
            name=wish.name,
            size=len(value),
            type=next(value for name, value in found.headers if name.lower() == "content-type"),
            producer=wish.call.stage,
            cost=found.seconds,
            made=now,
            expires=now + wish.lifetime,
        )
        await self._artifacts.keep(Artifact(head, value))


class _Ends:
    """Which choices of an answer have begun and which of them have ended, of so many that were asked for."""

    def __init__(self, asked: int) -> None:
        self._asked = asked
        self._ended: dict[object, bool] = {}

    def see(self, chunk: object) -> None:
        """Look at an event's data, or at a whole answer."""
        match chunk:
            case {"choices": [*choices]}:
                for choice in choices:
                    match choice:
                        case {"index": int(index), **rest}:
                            reason = rest.get("finish_reason")
                            ended = isinstance(reason, str) and reason not in BROKEN_OFF
                            self._ended[index] = self._ended.get(index, False) or ended

    @property
    def all(self) -> bool:
        """Whether all are there, and each has ended."""
        return len(self._ended) == self._asked and all(self._ended.values())


def deterministic(payload: Payload) -> bool:
    """Whether a body asks for the same answer each time it is sent."""
    return payload.temperature == 0 or payload.seed is not None


def _key(payload: Payload, body: bytes) -> str:
    """What is asked. The order of the members says nothing; the order within each does: prompts are made of it."""
    said = sorted((name, value) for name, value in values(body).items() if name not in SILENT)
    return hashlib.blake2b(orjson.dumps([FORMAT, payload.endpoint, said])).hexdigest()


def _events(text: bytes) -> list[bytes]:
    """The events that were kept."""
    cut = sse.Events()
    return [event for event in (*cut.feed(text), cut.rest()) if event]


async def _at_once(events: list[bytes]) -> AsyncIterator[list[bytes]]:
    yield events


async def _then(events: AsyncIterator[list[bytes]], done: Callable[[], None]) -> AsyncGenerator[list[bytes], None]:
    """Events, and something to be done when they have come to their end."""
    async for batch in events:
        yield batch
    done()
