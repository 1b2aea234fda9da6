"""The two OpenAI endpoints: a call is read, queued, sent and its answer passed on as it comes.

The status is set once the engine has begun to answer; every failure before that has a status of its own, every
one after it ends the stream with one error event and no `[DONE]`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Protocol

from starlette.types import Receive, Scope, Send

from gateway import headers as names
from gateway.ahead import Ahead, Watch
from gateway.answers import Tokens, cut_short, finished, whole_answer
from gateway.asgi import Out, read_body, while_present
from gateway.attempts import Attempt, asked_of_a_pool
from gateway.door import Door
from gateway.intake import Inbound, Intake
from gateway.openai.errors import ApiError, interrupted, timeout
from gateway.openai.payload import Endpoint
from gateway.runtime import Runtime
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
        runtime: Runtime,
        intake: Intake,
        door: Door,
        ahead: Ahead,
        specials: Sequence[tuple[Callable[[Inbound], bool], Special]] = (),
    ) -> None:
        self._config = config
        self._runtime = runtime
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
                    out.said = inbound.asked.reply_headers()
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
        """Answer from one attempt. Returns the last piece of the body, to be sent when nobody watches any more."""
        asked, stream = inbound.asked, inbound.payload.stream
        body = self._intake.upstream_body(inbound)
        request = partial(self._intake.request, asked, inbound.call, inbound.payload.endpoint, body, stream=stream)
        async with asked_of_a_pool(self._runtime, inbound.call, request, stream=stream) as attempt:
            headers = [*names.reply(attempt.headers), *asked.reply_headers(attempt.start)]
            if attempt.rest is not None:
                with self._ahead.passing(inbound) as watch:
                    return await self._stream(attempt, [*headers, ("cache-control", "no-cache")], out, watch)
            whole_answer(attempt)
            await out.begin(attempt.status, [*headers, ("content-length", str(len(attempt.body)))])
            return attempt.body

    async def _stream(self, attempt: Attempt, headers: list[tuple[str, str]], out: Out, watch: Watch) -> bytes:
        tokens = Tokens()
        assert attempt.rest is not None
        await out.begin(attempt.status, headers)
        with cut_short(attempt):
            await _pass_on(attempt.held, tokens, out, watch)
            async for batch in attempt.rest:
                await _pass_on(batch, tokens, out, watch)
            if not tokens.done:
                raise interrupted()
        finished(attempt, tokens)
        watch.release()
        return b""


async def _pass_on(events: list[bytes], tokens: Tokens, out: Out, watch: Watch) -> None:
    """Send a batch of events on. One that is broken is not sent, those before it are."""
    for index, event in enumerate(events):
        try:
            tokens.count(event)
            watch.see(event)
        except ApiError:
            if index:
                await out.write(b"".join(events[:index]))
            raise
    await out.write(b"".join(events))
