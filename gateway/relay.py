"""The endpoints of models: a call is read, queued, sent and its answer passed on as it comes.

The status is set once the engine has begun to answer; every failure before that has a status of its own, every
one after it ends the stream with one error event and no `[DONE]`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from typing import Protocol

from starlette.types import Receive, Scope, Send

from gateway.ahead import Ahead
from gateway.asgi import Out, read_body, while_present
from gateway.completions import Completions
from gateway.computing import Completion
from gateway.door import Door
from gateway.intake import Inbound, Intake
from gateway.keepalive import check_begun, kept_alive
from gateway.openai.errors import timeout
from gateway.openai.payload import Endpoint
from gateway.responses import Made, Responses
from gateway.settings import Config
from gateway.surfaces.catalog import PATHS
from gateway.surfaces.wording import wording_of

BEGINNING = 3
"""Events among which the one is that names a response: comments may come before it."""


class Special(Protocol):
    """Another way of answering than to relay: a walked workflow, intercepted tools."""

    async def __call__(self, inbound: Inbound, out: Out) -> bytes:
        """Answer; returns the last piece of the body, to be sent when nobody watches for a leaving client."""
        ...


class Relay:
    """Serves every surface of the catalog."""

    def __init__(
        self,
        *,
        config: Config,
        completions: Completions,
        intake: Intake,
        door: Door,
        ahead: Ahead,
        responses: Responses,
        specials: Sequence[tuple[Callable[[Inbound], bool], Special]] = (),
    ) -> None:
        self._config = config
        self._completions = completions
        self._intake = intake
        self._door = door
        self._ahead = ahead
        self._responses = responses
        self._specials = specials

    def endpoint(self, kind: Endpoint) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
        """The ASGI application for one surface."""

        async def application(scope: Scope, receive: Receive, send: Send) -> None:
            async def serve(out: Out) -> None:
                body = await read_body(scope, receive, most=self._config.server.max_body)
                with self._door.holding(body):
                    inbound = self._intake.inbound(scope, body, kind)
                    out.said = inbound.asked.reply_headers
                    await self._answer(inbound, receive, out)

            await self._door(kind, Out(send, wording_of(PATHS[kind])), serve)

        return application

    async def _answer(self, inbound: Inbound, receive: Receive, out: Out) -> None:
        total = self._config.timeouts.total
        last = b""
        async with while_present(receive), self._kept_alive(inbound, out):
            try:
                async with asyncio.timeout(total):
                    special = next((serve for applies, serve in self._specials if applies(inbound)), None)
                    last = await (special or self._relay)(inbound, out)
            except TimeoutError:
                raise timeout(f"the call took longer than {total:g} s", code="deadline_exceeded") from None
        if out.started:
            await out.end(last)

    async def _relay(self, inbound: Inbound, out: Out) -> bytes:
        """Answer with one completion. Returns the last piece of the body, to be sent when nobody watches any more."""
        asked, body = inbound.asked, self._intake.upstream_body(inbound)
        async with self._completions.ask(asked, inbound.call, inbound.payload, body) as found:
            headers = found.reply_headers(asked)
            note = self._noted(inbound, found)
            if found.events is None:
                check_begun(out, found)
                note(found.body)
                await out.begin(found.status, [*headers, ("content-length", str(len(found.body)))])
                return found.body
            with self._ahead.passing(inbound) as watch:
                if not out.started:
                    await out.begin(found.status, [*headers, ("cache-control", "no-cache")])
                async for batch in found.events:
                    for event in batch:
                        watch.see(event)
                    if out.events < BEGINNING:
                        for event in batch:
                            note(event)
                    out.events += len(batch)
                    await out.write(b"".join(batch))
                watch.release()
            return b""

    def _kept_alive(self, inbound: Inbound, out: Out) -> AbstractAsyncContextManager[None]:
        every = self._config.server.keep_alive
        return nullcontext() if every is None or not inbound.payload.stream else kept_alive(out, every)

    def _noted(self, inbound: Inbound, found: Completion) -> Callable[[bytes], None]:
        """What remembers who made a response, once its body is there or its first event."""
        if inbound.payload.endpoint != "responses" or found.start is None or found.status != 200:
            return _not_noted
        made = Made(found.start.engine, inbound.call.run)
        note = self._responses.note_body if found.events is None else self._responses.note_event
        return partial(note, inbound.call.tenant, made)


def _not_noted(_: bytes) -> None:
    """Answers of the other surfaces have no life of their own."""
