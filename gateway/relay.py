"""The two OpenAI endpoints: a call is read, queued, sent and its answer passed on as it comes.

The status is set once the engine has begun to answer; every failure before that has a status of its own, every
one after it ends the stream with one error event and no `[DONE]`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from starlette.types import Receive, Scope, Send

from gateway.ahead import Ahead
from gateway.asgi import Out, read_body, while_present
from gateway.completions import Completions
from gateway.door import Door
from gateway.intake import Inbound, Intake
from gateway.openai.errors import timeout
from gateway.openai.payload import Endpoint
from gateway.settings import Config


class Special(Protocol):
    """Another way of answering than to relay: a walked workflow, intercepted tools."""

    async def __call__(self, inbound: Inbound, out: Out) -> bytes:
        """Answer; returns the last piece of the body, to be sent when nobody watches for a leaving client."""
        ...


class Relay:
    """Serves `/v1/chat/completions` and `/v1/completions`."""

    def __init__(
        self,
        *,
        config: Config,
        completions: Completions,
        intake: Intake,
        door: Door,
        ahead: Ahead,
        specials: Sequence[tuple[Callable[[Inbound], bool], Special]] = (),
    ) -> None:
        self._config = config
        self._completions = completions
        self._intake = intake
        self._door = door
        self._ahead = ahead
        self._specials = specials

    def endpoint(self, kind: Endpoint) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
        """The ASGI application for one of the two paths."""

        async def application(scope: Scope, receive: Receive, send: Send) -> None:
            async def serve(out: Out) -> None:
                body = await read_body(scope, receive, most=self._config.server.max_body)
                with self._door.holding(body):
                    inbound = self._intake.inbound(scope, body, kind)
                    out.said = inbound.asked.reply_headers
                    await self._answer(inbound, receive, out)

            await self._door(kind, Out(send), serve)

        return application

    async def _answer(self, inbound: Inbound, receive: Receive, out: Out) -> None:
        total = self._config.timeouts.total
        last = b""
        async with while_present(receive):
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
            if found.events is None:
                await out.begin(found.status, [*headers, ("content-length", str(len(found.body)))])
                return found.body
            with self._ahead.passing(inbound) as watch:
                await out.begin(found.status, [*headers, ("cache-control", "no-cache")])
                async for batch in found.events:
                    for event in batch:
                        watch.see(event)
                    await out.write(b"".join(batch))
                watch.release()
            return b""
