"""One call's attempts: sends it where the dispatcher says, until an engine has begun to answer.

Chooses no engine. What fails before the first content goes back to the dispatcher, which names another engine or
gives up; from the first content on an attempt is final. Roles and blank deltas are held back until then, so that
a stream can still be started elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType

from backends.base import BackendError, Reply, Request, Trouble
from gateway import headers as names
from gateway.openai import sse
from gateway.openai.errors import ApiError, EngineSaid, broken, refused, timeout, unavailable
from gateway.runtime import RefusedCall, Runtime, Ticket
from policies.calls import Fate, Outcome
from policies.events import Start

REST_MOST = 24 * 3600.0
"""Seconds that an engine can want to rest."""
_SECONDS = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?")
BODY_MOST = 64 * 1024 * 1024
"""Bytes of a whole reply that are held; no honest engine answers more at once."""
PIECES = "application/x-sql-pieces"
"""A SQL worker's answer that comes bit by bit: `rest` has each piece as it came, `stream` asked for or not."""


@dataclass(slots=True, kw_only=True)
class Attempt:
    """An engine that has begun to answer: with `body` whole, or with `held` events and more to come in `rest`."""

    ticket: Ticket
    start: Start
    status: int
    headers: tuple[tuple[str, str], ...]
    began: float
    first_content: float
    body: bytes = b""
    held: list[bytes] = field(default_factory=list)
    rest: AsyncIterator[list[bytes]] | None = None

    def outcome(
        self, now: float, *, fate: Fate, prompt: int, output: int, cached: int | None, verdict: Fate | None = None
    ) -> Outcome:
        """The attempt as the scheduler learns from it; tokens as the engine counted them."""
        return Outcome(
            fate=fate,
            queued=self.start.queued,
            first_token=self.first_content - self.began,
            total=now - self.began,
            prompt_tokens=prompt,
            output_tokens=output,
            cached_tokens=cached,
            verdict=verdict,
        )


def begun(
    runtime: Runtime, ticket: Ticket, request: Callable[[Start], Request], *, stream: bool
) -> AbstractAsyncContextManager[Attempt]:
    """The attempt that an engine has taken up. Raises ApiError when none does.

    The block must report the end by `ticket.finished` or `ticket.failed`; leaving it earlier aborts the attempt.
    """
    return _Begun(runtime, ticket, request, stream=stream)


class _Begun:
    """A class: generators cost a short call more than all that they do here."""

    def __init__(
        self, runtime: Runtime, ticket: Ticket, request: Callable[[Start], Request], *, stream: bool
    ) -> None:
        self._runtime = runtime
        self._ticket = ticket
        self._request = request
        self._stream = stream
        self._opened: AbstractAsyncContextManager[Reply] | None = None

    async def __aenter__(self) -> Attempt:
        ticket = self._ticket
        last: BackendError | None = None
        while True:
            try:
                start = await ticket.start()
            except RefusedCall as refusal:
                raise explained(refusal, last) from last
            try:
                attempt = await self._begin(start)
            except BackendError as error:
                last = error
            else:
                if ticket.call.kind == "llm":  # rows have no prefill
                    ticket.first_token(start.attempt)
                return attempt
            ticket.failed(start.attempt, last.trouble, final=not last.retryable, rest=last.retry_after)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        assert self._opened is not None
        return await self._opened.__aexit__(kind, error, trace)

    async def _begin(self, start: Start) -> Attempt:
        runtime = self._runtime
        engine = runtime.engines.get(start.engine)
        if engine is None:
            raise BackendError("the engine has gone", trouble="refused", retryable=True)
        began = runtime.now()
        request = self._request(start)
        opened = engine.open(request)
        reply = await opened.__aenter__()
        try:
            await judge(reply, request)
            rest, held, body = await _taken(reply, stream=self._stream)
            runtime.heard[start.engine] = runtime.now()
            if reply.status == 200:
                runtime.warming.see(request, start.visit)
        except BaseException as error:
            await opened.__aexit__(type(error), error, error.__traceback__)
            raise
        self._opened = opened
        return Attempt(
            ticket=self._ticket,
            start=start,
            status=reply.status,
            headers=reply.headers,
            began=began,
            first_content=runtime.now(),
            body=body,
            held=held,
            rest=rest,
        )


async def _taken(reply: Reply, *, stream: bool) -> tuple[AsyncIterator[list[bytes]] | None, list[bytes], bytes]:
    """What is still to come, what came before the first content and with it, and the body of a whole reply."""
    kind = _header(reply, "content-type")
    if reply.status == 200 and kind == PIECES:
        return _pieces(reply), [], b""
    if stream and reply.status == 200:
        if not kind.startswith("text/event-stream"):
            raise BackendError("the engine did not answer with a stream", trouble="broken", retryable=False)
        rest = _events(reply)
        return rest, await _until_content(rest), b""
    if reply.status == 200 and not kind.startswith("application/json"):
        raise BackendError("the engine did not answer with JSON", trouble="broken", retryable=False)
    return None, [], await whole(reply)


class Declined(BackendError):
    """An engine has answered, and not the call: where no other engine takes it, its own words are the answer."""

    def __init__(self, message: str, reply: Reply, body: bytes, *, trouble: Trouble, retryable: bool) -> None:
        super().__init__(message, trouble=trouble, retryable=retryable, retry_after=_retry_after(reply))
        self.words: EngineSaid | None = None
        if _header(reply, "content-type").startswith("application/json"):
            dropped = {"content-type"}
            again = []
            if reply.status in (429, 503) and self.retry_after is None:
                dropped.add("retry-after")  # it is not there, or means nothing
                again.append(("Retry-After", "1"))
            kept = [(name, value) for name, value in names.reply(reply.headers) if name.lower() not in dropped]
            self.words = EngineSaid(message, reply.status, [*kept, *again], body)


async def judge(reply: Reply, request: Request) -> None:
    """Raise BackendError for a status that says nothing of the call itself. What is wrong with the call (4xx), and
    a statement that took too long (504 of a SQL worker), is an answer, and goes to the client as it is."""
    status = reply.status
    if status in (429, 503):
        body = await whole(reply)
        raise Declined("the engine is overloaded", reply, body, trouble="overloaded", retryable=True)
    if status in (401, 403):
        raise BackendError("the engine does not let the gateway in", trouble="broken", retryable=True)
    if status == 504 and request.call.kind == "llm":
        # As for a head that never came: nothing has gone out, and whoever said 504 has given the call up.
        raise BackendError("the engine did not answer in time", trouble="timeout", retryable=True)
    if status >= 500 and status != 504:
        raise Declined("the engine failed inside", reply, await whole(reply), trouble="broken", retryable=False)
    if status != 200 and status < 400:
        raise BackendError("the engine failed inside", trouble="broken", retryable=False)


async def _events(reply: Reply) -> AsyncIterator[list[bytes]]:
    """The stream's whole events as they come. A stream that ends inside one has been cut off."""
    events = sse.Events()
    try:
        async for chunk in reply.chunks:
            yield events.feed(chunk)
    except ApiError as error:
        raise BackendError(error.message, trouble="broken", retryable=False) from error
    if events.rest().strip():
        raise BackendError("the engine broke off inside an event", trouble="broken", retryable=True)


async def _pieces(reply: Reply) -> AsyncIterator[list[bytes]]:
    async for piece in reply.chunks:
        yield [piece]


async def _until_content(events: AsyncIterator[list[bytes]]) -> list[bytes]:
    held: list[bytes] = []
    async for batch in events:
        held += batch
        try:
            if any(sse.carries_content(event) for event in batch):
                return held
        except ApiError as error:
            raise BackendError(error.message, trouble="broken", retryable=False) from error
    raise BackendError("the engine's stream ended before it began", trouble="broken", retryable=True)


async def whole(reply: Reply) -> bytes:
    """A body as it is when all of it has come. Raises BackendError, also where there is too much of it."""
    pieces: list[bytes] = []
    size = 0
    async for piece in reply.chunks:
        size += len(piece)
        if size > BODY_MOST:
            raise BackendError("the engine's answer is too large", trouble="broken", retryable=False)
        pieces.append(piece)
    return b"".join(pieces)


def explained(refusal: RefusedCall, last: BackendError | None) -> ApiError:
    """Why a call gets no answer, as its client will see it."""
    if isinstance(last, Declined) and last.words is not None and last.trouble == refusal.reason:
        return last.words
    again = refusal.retry_after if refusal.retry_after is not None else 1.0
    if last is not None and last.retry_after is not None:
        again = max(again, last.retry_after)
    match refusal.reason:
        case "queue_full":
            return refused("the queue of this pool is full", retry_after=again)
        case "late":
            return refused("this run could not meet its deadline now", retry_after=again)
        case "no_engine" | "refused":
            return unavailable(retry_after=again)
        case "overloaded":
            return unavailable("the engines of this pool are overloaded", retry_after=again)
        case "timeout":
            return timeout("the engine did not answer in time")
        case _:
            return broken(f"{last}", again=last.trouble != "crashed") if last is not None else broken()


def _header(reply: Reply, name: str) -> str:
    return next((value for key, value in reply.headers if key.lower() == name), "")


def _retry_after(reply: Reply) -> float | None:
    """Seconds, however the engine puts them: as a number, or as the date that it will be then. None for nonsense."""
    value = _header(reply, "retry-after").strip()
    if _SECONDS.fullmatch(value):
        return min(REST_MOST, float(value))
    try:
        then = parsedate_to_datetime(value)
    except (TypeError, ValueError, OverflowError):
        return None
    left = (then if then.tzinfo is not None else then.replace(tzinfo=UTC)) - datetime.now(UTC)
    return min(REST_MOST, max(0.0, left.total_seconds()))
