"""One request within its key's quota: let in or refused, its tokens charged, its reply told what is left."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

from starlette.types import Message, Send

from gateway import headers as names
from gateway.openai.errors import ApiError, refused
from gateway.quotas import CLOSE, Quota, Spent

if TYPE_CHECKING:  # it imports what reads requests, which imports this
    from gateway.computing import Completion

AGAIN = 1.0
"""Seconds after which to try again where nobody knows when a call will end."""
_WORDS = {
    "requests": ("request_quota_exceeded", "this API key's requests are used up for now"),
    "tokens": ("token_quota_exceeded", "this API key's tokens are used up for now"),
    "concurrency": ("concurrency_quota_exceeded", "this API key has as many requests open as it may"),
}


class Allowance:
    """What one request may use. Whoever has entered leaves.

    Tokens that were reserved and not used go back at the end; what was used beyond them is a debt of the key.
    """

    def __init__(self, quota: Quota, clock: Callable[[], float]) -> None:
        self._quota = quota
        self._now = clock
        self._reserved = 0.0
        self._used = 0.0

    def enter(self) -> None:
        """Be let in. Raises ApiError 429."""
        spent = self._quota.enter(self._now())
        if spent is not None:
            raise _refused(spent)

    def leave(self) -> None:
        """The request is over, however it ended."""
        self._quota.leave()
        self._quota.charge(self._used - self._reserved, self._now())

    def reserve(self, tokens: float) -> None:
        """Set so many tokens aside. Raises ApiError 429."""
        taken = self._quota.reserve(tokens, self._now())
        if isinstance(taken, Spent):
            raise _refused(taken)
        self._reserved += taken

    def use(self, tokens: float) -> None:
        """So many tokens were read and written."""
        self._used += tokens

    @asynccontextmanager
    async def charged(
        self, opened: AbstractAsyncContextManager[Completion], prompt: int
    ) -> AsyncIterator[Completion]:
        """Use what an answer takes; `prompt` is what its prompt is taken for where the engine does not say.

        An answer that was there already, or is computed for somebody else, takes nothing.
        """
        async with opened as found:
            try:
                yield found
            finally:
                if found.cache not in ("hit", "joined") and found.status == 200:
                    tokens = found.tokens
                    self.use((tokens.prompt or prompt) + (tokens.output or tokens.events))

    def telling(self, send: Send) -> Send:
        """As `send`, with what is left in the head of the reply, in the place of what an engine says of its own."""

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                said = [(name.lower().encode(), value.encode()) for name, value in self.left()]
                ours = {name for name, _ in said}
                kept = [pair for pair in message["headers"] if pair[0] not in ours]
                message = {**message, "headers": [*kept, *said]}
            await send(message)

        return told

    def left(self) -> list[tuple[str, str]]:
        """What is left, in OpenAI's words."""
        buckets = {"requests": self._quota.requests, "tokens": self._quota.tokens}
        said: dict[str, str] = {}
        for what, bucket in buckets.items():
            if bucket is not None:
                now = self._now()
                said[f"{what}_limit"] = f"{bucket.capacity:.0f}"
                said[f"{what}_remaining"] = str(max(0, math.floor(bucket.level(now) + CLOSE)))
                said[f"{what}_reset"] = lasting(bucket.full_in(now))
        return names.written("reply", said)


def _refused(spent: Spent) -> ApiError:
    code, message = _WORDS[spent.what]
    return refused(message, retry_after=AGAIN if spent.wait is None else spent.wait, code=code)


def lasting(seconds: float) -> str:
    """A duration as OpenAI's header has it: `172ms`, `8.64s`, `6m0s`, `1h0m3s`."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms" if seconds else "0s"
    minutes, rest = divmod(math.ceil(seconds * 100) / 100, 60)
    hours, minutes = divmod(int(minutes), 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + f"{round(rest, 2):g}s"
