"""A model's answer, and how an engine is had to compute one for a call: queued, sent, read off as it comes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from types import TracebackType

from backends.base import Request
from gateway import headers as names
from gateway.answers import Tokens, cut_short, finished, whole_answer
from gateway.attempts import Attempt, begun
from gateway.intake import Asked
from gateway.judging import Judge
from gateway.linking import Listener
from gateway.openai.errors import ApiError, interrupted
from gateway.runtime import Runtime
from policies.calls import Call, Fate, Outcome, Source
from policies.events import Start

Read = Callable[[], Awaitable[Call]]
Wasted = Callable[[str, int], None]
"""Is told of a pool how many tokens one of its engines has written in vain."""


@dataclass(slots=True, kw_only=True)
class Completion:
    """An answer that has begun: whole in `body`, or as `events`, which are there a batch after the other.

    `cache` says where it comes from: `hit`, `joined`, `miss`; nothing where nobody looked. `start` is there where an
    engine was asked for this very call. `tokens`, `seconds`, what it took the engine, and the `verdict`, where its
    stage has one, are known at its end.
    """

    status: int
    headers: tuple[tuple[str, str], ...]
    start: Start | None = None
    cache: str = ""
    body: bytes = b""
    events: AsyncIterator[list[bytes]] | None = None
    tokens: Tokens = field(default_factory=Tokens)
    seconds: float = 0.0
    verdict: Fate | None = None

    def reply_headers(self, asked: Asked) -> list[tuple[str, str]]:
        """The headers of the reply that passes it on."""
        return [*names.reply(self.headers), *asked.reply_headers(self.start, cache=self.cache)]

    def outcome(self, source: Source) -> Outcome:
        """How a call ended that was given this answer without an engine."""
        return Outcome(fate="ok" if self.status == 200 else "error", source=source, verdict=self.verdict)


class Computed:
    """An answer from an engine. A class: generators cost a short call more than all that they do here."""

    def __init__(
        self,
        runtime: Runtime,
        call: Call,
        request: Callable[[Start], Request],
        *,
        stream: bool,
        wasted: Wasted,
        read: Read | None = None,
        judge: Judge | None = None,
        listener: Listener | None = None,
    ) -> None:
        """`read` makes of the call what is known once its prompt has been read; `wasted` is told of a stream that
        nobody reads to its end; `judge` and `listener` hear the answer."""
        self._runtime = runtime
        self._wasted = wasted
        self._open = runtime.ticket(call)
        self._read = read
        self._judge = judge
        self._listener = listener
        self._request = request
        self._stream = stream
        self._begun: AbstractAsyncContextManager[Attempt] | None = None
        self._events: AsyncGenerator[list[bytes], None] | None = None
        self._streamed: tuple[Attempt, Tokens] | None = None

    async def __aenter__(self) -> Completion:
        if self._read is not None:
            self._open = self._runtime.ticket(await self._read())
        ticket = await self._open.__aenter__()
        opened = begun(self._runtime, ticket, self._request, stream=self._stream)
        try:
            attempt = await opened.__aenter__()
            self._begun = opened
            return self._found(attempt)
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._streamed is not None:
                self._given_up(*self._streamed)
            if self._events is not None:
                await self._events.aclose()
            if self._begun is not None:
                await self._begun.__aexit__(kind, error, trace)
        finally:
            if self._listener is not None:
                self._listener.close()
            await self._open.__aexit__(kind, error, trace)

    def _given_up(self, attempt: Attempt, tokens: Tokens) -> None:
        """Count what was written of a stream whose end has not come, nor an error in its place.

        A client that leaves with the last event in hand, before the engine closes the stream, has had its answer.
        """
        if attempt.ticket.over:
            return
        if tokens.done:
            finished(attempt, tokens, verdict=self._judge.verdict if self._judge is not None else None)
        else:
            self._wasted(attempt.start.engine.rpartition("/")[0], tokens.output or tokens.events)

    def _found(self, attempt: Attempt) -> Completion:
        found = Completion(status=attempt.status, headers=attempt.headers, start=attempt.start, body=attempt.body)
        if attempt.rest is None:
            found.tokens, found.verdict = whole_answer(attempt, self._judge, self._listener)
            found.seconds = self._runtime.now() - attempt.began
        else:
            found.events = self._events = _live(found, attempt, attempt.rest, self._judge, self._listener)
            self._streamed = attempt, found.tokens
        return found


async def _live(
    found: Completion,
    attempt: Attempt,
    rest: AsyncIterator[list[bytes]],
    judge: Judge | None,
    listener: Listener | None,
) -> AsyncGenerator[list[bytes], None]:
    """An engine's events as they come; reports their end. One that is broken does not come, those before it do."""
    tokens = found.tokens
    batch: list[bytes] | None = attempt.held
    with cut_short(attempt):
        while batch is not None:
            for index, event in enumerate(batch):
                try:
                    chunk = tokens.count(event)
                    if judge is not None:
                        judge.chunk(chunk)
                    if listener is not None:
                        listener.chunk(chunk)
                except ApiError:
                    if index:
                        yield batch[:index]
                    raise
            yield batch
            batch = await anext(rest, None)
        if not tokens.done:
            raise interrupted()
    found.seconds = attempt.ticket.runtime.now() - attempt.began
    found.verdict = judge.verdict if judge is not None else None
    finished(attempt, tokens, verdict=found.verdict)
